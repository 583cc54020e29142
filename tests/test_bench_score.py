"""The record of a benchmark run: what it adds up to, resuming, refusing what was asked otherwise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from unbraid.bench.score import (
    Entry,
    Setting,
    add_entries,
    close_record,
    limited,
    open_record,
    read_entries,
    read_score,
    records_of,
    score_entries,
)
from unbraid.bench.table import benchmark_table
from unbraid.chat.types import Mode
from unbraid.errors import DataError

SETTING = Setting(
    benchmark="made-up", version="1", checker="ours", handler="none", model="mine", checkpoint="final",
    template="tag, hermes", mode=Mode.AUTO, temperature=0.0, max_tokens=64, parameters=2_000_000_000,
    versions={"torch": "2"},
)  # fmt: skip
MODES = (Mode.THINK, Mode.NO_THINK, Mode.NONE, None)


def entries(n: int = 40) -> list[Entry]:
    rng = np.random.default_rng(0)
    return [
        Entry(f"q{i}", "ab"[i % 2], float(rng.random() < 0.6), int(rng.integers(5, 50)), MODES[i % 4]) for i in range(n)
    ]


def test_scores_follow_from_entries():
    found, made = score_entries(SETTING, entries(), {"overall": 0.5}), entries()
    right = [e.score for e in made]
    wilson = stats.binomtest(int(sum(right)), 40).proportion_ci(0.95, method="wilson")
    assert found.accuracy.value == pytest.approx(np.mean(right))
    assert (found.accuracy.low, found.accuracy.high, found.accuracy.n) == pytest.approx((*wilson, 40))
    assert {k: v.n for k, v in found.categories.items()} == {"a": 20, "b": 20}
    assert found.categories["a"].value == pytest.approx(np.mean([e.score for e in made if e.category == "a"]))
    assert found.think_rate and (found.think_rate.value, found.think_rate.n) == (0.5, 20)  # of modes that are known
    tokens = np.mean([e.tokens for e in made])
    assert found.tokens.value == pytest.approx(tokens)
    assert found.acu == pytest.approx(100 * 100 * np.mean(right) / (2 * tokens))
    assert found.totals == {"overall": 0.5}
    assert score_entries(replace(SETTING, parameters=None), made).acu is None
    parts = score_entries(SETTING, [replace(e, score=0.25 + e.score / 2) for e in made])
    assert parts.accuracy.value == pytest.approx(0.25 + np.mean(right) / 2) and parts.accuracy.low is not None
    with pytest.raises(DataError, match="no entry"):
        score_entries(SETTING, [])


def test_a_record_goes_on_where_it_was(tmp_path):
    folder, made = SETTING.folder(tmp_path), entries()
    assert folder == tmp_path / "benchmarks" / "made-up" / "final-auto-greedy"
    step = replace(SETTING, checkpoint="checkpoints/step-000010", temperature=0.7)
    assert step.folder(tmp_path) == folder.with_name("checkpoints.step-000010-auto-T0.7")
    assert open_record(folder, SETTING) == [] and records_of(tmp_path) == []
    add_entries(folder, made[:10])
    with (folder / "entries.jsonl").open("a") as file:
        file.write('{"id": "q10", "categ')  # killed while it wrote
    assert open_record(folder, replace(SETTING, limit=5, command="again")) == made[:10]
    add_entries(folder, made[10:])
    score = close_record(folder, SETTING, {"overall": 0.25})
    assert read_entries(folder) == made and read_score(folder) == score and records_of(tmp_path) == [folder]
    assert score == score_entries(SETTING, made, {"overall": 0.25})
    assert open_record(folder, SETTING, again=True) == [] and not (folder / "score.json").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"temperature": 0.5}, "temperature 0.0 (now 0.5)"), ({"version": "2"}, "version 1 (now 2)"),
     ({"versions": {"torch": "3"}}, "torch 2 (now 3)"), ({"other": {"topk": "5"}}, "topk None (now 5)")],
)  # fmt: skip
def test_entries_asked_otherwise_are_not_mixed(tmp_path, changed, said):
    open_record(tmp_path, SETTING)
    add_entries(tmp_path, entries(2))
    with pytest.raises(DataError) as problem:
        open_record(tmp_path, replace(SETTING, **changed))
    assert said in str(problem.value) and "--again" in str(problem.value)
    assert len(read_entries(tmp_path)) == 2


def test_broken_records_are_said_in_one_line(tmp_path):
    open_record(tmp_path, SETTING)
    (tmp_path / "entries.jsonl").write_text('{"id": 1}\n{}\n')
    with pytest.raises(DataError, match=r"entries\.jsonl:1: no entry"):
        read_entries(tmp_path)
    with pytest.raises(DataError, match="holds no score"):
        read_score(tmp_path)
    (tmp_path / "score.json").write_text("{}")
    with pytest.raises(DataError, match="not what this version writes"):
        read_score(tmp_path)


def test_a_larger_limit_keeps_what_a_smaller_one_chose():
    items = {"a": list(range(100)), "b": list(range(7))}
    small, large = limited(items, 5), limited(items, 20)
    assert [len(v) for v in small.values()] == [5, 5] and [len(v) for v in large.values()] == [20, 7]
    assert all(set(small[k]) <= set(large[k]) for k in items)
    assert large["a"] == sorted(large["a"]) != list(range(20))
    assert limited(items, None) == items


def test_the_table_names_everything(capsys):
    from rich.console import Console

    Console(width=160).print(benchmark_table([score_entries(SETTING, entries(), {"overall": 0.5})]))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("made-up", "mine/final, auto, greedy", "overall", "50.0", "  a", "  b"))
