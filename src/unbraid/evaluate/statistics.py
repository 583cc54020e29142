"""Estimates with intervals. Five situations, five functions; all intervals are 95 %.

* a plain proportion, one independent trial per task: `proportion` (Wilson)
* a mean over samples that share tasks: `clustered_mean` (bootstrap over tasks; also for paired differences)
* a mean over a few runs or base models: `mean_over_runs` (Student's t)
* two greedy evaluations of the same tasks: `mcnemar` (exact test on the tasks where they disagree)
* anything that follows from means over tasks, such as a ratio of two: `of_means` (bootstrap over tasks)
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval. `n` counts the independent units (tasks, runs), not the samples.

    `low` and `high` are None where the data cannot say how uncertain the value is (a single unit).
    """

    value: float
    low: float | None
    high: float | None
    n: int


def proportion(successes: int, n: int) -> Estimate:
    """Wilson score interval of a proportion. Use it for yes/no outcomes with one independent trial per task.

    Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 % and 100 %.

    Raises:
        ValueError: if `n` is 0.
    """
    if n < 1:
        raise ValueError("a proportion needs at least one trial")
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def clustered_mean(values: ArrayLike, clusters: Sequence[str], key: str = "") -> Estimate:
    """Mean over all samples, with a percentile bootstrap that resamples whole clusters (tasks).

    Use it when several samples come from one task: they are not independent, and an interval that treats them so
    is too narrow. For a paired difference pass one difference per task. With few clusters (< 20) a percentile
    interval is somewhat too narrow. Where all cluster means are equal the bootstrap has no width at all and
    says nothing: the interval is None (callers with proportions fall back on `proportion`).

    Args:
        values: (N,) one number per sample.
        clusters: N cluster names; neither their order nor that of the samples changes the result.
        key: names the random stream; equal keys and data give equal intervals in every process.

    Raises:
        ValueError: if there are no values, or not one cluster per value.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0 or len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} cluster names: give one name per value, at least 1")
    _, index, counts = np.unique(np.asarray(clusters, dtype=str), return_inverse=True, return_counts=True)
    # Sorted first: floating sums must not depend on the order in which the samples arrived.
    order = np.lexsort((values, index))
    sums = np.bincount(index[order], weights=values[order])
    mean, n = float(sums.sum() / counts.sum()), len(counts)
    if np.ptp(sums / counts) == 0:
        return Estimate(mean, None, None, n)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(_resampled_means(sums, counts, _generator(key)), [tail, 100 - tail])
    return Estimate(mean, float(low), float(high), n)


def of_means(
    rows: ArrayLike, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], key: str = ""
) -> Estimate | None:
    """What follows from the means of several numbers per task, with a percentile bootstrap over tasks.

    Args:
        rows: (N, K), a row per task. statistic: (..., K) means → (...) values.
        key: names the random stream, as in `clustered_mean`.

    Returns:
        None where the statistic is not finite on the rows as they are; no interval where it is not on a resample.

    Raises:
        ValueError: if there are no rows.
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError("a statistic of means needs at least one row")
    n, draws = len(values), _generator(key)
    means = np.stack([values[draws.integers(n, size=n)].mean(axis=0) for _ in range(RESAMPLES)])
    with np.errstate(divide="ignore", invalid="ignore"):
        value, found = float(statistic(values.mean(axis=0))), statistic(means)
    if not np.isfinite(value):
        return None
    if n == 1 or not np.isfinite(found).all():
        return Estimate(value, None, None, n)
    low, high = np.percentile(found, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Estimate(value, float(low), float(high), n)


def mean_over_runs(values: Sequence[float]) -> Estimate:
    """Student's t interval of a mean. Use it over runs, seeds or base models, which are few and independent.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("a mean over runs needs at least one run")
    data = np.asarray(values, dtype=np.float64)
    mean, n = float(data.mean()), len(data)
    if n == 1:
        return Estimate(mean, None, None, 1)
    low, high = t_intervals(data[None])
    return Estimate(mean, float(low[0]), float(high[0]), n)


def t_intervals(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Student's t interval of the mean of every row of (simulations, runs): lower and upper ends, for simulations."""
    n = values.shape[1]
    centre = values.mean(axis=1)
    # Equal values leave a rounding error where the deviation is 0.
    deviation = np.where(np.ptp(values, axis=1) == 0, 0.0, values.std(axis=1, ddof=1))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation / np.sqrt(n)
    return centre - half, centre + half


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two methods are right equally often, from the tasks where they disagree.

    Use it for one greedy response per task and method. Tasks on which both are right, or both wrong, say nothing.
    """
    disagreements = only_first + only_second
    return float(stats.binomtest(only_first, disagreements).pvalue) if disagreements else 1.0


def _resampled_means(sums: NDArray, counts: NDArray, generator: np.random.Generator) -> NDArray[np.float64]:
    n, means = len(sums), []
    rows = max(1, 2_000_000 // n)  # bounds the memory of one block of draws
    for start in range(0, RESAMPLES, rows):
        draw = generator.integers(n, size=(min(rows, RESAMPLES - start), n))
        means.append(sums[draw].sum(axis=1) / counts[draw].sum(axis=1))
    return np.concatenate(means)


def _generator(key: str) -> np.random.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
