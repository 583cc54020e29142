"""Runs against each other: pairing against an independent reading, what is said where it cannot be done, the page."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, find_chromium
from made_up_runs import responses
from rich.console import Console
from typer.testing import CliRunner

from unbraid.bench.compare import Answered, compare_runs, pair
from unbraid.bench.score import Entry, Setting, add_entries, close_record, open_record
from unbraid.chat.types import Mode
from unbraid.cli.main import app
from unbraid.errors import DataError
from unbraid.evaluate import Labels, score
from unbraid.evaluate.statistics import clustered_mean, of_means
from unbraid.learn.log import write_rollouts
from unbraid.policy import ModelConfig
from unbraid.recipe import Recipe, TasksConfig
from unbraid.report.comparison import Row, comparison_table, write_comparison
from unbraid.run.folder import write_scores

CHROMIUM = find_chromium()
BILLION = 1_000_000_000


def entries(seed: int, right: float, n: int = 60, longer: int = 0) -> list[Entry]:
    """Entries of which a run gets some share right; which ones are hard is the same for every seed."""
    hard, rng = np.random.default_rng(0).random(n), np.random.default_rng(seed)
    modes = rng.random(n) < 0.5
    return [
        Entry(f"q{i}", "a", float(hard[i] + 0.15 * rng.normal() < right), int(20 + longer + 10 * hard[i]),
              Mode.THINK if modes[i] else Mode.NO_THINK)
        for i in range(n)
    ]  # fmt: skip


def answered(given: list[Entry], parameters: int = BILLION) -> Answered:
    nothing = clustered_mean([0.0], ["x"])
    return Answered(Row("run", nothing, nothing, None, None), given, None, parameters)


def test_pairs_are_differences_of_the_same_entries():
    ours, theirs = entries(1, 0.4), entries(2, 0.6, longer=5)[10:]
    found = pair(answered(ours), answered([*theirs, replace(theirs[0], id="elsewhere")]))
    assert found and found.common == 50
    before, after = ours[10:], theirs
    deltas = np.array([b.score - a.score for a, b in zip(before, after, strict=True)])
    assert found.accuracy.value == pytest.approx(deltas.mean())
    # Independent: a bootstrap of our own, and the normal interval of a mean.
    half = 1.96 * deltas.std(ddof=1) / np.sqrt(50)
    assert found.accuracy.low == pytest.approx(deltas.mean() - half, abs=0.03)
    assert found.accuracy.high == pytest.approx(deltas.mean() + half, abs=0.03)
    assert found.tokens.value == pytest.approx(5) and found.tokens.low is None  # 5 more in every entry
    think = [(b.mode is Mode.THINK) - (a.mode is Mode.THINK) for a, b in zip(before, after, strict=True)]
    assert found.think and found.think.value == pytest.approx(np.mean(think))
    acu = [np.mean([e.score for e in one]) / np.mean([e.tokens for e in one]) for one in (before, after)]
    assert found.acu and found.acu.value == pytest.approx(acu[1] / acu[0])
    assert found.acu.low and found.acu.high and found.acu.low < found.acu.value < found.acu.high
    twice = pair(answered(ours), answered(theirs, 2 * BILLION))
    assert twice and twice.acu and twice.acu.value == pytest.approx(acu[1] / acu[0] / 2)
    one, other = (sum(d == sign for d in deltas) for sign in (-1, 1))
    assert found.p_value == pytest.approx(min(1.0, 2 * binomial_tail(min(one, other), one + other)))
    assert pair(answered(ours), answered([replace(e, id=f"z{e.id}") for e in theirs])) is None


def binomial_tail(k: int, n: int) -> float:
    """P(X <= k) for n tosses of a coin, summed up."""
    from math import comb

    return sum(comb(n, i) for i in range(k + 1)) / 2**n


def test_several_samples_of_an_entry_count_as_one():
    ours = [replace(e, score=s) for e in entries(1, 0.5, n=20) for s in (0.0, 1.0)]
    theirs = [replace(e, score=1.0) for e in entries(1, 0.5, n=20)]
    found = pair(answered(ours), answered(theirs))
    assert found and found.common == 20 and found.accuracy.value == 0.5 and found.p_value is None


def test_statistics_of_means():
    rng = np.random.default_rng(3)
    rows = rng.normal([2.0, 1.0], [1.0, 0.5], size=(400, 2))
    found = of_means(rows, lambda m: m[..., 0] - m[..., 1], "k")
    plain = clustered_mean(rows[:, 0] - rows[:, 1], [str(i) for i in range(400)], "k")
    assert found and found.value == pytest.approx(plain.value)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    ratio = of_means(rows, lambda m: m[..., 0] / m[..., 1], "k")
    a, b = rows.mean(axis=0)
    spread = np.std(rows[:, 0] / b - rows[:, 1] * a / b**2) / 20  # the delta method
    assert ratio and ratio.low and ratio.high
    assert (ratio.high - ratio.low) / (2 * 1.96) == pytest.approx(spread, rel=0.15)
    assert of_means([[1.0, 0.0]], lambda m: m[..., 0] / m[..., 1]) is None
    rare = of_means([[1.0, 1.0], [1.0, 0.0]], lambda m: m[..., 0] / m[..., 1])
    assert rare and (rare.value, rare.low) == (2.0, None)
    with pytest.raises(ValueError, match="at least one row"):
        of_means(np.empty((0, 2)), lambda m: m[..., 0])


def run_folder(folder: Path, name: str, method: str = "plain", seed: int = 1, right: float = 0.5) -> Path:
    """A finished run: its own evaluation, and two benchmarks."""
    folder.mkdir(parents=True)
    recipe = Recipe(name=name, label=f"{method}, made up", model=ModelConfig(path="x"), tasks=TasksConfig(train="x"))
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    drawn = responses(method)
    write_scores(folder / "scores.jsonl", [score(drawn, Labels(name, "final", "tag, hermes", BILLION), Mode.AUTO, 0.0)])
    write_rollouts(folder / "evaluation.parquet", drawn)
    for benchmark, given in (("api-bank", entries(seed, right)), ("qa", entries(seed, right - 0.1, 40))):
        bench(folder, name, benchmark, given)
    return folder


def bench(folder: Path, name: str, benchmark: str, given: list[Entry], checkpoint: str = "final") -> None:
    setting = Setting(
        benchmark, "v1", "ours", "local", name, checkpoint, "tag, hermes", Mode.AUTO, 0.0, 64, parameters=BILLION,
        command=f"unbraid bench {benchmark} {name}",
    )  # fmt: skip
    place = setting.folder(folder)
    open_record(place, setting)
    add_entries(place, given)
    close_record(place, setting)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = tmp_path_factory.mktemp("runs")
    first, second = run_folder(base / "plain", "plain"), run_folder(base / "ours", "recommended", "recommended", 2, 0.7)
    bench(second, "recommended", "bfcl", entries(4, 0.5))
    other = run_folder(base / "other", "other", "direct", 5)
    bench(first, "plain", "api-bank", entries(1, 0.3), checkpoint="base")
    for line in (other / "benchmarks" / "qa").glob("*/entries.jsonl"):
        moved = [json.loads(text) | {"id": f"z{i}"} for i, text in enumerate(line.read_text().splitlines())]
        line.write_text("".join(json.dumps(one) + "\n" for one in moved))
    return [str(first), str(second), str(other)]


def test_own_evaluations_and_benchmarks_stand_in_one_table(runs, capsys):
    compared = compare_runs(runs)
    assert compared.runs == ["plain", "recommended", "other"]
    assert [s.title for s in compared.sections] == ["own evaluation", "api-bank", "bfcl", "qa"]
    own = compared.sections[0].rows
    assert [row.run for row in own] == compared.runs and own[0].difference is None
    assert own[1].difference and own[1].difference.common == 360 and own[1].difference.accuracy.value > 0.1
    bfcl, qa = compared.sections[2].rows, compared.sections[3].rows
    assert [(row.run, row.note) for row in bfcl] == [("recommended", "plain was not asked this")]
    assert qa[2].difference is None and qa[2].note == "no entry in common with plain"
    Console(width=200).print(comparison_table(compared))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("own evaluation", "api-bank", "no entry in common with plain", "paired", "×"))


def test_a_run_is_compared_with_what_it_was_before_training(runs):
    compared = compare_runs([f"{runs[0]}@base", runs[0]])
    assert compared.runs == ["plain@base", "plain"]
    api_bank = next(s for s in compared.sections if s.title == "api-bank")
    assert api_bank.rows[1].difference and api_bank.rows[1].difference.accuracy.value > 0


def test_what_cannot_be_compared_is_said(runs, tmp_path):
    with pytest.raises(DataError, match="given twice"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(DataError, match="not a run folder"):
        compare_runs([runs[0], str(tmp_path)])
    with pytest.raises(DataError, match="nothing was evaluated"):
        compare_runs([f"{runs[0]}@nowhere"])
    changed = run_folder(tmp_path / "changed", "changed")
    place = next((changed / "benchmarks" / "api-bank").glob("*/score.json"))
    place.write_text(place.read_text().replace('"max_tokens": 64', '"max_tokens": 32').replace('"v1"', '"v2"'))
    row = next(s for s in compare_runs([runs[0], str(changed)]).sections if s.title == "api-bank").rows[1]
    assert row.note == "changed was asked otherwise; there: version v1, max_tokens 64"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_the_command_writes_the_page(runs, tmp_path):
    result = CliRunner().invoke(app, ["compare", *runs[:2], "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    html = (tmp_path / "page.html").read_text()
    assert "recommended against plain" in html and "paired, points" in html and "unbraid bench qa plain" in html
    assert html.count("<svg") == 2 and "#c8460a" not in html.partition("</style>")[2]  # colours follow the theme


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_reads_on_a_phone_and_a_screen(runs, tmp_path, tab, dark):
    write_comparison(tmp_path / "page.html", compare_runs(runs))
    for width in (1280, 390):
        tab.screen(width, 900, dark)
        tab.open(tmp_path / "page.html")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert tab.value(overflow) == 0
        assert tab.value("document.querySelectorAll('table').length") == 1
        assert tab.value("document.querySelectorAll('tbody').length") == 4
        shown = tab.value("[...document.querySelectorAll('figure > div')].filter((e) => e.checkVisibility()).length")
        assert shown == 1
