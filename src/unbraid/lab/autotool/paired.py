"""The claims run's results by base and seed, and how often intervals over so few bases hold what they should."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unbraid.evaluate.statistics import t_intervals
from unbraid.lab.autotool.cells import CellResult
from unbraid.lab.starts import Start

Unit = Mapping[str, CellResult]
"""Results of one base and one seed, by method."""
Measure = Callable[[Unit], float]
"""A number read off one base and seed; KeyError where a method of it was not run."""


def units(results: Iterable[CellResult], start: Start, share: float) -> dict[tuple[int, int], dict[str, CellResult]]:
    """The results at one start and share: (base, seed) -> method -> result."""
    found: dict[tuple[int, int], dict[str, CellResult]] = {}
    for result in results:
        cell = result.cell
        if (cell.start, cell.share) == (start, share):
            found.setdefault((cell.base, cell.seed), {})[cell.method] = result
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Setting:
    """A world to simulate: two methods' mean accuracies, and standard deviations in log-odds.

    shared: of what a base does to both methods. own: of what it does to each. run: of a training run.
    """

    name: str
    first: float
    second: float
    shared: float = 0.4
    own: float = 0.4
    run: float = 0.3


SETTINGS = (
    Setting("far apart", 0.65, 0.92),
    Setting("no difference", 0.92, 0.92),
    Setting("near 1", 0.995, 0.97),
    Setting("both near 1", 0.999, 0.995),
)
"""Deviations are of the size seen between seeds; accuracies from those of direct answers to those of distilled ones."""


@dataclass(frozen=True)
class Coverage:
    """How often the interval of a paired difference holds the true one; and how it fails.

    below, above: shares of intervals that lie wholly below or above the truth. pointlike: share without any width,
    where all bases gave one difference.
    """

    setting: Setting
    bases: int
    seeds: int
    simulations: int
    held: float
    below: float
    above: float
    pointlike: float


def coverage(
    setting: Setting, bases: int, seeds: int, simulations: int = 20_000, tasks: int = 576, seed: int = 0
) -> Coverage:
    """Simulate claims runs: accuracies vary with base and run, and `tasks` test questions are answered."""
    rng = np.random.default_rng(seed)
    truth = _true_difference(setting)
    shape = (simulations, bases)
    shared = setting.shared * rng.standard_normal(shape)
    means = []
    for accuracy in (setting.first, setting.second):
        base = _log_odds(accuracy) + shared + setting.own * rng.standard_normal(shape)
        runs = base[..., None] + setting.run * rng.standard_normal((*shape, seeds))
        means.append((rng.binomial(tasks, _share(runs)) / tasks).mean(axis=2))
    low, high = t_intervals(means[1] - means[0])
    below, above = float(np.mean(high < truth)), float(np.mean(low > truth))
    pointlike = float(np.mean(low == high))
    return Coverage(setting, bases, seeds, simulations, 1 - below - above, below, above, pointlike)


def _true_difference(setting: Setting, points: int = 64) -> float:
    """Mean accuracy of the second method less that of the first, over bases and runs (Gauss–Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    spread = np.sqrt(setting.shared**2 + setting.own**2 + setting.run**2)
    means = [
        float(weights @ _share(_log_odds(accuracy) + spread * nodes) / weights.sum())
        for accuracy in (setting.first, setting.second)
    ]
    return means[1] - means[0]


def _log_odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _share(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-log_odds))
