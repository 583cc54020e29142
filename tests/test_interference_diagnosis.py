"""The whole diagnosis: its sentences, its page, the lab's cells and the command for recipes."""

import json
from html import unescape

import numpy as np
import pytest
from policies import sampled_batch
from typer.testing import CliRunner

from unbraid.cli.main import app
from unbraid.errors import CheckpointError
from unbraid.interference.attribution import COMPOSED, VARIANTS
from unbraid.interference.diagnosis import Targets, diagnose, judge_targets, sentences
from unbraid.interference.geometry import Angle
from unbraid.interference.sharing import TWO_AGENTS, UNIFIED, WIDE, Ruling, Start
from unbraid.lab.interference.cells import Cell, Result, Sharing, Tuning, keep, read_result
from unbraid.lab.interference.run import (
    ARMS,
    ENDS,
    RATES,
    TIGHT,
    Validation,
    as_json,
    best_rates,
    diagnose_dose,
    last_line,
)
from unbraid.learn.importance import sequence_logprobs
from unbraid.learn.log import read_metrics
from unbraid.policy import load_policy
from unbraid.recipe import load_recipe
from unbraid.report.interference import Section, attribution_picture, write_interference
from unbraid.run.folder import claim
from unbraid.run.interference import _put_start, interference, plain_recipe, trained_recipes

MODELS = (*VARIANTS, COMPOSED, TWO_AGENTS, WIDE)


def drawn(rates, starts=6, questions=40, samples=50):
    """A diagnosis of models with these rates, .9 where not given."""
    rng = np.random.default_rng(0)
    counts = [{m: rng.binomial(samples, rates.get(m, 0.9), size=questions) for m in MODELS} for _ in range(starts)]
    return diagnose([Start.sampled(c, samples) for c in counts], counts, samples, simulations=200)


def test_saturation_in_sentences():
    """The planted example: published interference, ours not shown, and both are told."""
    found = drawn({"base": 0.2})
    shown = found.as_json()
    assert shown["published"]["verdict"] == "interference"
    assert shown["published"]["negative_share"] > 0.9
    assert shown["verdict"] == "not shown"
    lines = sentences(found)
    assert "not to be believed here" in lines[-1]
    assert lines[1].startswith("A cost of sharing is not shown")
    assert "not indicated" in lines[3]


def test_a_real_cost_in_sentences():
    found = drawn({"base": 0.1, UNIFIED: 0.3, WIDE: 0.5})
    assert found.as_json()["verdict"] == "interference"
    assert found.decisive.joint == WIDE
    lines = sentences(found)
    assert "costs success" in lines[1]
    assert "worth trying" in lines[3]
    only_small = drawn({"base": 0.1, UNIFIED: 0.3})
    assert "twice the rank" in sentences(only_small)[3]
    few = drawn({UNIFIED: 0.3, WIDE: 0.3}, starts=2)
    assert few.as_json()["verdict"] == Ruling.TOO_FEW.value
    assert "run more starts" in sentences(few)[3]


def test_models_that_gave_up_on_different_questions():
    """Joint: always right on half of the questions, never on the others; the pair: now and then on all of them."""
    half = np.repeat([0.95, 0.001], 20)
    starts = [Start({m: np.full(40, 0.3) for m in MODELS} | {UNIFIED: half, WIDE: half}) for _ in range(3)]
    counts = [{m: np.round(50 * rates).astype(int) for m, rates in s.rates.items()} for s in starts]
    found = diagnose(starts, counts, 50, simulations=50)
    assert found.scales_disagree and found.as_json()["effect_success"][0] == pytest.approx(0.1755)
    assert "gave up on different questions" in sentences(found)[1]
    assert found.decisive.ruling is Ruling.INTERFERENCE
    assert found.as_json()["verdict"] == Ruling.NOT_SHOWN.value and "not shown" in sentences(found)[1]
    assert not drawn({"base": 0.1, UNIFIED: 0.3, WIDE: 0.5}).scales_disagree


def test_what_more_questions_or_samples_would_save():
    """Starts for a worthwhile effect: noise of few samples and questions is paid for in starts."""
    rng = np.random.default_rng(0)
    rates = dict.fromkeys(MODELS, 0.5)
    counts = [{m: rng.binomial(4, p, size=10) for m, p in rates.items()} for _ in range(6)]
    found = diagnose([Start.sampled(c, 4) for c in counts], counts, 4, simulations=50)
    power = found.as_json()["power"]
    assert power["starts"] > power["starts_with_4_times_the_samples"] >= 2
    assert power["starts"] > power["starts_with_4_times_the_questions"] >= 2
    assert f"takes about {power['starts']} starts, " in sentences(found)[2]


