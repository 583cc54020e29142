"""No row is lost: every one ends as a task, skipped with a reason or bad with a reason, whatever is in it."""

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rows import ROWS, WEATHER, call_row, mixed, rows_of, write

from unbraid.chat.types import Call
from unbraid.data import (
    FORMATS,
    DataConfig,
    Example,
    Format,
    ReadResult,
    RowError,
    collect,
    read_tasks,
)
from unbraid.data.row import read_calls
from unbraid.data.schema import read_tools
from unbraid.errors import DataError

ALL = DataConfig(no_call=1.0)


def assert_balanced(result: ReadResult) -> None:
    for name, count in result.counts.items():
        tasks = [t for t in result.tasks if result.places[t.id][0] == name]
        skipped = [r for r in result.skipped if r.file == name]
        bad = [r for r in result.bad if r.file == name]
        assert (count.tasks, count.skipped, count.bad) == (len(tasks), len(skipped), len(bad))
        assert count.examples == count.tasks + count.skipped + count.bad
        told = {result.places[t.id][1] for t in tasks} | {r.row for r in skipped} | {r.row for r in bad}
        assert told == set(range(count.rows))
    assert all(r.reason and "\n" not in r.reason for r in result.bad + result.skipped)
    assert not [r for r in result.bad if "its reader failed" in r.reason]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.pop("conversations"), "no key 'conversations'"),
        (lambda r: r.update(conversations={}), "'conversations' is a dict, not a list"),
        (lambda r: r.update(tools="[{"), "tools is not JSON"),
        (lambda r: r.update(tools='[{"name": ""}]'), "a tool has no name"),
        (lambda r: r.update(tools=[{"name": "f"}, {"name": "f", "description": "x"}]), "two different tools share"),
        (lambda r: r.update(tools=[{"name": "other"}]), "calls a tool that is not among its tools"),
        (lambda r: r["conversations"][1].update(value='{"name": 3}'), "a call has no name"),
        (lambda r: r["conversations"][1].update(value="[1, 2"), "a call is not JSON"),
        (lambda r: r["conversations"][1].update(value="[]"), "an empty list of calls"),
        (lambda r: r["conversations"][1].update(value='{"name": "f", "arguments": [1]}'), "are a list"),
        (lambda r: r["conversations"][1].update(value='{"name": "f", "name": "g"}'), "repeats a key"),
        (lambda r: r["conversations"][1].update(value='{"name": "f", "arguments": {"x": NaN}}'), "NaN is not JSON"),
        (lambda r: r["conversations"][1].update({"from": "oracle"}), "unknown role"),
        (lambda r: r["conversations"][1].update({"from": "gpt", "value": "<think>x"}), "<think> is not closed"),
        (lambda r: r["conversations"][1].update({"from": "gpt", "value": " "}), "neither calls nor text"),
        (lambda r: r["conversations"][0].update(value="\ud83d"), "unpaired surrogate"),
    ],
)  # fmt: skip
def test_reason_of_a_bad_row(tmp_path, change, reason):
    row = call_row()
    change(row)
    result = read_tasks(str(write(tmp_path / "rows.json", [call_row(), row])), ALL)
    assert [b.row for b in result.bad] == [1]
    assert reason in result.bad[0].reason
    assert str(result.bad[0]).startswith("rows.json:1: ")
    assert_balanced(result)
    with pytest.raises(DataError, match=r"rows\.json:1: .*data\.strict"):
        read_tasks(str(tmp_path / "rows.json"), DataConfig(strict=True, no_call=1.0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.update(output="<think> x </think>"), "neither <tool_call> nor <response>"),
        (lambda r: r.update(output="Sure!"), "text outside"),
        (lambda r: r.update(output="<response> x"), "<response> is not closed"),
        (lambda r: r.update(output=r["output"].replace("Get Weather", "Fly")), "not among its tools"),
        (
            lambda r: r.update(output=r["output"].replace('"days"', '"hours"')),
            "an argument that its tool does not have",
        ),
        (lambda r: r.update(output=r["output"].replace('"Zürich"', '"[\\"Zürich"')), "cut short"),
        (lambda r: r.update(input="<obs> x </obs> and more"), "<obs> is not closed"),
        (lambda r: r.update(instruction=r["instruction"].replace("Parameters: {}", "")), "lacks its description"),
        (lambda r: r.update(instruction=r["instruction"].split("**Steps")[0]), "does not end"),
    ],
)
def test_reason_of_a_bad_toolrl_row(tmp_path, change, reason):
    rows = rows_of("toolrl")
    change(rows[0])
    result = read_tasks(str(write(tmp_path / "rows.json", rows)), ALL)
    assert [b.row for b in result.bad] == [0]
    assert reason in result.bad[0].reason


