"""What becomes of the harness's answers: one record, nothing asked twice, and one line where something is wrong."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unbraid.bench.bfcl import run as bfcl_run
from unbraid.bench.bfcl.installation import VERSION, Installation, errand, find_bfcl
from unbraid.bench.bfcl.literals import as_source
from unbraid.bench.bfcl.run import Asking, bfcl, category_of, mode_of, read_answers, totals_of
from unbraid.bench.bfcl.served import Server
from unbraid.bench.score import read_entries
from unbraid.chat.types import Mode
from unbraid.errors import DataError, ServerError

SERVER = Server("http://127.0.0.1:9/v1", "my_FC/model", "vllm")
INSTALLATION = Installation(Path(sys.executable), VERSION, Path("nowhere"), {"bfcl_eval": VERSION})


class Harness:
    """Stands in for the errands. answers_only: how many entries get an answer; table: the harness's columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.answers_only: int | None = None
        self.plans: list[tuple[str, dict[str, Any]]] = []
        self.table = {"Live Acc": "50.00%", "Irrelevance Detection": "100.00%", "Multi Turn Acc": "N/A"}
        monkeypatch.setattr(bfcl_run, "errand", self.errand)

    def errand(self, installation: Any, name: str, plan: Any, folder: Any = None, tell: Any = None, **_: Any) -> Any:
        self.plans.append((name, plan))
        return getattr(self, name)(plan, tell)

    def entries(self, plan: Any, tell: Any) -> Any:
        return [{"category": one, "ids": [f"{one}_{i}" for i in range(6)]} for one in plan["categories"]]

    def ask(self, plan: Any, tell: Any) -> Any:
        ids = [id for some in plan["ids"].values() for id in some]
        for place, id in enumerate(ids):
            if self.answers_only is not None and place >= self.answers_only:
                tell({"id": id, "failed": "APIConnectionError: Connection error."})
                continue
            reply = {
                "reasoning": "so" if place % 2 else "", "content": "hm", "completion_tokens": 10,
                "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
            }  # fmt: skip
            line: dict[str, Any] = {"id": id, "result": [], "replies": [reply, reply]}
            if id == "live_simple_5":
                line = {"id": id, "result": "Error during inference: too long", "refused": "too long", "replies": []}
            with Path(plan["answers"]).open("a") as file:
                file.write(json.dumps(line) + "\n")
            tell({"id": id})

    def judge(self, plan: Any, tell: Any) -> Any:
        ids = [one["id"] for one in read_answers(Path(plan["answers"]))]
        verdicts = [{"id": id, "right": not id.endswith("5"), "reason": "wrong" * id.endswith("5")} for id in ids]
        return [*verdicts, {"table": self.table, "note": ""}]


@pytest.fixture
def harness(monkeypatch):
    return Harness(monkeypatch)


def test_a_record_grows_and_nothing_is_asked_twice(harness, tmp_path):
    progress = []
    asking = Asking(categories=("live_simple",), limit=2, template="tag, hermes", parameters=10**9)
    score = bfcl(INSTALLATION, SERVER, tmp_path, asking, lambda *told: progress.append(told[1:3]))
    assert progress == [(1, 2), (2, 2)] and score.accuracy.n == 2
    folder = tmp_path / "benchmarks" / "bfcl" / "final-auto-greedy"
    first = {entry.id for entry in read_entries(folder)}
    score = bfcl(
        INSTALLATION,
        SERVER,
        tmp_path,
        Asking(categories=("live_simple", "irrelevance"), template="tag, hermes", parameters=10**9),
    )
    asked = [id for name, plan in harness.plans if name == "ask" for some in plan["ids"].values() for id in some]
    assert len(asked) == len(set(asked)) == score.accuracy.n == 12 and first < set(asked)
    entries = {entry.id: entry for entry in read_entries(folder)}
    assert entries.keys() == set(asked) and score.categories["live_simple"].value == pytest.approx(5 / 6)
    assert (
        entries["live_simple_5"].reason == "refused by the server: too long" and entries["live_simple_5"].mode is None
    )
    thinks = [entry for entry in entries.values() if entry.mode is Mode.THINK]
    assert thinks and all(
        e.tokens == 20 and e.response == "<think>so</think> hm f({})\n<think>so</think> hm f({})" for e in thinks
    )
    assert score.acu == pytest.approx(100 * 100 * score.accuracy.value / score.tokens.value)
    before = len(harness.plans)
    bfcl(INSTALLATION, SERVER, tmp_path, Asking(categories=("live_simple",), template="tag, hermes", parameters=10**9))
    assert [name for name, _ in harness.plans[before:]] == ["entries", "judge"]
    bfcl(INSTALLATION, SERVER, tmp_path, Asking(categories=("live_simple",), limit=1, again=True))
    assert len(read_entries(folder)) == len(read_answers(folder / "answers.jsonl")) == 1


