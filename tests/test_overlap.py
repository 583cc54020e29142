"""The audit of overlap: what it must find in any format, what it must leave alone, and a slow reference."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import ROWS, rows_of, write

from unbraid.chat.types import Call
from unbraid.data import DataConfig, collect, read_tasks
from unbraid.data.overlap import (
    Benchmark,
    OverlapConfig,
    Question,
    audit,
    overlap_row,
    read_benchmark,
    tool_mark,
    words_of,
)
from unbraid.errors import DataError
from unbraid.tasks.task import Task

DATA = Path(os.environ.get("UNBRAID_DATA", Path(__file__).parents[2] / "shared" / "data"))
ALL = DataConfig(no_call=1.0)
TOOL = {
    "type": "function",
    "function": {"name": "geo.area", "parameters": {"type": "object", "properties": {"base": {}, "unit": {}}}},
}


def task(text: str, *more: str, tools=(), calls=()) -> Task:
    messages = tuple({"role": "user", "content": one} for one in (text, *more))
    return Task(f"t {text[:20]}", messages, tuple(tools), tuple(calls), source="ours")


def kinds(tasks: list[Task], *questions: Question, **config) -> dict[str, str]:
    found = audit(tasks, Benchmark("bench", questions, frozenset([tool_mark(TOOL)])), OverlapConfig(**config))
    assert found.kinds.total() == len(found.hits) == len({hit.task for hit in found.hits})
    return {hit.task: hit.kind for hit in found.hits}


def question(text: str, **more) -> Question:
    return Question(f"q {text[:10]}", "simple", (words_of(text),), **more)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  What's the Weather,\nin ZÜRICH?", "what s the weather in zürich"),
        ("天気は？ in 東京", "天 気 は in 東 京"),
        ("a_b-c 1.5", "a b c 1 5"),
        ("?!", ""),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_tools_are_the_same_by_name_and_parameters():
    other = {
        "name": "geo_Area",
        "parameters": {"properties": {"unit": {"type": "string"}, "base": {"type": "integer"}}},
    }
    assert tool_mark(TOOL) == tool_mark(other)
    assert tool_mark(TOOL) != tool_mark({**other, "parameters": {"properties": {"base": {}}}})
    assert tool_mark({"name": "clock", "parameters": None}) == "clock()"


ASKED = "Calculate the area of a circle with a radius of 5 units, please."


def test_what_is_found_and_what_is_left_alone():
    same = task("calculate the area of a circle with a radius of 5 units please")
    near = task("Hi! Calculate the area of a circle with a radius of 7 units, please.")
    later = task("Hello there.", ASKED)
    alike = task("Calculate the price of a ticket, please.")
    assert kinds([same, near, later, alike], question(ASKED)) == {
        same.id: "question",
        near.id: "near",
        later.id: "question",
    }
    # A question within ours is near; ours within a longer one is not.
    assert kinds([task(f"First this. {ASKED} Then that.")], question(ASKED))
    assert not kinds([task("Calculate the area of a circle.")], question(ASKED + " Then the volume of a sphere of 7."))


def test_short_questions_need_a_tool_in_common():
    tools = frozenset([tool_mark(TOOL)])
    assert not kinds([task("Yes, please.")], question("yes please", tools=tools))
    assert kinds([task("Yes, please.", tools=[TOOL])], question("yes please", tools=tools)) == {
        "t Yes, please.": "question"
    }


def test_other_words_for_the_same_call():
    wanted = f"{tool_mark(TOOL)} " + json.dumps({"base": 3.0, "unit": "square m"})
    asked = question("How large is it?", calls=frozenset([wanted]))
    ours = task("Its size?", tools=[TOOL], calls=[Call("geo.area", {"unit": "Square  M.", "base": 3})])
    assert kinds([ours], asked) == {ours.id: "call"}
    assert not kinds([replace(ours, expected=(Call("geo.area", {"base": 4, "unit": "square m"}),))], asked)
    assert not kinds([replace(ours, tools=())], asked)  # a call of a tool that nobody describes


WORDS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=14).map(" ".join)


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, min_size=1, max_size=4), st.integers(1, 4))
def test_near_questions_are_those_of_a_plain_search(ours, theirs, n):
    """Every pair by hand: which n-grams of theirs does ours have?"""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}

    config = {"words": n, "share": 0.5, "near_from": 5, "equal_from": 1}
    tasks = [replace(task(text), id=f"{i}") for i, text in enumerate(ours)]
    found = audit(tasks, Benchmark("b", tuple(question(t) for t in theirs), frozenset()), OverlapConfig(**config))
    shares = {hit.task: hit.share for hit in found.hits}
    for i, text in enumerate(ours):
        long = [t for t in theirs if len(t.split()) >= 5]
        best = max((len(grams(t) & grams(text)) / len(grams(t)) for t in long), default=0.0)
        expected = 1.0 if text in theirs else best if best >= 0.5 else None
        assert shares.get(f"{i}") == expected


# Benchmarks as they are written ------------------------------------------------------------------------------------


BENCHMARKS = ("bfcl", "bfcl-agentic", "acebench", "api-bank", "api-bank-toolrl", "hotpotqa", "api-bank-dialogue")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_read(tmp_path, name):
    found = read_benchmark(name, str(write(tmp_path / "rows.json", rows_of(name))))
    assert found.rows == len(ROWS[name]) and found.questions and all(q.texts for q in found.questions)
    said = {text for q in found.questions for text in q.texts}
    expected = {
        "bfcl": "area twice", "bfcl-agentic": "sort it", "acebench": "plan it on two lines",
        "api-bank": "please ask on two lines", "api-bank-toolrl": "one call", "hotpotqa": "who",
        "api-bank-dialogue": "hello",
    }  # fmt: skip
    assert expected[name] in said
    if name == "bfcl":
        assert "geoarea(at,base,style,unit)" in found.tools
        assert any("10.0" in call for q in found.questions for call in q.calls)


def test_a_folder_with_answers_tools_and_strange_rows(tmp_path):
    """As BFCL's: questions, answers beside them, tools of environments, rows that nobody knows."""
    for row in (bfcl := rows_of("bfcl")):
        row.pop("ground_truth", None)
    write(tmp_path / "BFCL_v4_live.json", bfcl)
    write(tmp_path / "possible_answer" / "BFCL_v4_live.json", [{"id": "live_simple_0-0-0", "ground_truth": []}])
    write(tmp_path / "multi_turn_func_doc" / "math.json", [{"name": "add", "parameters": {"properties": {"a": {}}}}])
    write(tmp_path / "multi_turn.json", rows_of("bfcl-agentic"))
    write(tmp_path / "odd.json", [{"x": 1}, {"turns": [{"role": "USER", "content": "Deep down?"}]}])
    found = read_benchmark("bfcl", str(tmp_path))
    assert (found.rows, len(found.questions), found.unread) == (7, 5, 1)
    assert "add(a)" in found.tools and any("deep down" in q.texts for q in found.questions)
    assert overlap_row(audit([task("Deep down?", tools=[TOOL])], found))["same_tool"] == 0
    with pytest.raises(DataError, match="asks anything"):
        read_benchmark("empty", str(write(tmp_path / "none.json", [{"x": 1}])))