def test_turns_before_a_bad_one_are_kept(tmp_path):
    row = rows_of("sharegpt")[0]
    row["conversations"][5]["value"] = "{"
    result = read_tasks(str(write(tmp_path / "rows.json", [row])), ALL)
    assert [t.id for t in result.tasks] == ["rows.json:0:1", "rows.json:0:3"]
    assert [str(b) for b in result.bad] == ["rows.json:0: after turn 2: a call is not JSON"]
    assert_balanced(result)


def test_files_that_cannot_be_read_are_bad_rows_and_the_rest_is_read(tmp_path):
    write(tmp_path / "a" / "good.json", [call_row()])
    write(tmp_path / "b" / "good.json", {"version": 1, "data": [call_row()]})
    (tmp_path / "broken.json").write_text("[1, 2")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "lines.jsonl").write_bytes(b"\n" + json.dumps(call_row()).encode() + b'\n{"x"\n\xff\n3\n{"x": 1}\n')
    (tmp_path / "README.md").write_text("not data")
    result = read_tasks(str(tmp_path), ALL)
    assert [t.id for t in result.tasks] == ["a/good.json:0:1", "b/good.json:0:1", "lines.jsonl:0:1"]
    assert [str(b).split(":")[:2] for b in result.bad] == [
        ["broken.json", "0"],
        ["broken.parquet", "0"],
        *(["lines.jsonl", str(i)] for i in (1, 2, 3, 4)),
    ]
    assert result.counts["a/good.json"].repeated + result.counts["b/good.json"].repeated == 1
    assert_balanced(result)
    summary = result.summary()
    assert "lines.jsonl (sharegpt): 5 rows, 1 tasks, 0 skipped, 4 bad" in summary
    assert "bad 2 x line is not JSON" in summary


def test_json_lines_in_a_json_file_and_a_byte_order_mark(tmp_path):
    line = json.dumps(call_row())
    (tmp_path / "lines.json").write_text(f"{line}\r\n{line}\n")
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + f"[{line}]".encode())
    (tmp_path / "one.json").write_text(line)
    result = read_tasks(str(tmp_path), ALL)
    assert {name: count.tasks for name, count in result.counts.items()} == {
        "lines.json": 2,
        "mark.json": 1,
        "one.json": 1,
    }
    assert not result.bad


def test_format_is_told_from_the_keys_or_forced(tmp_path):
    path = write(tmp_path / "rows.json", [{"text": "x"}, call_row()])
    result = read_tasks(str(path), ALL)
    assert "unknown format" in result.bad[0].reason
    assert len(result.tasks) == 1
    with pytest.raises(DataError, match="1 x no key 'messages'"):
        read_tasks(str(write(tmp_path / "one.json", [call_row()])), DataConfig(format="messages"))
    with pytest.raises(DataError, match=r"data\.format.*toolrl"):
        read_tasks(str(path), DataConfig(format="alpaca"))


def test_a_format_is_one_function_and_its_faults_are_bad_rows(tmp_path, monkeypatch):
    def question(row: Mapping[str, Any]) -> Iterator[Example]:
        """`{"question", "call", "tool"}`."""
        messages = ({"role": "user", "content": row["question"]},)
        yield Example(1, messages, read_tools([row["tool"]]), "", read_calls(row["call"]), "")

    monkeypatch.setitem(FORMATS, "question", Format(frozenset({"question"}), question))
    good = {"question": "Lima?", "call": {"name": "get_weather", "arguments": {"city": "Lima"}}, "tool": WEATHER}
    result = read_tasks(str(write(tmp_path / "rows.json", [good, {"question": "?"}])), ALL)
    assert [t.expected for t in result.tasks] == [(Call("get_weather", {"city": "Lima"}),)]
    assert [str(b) for b in result.bad] == ["rows.json:1: its reader failed: KeyError: 'tool'"]


def test_empty_results_say_why(tmp_path):
    with pytest.raises(DataError, match="it holds no rows"):
        read_tasks(str(write(tmp_path / "rows.json", [])), ALL)
    row = call_row()
    row["tools"] = "["
    with pytest.raises(DataError, match="3 x tools is not JSON"):
        read_tasks(str(write(tmp_path / "rows.json", [row] * 3)), ALL)
    with pytest.raises(DataError, match=r"data\.no_call"):
        read_tasks(str(write(tmp_path / "rows.json", rows_of("toolrl")[1:])), DataConfig())


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.2, 2), (0.5, 8), (0.9, 30), (1.0, 30)])
def test_tasks_without_a_call_are_limited(tmp_path, share, kept):
    result = read_tasks(mixed(tmp_path, 8, 30), DataConfig(no_call=share))
    assert sum(not t.expected for t in result.tasks) == kept
    assert len(result.tasks) == 8 + kept
    assert_balanced(result)


