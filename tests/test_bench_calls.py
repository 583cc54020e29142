"""API-Bank and ACEBench: an oracle scores 100, a corrupted one what was predicted, and official evaluators decide."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clones import acebench_clone, api_bank_clone
from oracle import Oracle, StoppedError, calls, says

from unbraid.bench import api_bank as rows
from unbraid.bench.acebench import acebench, in_brackets
from unbraid.bench.api_bank import SEARCHER, api_bank, same_api_call
from unbraid.bench.ask import Asking, Benchmark, ask
from unbraid.bench.official import Checker
from unbraid.bench.score import BenchmarkScore, limited, read_entries
from unbraid.chat.types import Answer, Call, Mode
from unbraid.data.read import content_key
from unbraid.errors import DataError
from unbraid.tasks.task import Task

DATA = Path(os.environ.get("UNBRAID_DATA", Path(__file__).parents[2] / "shared" / "data"))
API_BANK = DATA / "api_bank" / "level-1-api.json"
needs_rows = pytest.mark.skipif(not API_BANK.is_file(), reason="no API-Bank rows: set UNBRAID_DATA")


GREEDY = Asking()


def scored(oracle: Oracle, benchmark: Benchmark, folder: Path, asking: Asking = GREEDY) -> BenchmarkScore:
    return ask(benchmark, oracle.recipe, oracle.policy, folder, asking, oracle.roll(benchmark))


def gold(task: Task, turn: int) -> Answer:
    return calls(*task.expected)


# -- API-Bank -----------------------------------------------------------------------------------------------------


@needs_rows
def test_api_bank_by_an_oracle_and_by_one_that_errs(tmp_path):
    benchmark = api_bank(str(API_BANK))
    assert {name: len(found) for name, found in benchmark.tasks.items()} == {"L-1": 399}
    score = scored(Oracle(gold), benchmark, tmp_path / "gold")
    assert (score.accuracy.value, score.accuracy.n) == (1.0, 399)
    assert score.think_rate and score.think_rate.value == 0

    def kind_of(task: Task) -> int:
        return int(content_key(task)[:8], 16) % 6  # a few rows are there twice

    def errs(task: Task, turn: int) -> Answer | str:
        """One way or another in 5 of 6 tasks."""
        call, kind = task.expected[0], kind_of(task)
        first = next(iter(call.arguments), "")
        return [
            calls(call, thinks=True),
            calls(replace(call, name=f"{call.name}s")),
            calls(replace(call, arguments={**call.arguments, "more": "1"})),
            calls(replace(call, arguments={**call.arguments, first: "qwertz"})) if first else says("Done."),
            says("I will do that."),
            calls(call, call),
        ][kind]

    limit = Asking(limit=150)
    score = scored(Oracle(errs), benchmark, tmp_path / "errs", limit)
    chosen = limited(benchmark.tasks, limit.limit)["L-1"]
    assert score.accuracy.value == pytest.approx(sum(kind_of(t) == 0 for t in chosen) / 150)
    reasons = {e.reason for e in read_entries(score.setting.folder(tmp_path / "errs"))}
    assert reasons == {"", "wrong_name", "wrong_arguments", "missing_call", "extra_call"}
    assert score.think_rate and score.think_rate.value == pytest.approx(score.accuracy.value)


@needs_rows
def test_a_stopped_benchmark_goes_on_and_asks_nothing_twice(tmp_path):
    (tmp_path / "level-1-api.json").write_text(json.dumps(json.loads(API_BANK.read_text())[:80]))
    benchmark = api_bank(str(tmp_path / "level-1-api.json"))
    whole = scored(Oracle(gold), benchmark, tmp_path / "whole", Asking(limit=50, together=8))
    stopped = Oracle(gold, stop_after=20)
    with pytest.raises(StoppedError):
        scored(stopped, benchmark, tmp_path / "parts", Asking(limit=50, together=8))
    kept = read_entries(whole.setting.folder(tmp_path / "parts"))
    assert len(kept) == 16  # two batches of 8 are whole, the third is not
    later = Oracle(gold)
    score = scored(later, benchmark, tmp_path / "parts", Asking(limit=50, together=8))
    assert score.accuracy == whole.accuracy and score.tokens == whole.tokens
    assert not {e.id for e in kept} & set(later.asked) and len(later.asked) == 34
    again = Oracle(gold)
    assert scored(again, benchmark, tmp_path / "parts", Asking(limit=50)) == score and again.asked == []
    more = Oracle(gold)
    assert scored(more, benchmark, tmp_path / "parts", Asking(limit=60)).accuracy.n == 60 and len(more.asked) == 10


@needs_rows
def test_prompts_that_do_not_fit_count_as_wrong(tmp_path):
    (tmp_path / "level-1-api.json").write_text(json.dumps(json.loads(API_BANK.read_text())[:60]))
    benchmark, oracle = api_bank(str(tmp_path / "level-1-api.json")), Oracle(gold)
    lengths = sorted(len(oracle.format.prompt_ids(t.messages, t.tools)) for t in benchmark.tasks["L-1"])
    oracle.recipe.data.max_prompt_tokens = lengths[29]
    score = scored(oracle, benchmark, tmp_path)
    assert score.accuracy.value == pytest.approx(sum(n <= lengths[29] for n in lengths) / 60)
    reasons = [e.reason for e in read_entries(score.setting.folder(tmp_path)) if not e.score]
    assert reasons and all("raise data.max_prompt_tokens" in reason for reason in reasons)


def found_by(keywords: str) -> list[str]:
    return [{"history": "QueryHistory", "the past": "QueryHistory"}.get(keywords, "")] if keywords != "xyz" else []


@pytest.mark.parametrize(
    ("name", "made", "expected", "right"),
    [
        ("BookHotel", {"adults": 2, "city": " rome"}, {"adults": "2", "city": "Rome"}, True),
        ("BookHotel", {"adults": "3", "city": "Rome"}, {"adults": "2", "city": "Rome"}, False),
        ("BookHotel", {"adults": "2"}, {"adults": "2", "city": "Rome"}, False),
        ("BookHotel", {"adults": "2", "city": "Rome", "x": 1}, {"adults": "2", "city": "Rome"}, False),
        ("AddAgenda", {"content": "dinner with team"}, {"content": "Dinner with the team"}, True),
        ("AddAgenda", {"content": "team"}, {"content": "Dinner with the team"}, False),
        ("SendEmail", {"content": "dinner with team"}, {"content": "Dinner with the team"}, False),
        ("AddMeeting", {"meeting_topic": "budget plan"}, {"meeting_topic": "plan budget"}, True),
        (SEARCHER, {"keywords": "the past"}, {"keywords": "history"}, True),
        (SEARCHER, {"keywords": "stock"}, {"keywords": "history"}, False),
        (SEARCHER, {"keywords": "xyz"}, {"keywords": "xyz"}, True),
    ],
)
def test_calls_are_compared_as_most_apis_do(name, made, expected, right):
    same = same_api_call(found_by)
    assert same(Call(name, made), Call(name, expected)) == right
    assert not same(Call(f"{name}2", made), Call(name, expected))


def level_2() -> list[dict[str, Any]]:
    """Rows as published: the searcher first, then what it found."""
    searcher = {
        "name": SEARCHER,
        "description": "Searches for tools.",
        "input_parameters": {"keywords": {"type": "str"}},
    }
    history = {"name": "QueryHistoryToday", "description": "What happened on a day in history.",
               "input_parameters": {"date": {"type": "str"}}}  # fmt: skip
    stock = {
        "name": "QueryStock",
        "description": "The price of a stock.",
        "input_parameters": {"code": {"type": "str"}},
    }
    asked = {"history": ("What happened on October 6th in history?", history, "date='10-06'"),
             "query stock": ("What does Microsoft cost?", stock, "code='MSFT'")}  # fmt: skip
    made = []
    for number, (keywords, (question, tool, arguments)) in enumerate(asked.items()):
        base = {"file": f"{number}-level-3-1.jsonl", "instruction": f"API descriptions:\n{json.dumps(searcher)}"}
        search = f"API-Request: [{SEARCHER}(keywords='{keywords}')]"
        made.append({**base, "id": 0, "input": f"User: {question}\nGenerate API Request:\n", "expected_output": search})
        said = f"User: {question}\n{search}->{tool}\nGenerate API Request:\n"
        call = f"API-Request: [{tool['name']}({arguments})]"
        made.append({**base, "id": 1, "input": said, "expected_output": call})
    return made


def test_level_2_searches_among_what_the_rows_describe(tmp_path):
    (tmp_path / "level-2-api.json").write_text(json.dumps(level_2()))
    (tmp_path / "level-1-response.json").write_text(
        json.dumps([{**level_2()[0], "expected_output": "AI: It is a question of history."}])
    )
    benchmark = api_bank(str(tmp_path))
    assert {name: len(found) for name, found in benchmark.tasks.items()} == {"L-2": 4}
    assert "1 x expects a reply, not a call" in benchmark.notes

    def says_it_otherwise(task: Task, turn: int) -> Answer:
        call = task.expected[0]
        if call.name == SEARCHER:
            other = {"history": "happened in history", "query stock": "stock"}[call.arguments["keywords"]]
            call = Call(SEARCHER, {"keywords": other})
        return calls(call)

    assert scored(Oracle(says_it_otherwise), benchmark, tmp_path / "run").accuracy.value == 1.0


def test_the_official_api_bank_decides(tmp_path):
    clone = api_bank_clone(tmp_path / "clone")
    before = sorted(p for p in clone.rglob("*") if "__pycache__" not in p.parts)

    def errs(task: Task, turn: int) -> Answer:
        """What our rules call wrong and the APIs right, and the other way round."""
        return [
            calls(Call("AddAgenda", {"token": "t2", "content": "dinner with the team", "time": "2023-03-01 19:00:00"})),
            calls(Call("Calculator", {"formula": "3*2"})),
            calls(Call("Calculator", {"number": 1})),
        ][task.extra["sample"] // 2]  # fmt: skip

    with Checker("api_bank", clone) as checker:
        official = api_bank(str(clone / "level-1-api.json"), rows.official_reward(checker), "official")
        assert scored(Oracle(gold), official, tmp_path / "gold").accuracy.value == 1.0
        score = scored(Oracle(errs), official, tmp_path / "errs")
        assert score.accuracy.value == pytest.approx(2 / 3) and score.setting.checker == "official"
        with pytest.raises(DataError, match=r"has no nothing\.jsonl"):
            checker.ask({"file": "nothing.jsonl", "sample": 0, "name": "A", "arguments": {}})
    ours = scored(Oracle(errs), api_bank(str(clone / "level-1-api.json")), tmp_path / "ours")
    assert ours.accuracy.value == 0
    assert sorted(p for p in clone.rglob("*") if "__pycache__" not in p.parts) == before


def test_checkers_that_do_not_start_say_why(tmp_path):
    (tmp_path / "tool_manager.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(DataError, match=r"No module named 'a_package_that_nobody_has'.*--python"):
        Checker("api_bank", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        Checker("api_bank", tmp_path / "absent")
    with pytest.raises(DataError, match="check --python"):
        Checker("api_bank", tmp_path, python=str(tmp_path / "python"))
    (tmp_path / "tool_manager.py").write_text("raise SystemExit('broken')")
    with pytest.raises(DataError, match="it ended: broken"):
        Checker("api_bank", tmp_path)


# -- ACEBench -----------------------------------------------------------------------------------------------------


def ace_gold(task: Task, turn: int) -> Answer:
    """Gold calls, or the sentence that the official evaluation looks for."""
    row = json.loads(task.extra["row"])
    truth, category = row["ground_truth"], task.extra["category"]
    if category == "special_incomplete":
        ((name, missing),) = truth.items()
        return says(f'["Missing necessary parameters ({", ".join(missing)}) for the api ({name})"]', thinks=True)
    if category == "special_error_param":
        ((name, values),) = truth.items()
        return says(
            f'["There is incorrect value ({values[0]}) for the parameters ({name}) in the conversation history."]'
        )
    return says(truth) if category == "special_irrelevant" else calls(*task.expected)


@pytest.mark.parametrize("prompt", ["official", "tools"])
def test_acebench_by_its_own_evaluation(tmp_path, prompt):
    clone = acebench_clone(tmp_path / "clone")
    with Checker("acebench", clone) as checker:
        benchmark = acebench(str(clone), checker, prompt=prompt)
        assert sum(map(len, benchmark.tasks.values())) == 14 and "agent_multi_step is not covered" in benchmark.notes
        score = scored(Oracle(ace_gold), benchmark, tmp_path / "gold")
        assert score.accuracy.value == 1.0 and set(score.totals.values()) == {1.0}

        def errs(task: Task, turn: int) -> Answer | str:
            if task.id == "normal_multi_turn_user_switch_1_1":
                return calls(Call("get_weather", {"city": "Paris"}))
            if task.id == "special_incomplete_0":
                return calls(Call("send_mail", {"to": "a", "text": "b"}))
            if task.id == "normal_preference_0":  # the second of two answers that are right, in words
                return says("[send_mail(to='a', text='c')]")
            if task.id == "normal_single_turn_single_function_2":
                return says("I do not know.")
            return ace_gold(task, turn)

        score = scored(Oracle(errs), benchmark, tmp_path / "errs")
    wrong = {e.id: e.reason for e in read_entries(score.setting.folder(tmp_path / "errs")) if not e.score}
    assert wrong == {
        "normal_multi_turn_user_switch_1_1": "value_error",
        "special_incomplete_0": "error_detection",
        "normal_single_turn_single_function_2": "wrong_output_format",
    }
    normal, special = (2 / 3 + 1 + 1 / 2 + 1) / 4, (1 / 2 + 1 + 1) / 3
    assert score.totals["normal_multi_turn_user_switch, whole dialogues"] == 0.5
    assert score.categories["normal_multi_turn_user_switch"].value == 0.75
    assert (score.totals["normal"], score.totals["special"]) == pytest.approx((normal, special))
    summary = (0.578 * normal + 0.2676 * special) / (0.578 + 0.2676)
    assert score.totals["summary without agent"] == pytest.approx(summary)


def test_an_evaluation_that_fails_on_one_answer_ends_nothing(tmp_path):
    clone = acebench_clone(tmp_path / "clone")
    row = {"id": "normal_atom_bool_0", "question": "user: Rome?", "function": []}
    asked: dict[str, Any] = {"category": "normal_atom_bool", "row": row, "answer": {"get_weather": {"city": "Rome"}}}
    with Checker("acebench", clone) as checker:
        assert checker.ask({**asked, "result": "[get_weather(city='crash')]"}) == "evaluation_failed (KeyError)"
        assert checker.ask({**asked, "result": "[get_weather(city='Rome')]"}) == "right"
        broken = {**asked, "row": {**row, "question": "user: broken?"}}
        with pytest.raises(DataError, match="KeyError: 'an answer that nobody expected'"):
            checker.ask({**broken, "result": "[get_weather(city='Rome')]"})


def test_acebench_prompts(tmp_path):
    clone = acebench_clone(tmp_path / "clone")
    with Checker("acebench", clone) as checker:
        official, tools = (acebench(str(clone), checker, prompt=p) for p in ("official", "tools"))
    by_id = {b.other["prompt"]: {t.id: t for found in b.tasks.values() for t in found} for b in (official, tools)}
    asked = by_id["official"]["normal_preference_0"]
    assert asked.tools == () and asked.messages[0]["content"].startswith(
        "PREFERENCE: [Name(key=value)] Likes rain.\n[{'name'"
    )
    assert asked.messages[1]["content"] == "Conversation history 1..t:\nuser: Mail (0)"
    shown = by_id["tools"]["special_incomplete_0"]
    assert [t["function"]["name"] for t in shown.tools] == ["get_weather", "send_mail"]
    assert all(p in shown.messages[0]["content"] for p in ("There is incorrect value", "Missing necessary parameters",
                                                           "the limitations of the function"))  # fmt: skip
    assert shown.messages[1]["content"] == "Send a mail. (0)"
    assert official.version != tools.version
    (clone / "model_inference" / "prompt_en.py").unlink()
    with Checker("acebench", clone) as checker, pytest.raises(DataError, match="no model_inference/prompt_en"):
        acebench(str(clone), checker)
    with pytest.raises(DataError, match=r"there is no data_all/data_zh"):
        acebench(str(clone), checker, language="zh")


def test_calls_are_written_as_acebench_wants_them():
    made = (Call("f", {"a": "it's", "b": [1, True, None], "c": {"d": 0.5}}), Call("g", {}))
    assert in_brackets(made) == """[f(a="it's", b=[1, True, None], c={'d': 0.5}), g()]"""


def test_modes_are_recorded(tmp_path):
    (tmp_path / "level-2-api.json").write_text(json.dumps(level_2()))
    benchmark = api_bank(str(tmp_path))
    score = scored(Oracle(lambda task, turn: calls(*task.expected, thinks=True)), benchmark, tmp_path,
                   Asking(mode=Mode.THINK, temperature=0.7))  # fmt: skip
    assert score.setting.folder(tmp_path).name == "final-think-T0.7"
    assert score.think_rate and score.think_rate.value == 1.0