def as_sharegpt(asked: Task) -> dict:
    calls = [{"name": c.name, "arguments": c.arguments} for c in asked.expected]
    names = {"user": "human", "system": "system", "tool": "observation"}
    said = [{"from": names.get(m["role"], "gpt"), "value": m["content"] or "."} for m in asked.messages]
    said.append({"from": "function_call", "value": json.dumps(calls)} if calls else {"from": "gpt", "value": "No."})
    return {"conversations": said, "tools": json.dumps([dict(t) for t in asked.tools])}


def as_xlam(asked: Task) -> dict:
    calls = [{"name": c.name, "arguments": c.arguments} for c in asked.expected]
    return {
        "query": asked.messages[-1]["content"],
        "answers": json.dumps(calls),
        "tools": json.dumps([t["function"] for t in asked.tools]),
    }


@pytest.mark.parametrize("disguise", [as_sharegpt, as_xlam])
@pytest.mark.parametrize("name", ["bfcl", "acebench", "api-bank"])
def test_a_benchmark_in_disguise_is_found(tmp_path, name, disguise):
    """Its rows in a training format have no mark that says where they are from."""
    asked = [
        t
        for t in collect(str(write(tmp_path / "b.json", rows_of(name))), ALL).tasks
        if t.messages[-1]["role"] == "user"
    ]
    ours = collect(str(write(tmp_path / "ours.json", [disguise(t) for t in asked])), ALL).tasks
    assert len(ours) >= len(asked) > 0 and not any(t.extra.get("eval_only") for t in ours)
    found = audit(ours, read_benchmark(name, str(tmp_path / "b.json")))
    assert {hit.task for hit in found.hits} == {t.id for t in ours}


@pytest.mark.skipif(
    not (DATA / "api_bank").is_dir() or not (DATA / "glaive").is_dir(),
    reason="no real rows: set UNBRAID_DATA to a folder with glaive/ and api_bank/",
)
def test_real_rows():
    bench = read_benchmark("api-bank", str(DATA / "api_bank"))
    assert (bench.rows, len(bench.questions), bench.unread) == (399, 399, 0)
    own = read_tasks(str(DATA / "api_bank"), ALL).tasks
    assert audit(own, bench).kinds == {"question": len(own)}
    found = audit(read_tasks(str(DATA / "glaive"), ALL).tasks, bench)
    assert found.kinds == {"near": 11}
    assert {hit.theirs for hit in found.examples()} == {
        "can you play shape of you by ed sheeran", "the length is 5 and the width is 10",
    }  # fmt: skip
