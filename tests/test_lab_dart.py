"""The claims run of DART: its plan, its cells (tiny ones, really run), verdicts on planted numbers, what is shown."""

import json
from dataclasses import replace

import numpy as np
import pytest

from unbraid.lab.claims import ENOUGH_BASES, Claim, Ruling, judge
from unbraid.lab.dart import cells as cells_module
from unbraid.lab.dart.__main__ import main
from unbraid.lab.dart.cells import TUNING_BASE, Cell, CellResult, cell_folder, read_cell, recipe_of, run_cell
from unbraid.lab.dart.conflict import area
from unbraid.lab.dart.methods import DOSED_AT, METHODS, REINFORCED, RHOS, SEARCHED, TARGETS, Learner, Sharing, World
from unbraid.lab.dart.page import write_claims
from unbraid.lab.dart.plan import (
    arm_of,
    chosen_rates,
    result_cells,
    search_plan,
    stages,
    tuning,
    untrained_cells,
)
from unbraid.lab.dart.run import Ran, work_for
from unbraid.lab.dart.table import as_json, claims_of, last_line
from unbraid.lab.dart.terminal import tables
from unbraid.lab.dart.verdicts import DOSE, PAPER, PREDICTED, is_monotone, judge_all
from unbraid.learn.log import read_notes
from unbraid.run import train

DOSED = tuple(claim for claims in DOSE.values() for claim in claims)
RATES = {arm: METHODS[arm[2]].rates[0] for stage in stages() for arm in stage.arms}


def plan(bases: int = 6) -> list[Cell]:
    conflict = [cell for stage in stages() for cell in result_cells(stage, bases, RATES)]
    return [*untrained_cells(bases), *conflict, *search_plan(bases)]


def planted(bases: int = 6, gain: float = 0.3, noise: float = 0.01) -> list[CellResult]:
    """A world where DART does not care for the dose, one shared adapter loses `gain` at rho = 0, and strict fails."""
    rng, results = np.random.default_rng(0), []
    for cell in plan(bases):
        conflict = 1 - cell.rho
        value = {"shared_r16": 0.72 - gain * conflict, "placebo": 0.6 - gain * conflict, "dart_strict": 0.2}.get(
            cell.method, 0.7
        )
        value += noise * rng.standard_normal()
        routed = METHODS[cell.method].routed
        only = {"action": (0.6, 0.3), "reasoning": (0.2, 0.69)} if routed else {}
        auc = value - 0.1
        curve = [(0, 0.25), (100, auc), (200, value)]
        results.append(CellResult(cell, value, auc, curve, 0.7, 0.7, only, {}, 1.0 if routed else None))
    return results


def claims(results: list[CellResult]):
    return claims_of(Ran(plan(), results, [], RATES, {}))


def ruling(name: str, results: list[CellResult]) -> Ruling:
    return next(v.ruling for v in judge_all((*PAPER, *PREDICTED, *DOSED), results) if v.claim.name == name)


# --- methods and plan ---


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("world", list(World))
def test_every_method_is_a_recipe(name, world):
    method = METHODS[name]
    cell = Cell(world, Sharing.TIGHT, 1, 0.5, Learner.GRPO, name, 0.01 if method.trained else 0.0)
    recipe = recipe_of(cell)
    adapter = recipe.model.adapter
    assert (adapter is not None) == (method.has_adapter and method.trained)
    assert (recipe.model.two_agents or bool(adapter and adapter.routing)) == method.routed
    if adapter:
        assert adapter.alpha / adapter.rank == 2  # steps of equal scale
        expected = TARGETS[Sharing.TIGHT].strip("[]") if world is World.CONFLICT else "all-linear"
        assert ([expected] if world is World.CONFLICT else expected) == adapter.targets
    if method.trained:
        assert recipe.learn.learning_rate == 0.01
    assert f"world={cell.base}" in recipe.model.path and f"world={cell.base}" in (recipe.tasks.test or "")


def test_sides_of_the_main_comparison_train_equally_many_weights():
    dart, shared = METHODS["dart"], METHODS["shared_r16"]
    assert "rank: 8" in dart.overrides[0] and "rank: 16" in shared.overrides[0]


def test_the_plan_covers_all_and_repeats_nothing():
    planned = plan(6)
    assert len(set(planned)) == len(planned)
    conflict = [cell for cell in planned if cell.world is World.CONFLICT]
    assert {cell.base for cell in conflict} == {1, 2, 3, 4, 5, 6} and TUNING_BASE == 0
    assert {cell.rho for cell in conflict if cell.method == "dart"} == set(RHOS)
    assert {cell.method for cell in conflict} == METHODS.keys()
    assert {cell.method for cell in conflict if cell.learner is Learner.GRPO} == set(REINFORCED)
    assert {(cell.base, cell.method) for cell in planned if cell.world is World.SEARCH} == {
        (base, name) for base in range(6) for name in SEARCHED
    }


