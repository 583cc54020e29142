"""No row is lost: every one ends as a task, skipped with a reason or bad with a reason, whatever is in it."""

import copy
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rows import ROWS, SHAREGPT, WEATHER, rows_of

from unbraid.chat.types import Answer, Call, Mode
from unbraid.data import (
    FORMATS,
    DataConfig,
    Example,
    Fitted,
    Format,
    ReadResult,
    RowError,
    fit_prompts,
    read_tasks,
    split_tasks,
)
from unbraid.data.row import read_calls
from unbraid.data.schema import read_tools
from unbraid.errors import ChatError, DataError, MissingExtraError
from unbraid.tasks.task import Task

ALL = DataConfig(no_call=1.0)


def write(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def assert_balanced(result: ReadResult) -> None:
    for name, count in result.counts.items():
        tasks = [t for t in result.tasks if t.id.rsplit(":", 2)[0] == name]
        skipped = [r for r in result.skipped if r.file == name]
        bad = [r for r in result.bad if r.file == name]
        assert (count.tasks, count.skipped, count.bad) == (len(tasks), len(skipped), len(bad))
        assert count.examples == count.tasks + count.skipped + count.bad
        told = {int(t.id.rsplit(":", 2)[1]) for t in tasks} | {r.row for r in skipped} | {r.row for r in bad}
        assert told == set(range(count.rows))
    assert all(r.reason and "\n" not in r.reason for r in result.bad + result.skipped)
    assert not [r for r in result.bad if "its reader failed" in r.reason]


def call_row(arguments: str = '{"city": "Lima"}') -> dict[str, Any]:
    row = rows_of("sharegpt")[0]
    row["conversations"] = row["conversations"][:2]
    row["conversations"][1]["value"] = f'{{"name": "get_weather", "arguments": {arguments}}}'
    return row


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


def test_format_is_told_from_the_keys_or_forced(tmp_path):
    path = write(tmp_path / "rows.json", [{"text": "x"}, call_row()])
    result = read_tasks(str(path), ALL)
    assert "unknown format" in result.bad[0].reason
    assert "sharegpt: conversations" in result.bad[0].reason
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


def test_sources_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        read_tasks(str(tmp_path / "absent.json"), ALL)
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"cannot read \.csv"):
        read_tasks(str(tmp_path / "rows.csv"), ALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="below this directory"):
        read_tasks(str(tmp_path / "empty"), ALL)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"unbraid\[data\]"):
        read_tasks("owner/name", ALL)


def test_hub_rows(monkeypatch):
    """The hub itself is out of reach in tests: what is asked of `datasets`, and what is made of its rows."""
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*arguments: object, **options: object) -> list[dict[str, Any]]:
            asked.append((arguments, options))
            if arguments[0] == "owner/absent":
                raise FileNotFoundError("no such data set\nsecond line")
            return rows_of("messages")

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    result = read_tasks("owner/name:small", DataConfig(no_call=1.0, split="test"))
    assert [t.id for t in result.tasks] == [f"owner/name:small:{i}" for i in ("0:2", "0:4", "1:1")]
    assert asked == [(("owner/name", "small"), {"split": "test"})]
    with pytest.raises(DataError, match=r"no such data set.*data\.split") as caught:
        read_tasks("owner/absent", ALL)
    assert "\n" not in str(caught.value)


WORLD = """
from unbraid.chat.types import Call
from unbraid.tasks import Task

def tasks(count=2, name="w", level=None):
    for i in range(count):
        yield Task(f"{name}{i}", ({"role": "user", "content": str(i)},), expected=(Call("f"),), level=str(level))

def odd():
    same = Task("a", ())
    return [same, same, "text", Task("b", ({"x": float("nan")},)), Task("c", ({"x": {1}},))]

def late():
    yield Task("a", ())
    raise KeyError("gone")

def nothing():
    return 3
"""


