"""The two pools: books in which every task is found again, what each step drops, and what the order of rows changes."""

import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import write

from unbraid.chat.types import Call
from unbraid.data import DataConfig, read_tasks
from unbraid.data import pool as pools
from unbraid.data.overlap import Benchmark, Question, words_of
from unbraid.data.pool import PoolConfig, faults, make_pool, silent_surplus, surplus
from unbraid.lab.public_rows import hermes_rows, toolace_rows, xlam_rows
from unbraid.tasks.task import Task

ALL = DataConfig(no_call=1.0)


@cache
def made_up() -> tuple[Task, ...]:
    """Tasks of all three sources, as the read stage makes them."""
    found: list[Task] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("toolace", toolace_rows(60)), ("xlam", xlam_rows(200)), ("hermes", hermes_rows(40))):
            tasks = read_tasks(str(write(Path(folder) / f"{name}.json", list(rows))), ALL).tasks
            found += [replace(t, id=f"{name}/{t.id}", source=name) for t in tasks]
    return tuple(found)


@settings(max_examples=15)
@given(
    st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 3),
    st.sampled_from([("xlam",), (), ("xlam", "hermes"), ("nobody",)]), st.integers(0, 300),
)  # fmt: skip
def test_every_task_is_found_again(candidates, pool, no_call, seed, cut, count):
    tasks = made_up()[: count or None]
    asked = Question("q", "simple", (words_of(str(tasks[-1].messages[-1]["content"])),))
    config = PoolConfig(candidates=candidates, pool=pool, no_call=no_call, seed=seed, cut=cut)
    found = make_pool(tasks, [Benchmark("bench", (asked,), frozenset())], config)
    ids = Counter(t.id for t in (*found.warmup, *found.rl)) + Counter(d.task for d in found.dropped)
    assert ids == Counter(t.id for t in tasks)
    came = Counter(t.source for t in tasks)
    for step in found.steps:
        assert {name: c.came for name, c in step.sources.items()} == dict(came)
        for count_ in step.sources.values():
            assert count_.came == count_.kept + count_.dropped.total()
        left = Counter((d.source, d.reason) for d in found.dropped if d.step == step.name)
        assert left == Counter({(n, r): k for n, c in step.sources.items() for r, k in c.dropped.items()})
        came = Counter({name: c.kept for name, c in step.sources.items() if c.kept})
    assert came == Counter(t.source for t in (*found.warmup, *found.rl))
    assert len(found.warmup) + len(found.rl) <= candidates + pool
    opening = [{str(t.messages[0]["content"]) + str(t.tools) for t in part} for part in (found.warmup, found.rl)]
    assert not opening[0] & opening[1]


def test_the_order_of_rows_and_the_names_of_files_do_not_matter():
    tasks = [t for t in made_up() if t.source != "xlam" or "repeat" not in t.id]
    config = PoolConfig(candidates=40, pool=60)
    keys = {t.id: pools.asked_key(t) for t in tasks}
    other = [replace(t, id=f"{t.source}/elsewhere.json:{i}:1") for i, t in enumerate(reversed(tasks))]

    def asked(found: list[Task]) -> set[str]:
        return {pools.asked_key(t) for t in found}

    one, two = make_pool(tasks, [], config), make_pool(other, [], config)
    assert (asked(one.warmup), asked(one.rl)) == (asked(two.warmup), asked(two.rl))
    three = make_pool(tasks, [], config.model_copy(update={"seed": 1}))
    assert asked(three.warmup) != asked(one.warmup) and len(keys) == len(tasks)


def simple(**changes) -> Task:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    task = Task(
        "t", ({"role": "user", "content": "?"},), ({"type": "function", "function": tool},), (Call("f", {"a": 1}),)
    )
    return replace(task, **changes)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (simple(), None),
        (simple(expected=()), None),
        (simple(expected=(Call("f", {"a": 1}), Call("f", {"a": 2}))), None),
        (simple(expected=(Call("f", {"a": 1}), Call("f", {"a": 1}))), pools.TWICE),
        (simple(expected=(Call("f", {"a": "1"}),)), pools.MISFIT),
        (simple(expected=(Call("f", {}),)), pools.MISFIT),
        (simple(extra={"eval_only": True}), pools.BENCHMARK),
        (simple(messages=({"role": "user", "content": "?" * 9000},)), pools.LONG),
    ],
)
def test_filter(task, reason):
    assert faults([task], PoolConfig()).get("t") == reason
    if reason == pools.MISFIT:
        assert not faults([task], PoolConfig(misfits="keep"))


def test_repeats():
    """Case, punctuation and the order of tools make no other task; another answer makes a contradiction."""
    task = simple(messages=({"role": "user", "content": "Do it, please!"},))
    same = replace(task, id="u", messages=({"role": "user", "content": "do it please"},))
    other = replace(same, id="v", expected=(Call("f", {"a": 2}),))
    unlike = [
        replace(same, id="w", tools=()),
        replace(same, id="x", messages=({"role": "user", "content": "do it now"},)),
    ]
    all_ = [task, same, other, *unlike]
    found = pools.repeats(all_, {t.id: pools.asked_key(t) for t in all_})
    assert found == {"u": pools.REPEAT, "v": pools.CONTRADICTS}
    silent = [replace(t, expected=()) for t in (task, same)]
    assert pools.repeats(silent, {t.id: pools.asked_key(t) for t in silent}) == {"u": pools.REPEAT}


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_no_call_is_limited_by_source(calling, silent, share):
    tasks = [
        simple(id=f"{i}", source="s", expected=() if i < silent else simple().expected) for i in range(calling + silent)
    ]
    tasks.append(simple(id="alone", source="other", expected=()))
    gone = silent_surplus(tasks, share, {t.id: t.id for t in tasks})
    kept = silent - sum(id != "alone" for id in gone)
    assert ("alone" in gone) == (share < 1)
    assert kept <= share * (kept + calling) + 1e-9
    assert kept == silent or kept + 1 > share * (kept + 1 + calling) - 1e-9


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 100))
def test_the_cut(a, b, c, most):
    sizes = {"xlam": a, "more": b, "rest": c}
    tasks = [simple(id=f"{name}{i}", source=name) for name, n in sizes.items() for i in range(n)]
    gone = surplus(tasks, most, ("xlam", "more"), {t.id: t.id for t in tasks})
    kept = Counter(t.source for t in tasks if t.id not in gone)
    assert kept.total() == min(most, a + b + c)
    even = most // max(1, sum(n > 0 for n in (a, b, c)))
    if kept["rest"] < c:  # the others are cut only where those that make room are down to an even share
        assert kept["xlam"] + kept["more"] == min(a, even) + min(b, even)
    if a + b:
        share = (kept["xlam"] + kept["more"]) / (a + b)
        assert abs(kept["xlam"] - share * a) <= 1 and abs(kept["more"] - share * b) <= 1