def test_synergy_is_no_fight():
    shown = drawn({TWO_AGENTS: 0.6, COMPOSED: 0.6}).as_json()
    assert (shown["verdict"], shown["sharing"]) == ("not shown", "synergy")


@pytest.mark.parametrize(
    ("cosines", "targets"),
    [
        ([-0.9, -1.0, -0.8], Targets.OPPOSED),
        ([0.9, 1.0, 0.8], Targets.ALIGNED),
        ([0.05, -0.02, 0.01], Targets.NEITHER),
        ([np.nan, np.nan, 0.9], Targets.UNMEASURED),
        ([-0.9], Targets.OPPOSED),
    ],
)
def test_targets(cosines, targets):
    assert judge_targets([Angle(c, 0.1, (c, c)) for c in cosines])[1] is targets


def test_page(tmp_path):
    found = drawn({"base": 0.2})
    page = tmp_path / "page.html"
    section = Section("x", "Verdict", found, picture=attribution_picture(found, "x"))
    write_interference(page, "Title", ["Summary."], [section], [], "unbraid interference", {"steps": "3"})
    text = page.read_text()
    assert text.index("A cost of sharing is not shown") < text.index("λ23 as published")
    for line in sentences(found):
        assert line.split(":")[0] in unescape(text)
    assert "<svg" in text
    assert "co-trained pair" in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_recipes_differ_in_what_is_compared_only():
    recipe = load_recipe(["conflict-world"], ["model.adapter={rank: 4, alpha: 8, routing: {}}", "evaluate.every=5"])
    plain = plain_recipe(recipe)
    assert plain.model.adapter is not None
    assert plain.model.adapter.routing is None
    assert plain.evaluate.every == 0
    found = trained_recipes(plain)
    assert set(found) == {UNIFIED, WIDE, "reasoning", "tool", TWO_AGENTS}
    assert {r.learn.steps for r in found.values()} == {recipe.learn.steps}
    assert (found["tool"].learn.roles, found["reasoning"].learn.roles) == ("action", "reasoning")
    assert found[TWO_AGENTS].model.two_agents
    wide = found[WIDE].model.adapter
    assert wide is not None
    assert (wide.rank, wide.alpha) == (8, 16)
    assert WIDE not in trained_recipes(plain_recipe(load_recipe(["conflict-world"])))
    held = trained_recipes(plain_recipe(load_recipe(["conflict-world"], ["learn.off_role_kl=0.1"])))
    assert {name for name, r in held.items() if r.learn.needs_reference} == {"reasoning", "tool"}


def test_models_of_another_recipe_are_not_taken(tmp_path):
    """Asked again with other settings, a folder that is there must not answer for them."""
    recipe = load_recipe(["conflict-world"], ["learn.steps=3"])
    made = trained_recipes(plain_recipe(recipe))["tool"]
    claim(tmp_path / "start-0" / "tool", made, "")
    with pytest.raises(CheckpointError, match=r"learn.steps.*--out"):
        interference(load_recipe(["conflict-world"], ["learn.steps=4"]), tmp_path, starts=1)


def test_best_rates_need_all_tries_and_take_both_ends():
    tuned = {Tuning(Sharing.TIGHT, a, r, e): -1.0 for a in ARMS for r in RATES for e in ENDS}
    tuned[Tuning(Sharing.TIGHT, ARMS[0], RATES[1], 1.0)] = -0.1
    tuned[Tuning(Sharing.TIGHT, ARMS[0], RATES[2], 0.0)] = -0.5
    assert best_rates(tuned)[ARMS[0]] == RATES[1]
    tuned.popitem()
    assert best_rates(tuned) == {}


