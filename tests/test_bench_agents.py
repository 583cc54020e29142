"""QA and NL2SQL as benchmarks: real questions and a real database where they are there, oracles, failing tools."""

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oracle import Oracle, calls, says

from unbraid.bench.ask import Asking, Benchmark, ask
from unbraid.bench.nl2sql import nl2sql
from unbraid.bench.questions import questions
from unbraid.bench.score import BenchmarkScore, read_entries
from unbraid.chat.types import Answer, Call
from unbraid.errors import DataError, EnvError, ToolError
from unbraid.tasks.sql import chinook_tasks
from unbraid.tasks.task import Task

DATA = Path(os.environ.get("UNBRAID_DATA", Path(__file__).parents[2] / "shared" / "data"))
HOTPOT, CHINOOK = DATA / "hotpotqa", DATA / "chinook" / "chinook.sqlite"
SETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path_factory.mktemp("cache")))


def scored(oracle: Oracle, benchmark: Benchmark, folder: Path, **asking: Any) -> BenchmarkScore:
    return ask(benchmark, oracle.recipe, oracle.policy, folder, Asking(**asking), oracle.roll(benchmark))


def searches_then_answers(task: Task, turn: int) -> Answer:
    if turn == 0:
        return calls(Call("search", {"query": task.extra["question"]}))
    return says(f"The {task.extra['answers'][0]}.")


@pytest.mark.skipif(not HOTPOT.is_dir(), reason="no HotpotQA: set UNBRAID_DATA to a folder with hotpotqa/")
@pytest.mark.parametrize("call_format", ["search", "hermes"])
def test_hotpotqa_by_an_oracle_and_by_one_that_errs(tmp_path, call_format):
    def errs(task: Task, turn: int) -> Answer:
        said = searches_then_answers(task, turn)
        wrong = int(task.id.rpartition("/")[2], 16) % 4 == 0
        return says("somebody else entirely", thinks=True) if wrong and turn == 1 else said

    good, bad = Oracle(searches_then_answers, call_format), Oracle(errs, call_format)
    benchmark = questions(str(HOTPOT / "questions.json"), good.recipe, corpus=str(HOTPOT / "corpus.json"))
    assert benchmark.name == "qa-questions" and sum(map(len, benchmark.tasks.values())) == 100
    score = scored(good, benchmark, tmp_path / "good", limit=24)
    assert score.accuracy.value == 1.0 and score.totals["average over sets"] == 1.0 and score.totals["F1"] == 1.0
    assert 0.3 < score.totals["retrieved"] < 1.0  # BM25 with the whole question: recall@3 is about 0.68
    wrong = sum(int(i.rpartition("/")[2], 16) % 4 == 0 for i in good.asked) / 24
    score = scored(bad, benchmark, tmp_path / "bad", limit=24)
    assert score.accuracy.value == pytest.approx(1 - wrong) and set(bad.asked) == set(good.asked)
    assert score.think_rate and score.think_rate.value == pytest.approx(wrong)
    assert score.setting.other["searched"] == "corpus.json" and score.setting.other["topk"] == "3"


