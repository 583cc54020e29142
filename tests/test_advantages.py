"""Group advantages and the predicted vote on the mode, against brute force and the closed forms they rest on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbraid.learn.advantages import group_advantages, mode_votes

rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([-1.0, -0.5, 0.5, 1.0, 0.7, 1.2]), st.integers(0, 4)), min_size=1, max_size=40
)


@given(rewards_and_groups, st.sampled_from(["group", "batch", "none"]))
def test_advantages_equal_a_plain_loop(rows: list[tuple[float, int]], scale: str):
    rewards, groups = np.array([r for r, _ in rows]), np.array([g for _, g in rows])
    found = group_advantages(rewards, groups, scale)  # type: ignore[arg-type]
    centred = [r - sum(x for x, h in rows if h == g) / sum(h == g for _, h in rows) for r, g in rows]
    flat = {g: len({r for r, h in rows if h == g}) == 1 for _, g in rows}
    centred = [0.0 if flat[g] else c for c, (_, g) in zip(centred, rows, strict=True)]
    for i, (_, g) in enumerate(rows):
        own = [c for c, (_, h) in zip(centred, rows, strict=True) if h == g]
        by = {
            "none": 1.0,
            "group": (sum(c * c for c in own) / len(own)) ** 0.5 + 1e-6,
            "batch": (sum(c * c for c in centred) / len(rows)) ** 0.5 + 1e-6,
        }[scale]
        assert found[i] == pytest.approx(centred[i] / by, abs=1e-9)
    assert np.abs(sum(found[groups == g].sum() for g in set(groups))) < 1e-8


def test_advantages_follow_their_samples_under_permutation():
    rng = np.random.default_rng(0)
    rewards, groups = rng.normal(size=40), np.repeat(np.arange(8), 5)
    order = rng.permutation(40)
    for scale in ("group", "batch", "none"):
        np.testing.assert_allclose(
            group_advantages(rewards[order], groups[order], scale), group_advantages(rewards, groups, scale)[order]
        )


@pytest.mark.parametrize("known_share", [0.3, 0.45, 0.55, 0.7, 0.8])
def test_votes_flip_at_the_thresholds_that_theory_predicts(known_share: float):
    """Known prompts: both modes right (1 v .5). Unknown: thinking right (.5), direct wrong (-1).

    Dividing by the group's deviation gives every prompt one vote (threshold 1/2); centring alone weighs stakes, .5
    against 1.5 (threshold 3/4).
    """
    rng = np.random.default_rng(0)
    prompts, samples = 400, 8
    groups = np.repeat(np.arange(prompts), samples)
    known = np.repeat(np.arange(prompts) < known_share * prompts, samples)
    think = rng.random(prompts * samples) < 0.3
    rewards = np.where(think, 0.5, np.where(known, 1.0, -1.0))
    votes = mode_votes(rewards, groups, think, np.ones(len(think), dtype=bool))
    assert (votes["group"][0] > 0) == (known_share < 0.5)
    assert (votes["none"][0] > 0) == (known_share < 0.75)
    assert (votes["batch"][0] > 0) == (known_share < 0.75)
    assert votes["group"][1] > 0


def test_a_vote_needs_a_group_with_both_modes():
    votes = mode_votes(np.array([1.0, -1.0]), np.array([0, 0]), np.array([True, True]), np.ones(2, dtype=bool))
    assert np.isnan(votes["group"][0]) and np.isnan(votes["group"][1])
