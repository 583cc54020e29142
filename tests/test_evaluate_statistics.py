"""Intervals against closed forms, scipy, and their own promise: 95 % coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from unbraid.evaluate.statistics import clustered_mean, mcnemar, mean_over_runs, proportion


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 40), (7, 10), (40, 40), (331, 1000)])
def test_proportion_is_the_wilson_closed_form(successes: int, n: int):
    z, p = stats.norm.ppf(0.975), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    estimate = proportion(successes, n)
    assert estimate.value == p
    assert estimate.n == n
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_clustered_mean_agrees_with_scipy_bootstrap_over_clusters():
    rng = np.random.default_rng(0)
    groups = [rng.normal(rng.normal(), 1, size=rng.integers(1, 6)) for _ in range(60)]
    values = np.concatenate(groups)
    clusters = [f"t{i}" for i, group in enumerate(groups) for _ in group]
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    reference = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    estimate = clustered_mean(values, clusters)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.n == 60
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high), abs=0.03)


def test_order_does_not_change_an_interval_but_the_key_does():
    rng = np.random.default_rng(2)
    values, clusters = rng.normal(size=90), [f"t{i // 3}" for i in range(90)]
    shuffle = rng.permutation(90)
    again = clustered_mean(values[shuffle], [clusters[i] for i in shuffle], "a")
    assert again == clustered_mean(values, clusters, "a")
    assert again != clustered_mean(values, clusters, "b")


def test_samples_of_one_task_do_not_count_as_independent():
    values = np.repeat(np.random.default_rng(3).normal(size=50), 8)
    naive = clustered_mean(values, [str(i) for i in range(400)])
    clustered = clustered_mean(values, [str(i // 8) for i in range(400)])
    assert None not in (naive.low, naive.high, clustered.low, clustered.high)
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)  # pyright: ignore[reportOperatorIssue]
    assert ratio == pytest.approx(math.sqrt(8), rel=0.15)


def test_equal_clusters_have_no_interval_and_empty_input_is_an_error():
    assert clustered_mean([2, 2, 2], ["a", "b", "c"]).low is None
    assert clustered_mean([1, 3], ["a", "a"]).high is None
    with pytest.raises(ValueError, match="at least 1"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="one name per value"):
        clustered_mean([1, 2], ["a"])


def test_mean_over_runs_is_students_interval():
    data = [0.61, 0.66, 0.58, 0.70, 0.64, 0.60]
    reference = stats.ttest_1samp(data, 0).confidence_interval(0.95)
    estimate = mean_over_runs(data)
    assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high))
    assert mean_over_runs([0.5]).low is None
    with pytest.raises(ValueError, match="at least one run"):
        mean_over_runs([])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (5, 0), (3, 9), (8, 8), (20, 41)])
def test_mcnemar_is_the_exact_binomial_tail(b: int, c: int):
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_coverage_is_near_95_percent():
    rng, trials = np.random.default_rng(4), 300
    clusters = [str(i // 4) for i in range(160)]
    hits = {"wilson": 0, "bootstrap": 0, "runs": 0}
    for trial in range(trials):
        difficulty = rng.beta(2, 1, size=40)  # mean 2/3
        outcomes = rng.random((40, 4)) < difficulty[:, None]
        for name, estimate, truth in (
            ("wilson", proportion(int(outcomes[:, 0].sum()), 40), 2 / 3),
            ("bootstrap", clustered_mean(outcomes.ravel(), clusters, str(trial)), 2 / 3),
            ("runs", mean_over_runs(list(rng.normal(5, 2, size=6))), 5.0),
        ):
            assert estimate.low is not None
            assert estimate.high is not None
            hits[name] += estimate.low <= truth <= estimate.high
    for name, count in hits.items():
        assert 0.91 <= count / trials <= 0.985, (name, count / trials)
