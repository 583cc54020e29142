"""The effect of sharing: planted effects come back, saturation does not fool it, and it says how sure it is."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from unbraid.interference.attribution import COMPOSED, VARIANTS, published
from unbraid.interference.sharing import (
    TWO_AGENTS,
    UNIFIED,
    WIDE,
    Ruling,
    Start,
    disagree,
    effect_of_sharing,
    exchange_p,
    primary,
    proxy,
)
from unbraid.interference.simulation import (
    PLANTED,
    Planted,
    Scatter,
    coverage,
    power,
    saturation_null,
    scatter,
    starts_needed,
)

SATURATED = {"base": 0.2, "hybrid_tool": 0.5, "hybrid_reasoning": 0.5}
"""All others .9: each skill alone is enough to reach the ceiling, and joint training loses nothing."""
MODELS = (*VARIANTS, COMPOSED, TWO_AGENTS)


def drawn_starts(rates, starts=6, questions=100, samples=50, seed=0):
    """(Start, successes) of every start; `rates` of models, .9 where not given."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(starts):
        successes = {name: rng.binomial(samples, rates.get(name, 0.9), size=questions) for name in MODELS}
        found.append((Start.sampled(successes, samples), successes))
    return found


def test_planted_saturation():
    """Published: interference. Ours: not shown, and the null says that the published share was to be expected."""
    drawn = drawn_starts(SATURATED)
    starts = [start for start, _ in drawn]
    shares = [published(successes, 50).negative for _, successes in drawn]
    assert min(shares) > 0.9
    assert all(published(successes, 50).says_interference for _, successes in drawn)
    assert primary(starts).ruling is Ruling.NOT_SHOWN
    assert proxy(starts).ruling is Ruling.NOT_SHOWN
    null = saturation_null(starts, 50, simulations=400)
    assert null.says_interference
    assert null.low <= np.mean(shares) <= null.high


def test_real_interference_is_seen_by_both():
    drawn = drawn_starts({"base": 0.05, "reasoning": 0.3, "tool": 0.3, UNIFIED: 0.3, COMPOSED: 0.8, TWO_AGENTS: 0.8})
    starts = [start for start, _ in drawn]
    assert primary(starts).ruling is proxy(starts).ruling is Ruling.INTERFERENCE
    assert primary(starts).estimate.value == pytest.approx(np.log(0.3 / 0.8), abs=0.03)
    null = saturation_null(starts, 50, simulations=200)
    assert np.mean([published(successes, 50).negative for _, successes in drawn]) > null.high


def test_joint_with_as_many_weights_decides_where_there_is_one():
    starts = [Start({UNIFIED: np.array([0.4]), WIDE: np.array([0.9]), TWO_AGENTS: np.array([0.9])})] * 4
    assert primary(starts).joint == WIDE
    assert primary(starts).ruling is Ruling.NOT_SHOWN
    assert primary(starts).is_negligible
    assert effect_of_sharing(starts, UNIFIED, TWO_AGENTS).ruling is Ruling.INTERFERENCE


def test_few_starts_decide_nothing_and_disagreement_is_told():
    few = [Start({UNIFIED: np.array([0.1]), TWO_AGENTS: np.array([0.9]), COMPOSED: np.array([0.01])})] * 2
    assert primary(few).ruling is Ruling.TOO_FEW
    assert not disagree(primary(few), proxy(few))
    assert disagree(primary(few * 2), proxy(few * 2))


@pytest.mark.parametrize("values", [[1.0, 2.0, 0.5, 1.5], [1.0, -2.0, 0.5], [0.3]])
def test_exchange_p_counts_all_signs(values):
    count = sum(abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= abs(sum(values)) - 1e-12
                for signs in product((1, -1), repeat=len(values)))  # fmt: skip
    assert exchange_p(values) == count / 2 ** len(values)


def test_exchange_p_of_many_starts_is_near_the_t_test():
    values = np.random.default_rng(3).normal(0.4, 1.0, size=40)
    assert exchange_p(values.tolist()) == pytest.approx(np.asarray(stats.ttest_1samp(values, 0))[1], abs=0.02)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_intervals_hold_what_was_planted(planted):
    """2,000 whole diagnoses each, at the numbers that are used: 6 starts; in the lab exact, elsewhere 64 samples."""
    for samples in (None, 64):
        found = coverage(planted, starts=6, questions=80, samples=samples, simulations=2000)
        assert found.held > 0.925
        assert found.wrong < (0.07 if planted.shift == 0 else 0.005)


def test_coverage_would_show_intervals_that_are_too_narrow():
    """Two starts with 2 samples of hard questions: smoothing then hides most of the effect."""
    assert coverage(Planted("too few", 0.05, -1.5), 12, 80, 2, simulations=500).held < 0.5


def test_power_is_what_simulation_finds():
    spread = Scatter(start=0.3, question=0.4, sample=1.2)
    sd, rng = spread.of_start(50, 32), np.random.default_rng(0)
    assert sd == pytest.approx(np.sqrt(0.3**2 + (0.4**2 + 1.2**2 / 32) / 50))
    t, p = np.asarray(stats.ttest_1samp(rng.normal(0.4, sd, size=(4000, 6)), 0, axis=1))
    assert power(0.4, spread, 6, 50, 32) == pytest.approx(np.mean((p < 0.05) & (t > 0)), abs=0.03)
    needed = starts_needed(0.4, spread, 50, 32)
    assert power(0.4, spread, needed, 50, 32) >= 0.8 > power(0.4, spread, needed - 1, 50, 32)


def test_scatter_is_taken_apart():
    rng = np.random.default_rng(5)
    starts = []
    for _ in range(200):
        middle = rng.normal(0, 0.3)
        log_apart = np.full(60, np.log(0.5))
        log_joint = log_apart - 0.2 + middle * 0.5 + rng.normal(0, 0.1, size=60)
        starts.append(Start({"a": np.exp(np.minimum(log_joint, -0.01)), "b": np.exp(log_apart)}))
    found = scatter(starts, "a", "b")
    assert found.start == pytest.approx(0.15, abs=0.02)
    assert found.question == pytest.approx(0.1, abs=0.02)
    assert found.sample == 0