def test_cells_come_back_and_make_verdicts(tmp_path, geometry_of):
    """Made-up cells of both ends: the last line has both verdicts."""
    rng = np.random.default_rng(1)
    found = Validation()
    for rho, joint in ((1.0, 0.9), (0.5, 0.6), (0.0, 0.2)):
        results = {}
        for base in range(4):
            cell = Cell(TIGHT, base, rho, {"unified": 0.01})
            rates = {m: rng.uniform(0.85, 0.9, size=20).tolist() for m in MODELS}
            rates[UNIFIED] = rates[WIDE] = (joint * rng.uniform(0.97, 1.0, size=20)).tolist()
            result = Result(rates, geometry_of(2 * rho - 1, base), {"training": 1.0, "success": 1.0, "geometry": 1.0})
            keep(tmp_path, cell.key, json.loads(json.dumps(result, default=vars)))
            read = read_result(tmp_path, cell)
            assert read == result
            results[cell] = read
        assert read_result(tmp_path, Cell(TIGHT, 0, rho, {"unified": 0.02})) is None
        found.diagnoses[TIGHT, rho] = diagnose_dose(results)
    line = last_line(found)
    assert line["aligned"]["verdict"] == "not shown"
    assert line["aligned"]["targets"] == "aligned"
    assert line["conflict"]["verdict"] == "interference"
    assert line["conflict"]["targets"] == "opposed"
    assert line["tight"]["trusted_monotone"] is True
    assert as_json(found)["trends"]["tight"]["specific cosine"]["spearman"] == 1.0


@pytest.fixture
def geometry_of():
    """A geometry with a given specific cosine."""
    from test_interference_geometry import made_up

    from unbraid.interference.geometry import geometry

    def make(cosine, seed):
        rng = np.random.default_rng(seed)
        vectors = {}
        for k in range(4):
            own, other = np.eye(20)[2 * k], np.eye(20)[2 * k + 1]
            for part in range(4):
                noise = 0.02 * rng.normal(size=(2, 20))
                vectors["reasoning", str(k), part] = own + noise[0]
                vectors["action", str(k), part] = cosine * own + np.sqrt(1 - cosine**2) * other + noise[1]
        return geometry(made_up(vectors))

    return make


def test_lab_command_reads_an_empty_folder(tmp_path):
    result = CliRunner().invoke(app, ["lab", "interference", "--out", str(tmp_path / "lab"), "--budget", "0"])
    assert result.exit_code == 0
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["aligned"]["verdict"] == line["conflict"]["verdict"] == "too few starts to say"
    assert (tmp_path / "lab" / "interference.html").exists()


def test_all_models_of_a_warm_start_begin_alike(tmp_path):
    """One adapter of that rank, one of twice the rank, and two agents say the same before they learn."""
    recipe = load_recipe(["calls"], ["model.adapter={rank: 4, alpha: 8}"])
    assert recipe.warmup
    recipes = trained_recipes(plain_recipe(recipe))
    begin = load_policy(recipes[UNIFIED].model, recipe.chat)
    rng = np.random.default_rng(0)
    for name, parameter in begin.trainable():
        if "lora_B" in name:
            parameter.data += 0.1 * parameter.new_tensor(rng.normal(size=parameter.shape))
    begin.save(tmp_path / "start")
    trajectories, _ = sampled_batch(begin, prompts=2, samples=2)
    expected = sequence_logprobs(begin, trajectories, 8, 1.0)
    for name, one in recipes.items():
        _put_start(one, begin, tmp_path, name)
        policy = load_policy(one.model, one.chat)
        policy.load_weights(tmp_path / name / "start")
        for found, values in zip(sequence_logprobs(policy, trajectories, 8, 1.0), expected, strict=True):
            np.testing.assert_allclose(found, values, atol=1e-5)


@pytest.mark.slow
def test_the_command_goes_on_where_it_was(tmp_path):
    """Every stage of a tiny diagnosis; the second call reads what the first one left."""
    asked = ["interference", "conflict-world", "model.adapter={rank: 2, alpha: 4}", "learn.steps=2",
             "learn.off_role_kl=0.1", "--starts", "1", "--questions", "6", "--samples", "8",
             "--out", str(tmp_path / "out")]  # fmt: skip
    first = CliRunner().invoke(app, asked)
    assert first.exit_code == 0, first.output
    line = json.loads(first.stdout.splitlines()[-1])
    assert line["verdict"] == "too few starts to say"
    assert set(line["rates"]) == {*MODELS, "composed_routed"}
    assert "held at the start by a KL of weight 0.1" in (tmp_path / "out" / "interference.html").read_text()
    # Only those that learn one role have a KL to log.
    logged = {name: read_metrics(tmp_path / "out" / "start-0" / name)[0] for name in (UNIFIED, "reasoning", "tool")}
    assert [name for name, row in logged.items() if row.get("kl") is not None] == ["reasoning", "tool"]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "start-0").rglob("*.json")}
    again = CliRunner().invoke(app, asked)
    assert json.loads(again.stdout.splitlines()[-1]) == line
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
