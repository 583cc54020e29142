"""Choosing tasks by their rewards: properties of every step, both readings, and what a folder of it holds."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unbraid.chat.types import Call, Mode, Reading
from unbraid.data.refine import (
    SAME,
    STARVES,
    TOO_EASY,
    TOO_HARD,
    UNMEASURED,
    VARIES,
    RefineConfig,
    balance,
    low_variance,
    mixed_groups,
    refine,
    reward_variance,
    stratify,
)
from unbraid.data.task_rows import write_task_lines
from unbraid.errors import DataError
from unbraid.label.from_recipe import settings_of
from unbraid.label.refining import NOT_SEEN, Measured, choose, from_rollouts, refine_folder
from unbraid.label.task_lines import labelled
from unbraid.label.tries import SAMPLES, Try, TryLog
from unbraid.tasks.task import Task

REWARD = st.sampled_from([-1.0, -0.5, 0.5, 1.0])
GROUPS = st.lists(st.lists(REWARD, min_size=0, max_size=8), min_size=1, max_size=40)
METHODS = ("paper", "mixed_groups", "stratify")


Columns = tuple[list[str], list[NDArray[np.float64]], list[float], list[str]]


def columns(groups) -> Columns:
    ids = [f"t{i}" for i in range(len(groups))]
    rewards = [np.array(g) for g in groups]
    right = [float(np.mean(np.array(g) > 0)) if g else 0.0 for g in groups]
    return ids, rewards, right, [f"level {len(g) % 3}" for g in groups]


@given(GROUPS, st.sampled_from(METHODS), st.integers(0, 3), st.floats(0.01, 1))
def test_every_task_is_kept_or_has_a_reason(groups, method, seed, keep):
    ids, *_ = all_columns = columns(groups)
    found = refine(*all_columns, RefineConfig(method=method, seed=seed, keep=keep))
    assert Counter([*found.kept, *found.dropped]) == Counter(ids)
    assert found.kept == [one for one in ids if one in set(found.kept)]  # in the order given
    if method != "mixed_groups":
        assert len(found.kept) <= max(1, round(keep * len(ids)))


@given(GROUPS, st.sampled_from(METHODS), st.randoms())
def test_the_order_of_tasks_and_of_rewards_changes_nothing(groups, method, random):
    ids, rewards, right, levels = columns(groups)
    config = RefineConfig(method=method, seed=5)
    rows = list(zip(ids, [np.array(random.sample(list(r), len(r))) for r in rewards], right, levels, strict=True))
    random.shuffle(rows)
    first = refine(ids, rewards, right, levels, config)
    shuffled: Any = zip(*rows, strict=True)
    assert set(refine(*shuffled, config=config).kept) == set(first.kept)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60), st.integers(0, 5))
def test_half_of_either_extreme_goes(right, seed):
    ids = [str(i) for i in range(len(right))]
    reasons = balance(ids, right, seed=seed).reasons
    assert reasons[TOO_EASY] == right.count(1.0) // 2 and reasons[TOO_HARD] == right.count(0.0) // 2
    assert reasons.total() == right.count(1.0) // 2 + right.count(0.0) // 2


def test_the_seed_picks_the_half():
    ids = [str(i) for i in range(40)]
    halves = {tuple(balance(ids, [1.0] * 40, seed=seed).kept) for seed in range(5)}
    assert len(halves) == 5 and balance(ids, [1.0] * 40, seed=3) == balance(ids, [1.0] * 40, seed=3)


@given(GROUPS, st.integers(0, 50))
def test_what_is_kept_varies_least(groups, most):
    ids, rewards, *_ = columns(groups)
    found = low_variance(ids, rewards, most)
    variance = dict(zip(ids, map(reward_variance, rewards), strict=True))
    assert len(found.kept) == min(most, sum(len(g) > 1 for g in groups))
    assert {one for one, why in found.dropped.items() if why == UNMEASURED} == {i for i in ids if np.isnan(variance[i])}
    left = [variance[one] for one, why in found.dropped.items() if why == VARIES]
    assert not left or not found.kept or max(variance[one] for one in found.kept) <= min(left)


def test_the_variance_is_the_papers():
    values = [1.0, -1.0, 0.5, 0.5]
    mean = sum(values) / 4
    assert reward_variance(np.array(values)) == pytest.approx(sum((r - mean) ** 2 for r in values) / 3)
    assert reward_variance(np.array([0.1] * 7)) == 0.0


def test_low_variance_across_samples_starves_grpo_and_mixed_groups_do_not():
    """The reason for the printed note: the two filters are opposites."""
    groups = [[1.0] * 8] * 10 + [[-1.0] * 8] * 10 + [[1.0, -1.0] * 4] * 20
    ids, rewards, *_ = all_columns = columns(groups)
    paper = refine(*all_columns, RefineConfig(keep=0.25))
    mixed = refine(*all_columns, RefineConfig(method="mixed_groups"))
    assert not set(paper.kept) & set(mixed.kept)
    assert mixed.reasons == {SAME: 20} and mixed_groups(ids, rewards) == mixed


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 60))
def test_levels_are_as_even_as_they_can_be(levels, most):
    ids = [str(i) for i in range(len(levels))]
    found = stratify(ids, levels, most)
    have, kept = Counter(levels), Counter(levels[int(one)] for one in found.kept)
    assert sum(kept.values()) == min(most, len(ids))
    cut = [kept[level] for level in have if kept[level] < have[level]]
    assert not cut or max(kept[level] for level in have) - min(cut) <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([], [], [], []), "no task"),
        ((["a"], [], [1.0], ["x"]), "0 rewards for 1 tasks"),
        ((["a", "a"], [np.ones(2)] * 2, [1.0] * 2, ["x"] * 2), "repeat"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(DataError, match=said):
        refine(*arguments)


# Folders ------------------------------------------------------------------------------------------------------------


def tasks(count: int) -> list[Task]:
    return [
        Task(f"t{i}", ({"role": "user", "content": f"ask {i}"},), expected=(Call("f", {"i": i}),), level="abc"[i % 3])
        for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    """Label samples of 30 tasks: task i is right in i % 5 of 4 tries."""
    found = tasks(30)
    with TryLog(tmp_path / "labels", {}) as log:
        for i, task in enumerate(found):
            for n in range(4):
                right = n < i % 5
                reading = Reading(Mode.NO_THINK, "", task.expected if right else (), "", ())
                log.append([Try(task.id, Mode.NO_THINK, n, reading, right, 1.0 if right else -1.0, "", 5)])
    write_task_lines(tmp_path / "labels" / "tasks.jsonl", found[:20])
    write_task_lines(tmp_path / "labels" / "dropped.jsonl", found[20:])
    return tmp_path / "labels"


def test_a_folder_of_labels(folder, tmp_path):
    found = refine_folder(folder, tmp_path / "a", RefineConfig(keep=0.5))
    assert found.notes == [STARVES] and len(found.tasks) == 15
    assert found.refined.reasons[TOO_HARD] == found.refined.reasons[TOO_EASY] == 3
    assert labelled(str(tmp_path / "a")) == found.tasks
    books = json.loads((tmp_path / "a" / "books.json").read_text())
    assert books["tasks"] == 30 == books["kept"] + sum(books["dropped"].values())
    rows = [json.loads(line) for line in (tmp_path / "a" / "refined.jsonl").read_text().splitlines()]
    assert len(rows) == 30 and all(row["n"] == 4 for row in rows)
    # Again, and over an unfinished file of a run that was killed: the same bytes.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tasks.jsonl").write_text('{"id": "half')
    refine_folder(folder, tmp_path / "b", RefineConfig(keep=0.5))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_folders_that_do_not_fit(folder, tmp_path):
    with pytest.raises(DataError, match="no rounds"):
        refine_folder(folder, tmp_path / "a", across="rounds")
    with pytest.raises(DataError, match="overwrite"):
        refine_folder(folder, folder)
    with pytest.raises(DataError, match="use samples or rounds"):
        refine_folder(folder, tmp_path / "a", across="epochs")
    with pytest.raises(DataError, match="keep is 3"):
        settings_of(RefineConfig, keep=3, seed=None)
    with pytest.raises(DataError, match="neither"):
        refine_folder(tmp_path, tmp_path / "a")
    assert (folder / SAMPLES).exists()


def test_rounds_take_the_mean_of_every_step_and_samples_do_not(tmp_path, monkeypatch):
    """The same rollouts, both readings: a steadily mixed task varies across samples and not across rounds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from unbraid.label import refining

    (tmp_path / "rollouts").mkdir()
    for step in range(4):
        rows = [{"task_id": "t0", "reward": r, "correct": r > 0} for r in (1.0, -1.0, 1.0, -1.0)]
        rows += [{"task_id": "t1", "reward": r, "correct": r > 0} for r in [1.0 if step % 2 else -1.0] * 4]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rollouts" / f"step_{step:06d}.parquet")
    found = tasks(3)
    monkeypatch.setattr(refining, "load_recipe", lambda layers: None)
    monkeypatch.setattr(refining, "chat_format", lambda recipe: None)
    monkeypatch.setattr(refining, "training_tasks", lambda recipe, chat: type("T", (), {"tasks": found}))
    _, rounds = from_rollouts(tmp_path, "rounds")
    _, samples = from_rollouts(tmp_path, "samples")
    assert rounds["t0"].rewards.tolist() == [0.0] * 4 and rounds["t1"].rewards.tolist() == [-1.0, 1.0, -1.0, 1.0]
    assert len(samples["t0"].rewards) == 16 and samples["t0"].right == rounds["t1"].right == 0.5
    kept = refine_folder(tmp_path, tmp_path / "out", RefineConfig(keep=0.5))
    assert [t.id for t in kept.tasks] == ["t0"] and kept.notes == []
    assert kept.refined.dropped == {"t1": VARIES, "t2": NOT_SEEN}


def test_one_round_is_no_variance():
    measured = {"t0": Measured(np.array([1.0]), 1.0)}
    with pytest.raises(DataError, match="more than one round"):
        choose(tasks(1), measured, RefineConfig(), "rounds")
    assert choose(tasks(1), measured, RefineConfig(method="stratify"), "rounds").refined.kept == ["t0"]