def test_a_stage_that_ends_early_has_whole_bases_at_the_ends_of_the_dose():
    first = result_cells(stages()[0], 6, RATES)
    assert [(c.rho, c.base) for c in first[:4]] == [(1.0, 1), (1.0, 1), (1.0, 2), (1.0, 2)]
    assert {c.rho for c in first[:24]} == {1.0, 0.0}


def test_the_learning_rate_is_the_best_on_dev_over_both_ends():
    arm = (Learner.SUPERVISED, Sharing.TIGHT, "dart")
    cells = tuning(arm)
    assert {arm_of(cell) for cell in cells} == {arm} and {cell.base for cell in cells} == {TUNING_BASE}
    assert {cell.split for cell in cells} == {"dev"} and {c.split for c in plan(2)} == {"test"}
    rates = METHODS["dart"].rates
    # The best at one end alone is the second rate, over both it is the third.
    area_at = {(rates[1], 1.0): 0.9, (rates[1], 0.0): 0.1, (rates[2], 1.0): 0.7, (rates[2], 0.0): 0.7}
    results = [CellResult(c, 0.0, area_at.get((c.rate, c.rho), 0.2), [], 0, 0) for c in cells]
    assert chosen_rates(results)[arm] == rates[2]
    assert arm not in chosen_rates(results[:-1])  # not all of the grid is there
    other_world = [replace(r, cell=replace(r.cell, base=3)) for r in results]
    assert arm not in chosen_rates(other_world)
    assert result_cells(stages()[0], 6, {}) == []


# --- cells ---


def test_cell_names_are_unique_and_old_cells_of_other_settings_unread(tmp_path):
    folders = [cell_folder(cell, tmp_path) for cell in plan(2)[::7]]
    assert len(set(folders)) == len(folders)
    cell = plan(1)[10]
    changed = cell_folder(cell, tmp_path, ["model.adapter.alpha=7"])
    assert changed.name.rpartition("-")[0] == cell.name and changed != cell_folder(cell, tmp_path)
    assert cell_folder(cell, tmp_path, ["checkpoint.every=3"]) == cell_folder(cell, tmp_path)


def test_a_cell_runs_once_and_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "SUPERVISED_STEPS", 20)
    cell = Cell(World.CONFLICT, Sharing.TIGHT, 0, 0.0, Learner.SUPERVISED, "dart", 1e-2)
    assert read_cell(cell, tmp_path) is None and [w.name for w in work_for([cell], tmp_path)] == [cell.name]
    assert run_cell(cell, tmp_path, (), lambda *_: None) > 0
    assert run_cell(cell, tmp_path, (), lambda *_: None) == 0.0 and work_for([cell], tmp_path) == []
    found = read_cell(cell, tmp_path)
    assert found is not None and found.cell == cell
    assert [step for step, _ in found.curve] == [0, 20] and found.final == found.curve[-1][1]
    assert found.information == pytest.approx(1.0)  # the adapter says the role, exactly
    assert found.only.keys() == {"action", "reasoning"} and 0 < found.action < 1


@pytest.mark.parametrize(("name", "bits"), [("placebo", 0.0), ("dart", 1.0), ("dart_shifted", 1.0), ("swapped", 1.0)])
def test_what_adapters_say_of_the_role_where_forms_are_written(name, bits, tmp_path, monkeypatch):
    """The placebo says nothing; the released code's mask, one later, says all: forms come second in their spans."""
    monkeypatch.setattr(cells_module, "SUPERVISED_STEPS", 1)
    cell = Cell(World.CONFLICT, Sharing.TIGHT, 0, 0.0, Learner.SUPERVISED, name, 1e-3)
    run_cell(cell, tmp_path, (), lambda *_: None)
    found = read_cell(cell, tmp_path)
    assert found is not None and found.information == pytest.approx(bits, abs=1e-9)


def test_a_grpo_cell_learns_from_its_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "GRPO_STEPS", 5)
    cell = Cell(World.CONFLICT, Sharing.MIDDLE, 0, 1.0, Learner.GRPO, "dart_strict", 1e-2)
    run_cell(cell, tmp_path, ["rollout.prompts=2", "rollout.samples=4"], lambda *_: None)
    found = read_cell(cell, tmp_path, ["rollout.prompts=2", "rollout.samples=4"])
    assert found is not None and [step for step, _ in found.curve] == [0, 5]
    assert found.curve[0][1] != found.curve[1][1] and found.more["none_rate"] < 0.2


def test_a_strict_run_is_warned_of_what_strict_does(tmp_path):
    """What the lab found (`benchmarks/strict_isolation.py`) is said where somebody turns it on, once."""
    small = ["learn.steps=2", "rollout.prompts=2", "rollout.samples=2", "evaluate.limit=2", "evaluate.temperatures=[0]"]
    for name, warned in (("dart_strict", 1), ("dart", 0)):
        cell = Cell(World.CONFLICT, Sharing.TIGHT, 0, 0.0, Learner.GRPO, name, 1e-3)
        train(recipe_of(cell, small), tmp_path / name)
        said = [note["message"] for note in read_notes(tmp_path / name) if note["level"] == "warning"]
        assert sum("isolation is strict" in message for message in said) == warned