def flashrag(folder: Path) -> tuple[Path, Path]:
    """Seven sets as FlashRAG lays them out, and a corpus."""
    for number, name in enumerate(SETS):
        (folder / name).mkdir(parents=True)
        rows = [
            {"id": f"test_{i}", "question": f"what is number {i} of {name}?", "golden_answers": [f"answer {i}", "x"]}
            for i in range(3 + number)
        ]
        (folder / name / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = folder / "corpus" / "wiki.jsonl"
    corpus.parent.mkdir()
    passages = [{"id": str(i), "contents": f'"Page {i}"\nnumber {i} is answer {i}'} for i in range(9)]
    corpus.write_text("\n".join(map(json.dumps, passages)))
    return folder, corpus


def test_the_seven_sets_are_averaged_as_published(tmp_path):
    folder, corpus = flashrag(tmp_path / "data")
    moved = corpus.rename(tmp_path / "wiki.jsonl")

    def errs(task: Task, turn: int) -> Answer:
        if turn == 0:
            return searches_then_answers(task, turn)
        return says("Answer: 0!" if task.extra["question"].startswith("what is number 0 of") else "the answer 1")

    oracle = Oracle(errs)
    benchmark = questions(str(folder), oracle.recipe, corpus=str(moved))
    assert benchmark.name == "qa" and set(benchmark.tasks) == set(SETS)
    assert benchmark.tasks["nq"][0].id == "nq/test_0" and benchmark.tasks["nq"][0].extra["eval_only"]
    score = scored(oracle, benchmark, tmp_path / "run", together=7)
    per_set = [2 / (3 + number) for number in range(7)]  # questions 0 and 1 of each
    assert [score.categories[name].value for name in SETS] == pytest.approx(per_set)
    assert score.totals["average over sets"] == pytest.approx(sum(per_set) / 7)
    assert score.accuracy.value == pytest.approx(14 / sum(range(3, 10)))
    assert score.totals["retrieved"] == 1.0


def test_one_file_of_search_r1_holds_several_sets(tmp_path):
    rows = [
        {"id": "test_0", "question": f"q {s} {i}?", "golden_answers": ["a"], "data_source": s}
        for s in "xy"
        for i in (0, 1)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.jsonl").write_text('{"contents": "t\\nwords"}')
    benchmark = questions(
        str(tmp_path / "test.jsonl"), Oracle(searches_then_answers).recipe, corpus=str(tmp_path / "c.jsonl")
    )
    assert {name: [t.id for t in found] for name, found in benchmark.tasks.items()} == {
        "x": ["x/0", "x/1"], "y": ["y/0", "y/1"],  # ids that repeat are no ids
    }  # fmt: skip
    with pytest.raises(EnvError, match="either corpus"):
        questions(str(tmp_path / "test.jsonl"), Oracle(searches_then_answers).recipe)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.jsonl"):
        questions(str(tmp_path / "empty"), Oracle(searches_then_answers).recipe, corpus=str(tmp_path / "c.jsonl"))


def test_an_entry_whose_search_failed_is_asked_again(tmp_path):
    folder, corpus = flashrag(tmp_path / "data")
    moved = corpus.rename(tmp_path / "wiki.jsonl")
    oracle = Oracle(searches_then_answers)
    benchmark = questions(str(folder / "nq" / "test.jsonl"), oracle.recipe, corpus=str(moved))
    environment: Any = benchmark.acts_in
    whole = environment.retriever

    class Flaky:
        def search(self, query: str, topk: int) -> Any:
            if "number 1" in query:
                raise ToolError("the retriever does not answer")
            return whole.search(query, topk)

    environment.retriever = Flaky()
    assert benchmark.name == "qa-nq"
    score = scored(oracle, benchmark, tmp_path / "run")
    assert score.accuracy.n == 2 and {e.id for e in read_entries(score.setting.folder(tmp_path / "run"))} == {
        "nq/test_0", "nq/test_2",
    }  # fmt: skip
    environment.retriever = whole
    later = Oracle(searches_then_answers)
    assert scored(later, benchmark, tmp_path / "run").accuracy.n == 3 and later.asked == ["nq/test_1"]


# -- NL2SQL -------------------------------------------------------------------------------------------------------


def looks_then_answers(task: Task, turn: int) -> Answer:
    return calls(Call("sql", {"query": "SELECT 1"})) if turn == 0 else says(task.extra["sql"])


@pytest.mark.skipif(not CHINOOK.is_file(), reason="no Chinook: set UNBRAID_DATA to a folder with chinook/")
@pytest.mark.parametrize("form", ["spider", "bird"])
def test_chinook_in_the_form_of_spider_and_of_bird(tmp_path, form):
    (tmp_path / "database" / "chinook").mkdir(parents=True)
    (tmp_path / "database" / "chinook" / "chinook.sqlite").symlink_to(CHINOOK)
    key = {"spider": "query", "bird": "SQL"}[form]
    rows: list[dict[str, Any]] = [
        {"question": t.extra["question"], key: t.extra["sql"], "db_id": "chinook"}
        | ({"difficulty": ("simple", "moderate")[i % 2], "evidence": "none"} if form == "bird" else {})
        for i, t in enumerate(chinook_tasks(str(CHINOOK), count=24, split="dev"))
    ]
    rows.append({"question": "broken?", key: "SELECT nothing FROM nowhere", "db_id": "chinook"})
    (tmp_path / "dev.json").write_text(json.dumps(rows))

    def errs(task: Task, turn: int) -> Answer:
        number = int(task.id.rpartition(":")[2])
        sql = [task.extra["sql"], f"SELECT * FROM ({task.extra['sql']}) LIMIT 0", "DROP TABLE Album"][number % 3]
        return says(sql) if turn else looks_then_answers(task, turn)

    call_format = {"spider": "sql", "bird": "hermes"}[form]
    good, bad = Oracle(looks_then_answers, call_format), Oracle(errs, call_format)
    benchmark = nl2sql(str(tmp_path / "dev.json"), good.recipe)
    assert benchmark.name == form and set(benchmark.tasks) == ({"all"} if form == "spider" else {"simple", "moderate"})
    assert benchmark.other["match"] == {"spider": "ordered", "bird": "set"}[form]
    assert "left out: 1 x its query fails" in benchmark.notes
    score = scored(good, benchmark, tmp_path / "good")
    assert (score.accuracy.value, score.accuracy.n) == (1.0, 24)
    score = scored(bad, benchmark, tmp_path / "bad")
    assert score.accuracy.value == pytest.approx(1 / 3)


def test_order_and_duplicates_count_as_each_benchmark_says(tmp_path):
    folder = tmp_path / "database" / "shop"
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "shop.sqlite") as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price INT); INSERT INTO item VALUES ('a', 2), ('a', 2), ('b', 1);"
        )
    asked = {"ordered": "SELECT name FROM item ORDER BY price", "plain": "SELECT name FROM item"}
    said = {"ordered": "SELECT name FROM item ORDER BY price DESC", "plain": "SELECT DISTINCT name FROM item"}

    def errs(task: Task, turn: int) -> Answer:
        return says(said[task.extra["question"]])

    found = {}
    for form, key in (("spider", "query"), ("bird", "SQL")):
        rows = [{"question": q, key: sql, "db_id": "shop"} for q, sql in asked.items()]
        (tmp_path / f"{form}.json").write_text(json.dumps(rows))
        oracle = Oracle(errs)
        benchmark = nl2sql(str(tmp_path / f"{form}.json"), oracle.recipe)
        score = scored(oracle, benchmark, tmp_path / form)
        found[form] = [e.score for e in read_entries(score.setting.folder(tmp_path / form))]
    assert found == {"spider": [0.0, 0.0], "bird": [1.0, 1.0]}
    oracle = Oracle(errs)
    multiset = nl2sql(str(tmp_path / "bird.json"), oracle.recipe, match="multiset", name="mine")
    assert scored(oracle, replace(multiset), tmp_path / "mine").accuracy.value == 0.5 and multiset.name == "mine"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "dev.json").write_text((tmp_path / "bird.json").read_text())
    with pytest.raises(DataError, match="give --databases"):
        nl2sql(str(tmp_path / "elsewhere" / "dev.json"), oracle.recipe)
