"""Building a set: stages, kills, another rule, a budget that ends, and the files and the card that come out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building import build_config, building, contents, samplers, write_rows
from rich.console import Console
from rows import rows_of, write
from typer.testing import CliRunner

from unbraid.chat.types import Mode
from unbraid.cli.main import app
from unbraid.data import DataConfig, read_tasks
from unbraid.data import pool as pools
from unbraid.data.refine import RefineConfig
from unbraid.data.task_rows import read_task_lines
from unbraid.errors import CheckpointError, DataError, RecipeError
from unbraid.lab.chatml import build_chatml_model
from unbraid.label import LabelConfig
from unbraid.label.build import RL, WARMUP, build
from unbraid.label.build_config import BuildConfig, Samplers
from unbraid.label.card import card, source_table, step_table
from unbraid.label.tries import Failure

DATA = Path(os.environ.get("UNBRAID_DATA", Path(__file__).parents[2] / "shared" / "data"))
ALL = DataConfig(no_call=1.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    building(rows, out)
    return out


def test_the_sets_are_read_by_us_and_by_datasets(whole, tmp_path):
    import datasets

    for name, most in (("warmup", 40), ("rl", 40)):
        ours = read_tasks(str(whole / f"{name}.jsonl"), DataConfig(strict=True, no_call=0.0))
        assert 0 < len(ours.tasks) <= most and not ours.skipped
        theirs = datasets.load_dataset(str(whole), name, split="train", cache_dir=str(tmp_path))
        assert theirs.num_rows == len(ours.tasks)
        plain: list[dict[str, str]] = theirs.to_list()
        for row, task in zip(plain, ours.tasks, strict=True):
            assert row["id"] == task.id and json.loads(row["messages"]) == list(task.messages)
            assert json.loads(row["tools"]) == list(task.tools)
        theirs.to_parquet(tmp_path / f"{name}.parquet")  # as the hub gives it back
        assert read_tasks(str(tmp_path / f"{name}.parquet"), DataConfig()).tasks == ours.tasks


def test_the_warm_up_set_follows_the_rule(whole):
    warmup = read_tasks(str(whole / WARMUP), DataConfig()).tasks
    thinks = [t for t in warmup if t.extra["needs_thinking"]]
    assert thinks and len(thinks) < len(warmup)
    for task in warmup:
        modes = {a.mode for a in task.answers}
        assert (Mode.NO_THINK in modes) != (task in thinks) and modes
        assert (task.extra["right"]["no_think"] > 0) == (task not in thinks)
        assert all(a.calls == task.expected for a in task.answers)
    rl = {t.id for t in read_tasks(str(whole / RL), DataConfig()).tasks}
    assert len(rl) == 40 and not rl & {t.id for t in warmup}


def test_the_card_says_what_the_files_are(whole, rows):
    built = building(rows, whole)
    text = (whole / "README.md").read_text()
    assert text == card(built, ["rows"]) and str(rows) not in text
    head, table = source_table(built)
    numbers = dict(zip(head, table[-1], strict=True))
    sources = {name: read_tasks(str(rows / f"{name}.json"), ALL) for name in ("toolace", "xlam", "hermes")}
    assert numbers["rows"] == str(40 + 120 + 24)
    assert numbers["read"] == str(sum(len(r.tasks) for r in sources.values()))
    assert numbers["bad"] == str(sum(len(r.bad) for r in sources.values()))
    sets = {name: (whole / name).read_text().splitlines() for name in (WARMUP, RL)}
    assert (numbers["warm-up"], numbers["RL"]) == (str(len(sets[WARMUP])), str(len(sets[RL])))
    thinks = sum(json.loads(json.loads(line)["extra"])["needs_thinking"] for line in sets[WARMUP])
    assert numbers["thinks, %"] == f"{100 * thinks / len(sets[WARMUP]):.1f}"
    for column, total in zip(list(zip(*table[:-1], strict=True))[1:], table[-1][1:], strict=True):
        if "." not in total:
            assert sum(map(int, column)) == int(total)
    assert all(row[0] and row[1].isdigit() for row in step_table(built.steps)[1])
    assert "cc-by-4.0" in text.split("---")[1] and "| bench | 2 | 2 | 1 |" in text
    # Of 50 + 120 asked for, all of ToolACE and Hermes that is usable is in the pools, and xLAM fills up.
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in table}
    assert (
        by_name["toolace"]["usable"] == by_name["toolace"]["cut"]
        and by_name["hermes"]["usable"] == by_name["hermes"]["cut"]
    )
    assert int(by_name["xlam"]["cut"]) < int(by_name["xlam"]["usable"]) and by_name["all"]["cut"] == "170"


def test_finished_stages_are_not_done_again(whole, rows):
    before = contents(whole)
    said: list[str] = []
    build(build_config(rows), whole, samplers=refuse_draws, say=said.append)
    assert contents(whole) == before and not said


def refuse_draws() -> Samplers:
    """The same samplers by name, which must not be asked."""
    found = samplers()

    def draw(wants, spent):
        raise AssertionError("nobody should be asked again")

    found.no_think.draw = draw
    return found


def test_stage_by_stage_is_the_same_as_at_once(whole, rows, tmp_path):
    for until in ("read", "pool", "label", "sample", "refine"):
        building(rows, tmp_path, until=until)
        done = {"read": 0, "pool": 0, "label": 1, "sample": 1, "refine": 2}[until]
        assert len(list(tmp_path.glob("*.jsonl"))) == done
    assert contents(tmp_path) == contents(whole)
    assert building(rows, tmp_path, until="pool").stages.keys() >= {"label", "refine"}  # the card keeps what stands
    assert contents(tmp_path) == contents(whole)


def test_another_rule_redoes_what_follows_from_it(whole, rows, tmp_path):
    out = shutil.copytree(whole, tmp_path / "set")
    said: list[str] = []
    config = build_config(rows, labels=LabelConfig(tries=4, rule="all"))
    build(config, out, samplers=refuse_draws, say=said.append)
    assert [line.split(":")[0] for line in said] == ["label", "sample"] and "labels.rule" in said[0]
    assert contents(out)["work/label/samples.jsonl"] == contents(whole)["work/label/samples.jsonl"]
    assert contents(out)[WARMUP] != contents(whole)[WARMUP]
    # Other tasks are another thing: tries of the old ones are not thrown away silently.
    with pytest.raises(CheckpointError, match="a build goes on only"):
        build(build_config(rows, seed=1), out, samplers=samplers)


def test_a_budget_that_ends_is_gone_on_with(whole, rows, tmp_path):
    """An endpoint that fails in between: the stage stays open, and the next call asks for the rest alone."""

    def failing() -> Samplers:
        found = samplers()
        whole_draw = found.no_think.draw

        def draw(wants, spent):
            for number, part in enumerate(whole_draw(wants, spent)):
                yield part if number < 3 else [Failure(one.task, one.mode, one.number, "budget", 1) for one in part]

        found.no_think.draw = draw
        return found

    first = build(build_config(rows), tmp_path, "label", samplers=failing)
    assert first.stages["label"].books["open"] > 0
    said: list[str] = []
    last = build(build_config(rows), tmp_path, "label", samplers=samplers, say=said.append)
    assert last.stages["label"].books["open"] == 0 and said == ["label: gone on with (something is missing)"]
    assert contents(tmp_path)[WARMUP] == contents(whole)[WARMUP]


def test_killed_at_random_it_ends_as_the_unbroken_one(whole, rows, tmp_path):
    command = [sys.executable, str(Path(__file__).parent / "building.py"), str(rows), str(tmp_path / "set"), "3", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) >= 4
    found = contents(tmp_path / "set")
    assert not any(name.endswith(".partial") for name in found)
    assert found == contents(whole)


def test_refining_by_rounds_and_other_methods(whole, rows, tmp_path, monkeypatch):
    out = shutil.copytree(whole, tmp_path / "set")
    mixed = build(
        build_config(rows, refine=RefineConfig(method="mixed_groups"), rl=10, pool=120), out, samplers=samplers
    )
    assert len(read_tasks(str(out / RL), DataConfig()).tasks) == 10
    assert [step.name for step in mixed.steps][-2:] == ["refine", "RL size"]
    by_id = {t.id: t for t in read_tasks(str(out / "work" / "pool" / RL), DataConfig()).tasks}
    import numpy as np

    from unbraid.label.refining import Measured

    seen = {id: Measured(np.array([0.0, float(n % 2)]), 0.5) for n, id in enumerate(list(by_id)[:40])}
    monkeypatch.setattr("unbraid.label.build.from_rollouts", lambda run, across: ([], seen))
    (tmp_path / "run" / "rollouts").mkdir(parents=True)
    built = build(build_config(rows, rl=20, pool=120), out, samplers=samplers, rounds=tmp_path / "run")
    kept = {t.id for t in read_tasks(str(out / RL), DataConfig()).tasks}
    assert kept == {id for n, id in enumerate(list(by_id)[:40]) if n % 2 == 0}
    assert "sample" not in built.stages or built.stages["refine"].made_of["rounds"]
    (refined,) = [step for step in built.steps if step.name == "refine"]
    assert sum(c.came for c in refined.sources.values()) == len(by_id)


def test_rows_of_a_benchmark_do_not_get_in(tmp_path):
    """Marked as such they are filtered; in another format the audit finds them."""
    write(tmp_path / "bfcl.json", [row for row in rows_of("bfcl") if "irrelevance" not in row["id"]])
    write(tmp_path / "ours.json", rows_of("sharegpt"))
    config = BuildConfig(
        sources=(("bfcl", str(tmp_path / "bfcl.json")), ("ours", str(tmp_path / "ours.json"))), warmup=5, rl=5
    )
    built = build(config, tmp_path / "set", "pool")
    (first, *_) = built.steps
    assert dict(first.sources["bfcl"].dropped) == {pools.BENCHMARK: 1}
    kept = [t for name in (WARMUP, RL) for t in read_task_lines(tmp_path / "set" / "work" / "pool" / name)]
    assert kept and all(t.source == "ours" for t in kept)


def test_sizes_follow_from_each_other():
    config = BuildConfig(sources=(("a", "b"),), warmup=100, rl=10)
    assert (config.candidates, config.pool) == (125, 30)
    plain = BuildConfig(sources=(("a", "b"),))
    assert (plain.warmup, plain.rl, plain.candidates, plain.pool) == (8200, 7000, 10_250, 21_000)
    assert BuildConfig(sources=(("a", "b"),), rl=10, pool=20).pool == 20


def test_mistakes_are_named(rows, tmp_path):
    with pytest.raises(RecipeError, match="need a model"):
        build(build_config(rows), tmp_path)
    with pytest.raises(DataError, match="use one of read, pool"):
        build(build_config(rows), tmp_path, "everything")
    with pytest.raises(DataError, match="no such file"):
        build(build_config(rows, sources=[("a", "absent.json")]), tmp_path, "read")


def run(*words: str) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, list(words), catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command(rows, tmp_path, monkeypatch):
    """All stages by a real, tiny model that knows nothing: gold answers are what is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unbraid.cli.data.console", Console(width=200))
    build_chatml_model(tmp_path / "chat", ["Please find it."], 600, hidden=32, layers=1, seed=0)
    sources = [word for name in ("toolace", "xlam") for word in ("--source", f"{name}={rows / name}.json")]
    sizes = ["--warmup", "3", "--candidates", "3", "--rl", "2", "--pool", "3", "--tries", "2", "--fallback", "gold"]
    recipe = ["rows-small", "model.path=chat", "rollout.max_new_tokens=4", "data.max_prompt_tokens=6000"]
    bench = ["--benchmark", f"bench={rows / 'bench.json'}"]
    said = run("data", "build", *recipe, *sources, *bench, *sizes, "--out", "set")
    assert "card: set/README.md" in said and "warm-up size" in said
    warmup = read_tasks(str(tmp_path / "set" / WARMUP), DataConfig()).tasks
    assert warmup and all(t.answers for t in warmup)
    text = (tmp_path / "set" / "README.md").read_text()
    assert "data build rows-small model.path=chat" in text and "--fallback gold" in text and str(tmp_path) not in text
    said = run("data", "overlap", str(rows / "xlam.json"), *bench)
    assert "asks the same" in said and "simple_0" in said


@pytest.mark.skipif(
    not (DATA / "toolrl").is_dir() or not (DATA / "glaive").is_dir(),
    reason="no real rows: set UNBRAID_DATA to a folder with toolrl/ and glaive/",
)
def test_real_rows(tmp_path):
    sources = tuple((name, str(DATA / name)) for name in ("toolrl", "glaive"))
    benchmarks = (("api-bank", str(DATA / "api_bank")),)
    built = build(BuildConfig(sources=sources, benchmarks=benchmarks, warmup=100, rl=50), tmp_path, "pool")
    numbers = {row[0]: row for row in source_table(built)[1]}
    assert numbers["all"][1:6] == ["830", "33", "1117", "644", "275"]
    assert {step.name: sum(c.dropped.total() for c in step.sources.values()) for step in built.steps} == {
        "filter": 82, "repeats": 90, "overlap api-bank": 11, "no call": 290, "cut": 369,
    }  # fmt: skip