def test_area():
    assert area([(0, 0.2), (10, 0.4), (40, 0.4)]) == pytest.approx((3 + 12) / 40)
    assert area([(0, 0.25)]) == 0.25


# --- verdicts ---


def test_planted_verdicts():
    results = planted()
    assert ruling("conflict: a gain at rho = 0 (tight)", results) is Ruling.SEEN
    assert ruling("aligned skills: no gain (middle)", results) is Ruling.SEEN
    assert ruling("the gain grows with the dose (middle)", results) is Ruling.SEEN
    assert ruling("strict does as well as positional (middle)", results) is Ruling.OPPOSITE
    assert ruling("the action adapter alone keeps its skill (middle)", results) is Ruling.OPPOSITE
    assert ruling("the reasoning adapter alone keeps its skill (middle)", results) is Ruling.SEEN
    assert ruling("it is the roles that matter (middle)", results) is Ruling.SEEN
    assert ruling("DART beats one shared adapter: search world", results) is not Ruling.SEEN
    assert ruling("rho = 1, tight", results) is not Ruling.SEEN


def test_no_gain_anywhere_is_seen_as_none():
    results = planted(gain=-0.3)
    assert ruling("conflict: a gain at rho = 0 (tight)", results) is Ruling.OPPOSITE
    assert ruling("the gain grows with the dose (middle)", results) is Ruling.OPPOSITE


def test_too_few_bases_say_nothing():
    results = [r for r in planted() if r.cell.base != 3]
    assert all(v.ruling is Ruling.TOO_FEW for v in judge_all(DOSED, results))
    assert claims(results).monotone == dict.fromkeys(DOSED_AT)
    assert ENOUGH_BASES == 6


@pytest.mark.parametrize(
    ("signs", "expected"),
    [((-1, 0, 1, 1, 1), True), ((0, 0, 0, 0, 0), True), ((0, 1, 0, 1, 1), False), ((1, 0, 0, 0, -1), False)],
)
def test_monotone(signs, expected):
    claim = Claim("", "", "", lambda _: 0.0)
    verdicts = [
        judge(claim, {base: sign + 0.01 * base * (not sign) * (-1) ** base for base in range(6)}) for sign in signs
    ]
    assert is_monotone(verdicts) is expected


def test_numbers_by_base_are_those_of_the_cells():
    results = planted()
    value = next(v for v in judge_all(DOSED, results) if v.claim.name == "rho = 0.5, tight").values[2]
    place = (World.CONFLICT, Learner.SUPERVISED, Sharing.TIGHT, 2, 0.5)
    cells = ((r.cell, r.auc) for r in results)
    auc = {c.method: auc for c, auc in cells if (c.world, c.learner, c.sharing, c.base, c.rho) == place}
    assert value == pytest.approx(auc["dart"] - auc["shared_r16"])


# --- what is shown ---


def test_page_tables_and_json(tmp_path):
    found = claims(planted())
    write_claims(tmp_path / "claims.html", found, "unbraid lab dart --bases 6")
    page = (tmp_path / "claims.html").read_text()
    assert page.count("<svg") == 8 and "unbraid lab dart --bases 6" in page and "complete: " in page
    for verdict in (*found.paper, *found.predicted):
        assert verdict.claim.name in page.replace("&#39;", "'")
    line = json.loads(json.dumps(last_line(found)))
    assert line["monotone"] == {"tight": True, "middle": True} and line["missing"] == 0
    assert line["gain_by_rho"]["middle"]["0"]["bases"] == 6
    whole = json.loads(json.dumps(as_json(found)))
    assert len(whole["rows"]) == len(found.rows) and {r["method"] for r in whole["rows"]} == METHODS.keys()
    assert [table.row_count for table in tables(found)][:4] == [len(PAPER), len(PREDICTED), len(RHOS), len(RHOS)]


def test_a_partial_run_says_so(tmp_path):
    found = claims([r for r in planted() if r.cell.world is World.CONFLICT and r.cell.base < 4])
    assert found.state.startswith("partial: ") and "search world 0 of 36 cells" in found.state
    write_claims(tmp_path / "claims.html", found, "unbraid lab dart")
    page = (tmp_path / "claims.html").read_text()
    assert "too few bases to say" in page and "missing" in page


def test_the_command_without_any_time_still_writes_everything(tmp_path, capsys):
    assert main([f"--out={tmp_path}", "--bases=2", "--budget=0", f"--json={tmp_path / 'dart.json'}"]) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["cells"] == 0 and line["missing"] > 100
    assert "budget 0" in json.loads((tmp_path / "dart.json").read_text())["command"]
    assert (tmp_path / "claims.html").exists()
