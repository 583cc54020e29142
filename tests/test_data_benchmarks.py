"""Nothing is learned from a benchmark: neither in RL nor in a warm-up; it may be the test set."""

from types import SimpleNamespace
from typing import Any

import pytest
from rows import call_row, rows_of, write

from unbraid.data import DataConfig, collect
from unbraid.data.task_rows import text_row
from unbraid.errors import DataError
from unbraid.prepare import load_tasks


class Anything:
    """A chat format that takes every prompt and answer."""

    def prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        return [1]

    def response_ids(self, answer: Any) -> list[int]:
        return [1]


def load(train: str, warmup: str = "", test: str = "") -> Any:
    tasks = SimpleNamespace(train=train, warmup=warmup, test=test, validation="")
    evaluate = SimpleNamespace(every=0)
    recipe: Any = SimpleNamespace(tasks=tasks, data=DataConfig(validation=0), seed=0, evaluate=evaluate)
    policy: Any = SimpleNamespace(format=Anything())
    return load_tasks(recipe, policy)


@pytest.mark.parametrize("name", ["bfcl", "acebench", "api-bank", "api-bank-toolrl"])
def test_training_refuses_benchmarks_and_evaluation_takes_them(tmp_path, name):
    rows = str(write(tmp_path / "rows.json", [call_row()]))
    benchmark = str(write(tmp_path / "benchmark.json", rows_of(name)))
    taken = load(rows, test=benchmark)
    assert len(taken.train) == 1
    assert all(task.extra["eval_only"] for task in taken.test)
    for train, warmup in ((benchmark, ""), (rows, benchmark)):
        with pytest.raises(DataError, match=r"benchmark\.json: \d of \d tasks belong to a benchmark.*tasks\.test"):
            load(train, warmup, test=rows)
    both = str(write(tmp_path / "mixed" / "a.json", [call_row()]).parent)
    write(tmp_path / "mixed" / "b.json", rows_of(name))
    with pytest.raises(DataError, match="belong to a benchmark"):
        load(both, test=rows)


def test_a_benchmark_in_another_format_is_refused_where_it_is_tested_on(tmp_path):
    """Its mark is lost in a training format, or in rows of our own that somebody has edited; its questions are not."""
    benchmark = rows_of("bfcl")[:1]
    benchmark[0]["question"] = [[{"role": "user", "content": "What is the area of a field of 10 by 7?"}]]
    test = str(write(tmp_path / "benchmark.json", benchmark))
    rows = [call_row(), call_row()]
    rows[1]["conversations"][0]["value"] = "what is the area of a field of 10 by 7"
    leaking = str(write(tmp_path / "leaking.json", rows))
    clean = str(write(tmp_path / "clean.json", [call_row()]))
    for train, warmup in ((leaking, ""), (clean, leaking)):
        with pytest.raises(DataError, match=r"leaking\.json: 1 of 2 tasks ask what the benchmark of tasks\.test asks"):
            load(train, warmup, test=test)
    assert len(load(leaking, test=clean).train) == 2  # without that test set there is nothing to leak into
    rows[1]["conversations"][0]["value"] = "Hi! What is the area of a field of 10 by 9?"
    near = load(str(write(tmp_path / "near.json", rows)), test=test)
    assert "near.json: 1 tasks ask nearly what the benchmark" in near.books and len(near.train) == 2


def test_rows_of_our_own_keep_the_mark(tmp_path):
    tasks = [text_row(task) for task in collect(str(write(tmp_path / "b.json", rows_of("bfcl"))), DataConfig()).tasks]
    with pytest.raises(DataError, match="2 of 2 tasks belong to a benchmark"):
        load(str(write(tmp_path / "ours.json", tasks)))
