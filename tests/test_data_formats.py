"""Public sets as they are written: tools in prose, calls in tags and brackets, answers beside the questions."""

import json
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import ROWS, rows_of, write

from unbraid.chat.types import Answer, Call, Mode
from unbraid.data import FORMATS, DataConfig, ReadResult, RowError, collect, read_tasks
from unbraid.data.formats import detect
from unbraid.data.row import literal_value
from unbraid.data.task_rows import text_row
from unbraid.data.texts import bracket_calls, system_tools
from unbraid.errors import DataError

ALL = DataConfig(no_call=1.0)


def read(tmp_path: Path, name: str, rows: Any = None) -> ReadResult:
    return collect(str(write(tmp_path / "rows.json", rows or rows_of(name))), ALL)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_is_told_from_its_rows_and_reads_them_all(tmp_path, name):
    assert detect(ROWS[name][0]) == name
    result = read(tmp_path, name)
    assert not result.bad
    assert result.counts["rows.json"].format == name
    benchmark = name.startswith(("bfcl", "acebench", "api-bank"))
    assert all(bool(t.extra.get("eval_only")) == benchmark for t in result.tasks)
    assert benchmark or {t.source for t in result.tasks} <= {"rows.json"}


def test_tasks_are_read_as_they_are(tmp_path):
    """Nested or as texts, by file or as typed columns; what was chosen is not thinned out by `data.no_call`."""
    nested, texts = read(tmp_path, "tasks").tasks
    assert replace(texts, id=nested.id) == nested and nested.id == ROWS["tasks"][0]["id"]
    assert [a.mode for a in nested.answers] == [Mode.THINK, Mode.NO_THINK] and nested.level == "medium"
    silent = [text_row(replace(nested, id=f"{i}", expected=(), level="no_call")) for i in range(5)]
    pq.write_table(pa.Table.from_pylist(silent), tmp_path / "silent.parquet")
    found = read_tasks(str(tmp_path / "silent.parquet"), DataConfig(no_call=0.0))
    assert len(found.tasks) == 5 and not found.skipped
    assert found.tasks[0].tools == nested.tools and found.tasks[0].extra == nested.extra


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("id", 3, "no text"), ("messages", ["x"], "role"), ("messages", "{", "JSON"), ("tools", [{}], "function"),
        ("expected", [{"name": "a", "arguments": [1]}], "no object"), ("extra", [], "no object"),
        ("answers", [{"mode": "loud"}], "ValueError"), ("messages", [], "no user message"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_task_is_bad(tmp_path, key, value, reason):
    result = read(tmp_path, "tasks", [{**ROWS["tasks"][0], key: value}])
    assert not result.tasks and len(result.bad) == 1 and reason in result.bad[0].reason


def test_xlam(tmp_path):
    both, silent = read(tmp_path, "xlam").tasks
    assert both.expected == (Call("live_giveaways_by_type", {"type": "beta"}), Call("near", {"where": [47.4, 8.5]}))
    kinds = {t["function"]["name"]: t["function"]["parameters"] for t in both.tools}
    assert kinds["live_giveaways_by_type"] == {
        "type": "object",
        "properties": {"type": {"description": "Type", "type": "string", "default": "game"}},
    }
    assert kinds["near"]["required"] == ["where"]
    assert kinds["near"]["properties"]["limit"] == {"type": "integer"}
    # An irrelevance row: right is to call nothing, and there is no text to learn.
    assert (silent.expected, silent.answers, silent.level) == ((), (), "no_call")


def test_toolace(tmp_path):
    calls, answer, ask = read(tmp_path, "toolace").tasks
    assert calls.expected == (
        Call("Market Trends API", {"trend_type": "MARKET, (INDEXES)", "limits": [1, -2]}),
        Call("League Teams (U17).list", {"from": 'a="b"', "live": True, "filter": {"x": [1, None]}}),
    )
    # Of the system text only what the answer may need is left.
    assert calls.messages[0] == {"role": "system", "content": "Today is 2024-03-01, Friday."}
    assert [t["function"]["name"] for t in calls.tools] == ["Market Trends API", "League Teams (U17).list"]
    assert answer.answers == (Answer(Mode.NO_THINK, "", (), "[1] is the trend."),)
    assert answer.messages[-1]["role"] == "tool"
    assert ask.expected == ()


def test_hermes(tmp_path):
    calls, answer = read(tmp_path, "hermes").tasks
    assert calls.expected == (
        Call("get_weather", {"city": "Zürich", "now": True}),
        Call("get_weather", {"city": "東京"}),
    )
    assert calls.messages == ({"role": "user", "content": "Weather in Zürich and 東京?"},)
    assert calls.answers[0].content == "Two calls."
    assert [m["content"] for m in answer.messages[-2:]] == ["{'sky': 'blue'}", "rain"]
    assert answer.answers[0] == Answer(Mode.THINK, "Both are there.", (), "Blue, and rain.")


def test_a_file_that_mixes_forms_is_read_row_by_row(tmp_path):
    """A file whose first row has none of its calls must not make prose of those of the others."""
    rows = [rows_of("hermes")[1], rows_of("toolace")[0], rows_of("hermes")[0], rows_of("sharegpt")[0]]
    result = read(tmp_path, "", rows)
    assert result.counts["rows.json"].format == "sharegpt"
    assert [len(t.expected) for t in result.tasks] == [2, 0, 2, 0, 1, 0, 2, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[Market Trends API(trend_type='a']", "does not end"),
        ("[Market Trends API('a')]", "without a name"),
        ("[Market Trends API(trend_type=open('x'))]", "text that is no JSON"),
        ("[Market Trends API(trend_type=a)]", "a value that JSON does not have"),
        ("[Market Trends API(trend_type='a', trend_type='b')]", "repeats an argument"),
        ("[Market Trends API(trend_type='a') League]", "cannot be told apart"),
        ("Sure. [Market Trends API(trend_type='a')]", "other text in one turn"),
        ("[Nothing(x=1)]", "not among its tools"),
        ("[Market Trends API(trend_type={**{}})]", "a key that is not a text"),
        ("<tool_call>{}", "<tool_call> is not closed"),
        ("<tool_call>{'name': f()}</tool_call>", "a value that JSON does not have"),
    ],
)
def test_calls_in_text_that_cannot_be_read_are_bad_rows(tmp_path, text, reason):
    row = rows_of("toolace")[1]
    row["conversations"][1]["value"] = text
    result = read(tmp_path, "", [row])
    assert [b.reason for b in result.bad if reason in b.reason], result.bad
    assert not result.tasks


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz_-$", min_size=1, max_size=8)
CALLS = st.lists(st.tuples(st.sampled_from(["f", "Get It (v2)", "a.b/c d"]), st.dictionaries(KEYS, JSON, max_size=3)))


@given(CALLS, st.booleans())
def test_calls_in_brackets_are_read_as_they_were_written(calls, python):
    """Against an independent writer: repr and json.dumps."""
    say = repr if python else lambda value: json.dumps(value, ensure_ascii=False)
    written = ", ".join(f"{name}({', '.join(f'{k}={say(v)}' for k, v in a.items())})" for name, a in calls)
    found, rest = bracket_calls(f"[{written}]", ["f", "Get It (v2)", "a.b/c d"])
    if calls:
        assert [(c.name, c.arguments) for c in found] == calls
        assert rest == ""
    else:
        assert (found, rest) == ((), "[]")


@given(JSON)
def test_python_literals_are_json_values(value):
    assert literal_value(repr(value), "x") == value
    assert literal_value(json.dumps(value), "x") == value


@given(st.text(alphabet="[](){}'\"=,\\ \nab1f", max_size=40))
def test_any_text_is_calls_prose_or_a_reason(text):
    for read in (
        lambda: bracket_calls(text, ["f", "a b"]),
        lambda: system_tools(text),
        lambda: literal_value(text, "x"),
    ):
        with suppress(RowError):
            read()


def test_system_texts_keep_what_is_not_about_calls():
    tools = '[{"name": "f", "parameters": {}}]'
    text = (
        f"Role definition: a farmer in Oslo.\nHere is a list of functions in JSON format:\n{tools}.\nThe year is 2023."
    )
    said, found, brackets = system_tools(text)
    assert (said, len(found), brackets) == ("Role definition: a farmer in Oslo. The year is 2023.", 1, True)
    # Lists that are no tools, and texts without any, stay as they are.
    for other in ('Use these facts: [{"name": "Bo", "age": 3}]', "Call no functions."):
        assert system_tools(other) == (other, (), False)
    with pytest.raises(RowError, match="not JSON"):
        system_tools('[{"name": "f", "parameters": {]. Put it in the format of [func1(x=1)]')


def test_verl_of_any_origin(tmp_path):
    result = read(tmp_path, "verl")
    calls, thought = result.tasks[2:]
    assert calls.expected == (Call("get_weather", {"city": "Lima"}),)
    assert [m["role"] for m in calls.messages] == ["user"]
    assert thought.answers[0] == Answer(Mode.THINK, "A clock.", (Call("clock"),))
    assert [r.reason for r in result.skipped] == ["the ground truth holds no calls: such a task needs an environment"]


def test_typed_parts_of_other_makers(tmp_path):
    row = rows_of("messages")[0]
    row["messages"] = [
        {"role": "user", "content": [{"type": "text", "text": "Weather in Lima?"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Lima."},
            {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Lima"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "grey"}]},
            {"type": "text", "text": "And?"},
        ]},
        {"role": "assistant", "content": "Grey."},
    ]  # fmt: skip
    call, answer = read(tmp_path, "", [row]).tasks
    assert call.answers[0] == Answer(Mode.THINK, "Lima.", (Call("get_weather", {"city": "Lima"}),))
    assert [(m["role"], m["content"]) for m in answer.messages[2:]] == [("tool", "grey"), ("user", "And?")]


def test_bfcl_with_answers_beside_the_questions(tmp_path):
    questions = rows_of("bfcl")
    answers = [{"id": q["id"], "ground_truth": q.pop("ground_truth")} for q in questions if "ground_truth" in q]
    questions.append({**questions[0], "id": "live_simple_1-0-0"})
    for path, rows in ((tmp_path / "q.json", questions), (tmp_path / "possible_answer" / "q.json", answers)):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    for source in (tmp_path, tmp_path / "q.json"):
        result = read_tasks(str(source), ALL)
        called, silent = result.tasks
        # The first value that is right; what may be left out is left out; objects list the values of their keys.
        assert called.expected == (
            Call("geo.area", {"base": 10, "at": [1.5, 2], "style": {"a": "x"}}),
            Call("geo.area", {"base": 3}),
        )
        assert (called.source, called.extra["category"], called.extra["eval_only"]) == ("bfcl", "live_simple", True)
        assert called.extra["accepted"] == answers[0]["ground_truth"]
        properties = called.tools[0]["function"]["parameters"]["properties"]
        assert (properties["at"]["type"], properties["style"]["type"]) == ("array", "object")
        assert (silent.expected, silent.level, silent.extra["category"]) == ((), "no_call", "irrelevance")
        assert [str(b) for b in result.bad] == [
            "q.json:3: no answer: the file in possible_answer/ beside this one has none of this id"
        ]
        assert list(result.counts) == ["q.json"]


def test_bfcl_requires_what_its_tool_requires(tmp_path):
    row = rows_of("bfcl")[0]
    row["function"][0]["parameters"]["required"] = ["base", "unit"]
    (task,) = read(tmp_path, "", [row]).tasks
    assert [c.arguments["unit"] for c in task.expected] == ["m", ""]


def test_bfcl_questions_of_the_first_version_are_plain_text(tmp_path):
    row = {**rows_of("bfcl")[0], "question": "Area?"}
    (task,) = read(tmp_path, "", [row]).tasks
    assert (task.messages, task.source) == (({"role": "user", "content": "Area?"},), "bfcl")


def test_benchmarks_are_not_thinned_out_by_no_call(tmp_path):
    rows = [{**rows_of("bfcl")[1], "id": f"irrelevance_{i}"} for i in range(9)]
    assert len(read_tasks(str(write(tmp_path / "rows.json", rows)), DataConfig(no_call=0.0)).tasks) == 9


def test_acebench(tmp_path):
    calls, special = read(tmp_path, "acebench").tasks
    assert calls.expected == (
        Call("plan_trip", {"to": "Lima", "days": 1}),
        Call("plan_trip", {"to": "Rome", "days": 3}),
    )
    assert [m["role"] for m in calls.messages] == ["system", "user", "assistant", "user"]
    assert calls.messages[2]["tool_calls"][0]["function"]["arguments"] == {"to": "Oslo", "days": 2}
    assert (calls.source, special.expected, special.answers) == ("acebench", (), ())


def test_api_bank_of_both_makes(tmp_path):
    call, answer = read(tmp_path, "api-bank").tasks
    assert call.expected == (Call("Ask", {"what": "why, (then)?", "days": ["a", "b"]}),)
    assert [m["role"] for m in call.messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert call.messages[3]["content"] == "[{'ok': True}]"
    assert answer.answers[0].content == "I waited."
    (made,) = read(tmp_path, "api-bank-toolrl").tasks
    assert made.expected == (Call("Ask", {"what": "why"}),)
    assert made.tools[0]["function"]["parameters"]["properties"]["what"]["description"] == "One's question"
    assert {t.source for t in (call, answer, made)} == {"api_bank"}


def test_api_bank_tools_that_were_searched_for(tmp_path):
    row = rows_of("api-bank")[1]
    row["instruction"] = (
        'API descriptions:\n{"name": "ToolSearcher", "input_parameters": {"keywords": {"type": "str"}}}'
    )
    row["input"] = (
        "User: What happened?\nAPI-Request: [ToolSearcher(keywords='history')]->[{'name': 'History', 'description': "
        "\"A day's history\", 'input_parameters': {'date': {'type': 'str'}}, 'output_parameters': {}}]\n"
        "Generate API Request:\n"
    )
    row["expected_output"] = "API-Request: [History(date='10-06')]"
    (task,) = read(tmp_path, "", [row]).tasks
    assert task.expected == (Call("History", {"date": "10-06"}),)
    assert [t["function"]["name"] for t in task.tools] == ["ToolSearcher", "History"]
    row["expected_output"] = "API-Request: [GetUserToken(username='u')]"
    assert read(tmp_path, "", [row]).bad[0].reason == "calls a tool that is not among its tools"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hotpotqa", "unbraid.tasks.search:hotpotqa"),
        ("bfcl-agentic", "bfcl-eval"),
        ("api-bank-dialogue", "level-1-api.json"),
    ],
)
def test_rows_without_a_single_step_say_where_to_go(tmp_path, name, words):
    with pytest.raises(DataError, match=words):
        read_tasks(str(write(tmp_path / "rows.json", rows_of(name))), ALL)


def test_order_of_files_and_rows_changes_nothing(tmp_path):
    rows = [row for name in ("toolace", "hermes", "sharegpt") for row in rows_of(name)]
    first = {json.dumps([dict(m) for m in t.messages]) for t in read(tmp_path, "", rows).tasks}
    random.Random(0).shuffle(rows)
    assert {json.dumps([dict(m) for m in t.messages]) for t in read(tmp_path, "", rows).tasks} == first
