"""`unbraid lab interference`: its plan, cells that are really run (tiny ones), and the search world beside the dose."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from unbraid.interference.diagnosis import MODELS
from unbraid.interference.sharing import TWO_AGENTS, UNIFIED, WIDE
from unbraid.lab.calls_world import Split
from unbraid.lab.conflict_measure import Forcing
from unbraid.lab.conflict_world import tasks_of
from unbraid.lab.interference import cells as cells_module
from unbraid.lab.interference import search as search_module
from unbraid.lab.interference.__main__ import summary, write_page
from unbraid.lab.interference.cells import ARMS, Cell, Series, keep, learn, load, read_result, reward_recipe, run_cell
from unbraid.lab.interference.run import (
    HELD,
    LOOSE,
    PARTS_OF_PLAN,
    PLAN,
    REINFORCED,
    SEARCH,
    TIGHT,
    Validation,
    as_json,
    cells_of,
    last_line,
    validate,
)
from unbraid.lab.interference.search import SAMPLES, SearchCell, diagnose_search, read_search, run_search_cell
from unbraid.learn.grpo import LearnConfig
from unbraid.tokens import Role

RATES: dict[str, float] = dict.fromkeys(ARMS, 2e-2)


def quiet(*_):
    """A progress that nobody watches."""


@pytest.fixture
def geometry_of():
    """A geometry of one kind of task."""
    from test_interference_geometry import made_up

    from unbraid.interference.geometry import geometry

    rng = np.random.default_rng(0)
    vectors = {(role, "", part): rng.normal(size=20) for role in ("reasoning", "action") for part in range(4)}
    return geometry(made_up(vectors))


def test_every_cell_has_a_name_and_settings_touch_their_own_series(monkeypatch):
    def keys():
        return {series: [c.key for c in cells_of(series, RATES, 2)] for series in PLAN}

    before = keys()
    every = [key for own in before.values() for key in own]
    assert len(set(every)) == len(every) == 2 * sum(map(len, PLAN.values()))
    assert {series.name for series in PLAN} | {SEARCH} == set(PARTS_OF_PLAN)
    monkeypatch.setattr(cells_module, "GRPO_STEPS", 7)
    after = keys()
    assert {s for s in PLAN if before[s] != after[s]} == {REINFORCED}
    other = Series(HELD.sharing, off_role_kl=HELD.off_role_kl / 2)
    assert Cell(other, 1, 0.0, RATES).key not in every


def test_a_run_that_ends_early_has_whole_doses_or_whole_bases():
    assert [c.rho for c in cells_of(TIGHT, RATES, 3)[:6]] == [1, 1, 1, 0, 0, 0]
    assert [(c.base, c.rho) for c in cells_of(REINFORCED, RATES, 3)[:4]] == [(1, 1), (1, 0), (1, 0.5), (2, 1)]


def test_single_roles_learn_by_reward_on_their_own_tokens():
    for role, said in ((None, "both"), (Role.REASONING, "reasoning"), (Role.ACTION, "action")):
        config: LearnConfig = reward_recipe(Cell(REINFORCED, 0, 1.0, RATES), 1e-2, role).learn
        assert (config.roles, config.off_role_kl, config.learning_rate) == (said, 0.0, 1e-2)


def test_a_model_that_learns_by_reward_gets_better(monkeypatch):
    monkeypatch.setattr(cells_module, "GRPO_STEPS", 6)
    cell = Cell(Series(LOOSE.sharing, REINFORCED.learner), 0, 1.0, RATES)
    policy = load(cell)
    forcing = Forcing(policy, tasks_of(0, 1.0, Split.TRAIN))
    before = forcing.success(policy)
    assert forcing.success(learn(policy, cell, 2e-2)) > before + 0.02


def test_holding_the_other_role_keeps_its_tokens(monkeypatch):
    """Nats of what reasoning writes, after learning to call: gone without the term, as at the start with it."""
    monkeypatch.setattr(cells_module, "STEPS", 60)
    gained = []
    for series in (TIGHT, HELD):
        cell = Cell(series, 0, 0.0, RATES)
        policy = load(cell)
        forcing = Forcing(policy, tasks_of(0, 0.0, Split.DEV))
        start = forcing.measure(policy).logprobs.mean(0)
        gained.append(forcing.measure(learn(policy, cell, 2e-2, Role.ACTION)).logprobs.mean(0) - start)
    action, reasoning = np.transpose(gained)  # as `SKILLS`
    assert min(action) > 0.3  # both learned
    assert reasoning[0] < -1.5 and reasoning[1] > -0.3


def test_held_cells_take_the_models_of_both_roles_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, "STEPS", 3)
    held = Cell(HELD, 0, 0.5, RATES)
    run_cell(held.unheld, tmp_path, quiet)
    monkeypatch.setattr(cells_module, "joint_models", lambda cell: pytest.fail("they are there"))
    run_cell(held, tmp_path, quiet)
    plain, found = read_result(tmp_path, held.unheld), read_result(tmp_path, held)
    assert plain and found
    assert set(plain.rates) == set(found.rates) == set(MODELS)
    same = {name for name in MODELS if plain.rates[name] == found.rates[name]}
    assert same == {"base", UNIFIED, WIDE, TWO_AGENTS}
    assert found.geometry.specific == plain.geometry.specific


def test_parts_that_were_not_asked_for_are_not_run(tmp_path, monkeypatch):
    """Only the part's own cells are started; without a plain cell there is nothing to hold."""
    started = []

    def note(work, jobs, minutes, console):
        started.extend(w.name for w in work if minutes != 0)
        return Validation()

    monkeypatch.setattr("unbraid.lab.interference.run.run_within", note)
    monkeypatch.setattr("unbraid.lab.interference.run.has_base", lambda *_: True)
    for part, names in (("tight-grpo", "tight-grpo-"), (SEARCH, "search-"), ("loose", "tuning-loose-")):
        started.clear()
        found = validate(tmp_path, 2, 1, None, Console(quiet=True), parts=[part])
        assert started and all(name.startswith(names) for name in started)
        assert (found.done, found.planned) == (0, 34)
    started.clear()
    validate(tmp_path, 2, 1, None, Console(quiet=True), parts=["tight-held"])
    assert [name for name in started if not name.startswith("tuning")] == []