def test_functions_as_sources(tmp_path, monkeypatch):
    (tmp_path / "my_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = read_tasks("my_world:tasks?count=3&name=x%20y&level=true", DataConfig())
    assert [(t.id, t.level) for t in result.tasks] == [("x y0", "True"), ("x y1", "True"), ("x y2", "True")]
    assert len(read_tasks(f"{tmp_path / 'my_world.py'}:tasks", DataConfig()).tasks) == 2
    odd = read_tasks("my_world:odd", DataConfig())
    assert [t.id for t in odd.tasks] == ["a"]
    assert [(b.row, b.reason) for b in odd.bad] == [
        (1, "the task id is taken by an earlier task"),
        (2, "a str, not a Task"),
        (3, "values that JSON cannot hold"),
        (4, "values that JSON cannot hold"),
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("my_world:late", "KeyError: 'gone'"),
        ("my_world:nothing", "returned a int, not an iterable"),
        ("my_world:tasks?size=3", "unexpected keyword argument 'size'"),
        ("my_world:tasks?count", "failed"),
        ("my_world:absent", "no function 'absent'"),
        ("no_such_world:tasks", "cannot import"),
    ],
)
def test_functions_that_fail(tmp_path, monkeypatch, source, words):
    (tmp_path / "my_world.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=words):
        read_tasks(source, DataConfig())


def mixed(tmp_path: Path, calls: int, silent: int) -> str:
    rows = []
    for i in range(calls + silent):
        row = call_row() if i < calls else rows_of("sharegpt")[0]
        row["conversations"] = row["conversations"][:2]
        row["conversations"][0]["value"] = f"question {i}"
        if i >= calls:
            row["conversations"][1] = {"from": "gpt", "value": "no"}
        rows.append(row)
    return str(write(tmp_path / "rows.json", rows))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.2, 2), (0.5, 8), (0.9, 30), (1.0, 30)])
def test_tasks_without_a_call_are_limited(tmp_path, share, kept):
    result = read_tasks(mixed(tmp_path, 8, 30), DataConfig(no_call=share))
    assert sum(not t.expected for t in result.tasks) == kept
    assert len(result.tasks) == 8 + kept
    assert_balanced(result)


def test_split_is_stable_and_keeps_conversations_together(tmp_path):
    tasks = read_tasks(mixed(tmp_path, 40, 0), ALL).tasks
    train, validation = split_tasks(tasks, 10, seed=1)
    assert len(validation) == 10
    assert sorted(t.id for t in train + validation) == sorted(t.id for t in tasks)
    shuffled = random.Random(0).sample(tasks, len(tasks))
    assert {t.id for t in split_tasks(shuffled, 10, seed=1)[1]} == {t.id for t in validation}
    assert {t.id for t in split_tasks(tasks, 10, seed=2)[1]} != {t.id for t in validation}
    assert split_tasks(tasks, 0, seed=1)[1] == []
    assert split_tasks(tasks, 99, seed=1)[0] == []
    turns = read_tasks(str(write(tmp_path / "one.json", SHAREGPT)), ALL).tasks
    assert len(turns) == 4
    for seed in range(5):
        train, validation = split_tasks(turns, 1, seed)
        assert (len(train), len(validation)) == (0, 4)


class Words:
    """A chat format of words, which refuses what templates and formats refuse."""

    def prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        if messages[0]["role"] != "user":
            raise KeyError("conversations must start with a user message")
        return [0] * sum(len(m["content"].split()) for m in messages)

    def response_ids(self, answer: Answer) -> list[int]:
        if "<|" in answer.thought:
            raise ChatError("does not read back")
        return [1]


def test_fit_prompts():
    def task(id: str, text: str, role: str = "user", thought: str = "x") -> Task:
        answers = (Answer(Mode.THINK, thought, (Call("f"),)), Answer(Mode.NO_THINK, "", (Call("f"),)))
        return Task(id, ({"role": role, "content": text},), answers=answers)

    tasks = [
        task("fits", "a b c"),
        task("long", "a b c d"),
        task("odd", "a", role="tool"),
        task("special", "a", thought="<|im_end|>"),
    ]
    fitted = fit_prompts(tasks, Words(), 3)
    assert isinstance(fitted, Fitted)
    assert [t.id for t in fitted.kept] == ["fits", "special"]
    assert [a.mode for a in fitted.kept[1].answers] == [Mode.NO_THINK]
    assert dict(fitted.dropped_answers) == {"special tokens in its text": 1}
    assert fitted.dropped["prompt longer than 3 tokens"] == 1
    assert sum(n for reason, n in fitted.dropped.items() if "must start with a user message" in reason) == 1


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


def test_two_thousand_mutated_rows(tmp_path):
    """Faults of every kind at every depth: nothing raises, the books balance, and plenty of rows are still read."""
    rng = random.Random(7)
    names = list(ROWS)
    tasks = bad = 0
    for name in names:
        rows: list[Any] = []
        while len(rows) < 2000 // len(names):
            row: Any = copy.deepcopy(rng.choice(ROWS[name]))
            for _ in range(rng.choice([1, 1, 2, 3])):
                row = mutate(row, rng)
            rows.append(row)
        result = read_tasks(str(write(tmp_path / f"{name}.json", rows)), DataConfig(format=name, no_call=1.0))
        assert_balanced(result)
        assert result.counts[f"{name}.json"].rows == len(rows)
        for task in result.tasks:
            assert task.answers
            assert all(isinstance(m["content"], str) for m in task.messages)
        tasks, bad = tasks + len(result.tasks), bad + len(result.bad)
    assert tasks > 400
    assert bad > 400


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
