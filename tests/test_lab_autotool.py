"""The claims run: the plan and its methods, cells that are whole or absent, work within a time budget."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_work import fail, succeed
from rich.console import Console

from unbraid.chat.types import Call, Mode, Reading
from unbraid.errors import RecipeError
from unbraid.lab import starts
from unbraid.lab.autotool import cells as cells_module
from unbraid.lab.autotool.cells import (
    Cell,
    Part,
    cell_folder,
    check_budgets,
    mixture,
    plan,
    read_cell,
    recipe_of,
    run_cell,
    start_folder,
)
from unbraid.lab.autotool.methods import CLAIM_SHARE, METHODS, SERVED, SHARES, SWEEP_ORDER, SWEPT
from unbraid.lab.autotool.refined import refine_prompts, refined_set
from unbraid.lab.autotool.rewards import COST, length_penalty
from unbraid.lab.autotool.run import autotool, work_for
from unbraid.lab.autotool.served import MARGIN, PASSES, stream, with_second_thoughts
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import KNOWN, LEVELS, CallsWorld, held_out
from unbraid.lab.measure import load_start
from unbraid.lab.starts import Start
from unbraid.lab.sweep import Schedule, Work, run_within
from unbraid.learn.log import read_rollouts
from unbraid.rollout.local import LocalSampler
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.second_thoughts import Allowance
from unbraid.rollout.trajectory import Trajectory
from unbraid.run import silent
from unbraid.tasks.reward import RewardConfig, reward_function, score
from unbraid.tasks.task import Task

SMALL = ("learn.steps=4", "rollout.prompts=2", "rollout.samples=2", "evaluate.limit=36", "checkpoint.every=1")
PLAIN = Cell(0, Start.FUZZY, CLAIM_SHARE, "plain", 0)
RUN = [name for name, method in METHODS.items() if not method.serves]
"""Methods that have cells of their own."""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start after a very short warm-up."""
    policy, folder = load_start(base_path(0)), tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unbraid.lab.starts.WARMUP", starts.WARMUP.model_copy(update={"steps": 10}))
        starts.make_start(policy, CallsWorld(0), Start.FUZZY)
    policy.save(folder)
    return folder