def test_a_search_cell_is_kept_and_its_work_is_gone(tmp_path, monkeypatch, geometry_of):
    rng = np.random.default_rng(0)

    def one_start(recipe, folder, questions, samples, tell):
        assert (recipe.learn.steps, recipe.model.adapter.rank) == (search_module.STEPS, search_module.RANK)
        (folder / "unified").mkdir(parents=True)
        counts = {m: rng.binomial(samples, 0.6, size=questions) for m in MODELS}
        return counts | {WIDE: counts[TWO_AGENTS]}, geometry_of

    monkeypatch.setattr(search_module, "one_start", one_start)
    cells = [SearchCell(base) for base in range(3)]
    assert len({cell.key for cell in cells}) == 3 and read_search(tmp_path, cells[0]) is None
    for cell in cells:
        run_search_cell(cell, tmp_path, quiet)
    assert list((tmp_path / "search").iterdir()) == []
    results = [result for cell in cells if (result := read_search(tmp_path, cell))]
    found = Validation(search=diagnose_search(results), done=3, planned=4, searched=3)
    assert found.search and found.search.samples == SAMPLES
    line = last_line(found)
    assert line["search"]["verdict"] == "not shown" and line["search"]["starts"] == 3
    assert line["aligned"]["verdict"] == line["conflict"]["verdict"] == "too few starts to say"
    assert as_json(found)["search"]["verdict"] == "not shown"
    assert summary(found)[-1].startswith("Search world, 3 bases: not shown")
    write_page(tmp_path / "page.html", found, "unbraid lab interference", 4)
    assert "Search world" in (tmp_path / "page.html").read_text()


def test_too_few_bases_of_the_search_world_say_so(tmp_path, geometry_of):
    for base in range(2):
        cell = SearchCell(base)
        result = search_module.SearchResult({m: [3] * 4 for m in MODELS}, geometry_of, 1.0)
        keep(tmp_path, cell.key, json.loads(json.dumps(asdict(result))))
    found = validate(tmp_path, 2, 1, 0, Console(quiet=True))
    assert (found.searched, found.search) == (2, None)
    assert last_line(found)["search"] == {"verdict": "too few starts to say"}
    assert last_line(found)[LOOSE.name]["verdicts"] == {}
