"""Verdicts on planted numbers, intervals against references and simulation, the goal, and what is shown."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unbraid.evaluate.statistics import mean_over_runs
from unbraid.lab.autotool.cells import Cell, CellResult, Part, plan
from unbraid.lab.autotool.goal import oracle, reached
from unbraid.lab.autotool.methods import CLAIM_SHARE, COLLAPSED, METHODS
from unbraid.lab.autotool.page import goal_picture, phase_picture, summary, write_claims
from unbraid.lab.autotool.paired import SETTINGS, Setting, coverage, t_intervals, units
from unbraid.lab.autotool.table import HEADLINE, Claims, as_json, claims_of, last_line
from unbraid.lab.autotool.terminal import tables
from unbraid.lab.autotool.verdicts import CLAIMS, judge_all
from unbraid.lab.claims import Claim, Ruling, by_base, judge
from unbraid.lab.starts import Start


def outcome(
    method: str, base: int = 0, accuracy: float = 0.9, tokens: float = 30.0, seed: int = 0,
    share: float = CLAIM_SHARE, end: float | None = 0.4, known: Part | None = None, unknown: Part | None = None,
) -> CellResult:  # fmt: skip
    """A result that is the same on known and unknown questions, unless `known` or `unknown` says otherwise."""
    part = Part(100, accuracy, tokens, 0.4)
    return CellResult(Cell(base, Start.FUZZY, share, method, seed), known or part, unknown or part, end)


def planted(bases: int = 6, seeds: int = 1) -> list[CellResult]:
    """A world where plain collapses, AutoTool loses against distilled, and decoupling does nothing."""
    rng = np.random.default_rng(0)
    results = []
    for base in range(bases):
        for seed in range(seeds):

            def near(value: float) -> float:
                return value + 0.005 * rng.standard_normal()

            fixed = {
                "direct": (0.67, 10.0, None),
                "distilled": (0.98, 46.0, None),
                "plain": (0.62, 10.0, 0.0),
                "autotool_published": (0.63, 10.0, 0.0),
                "recommended": (0.95, 33.0, 0.45),
            }
            for method in METHODS:
                accuracy, tokens, end = fixed.get(method, (0.63, 10.0, 0.0))
                results.append(outcome(method, base, near(accuracy), tokens, seed, end=end))
    return results


def value_of(claim: str, results: list[CellResult]) -> Ruling:
    return next(v.ruling for v in judge_all(results) if v.claim.name == claim)


@pytest.mark.parametrize(
    ("values", "ruling"),
    [
        ([0.10, 0.12, 0.09, 0.11, 0.10, 0.13], Ruling.SEEN),
        ([-0.10, -0.12, -0.09, -0.11, -0.10, -0.13], Ruling.OPPOSITE),
        ([0.10, -0.12, 0.09, -0.11, 0.10, -0.13], Ruling.NOT_SEEN),
        ([0.10, 0.12, 0.09, 0.11, 0.10], Ruling.TOO_FEW),
        ([0.3] * 6, Ruling.SEEN),
        ([0.0] * 6, Ruling.NOT_SEEN),
        ([], Ruling.TOO_FEW),
    ],
)
def test_rulings(values: list[float], ruling: Ruling):
    bases = dict(enumerate(values))
    assert judge(Claim("c", "", "", lambda unit: 0.0), bases).ruling is ruling
    mirrored = {
        Ruling.SEEN: Ruling.OPPOSITE,
        Ruling.OPPOSITE: Ruling.SEEN,
    }.get(ruling, ruling)
    assert judge(Claim("c", "", "", lambda unit: 0.0, more=False), bases).ruling is mirrored


def test_between_the_two_lines_nothing_is_seen():
    claim = Claim("rate", "", "", lambda unit: 0.0, more=False, line=0.05, against=0.3)
    for value, ruling in ((0.01, Ruling.SEEN), (0.2, Ruling.NOT_SEEN), (0.5, Ruling.OPPOSITE)):
        values = {base: value + 0.001 * base for base in range(6)}
        assert judge(claim, values).ruling is ruling


def test_verdicts_of_a_planted_world():
    results = planted()
    assert value_of("plain RL collapses", results) is Ruling.SEEN
    assert value_of("AutoTool is more accurate than distilled", results) is Ruling.OPPOSITE
    assert value_of("AutoTool needs about a fifth of its tokens", results) is Ruling.SEEN
    assert value_of("decoupling matters", results) is Ruling.NOT_SEEN
    assert {v.ruling for v in judge_all(planted(bases=5))} == {Ruling.TOO_FEW}
    assert {v.ruling for v in judge_all([])} == {Ruling.TOO_FEW}
    assert all(v.shown == "not run" for v in judge_all([]))
    for claim in CLAIMS:
        assert claim.measure(units(results, Start.FUZZY, CLAIM_SHARE)[(0, 0)]) is not None, claim.name


def test_differences_are_paired_by_base_and_averaged_over_its_seeds_first():
    results = [
        outcome("plain", 0, 0.5, seed=0),
        outcome("plain", 0, 0.7, seed=1),
        outcome("recommended", 0, 0.6, seed=0),
        outcome("recommended", 0, 1.0, seed=1),
        outcome("plain", 1, 0.5, seed=0),  # no partner
        outcome("plain", 2, 0.5, seed=0),
        outcome("recommended", 2, 0.4, seed=0),
        outcome("recommended", 2, 0.9, seed=1),  # no partner
        outcome("plain", 3, 0.5, share=0.25),
        outcome("recommended", 3, 0.9, share=0.25),
    ]
    found = by_base(
        units(results, Start.FUZZY, CLAIM_SHARE),
        lambda unit: unit["recommended"].test().accuracy - unit["plain"].test().accuracy,
    )
    assert found == {0: pytest.approx(0.2), 2: pytest.approx(-0.1)}


def test_simulated_intervals_are_those_of_mean_over_runs():
    rows = np.random.default_rng(1).normal(size=(50, 6))
    rows[0] = 0.3
    low, high = t_intervals(rows)
    for i, row in enumerate(rows):
        reference = mean_over_runs(list(row))
        assert (low[i], high[i]) == (pytest.approx(reference.low, abs=1e-9), pytest.approx(reference.high, abs=1e-9))
    assert low[0] == high[0]


@pytest.mark.parametrize("seeds", [1, 2])
def test_six_bases_cover_the_truth(seeds: int):
    small = Setting("symmetric", 0.5, 0.5)
    found = coverage(small, bases=6, seeds=seeds, simulations=20_000)
    assert found.held == pytest.approx(0.95, abs=0.01)
    assert found.held + found.below + found.above == pytest.approx(1)
    for setting in SETTINGS:
        got = coverage(setting, 6, seeds, 4_000)
        # Near 1 differences are skewed and the intervals hold less than they say, never much less.
        assert 0.89 < got.held < 0.97, setting.name


def test_coverage_notices_an_interval_that_is_too_narrow(monkeypatch: pytest.MonkeyPatch):
    def normal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = 1.96 * values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        return values.mean(axis=1) - half, values.mean(axis=1) + half

    monkeypatch.setattr("unbraid.lab.autotool.paired.t_intervals", normal)
    assert coverage(SETTINGS[0], 6, 1).held < 0.91


def test_whoever_does_as_the_oracle_saves_all_of_it():
    direct, distilled = Part(60, 1.0, 10.0, 0.0), Part(40, 1.0, 50.0, 1.0)
    results = [
        outcome("direct", known=direct, unknown=Part(40, 0.2, 10.0, 0.0), end=None),
        outcome("distilled", known=Part(60, 1.0, 40.0, 1.0), unknown=distilled, end=None),
        outcome("recommended", share=0.25, known=direct, unknown=distilled),
        outcome("plain", share=0.25, known=direct, unknown=Part(40, 0.2, 10.0, 0.0), end=0.0),
    ]
    unit = units(results, Start.FUZZY, CLAIM_SHARE)[(0, 0)]
    assert oracle(unit, 0.25).tokens == pytest.approx(0.25 * 10 + 0.75 * 50)
    ours, plain = reached(results, "recommended", 0.25), reached(results, "plain", 0.25)
    assert ours and plain and ours.is_met and not plain.is_met
    assert ours.oracle_saving.value == pytest.approx(0.25 * 30)
    assert (ours.saved.value, ours.kept.value) == (pytest.approx(1), pytest.approx(1))
    assert (plain.saved.value, plain.kept.value) == (pytest.approx(5), pytest.approx(0.25 + 0.75 * 0.2))
    assert reached(results, "recommended", 0.85) is None


def test_the_vote_predicts_who_stops_thinking():
    both = [outcome("direct", end=None), outcome("distilled", end=None, tokens=46)]
    for method, share, end, as_predicted in (
        ("plain", 0.45, 0.3, True),
        ("plain", 0.55, 0.3, False),
        ("autotool_published", 0.55, 0.01, True),
        ("advantage_batch", 0.66, 0.3, True),
        ("advantage_batch", 0.85, 0.0, True),
        ("recommended", 0.85, 0.0, False),
    ):
        found = reached([*both, outcome(method, share=share, end=end)], method, share)
        assert found and found.is_as_predicted == as_predicted, (method, share)


def test_most_bases_decide_whether_thinking_was_given_up_and_the_means_whether_the_goal_is_met():
    ends, tokens = (0.01, 0.01, 0.02, 0.9), (20.0, 20.0, 20.0, 35.0)
    results = [
        outcome(method, base, share=share, end=end, tokens=n, known=known)
        for base in range(4)
        for method, share, end, n, known in (
            ("direct", CLAIM_SHARE, None, 10.0, Part(100, 1.0, 10.0, 0.0)),
            ("distilled", CLAIM_SHARE, None, 40.0, Part(100, 0.9, 40.0, 1.0)),
            ("plain", 0.85, ends[base], 40.0, Part(100, 0.9, tokens[base], 0.4)),
        )
    ]
    found = reached(results, "plain", 0.85)
    assert found and found.stopped_on == 3 and found.has_collapsed and found.think_rate.value > COLLAPSED
    assert found.saved.value == pytest.approx(np.mean([(40 - n) / 30 for n in tokens])) and not found.is_met
    assert (found.met_on, found.kept.value) == (0, pytest.approx(1))
    cheap = [
        replace(r, known=replace(r.known, tokens=r.known.tokens - 5)) if r.cell.method == "plain" else r
        for r in results
    ]
    better = reached(cheap, "plain", 0.85)
    assert better and better.met_on == 3 and not better.is_met


def claims(results: list[CellResult], bases: int = 6) -> Claims:
    return claims_of(plan(bases, 1), results, {}, 12_800)


def test_the_last_line():
    line = json.loads(json.dumps(last_line(claims(planted()))))
    assert line["bases"] == 6 and line["seeds"] == 1 and line["missing"] == 6 * 29
    for name in ("distilled", "plain", "autotool_published", "recommended", "oracle"):
        assert set(line[name]) == {"accuracy", "tokens"}
    assert line["distilled"]["accuracy"] == pytest.approx(0.98, abs=0.01)
    assert line["state"].startswith("partial: full list on 6 of 6 bases")
    assert last_line(claims([]))["plain"] is None


def test_a_partial_run_says_so_everywhere(tmp_path: Path):
    found = claims(planted(bases=1)[:9])  # the ninth is served, and no cell
    assert "partial: full list on 0 of 6 bases, 8 of 270 cells" in as_json(found)["state"]
    assert {v["verdict"] for v in as_json(found)["verdicts"]} == {"too few bases to say"}
    assert summary(found)[0].startswith("Partial: full list on 0 of 6 bases")
    write_claims(tmp_path / "claims.html", found, "unbraid lab autotool")
    page = (tmp_path / "claims.html").read_text()
    assert "partial: full list on 0 of 6 bases" in page and "base-5-fuzzy-0.66-plain-seed-0" in page


def test_the_page_shows_every_claim_method_and_share(tmp_path: Path):
    results = planted() + [
        outcome(m, base, share=s) for m in ("plain", "recommended") for base in range(6) for s in (0.25, 0.85)
    ]
    found = claims(results)
    write_claims(tmp_path / "claims.html", found, "unbraid lab autotool --out <b>x</b>")
    page = re.sub("<wbr>", "", (tmp_path / "claims.html").read_text())
    assert all(claim.name in page for claim in CLAIMS) and all(name in page for name in METHODS)
    assert "<b>x</b>" not in page and "&lt;b&gt;x" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (phase_picture(found, 600, 340) or "").count("<svg") == 1
    assert phase_picture(claims([]), 600, 340) is None
    drawn = goal_picture(found, 760, 300) or ""
    assert drawn.count("<svg") == 1 and "second_thoughts" in drawn and goal_picture(claims([]), 760, 300) is None
    assert len(tables(found)) == 4


def test_what_is_written_of_the_run_is_what_was_run():
    root = Path(__file__).parent.parent
    found = json.loads((root / "benchmarks/results/autotool.json").read_text())
    page = (root / "docs/claims.md").read_text()
    assert found["state"] in page and found["command"] in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for row in found["methods"]:
        accuracy, tokens = f"{100 * row['accuracy']['value']:.1f}", f"{row['tokens']['value']:.1f}"
        assert any(f"| {row['method']} | {row['start']} | {accuracy} | {tokens} |" in line for line in rows), row
    for verdict in found["verdicts"]:
        assert any(verdict["claim"] in line and line.endswith(f"| {verdict['verdict']} |") for line in rows), verdict
    for one in found["shares"]:
        numbers = f"{100 * one['saved']['value']:.1f} | {100 * one['accuracy_kept']['value']:.1f}"
        met = f"on {one['goal_met_on']} of {one['saved']['bases']} |"
        assert any(
            f"| {one['share']} | {one['method']} |" in line and numbers in line and line.endswith(met) for line in rows
        ), one


def test_the_readme_has_the_numbers_of_the_run():
    root = Path(__file__).parent.parent
    found = json.loads((root / "benchmarks/results/autotool.json").read_text())
    lines = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("| ")]
    names = {"second_thoughts": "recommended, with second thoughts", "direct": "direct (the base, told not to think)"}
    for row in found["methods"]:
        if row["method"] in HEADLINE and row["start"] != "clear":
            name = names.get(row["method"], row["method"])
            (line,) = (line for line in lines if line.startswith(f"| {name} |"))
            shown = [cell.split(" (")[0].strip() for cell in line.split("|")[2:5]]
            assert shown == [
                f"{100 * row['accuracy']['value']:.1f}",
                f"{row['tokens']['value']:.1f}",
                f"{100 * row['think_rate']['value']:.0f}",
            ]