JUNK: list[Any] = [
    None,
    0,
    -1.5,
    True,
    "",
    " ",
    "x",
    "[",
    '{"a": NaN}',
    "\ud83d",
    [],
    {},
    [None],
    [[]],
    {"type": 3},
    "<think>",
]


def mutate(value: Any, rng: random.Random) -> Any:
    """`value` with one random fault somewhere inside."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        fault = rng.random()
        if fault < 0.1:
            value.pop(key)
        elif fault < 0.15:
            value[rng.choice(["name", "type", "properties", "content", "", "é"])] = value.pop(key)
        else:
            value[key] = mutate(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        fault = rng.random()
        if fault < 0.1:
            value.pop(index)
        elif fault < 0.2:
            value.insert(index, copy.deepcopy(rng.choice(value)))
        else:
            value[index] = mutate(value[index], rng)
        return value
    if isinstance(value, str) and value and rng.random() < 0.7:
        cut, end = sorted((rng.randrange(len(value)), rng.randrange(len(value) + 1)))
        return rng.choice([value[:cut], value[end:], value[:cut] + value[end:], value[:cut] + '"\\' + value[cut:]])
    return copy.deepcopy(rng.choice(JUNK))


def mutated(name: str, count: int, rng: random.Random) -> list[Any]:
    rows: list[Any] = []
    while len(rows) < count:
        row: Any = copy.deepcopy(rng.choice(ROWS[name]))
        for _ in range(rng.choice([1, 1, 2, 3])):
            row = mutate(row, rng)
        rows.append(row)
    return rows


def read_mutated(tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """What became of `count` rows over all formats, half of them with the format forced and half with it detected."""
    rng = random.Random(seed)
    totals: Counter[str] = Counter()
    for name in ROWS:
        for format in (name, "auto"):
            rows = mutated(name, -(-count // (2 * len(ROWS))), rng)
            path = write(tmp_path / f"{name}-{format}.json", rows)
            result = collect(str(path), DataConfig(format=format, no_call=1.0))
            assert_balanced(result)
            (book,) = result.counts.values()
            assert book.rows == len(rows)
            for task in result.tasks:
                assert task.answers or not task.expected or name == "tasks"  # RL needs no answers
                assert all(isinstance(m["content"], str) for m in task.messages)
                benchmark = name.startswith(("bfcl", "acebench", "api-bank"))
                assert bool(task.extra.get("eval_only")) == benchmark or format == "auto"
            totals.update(rows=book.rows, tasks=book.tasks, skipped=book.skipped, bad=book.bad)
            totals[f"tasks of {name}"] += book.tasks
    return totals


def test_mutated_rows(tmp_path):
    """Faults of every kind at every depth: nothing raises, the books balance, and plenty of rows are still read."""
    totals = read_mutated(tmp_path, 4000, seed=7)
    assert totals["rows"] >= 4000
    assert min(totals["tasks"], totals["bad"]) > 600
    without_tasks = {"bfcl-agentic", "hotpotqa", "api-bank-dialogue"}
    assert all(totals[f"tasks of {name}"] > 5 for name in set(ROWS) - without_tasks)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_rows(tmp_path):
    totals = read_mutated(tmp_path, 100_000, seed=11)
    print(dict(totals))
    assert totals["rows"] >= 100_000


def test_fuzz_of_tool_descriptions():
    """Schemas of any shape become schemas, or a RowError says why not."""
    rng = random.Random(3)
    kinds = ["List[int]", "Union[int, str]", "a[", "int, optional", ["str", 3], "Dict[str, List[int]]"]
    made = 0
    for _ in range(2000):
        tool: Any = copy.deepcopy(WEATHER)
        odd = {"type": rng.choice(kinds), "items": {"type": "str", "enum": ["a"]}, "default": "1", "required": True}
        tool["parameters"]["properties"]["days"] = odd | {"anyOf": [{"type": "int"}]}
        for _ in range(2):
            tool = mutate(tool, rng)
        try:
            (found,) = read_tools([tool])
        except RowError:
            continue
        assert found["function"]["parameters"]["type"] == "object"
        assert isinstance(found["function"]["parameters"]["properties"], dict)
        made += 1
    assert 500 < made < 1900