@pytest.fixture
def out(tmp_path: Path, warm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with starts, which are all one here; RL has few prompts to read."""
    monkeypatch.setattr(cells_module, "PROMPTS", 8)
    for start in ("fuzzy", "distilled"):
        shutil.copytree(warm, start_folder(PLAIN, tmp_path) / "starts" / start)
    return tmp_path


def test_the_plan_has_whole_bases_first_and_every_cell_once():
    cells = plan(bases=3, seeds=2)
    assert [c.method for c in cells[: len(RUN)]] == RUN
    assert {(c.base, c.seed) for c in cells[: len(RUN)]} == {(0, 0)}
    assert cells[len(RUN)].base == 1 and cells[3 * len(RUN)].seed == 1
    assert len({c.name for c in cells}) == len(cells) == 6 * (len(RUN) + 5 + 4 * 6)
    assert sorted((*SWEEP_ORDER, CLAIM_SHARE)) == list(SHARES)
    clear = [c for c in cells if c.start is Start.CLEAR]
    assert {c.method for c in clear} == {"mixed_warmup", *SWEPT}
    sweep = Counter((c.method, c.share) for c in cells if c.share != CLAIM_SHARE)
    assert set(sweep.values()) == {6} and {m for m, _ in sweep} == set(SWEPT)


def test_methods_differ_from_plain_in_what_they_are_named_for_and_nothing_else():
    allowed = {
        "recommended": {"constraints", "learn.advantage_scale", "learn.mode_weight", "learn.kl"},
        "autotool_refined": {"constraints", "tasks.train"},
        "without_asymmetry": {"constraints", "reward.right", "reward.wrong"},
        "length_penalty": {"reward.function"},
        "advantage_none": {"learn.advantage_scale"},
        "advantage_batch": {"learn.advantage_scale"},
        "mode_entropy": {"constraints", "learn.advantage_scale"},
    }

    def flat(method: str) -> dict[str, object]:
        dumped = recipe_of(replace(PLAIN, method=method), Path()).model_dump(mode="json")
        del dumped["name"], dumped["label"]
        return {
            f"{section}.{key}" if isinstance(value, dict) else section: inner
            for section, value in dumped.items()
            for key, inner in (value.items() if isinstance(value, dict) else [("", value)])
        }

    plain = flat("plain")
    for name in RUN:
        if METHODS[name].is_trained and name != "plain":
            other = flat(name)
            changed = {key for key in plain if plain[key] != other[key]}
            assert changed == allowed.get(name, {"constraints"}), name
    published, one = flat("autotool_published")["constraints"], flat("without_decoupling")["constraints"]
    assert isinstance(published, list) and isinstance(one, list)
    assert one[0]["coefficient"] == published[0]["coefficient"]["think"], "decoupling is all that goes"


def test_all_methods_draw_equally_many_responses(monkeypatch: pytest.MonkeyPatch):
    assert check_budgets(plan(1, 1)) == 50 * 32 * 8
    more = replace(METHODS["plain"], overrides=("rollout.samples=16",))
    monkeypatch.setitem(cells_module.METHODS, "plain", more)
    with pytest.raises(RecipeError, match="unequal budgets"):
        check_budgets(plan(1, 1))


def test_the_length_penalty_takes_the_same_off_right_and_wrong():
    task = held_out(0, "dev")[0]
    for calls in (task.expected, (Call("nothing", {}),)):
        for mode, thought in ((Mode.NO_THINK, ""), (Mode.THINK, "use t1 ; so value e3")):
            reading = Reading(mode, thought, calls, "", ())
            published, ours = score(task, reading, RewardConfig()), length_penalty(task, reading)
            assert ours.total == pytest.approx(published.total - COST * len(thought.split()))
            assert ours.total == pytest.approx(sum(ours.parts.values())) and ours.correct == published.correct


def test_a_cell_is_run_once_wherever_its_folder_goes(out: Path, monkeypatch: pytest.MonkeyPatch):
    assert run_cell(PLAIN, out, SMALL, silent) > 0
    result = read_cell(PLAIN, out, SMALL)
    assert result and result.cell == PLAIN and result.responses == 16
    assert result.known.tasks + result.unknown.tasks == 36
    rows = (cell_folder(PLAIN, out, SMALL) / "metrics.jsonl").read_text().splitlines()
    assert result.sampled_tokens == round(sum(4 * json.loads(row)["tokens"] for row in rows))
    assert not any((out / "unfinished").iterdir())
    monkeypatch.setattr("unbraid.run.train", lambda *_, **__: pytest.fail("ran again"))
    assert run_cell(PLAIN, out, SMALL, silent) == 0
    moved = out.rename(out.with_name("moved"))
    assert read_cell(PLAIN, moved, SMALL) == result
    assert read_cell(PLAIN, moved, (*SMALL, "learn.clip_low=0.1")) is None, "another recipe is another cell"


def test_what_decides_the_result_is_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch):
    before = {name: cell_folder(replace(PLAIN, method=name), Path()).name for name in RUN}
    assert len({name.rpartition("-")[2] for name in before.values()}) == len(RUN)
    monkeypatch.setattr(cells_module, "PASSES", 5)
    other = {name: cell_folder(replace(PLAIN, method=name), Path()).name for name in RUN}
    assert {name for name in RUN if before[name] != other[name]} == SERVED.keys()
    monkeypatch.setattr(cells_module, "WORLD_VERSION", 99)
    after = {name: cell_folder(replace(PLAIN, method=name), Path()).name for name in RUN}
    assert not before.items() & after.items()


def test_recommended_is_served_with_second_thoughts_too(out: Path):
    cell = replace(PLAIN, method="recommended")
    run_cell(cell, out, SMALL, silent)
    itself, served = (read_cell(cell, out, SMALL) or pytest.fail("no result")).with_served
    assert (itself.cell, served.cell) == (cell, replace(cell, method="second_thoughts")) and itself.served
    assert served.end_think_rate is None and served.with_served == [served]
    assert served.spent_before == itself.served.spent > 0 and served.responses == itself.responses
    drawn = read_rollouts(cell_folder(cell, out, SMALL) / "served.parquet")
    tests = {task.id: task for task in held_out(0, "test") if task.id in {t.task_id for t in drawn}}
    assert len(drawn) == 4 * len(tests) and len(tests) == served.known.tasks + served.unknown.tasks == 36
    known = {which: [t for t in drawn if tests[t.task_id].extra["known"] is which] for which in (False, True)}
    assert len(known[True]) == round(cell.share * len(drawn))
    by_task: dict[str, list[Trajectory]] = {}
    for t in known[False]:
        by_task.setdefault(t.task_id, []).append(t)
    for measure, value in (("correct", served.unknown.accuracy), ("response_tokens", served.unknown.tokens)):
        means = [np.mean([getattr(t, measure) for t in answers]) for answers in by_task.values()]
        assert value == pytest.approx(np.mean(means))
    # The base knows what it does not know, whatever ten steps of warm-up and four of RL have made of the weights.
    thinks = {which: np.mean([t.mode is Mode.THINK for t in answers]) for which, answers in known.items()}
    assert thinks[False] > thinks[True] + 0.5
    assert served.test().accuracy > itself.test().accuracy


@given(st.floats(0, 1), st.integers(1, 5), st.integers(1, 9))
def test_a_stream_has_the_share_and_is_fair(share: float, known: int, unknown: int):
    tests = [Task(f"{i}", (), (), extra={"known": i < known}) for i in range(known + unknown)]
    found = [task.id for task in stream(tests, share)]
    assert len(found) == PASSES * len(tests) and found == [task.id for task in stream(tests, share)]
    counts = Counter(found)
    kinds = ([counts[t.id] for t in tests if t.extra["known"] is which] for which in (True, False))
    of_known, of_unknown = kinds
    assert sum(of_known) == round(share * len(found))
    assert max(of_known) - min(of_known) <= 1 >= max(of_unknown) - min(of_unknown)


def test_a_stream_of_what_there_is_none_of_is_refused():
    with pytest.raises(ValueError, match="4 tests are to be unknown, and none is"):
        stream([Task("a", (), (), extra={"known": True})] * 2, 0.5)


def test_the_goals_tokens_are_kept_to():
    policy, world = load_start(base_path(0)), CallsWorld(0)
    prompts = world.training_tasks(120, 0.5, 0)
    tests = stream(prompts, 0.5)
    roll = SingleStep(LocalSampler(policy), policy.format, reward_function(RewardConfig()), 96)
    drawn, how, spent = with_second_thoughts(roll, roll, prompts, tests)
    long = {task.id: 11 + 10 * (int(task.level) + 1) for task in prompts}
    known = [task for task in prompts if task.extra["known"]]
    allowed = np.mean(list(long.values())) - (0.8 + MARGIN) * sum(long[task.id] - 10 for task in known) / 120
    assert isinstance(how.doubt, Allowance) and how.doubt.tokens == pytest.approx(allowed)
    assert np.mean([t.response_tokens for t in drawn]) == pytest.approx(allowed, rel=0.05)
    assert (how.doubt.tasks, how.doubt.spent) == (480, sum(t.response_tokens for t in drawn))
    assert [t.task_id for t in drawn] == [task.id for task in tests] and spent > 120 * allowed
    # The base has no opinion on whether to think, and what is right was looked at on the prompts only.
    assert np.mean([t.correct for t in drawn]) > 0.9


def test_a_killed_cell_goes_on_and_ends_as_an_unbroken_one(out: Path, monkeypatch: pytest.MonkeyPatch):
    run_cell(PLAIN, out, SMALL, silent)
    whole = read_cell(PLAIN, out, SMALL)
    assert whole
    folder = cell_folder(PLAIN, out, SMALL)
    folder.rename(out / "whole")

    def kill(stage: str, done: int, total: int, metrics: object) -> None:
        if (stage, done) == ("train", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(PLAIN, out, SMALL, kill)
    assert read_cell(PLAIN, out, SMALL) is None and (out / "unfinished" / folder.name).is_dir()
    # Killed again, in the middle of writing the result: still no cell.
    with monkeypatch.context() as patched:
        patched.setattr(cells_module.shutil, "copy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_cell(PLAIN, out, SMALL, silent)
    assert read_cell(PLAIN, out, SMALL) is None
    taken = []
    run_cell(PLAIN, out, SMALL, lambda stage, done, *_: taken.append((stage, done)))
    assert ("train", 1) not in taken, "began anew instead of going on"
    again = read_cell(PLAIN, out, SMALL)
    assert again and replace(again, seconds=0) == replace(whole, seconds=0)


def test_an_unfinished_cell_of_another_place_starts_anew(out: Path):
    left = out / "unfinished" / cell_folder(PLAIN, out, SMALL).name
    left.mkdir(parents=True)
    (left / "recipe.yaml").write_text(recipe_of(PLAIN, out / "elsewhere", SMALL).to_yaml())
    run_cell(PLAIN, out, SMALL, silent)
    assert read_cell(PLAIN, out, SMALL)


def test_refined_prompts_are_found_once_and_are_what_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "kept" / "prompts.json"
    refine_prompts(base_path(0), 0, CLAIM_SHARE, 24, 0, file)
    found = json.loads(file.read_text())
    tasks = refined_set(0, CLAIM_SHARE, 24, 0, str(file))
    assert [t.id for t in tasks] == found["kept"] and len(tasks) == 8
    assert found["known_share"] == np.mean([t.extra["known"] for t in tasks])
    assert found["tokens"] >= 24 * 8 * 2 and sum(found["dropped"].values()) == 16
    monkeypatch.setattr("unbraid.lab.autotool.refined.load_start", lambda _: pytest.fail("sampled again"))
    refine_prompts(base_path(0), 0, CLAIM_SHARE, 24, 0, file)


def test_weighting_the_test_set_is_testing_at_another_share():
    known, unknown = Part(30, 0.9, 10.0, 0.1), Part(10, 0.5, 40.0, 0.9)
    assert mixture(known, unknown).accuracy == pytest.approx((30 * 0.9 + 10 * 0.5) / 40)
    assert mixture(known, unknown, 0.25).tokens == pytest.approx(0.25 * 10 + 0.75 * 40)
    # It is, because known test questions have the mix of levels that known prompts have at any share.
    levels = Counter(int(t.level) for t in held_out(0, "test") if t.extra["known"])
    shares = np.array([levels[k] for k in range(LEVELS)]) / levels.total()
    np.testing.assert_allclose(shares, np.array(KNOWN) / sum(KNOWN), atol=0.005)


def quick(name: str, after: tuple[str, ...] = (), kind: str = "", expected: float = 10.0) -> Work:
    return Work(name, lambda: 0.0, (), after, kind, expected)


def test_work_starts_in_order_when_what_it_needs_is_there():
    schedule = Schedule([quick("base"), quick("a", ("base",)), quick("b", ("base",)), quick("other")])
    assert [getattr(schedule.start_next(0), "name", None) for _ in range(3)] == ["base", "other", None]
    schedule.finished("base", 5)
    assert [getattr(schedule.start_next(5), "name", None) for _ in range(3)] == ["a", "b", None]
    schedule.fails("a", "no")
    assert schedule.left == [] and schedule.failed == {"a": "no"}


def test_nothing_waits_for_what_failed():
    schedule = Schedule([quick("base"), quick("a", ("base",))])
    schedule.start_next(0)
    schedule.fails("base", "broken")
    assert schedule.start_next(1) is None and schedule.left == ["a"]


def test_nothing_is_started_that_would_not_end_in_time():
    work = [quick("one", kind="cell"), quick("two", kind="cell"), quick("small", expected=1.0)]
    schedule = Schedule(work, budget=30.0)
    first = schedule.start_next(0)
    assert first and first.name == "one"
    schedule.finished("one", 25.0)  # slower than expected: the second would end at 50
    following = schedule.start_next(25.0)
    assert following and following.name == "small"
    assert schedule.start_next(25.0) is None and schedule.left == ["two"]


def test_no_base_is_built_that_nothing_could_use():
    schedule = Schedule([quick("base", expected=20), quick("cell", ("base",), expected=15)], budget=30.0)
    assert schedule.start_next(0) is None
    assert Schedule(schedule.work, budget=35.0).start_next(0) is not None


def test_a_failure_is_reported_and_the_others_go_on():
    work = [Work("bad", fail, ()), Work("waits", succeed, (1.0,), ("bad",)), Work("good", succeed, (2.0,))]
    done = run_within(work, 1, None, Console(quiet=True))
    assert (done.failed, done.seconds, done.left) == ({"bad": "ValueError: planted"}, {"good": 2.0}, ["waits"])


def test_no_worker_outlives_a_killed_run(tmp_path: Path):
    file = tmp_path / "pid"
    script = tmp_path / "run.py"
    script.write_text(
        "import planted_work, rich.console, sys\nfrom unbraid.lab.sweep import Work, run_within\n"
        "if __name__ == '__main__':\n"
        "    work = [Work('long', planted_work.wait_for_long, (sys.argv[1],))]\n"
        "    run_within(work, 1, None, rich.console.Console())\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen([sys.executable, str(script), str(file)], env={**os.environ, "PYTHONPATH": paths})
    try:
        assert within(20, lambda: file.exists() and file.read_text())
    finally:
        run.kill()
        run.wait()
    worker = int(file.read_text())
    assert within(10, lambda: not is_alive(worker)), "the worker went on"


def within(seconds: float, holds: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(holds())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_bases_and_starts_come_before_the_cells_that_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unbraid.lab.autotool.run.has_base", lambda world: world == 0)
    work = {w.name: w for w in work_for(plan(2, 1), tmp_path)}
    order = list(work)
    for one in work.values():
        assert all(order.index(name) < order.index(one.name) for name in one.after)
    assert work["base-0-fuzzy-0.66-direct-seed-0"].after == ()
    assert work["base-1-fuzzy-0.66-direct-seed-0"].after == ("base 1",)
    assert work["base-1-fuzzy-0.66-plain-seed-0"].after == ("fuzzy start of base 1, seed 0",)
    assert work["fuzzy start of base 1, seed 0"].after == ("base 1",)
    assert sum(name.startswith("base 1") for name in order) == 1


def test_without_time_it_reports_what_is_there(out: Path, monkeypatch: pytest.MonkeyPatch):
    for method in ("direct", "distilled", "plain"):
        run_cell(replace(PLAIN, method=method), out, SMALL, silent)
    claims = autotool(out, bases=2, minutes=0, overrides=SMALL, console=Console(quiet=True))
    assert len(claims.results) == 3 and len(claims.missing) == 2 * 45 - 3
    assert claims.state.startswith("partial: full list on 0 of 2 bases, 3 of 90 cells")
    assert "too few bases to say" in (out / "claims.html").read_text()
    assert "plain" in (out / "report.html").read_text()