def test_entries_without_an_answer_are_asked_again(harness, tmp_path):
    harness.answers_only = 2
    with pytest.raises(ServerError, match=r"4 of 6 entries got no answer \(live_simple_2: APIConnectionError"):
        bfcl(INSTALLATION, SERVER, tmp_path, Asking(categories=("live_simple",)))
    harness.answers_only = None
    answers = tmp_path / "benchmarks" / "bfcl" / "final-auto-greedy" / "answers.jsonl"
    with answers.open("a") as file:
        file.write('{"id": "live_sim')
    assert bfcl(INSTALLATION, SERVER, tmp_path, Asking(categories=("live_simple",))).accuracy.n == 6
    assert list(harness.plans[-2][1]["ids"].values()) == [[f"live_simple_{i}" for i in range(2, 6)]]


def test_what_the_harness_is_told(harness, tmp_path):
    asking = Asking(categories=("live_simple",), mode=Mode.THINK, prompting=True, temperature=0.7, seed=3, together=5)
    score = bfcl(INSTALLATION, SERVER, tmp_path, asking)
    plan = next(plan for name, plan in harness.plans if name == "ask")
    # An underscore or FC in its name would mean something to the harness.
    assert plan["row"] == "my-Fc-model-think" and plan["model"] == "my_FC/model" and plan["prompting"]
    told = {"mode": "think", "seed": 3, "temperature": 0.7, "max_tokens": 4096, "retries": 5}
    assert plan["server"] == {"url": SERVER.url, "key": "none", **told} and plan["concurrency"] == 5
    setting = score.setting
    assert setting.folder("r") == Path("r/benchmarks/bfcl-prompt/final-think-T0.7")
    assert "prompt" in setting.handler and setting.version == f"bfcl-eval {VERSION}"
    with pytest.raises(DataError, match=r"was asked with seed 3 \(now 4\)"):
        bfcl(INSTALLATION, SERVER, tmp_path, replace(asking, seed=4))


@pytest.mark.parametrize(
    ("categories", "prompting", "why"),
    [
        (("memory_kv",), False, "agentic is not asked here"),
        (("all",), False, "agentic is not asked here"),
        (("format_sensitivity",), False, "goes with --prompting"),
    ],
)
def test_categories_that_are_not_asked(harness, tmp_path, categories, prompting, why):
    with pytest.raises(DataError, match=why):
        bfcl(INSTALLATION, SERVER, tmp_path, Asking(categories=categories, prompting=prompting))


def test_totals_are_of_whole_groups_only():
    table = {"Live Acc": "51.25%", "Multi Turn Acc": "3.00%", "Irrelevance Detection": "N/A"}
    live = ("live_simple_0-0-0", "live_multiple_1-0-1", "live_parallel_0-0-0", "live_parallel_multiple_0-0-0")
    verdicts: dict[str, Any] = {"": table, **{id: {} for id in (*live, "multi_turn_base_3", "irrelevance_1")}}
    assert totals_of(verdicts) == {"Live Acc": 0.5125}


@pytest.mark.parametrize(
    ("thoughts", "mode"),
    [(["", ""], Mode.NO_THINK), (["", "so"], Mode.THINK), ([None, None], None), ([None, "so"], Mode.THINK), ([], None)],
)
def test_modes(thoughts, mode):
    assert mode_of([{"reasoning": one} for one in thoughts]) is mode


def test_ids_and_source_text():
    assert category_of("live_simple_0-0-0") == "live_simple" and category_of("simple_python_7") == "simple_python"
    assert category_of("format_sensitivity_3:ret_fmt=json&style=classic:live_simple_0-0-0") == "format_sensitivity"
    properties = {
        "n": {"type": "long"}, "f": {"type": "float"}, "b": {"type": "boolean"}, "s": {"type": "String"},
        "l": {"type": "ArrayList", "items": {"type": "String"}}, "a": {"type": "Array", "items": {"type": "integer"}},
        "m": {"type": "HashMap"},
    }  # fmt: skip
    given = {"n": 3, "f": 1.5, "b": True, "s": "x", "l": ["p", "q"], "a": [1, 2], "m": {"k": "v", "w": 1}}
    assert as_source(given, properties, java=True) == {
        "n": "3L", "f": "1.5f", "b": "true", "s": "x", "l": 'new ArrayList<>(Arrays.asList("p", "q"))',
        "a": "new int[]{1, 2}", "m": 'new HashMap<>() {{ put("k", "v"); put("w", 1); }}',
    }  # fmt: skip
    assert as_source({"a": ["p", 1], "m": {"k": [True]}}, {}, java=False) == {"a": "['p', 1]", "m": "{'k': [true]}"}


def test_an_environment_without_the_harness(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNBRAID_BFCL_PYTHON", raising=False)
    with pytest.raises(ServerError, match=r"\.venv-bfcl: no interpreter .* make setup-bfcl"):
        find_bfcl()
    with pytest.raises(ServerError, match=rf"has no bfcl-eval and not {VERSION}: make setup-bfcl"):
        find_bfcl(sys.executable)


def test_an_errand_that_fails_says_why_in_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '{\"id\": 1}'\necho at the end >&2\nexit 3\n")
    python.chmod(0o755)
    told = []
    with pytest.raises(
        ServerError, match=r"BFCL's harness failed at 'ask' \(status 3, it said: at the end\); its log: "
    ):
        errand(replace(INSTALLATION, python=python), "ask", {}, tell=told.append)
    assert told == [{"id": 1}]
