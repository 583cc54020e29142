"""LEAS: the system against exact rationals, the closed form, and what is known to fool it."""

from fractions import Fraction

import numpy as np
import pytest

from unbraid.interference.attribution import (
    COMPOSED,
    DESIGN,
    EFFECTS,
    SCALES,
    VARIANTS,
    WITH_COMPOSITION,
    clipped,
    effects,
    interaction,
    published,
    scaled,
    smoothed,
)


def solve_exactly(matrix, right):
    """Gauss–Jordan over rationals, with no float anywhere."""
    rows = [[Fraction(int(x)) for x in row] + [b] for row, b in zip(matrix, right, strict=True)]
    for column in range(len(rows)):
        pivot = next(r for r in range(column, len(rows)) if rows[r][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [x / rows[column][column] for x in rows[column]]
        for r in range(len(rows)):
            if r != column:
                rows[r] = [x - rows[r][column] * y for x, y in zip(rows[r], rows[column], strict=True)]
    return [row[-1] for row in rows]


@pytest.mark.parametrize("seven", [False, True])
def test_solution_is_the_exact_one(seven):
    rng = np.random.default_rng(0)
    names, matrix = ((*VARIANTS, COMPOSED), WITH_COMPOSITION) if seven else (VARIANTS, DESIGN)
    for _ in range(20):
        z = [Fraction(int(a), int(b)) for a, b in rng.integers(1, 50, size=(len(names), 2))]
        exact = solve_exactly(matrix, z)
        found = effects({name: [float(value)] for name, value in zip(names, z, strict=True)})
        np.testing.assert_allclose([float(v[0]) for v in found.values()], [float(v) for v in exact], atol=1e-12)


def test_rows_are_the_papers():
    """x1 base, x2 tool, x3 reasoning; a pair's bit is set by training in the same weights only."""
    skills = {"base": "", "reasoning": "3", "tool": "2", "unified": "23", "hybrid_tool": "2", "hybrid_reasoning": "3"}
    shared = {"reasoning": {"13"}, "tool": {"12"}, "unified": {"12", "13", "23"}}
    for name, row in zip(VARIANTS, DESIGN, strict=True):
        expected = {"1", *skills[name], *shared.get(name, set())}
        assert {effect for effect, bit in zip(EFFECTS, row, strict=True) if bit} == expected
    assert round(np.linalg.det(DESIGN)) == round(np.linalg.det(WITH_COMPOSITION)) == -1


def test_closed_form_and_planted_effects():
    rng = np.random.default_rng(1)
    planted = rng.normal(size=(6, 40))
    z: dict[str, np.ndarray] = dict(zip(VARIANTS, DESIGN @ planted, strict=True))
    found = effects(z)
    for name, values in zip(EFFECTS, planted, strict=True):
        np.testing.assert_allclose(found[name], values, atol=1e-12)
    np.testing.assert_allclose(interaction(z), found["23"], atol=1e-12)


def test_composition_is_told_from_sharing():
    """Two skills that only count together: six models call it synergy of sharing, seven do not."""
    low, high = np.array([0.0]), np.array([3.0])
    z = dict.fromkeys(VARIANTS, low) | {"unified": high}
    assert effects(z)["23"][0] == 3
    seven = effects(z | {COMPOSED: high})
    assert (seven["23"][0], seven["composition"][0]) == (0, 3)


def test_smoothing_and_scales():
    assert clipped([0, 1, 50], 50).tolist() == [1e-4, 0.02, 1 - 1e-4]
    assert smoothed([0, 1, 50], 50).tolist() == [0.5 / 51, 1.5 / 51, 50.5 / 51]
    rates = np.array([0.2, 0.9])
    logit, log, plain = (scaled(rates, scale) for scale in SCALES)
    np.testing.assert_allclose(logit, np.log(rates / (1 - rates)))
    np.testing.assert_allclose(log, np.log(rates))
    assert plain.tolist() == rates.tolist()
    assert scaled(clipped([0], 50), "logit")[0] == pytest.approx(-9.2, abs=0.02)


def test_published_drops_what_nobody_solves():
    counts = {name: np.array([0, 10, 0]) for name in VARIANTS} | {"tool": np.array([0, 10, 1])}
    found = published(counts, 50)
    assert (found.kept, found.dropped) == (2, 1)
    # First: all alike, z − z − z + z = 0. Second: one lucky sample of the tool model makes it negative.
    np.testing.assert_allclose(found.effects["23"][0], 0, atol=1e-12)
    assert found.effects["23"][1] < 0
    assert found.negative == 0.5
    assert not found.says_interference
    assert np.isnan(published({name: [0] for name in VARIANTS}, 50).negative)


def test_missing_variants_are_named():
    with pytest.raises(ValueError, match="hybrid_tool"):
        effects({name: [0.0] for name in VARIANTS if name != "hybrid_tool"})
