"""How far the measures can be trusted: worlds with a known answer, drawn thousands of times.

* `coverage`: how often the interval of an effect of sharing holds the planted one.
* `saturation_null`: what the published λ23 would say of these models if joint training had lost nothing.
* `starts_needed`: how many starts it takes to see an effect, given how much starts, questions and samples scatter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from unbraid.evaluate.statistics import CONFIDENCE, t_intervals
from unbraid.interference.attribution import VARIANTS, clipped, interaction, scaled, smoothed
from unbraid.interference.sharing import TWO_AGENTS, Start

MOST_STARTS = 200
"""Where `starts_needed` gives up."""


@dataclass(frozen=True)
class Planted:
    """A world to simulate; standard deviations are in log-odds.

    apart: mean success apart. shift: what sharing adds to the log-odds (0 = nothing). difficulty: of questions.
    start: what a start does to both. run: what a training run does by itself.
    """

    name: str
    apart: float
    shift: float
    difficulty: float = 1.0
    start: float = 0.3
    run: float = 0.2


PLANTED = (
    Planted("no effect, near the ceiling", 0.9, 0.0),
    Planted("no effect, hard questions", 0.3, 0.0),
    Planted("interference, near the ceiling", 0.9, -1.0),
    Planted("interference, hard questions", 0.3, -1.0),
    Planted("synergy", 0.5, 0.7),
)


@dataclass(frozen=True)
class Coverage:
    """How often the 95 % interval over starts holds the planted effect on log p; samples None = rates are exact.

    effect: mean planted effect, nats. decided: share of intervals that exclude 0. wrong: that exclude it on the side
    where the effect is not (with no effect: on either).
    """

    planted: Planted
    starts: int
    questions: int
    samples: int | None
    simulations: int
    effect: float
    held: float
    decided: float
    wrong: float


def coverage(
    planted: Planted, starts: int, questions: int, samples: int | None, simulations: int = 2000, seed: int = 0
) -> Coverage:
    """Simulate whole diagnoses: new questions, starts and samples each time."""
    rng = np.random.default_rng(seed)
    middle = float(scaled(planted.apart, "logit"))
    questions_shape, shape = (simulations, 1, questions), (simulations, starts, 1)
    difficulty = middle + planted.difficulty * rng.standard_normal(questions_shape)
    start = planted.start * rng.standard_normal(shape)
    measured = []
    for shift in (planted.shift, 0.0):
        rates = _share(difficulty + shift + start + planted.run * rng.standard_normal(shape))
        found = rates if samples is None else smoothed(rng.binomial(samples, rates), samples)
        measured.append(np.log(found).mean(axis=2))
    truth = _mean_log(difficulty + planted.shift, planted) - _mean_log(difficulty, planted)
    low, high = t_intervals(measured[0] - measured[1])
    held = float(np.mean((low <= truth) & (truth <= high)))
    decided = (low > 0) | (high < 0)
    wrong = decided if planted.shift == 0 else (low > 0) if planted.shift < 0 else (high < 0)
    return Coverage(
        planted, starts, questions, samples, simulations, float(truth.mean()), held, float(decided.mean()),
        float(wrong.mean()),
    )  # fmt: skip


def _mean_log(log_odds: NDArray[np.float64], planted: Planted, points: int = 24) -> NDArray[np.float64]:
    """Mean log p over starts and runs (Gauss–Hermite), then over questions: (simulations,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    spread = np.hypot(planted.start, planted.run)
    values = sum(w * np.log(_share(log_odds + spread * node)) for node, w in zip(nodes, weights, strict=True))
    return (values / weights.sum()).mean(axis=(1, 2))


def _share(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-log_odds))


@dataclass(frozen=True)
class SaturationNull:
    """The published measure on simulated models whose joint training lost nothing.

    negative: share of questions with λ23 < 0, its mean over simulations. low, high: 95 % of simulations lie between.
    mean: of λ23, logits. reference: the model whose rates the unified one was given.
    """

    reference: str
    negative: float
    low: float
    high: float
    mean: float
    simulations: int

    @property
    def says_interference(self) -> bool:
        """The published reading calls it interference although there is none."""
        return self.negative > 0.5


def saturation_null(
    starts: Sequence[Start], samples: int, reference: str = TWO_AGENTS, simulations: int = 2000, seed: int = 0
) -> SaturationNull:
    """What λ23 says where the unified model is exactly as good as `reference`, and the others are as measured."""
    rng = np.random.default_rng(seed)
    shares, means = [], []
    for start in starts:
        measured = {name: start.rates[reference if name == "unified" else name] for name in VARIANTS}
        rates = {name: _shrunk(values, start.samples) for name, values in measured.items()}
        counts = {name: rng.binomial(samples, p, size=(simulations, len(p))) for name, p in rates.items()}
        kept = np.any([k > 0 for k in counts.values()], axis=0)
        found = interaction({name: scaled(clipped(k, samples), "logit") for name, k in counts.items()})
        solved = np.maximum(kept.sum(1), 1)
        shares.append(((found < 0) & kept).sum(1) / solved)
        means.append((found * kept).sum(1) / solved)
    share = np.mean(shares, axis=0)
    low, high = np.quantile(share, [0.025, 0.975])
    return SaturationNull(reference, float(share.mean()), float(low), float(high), float(np.mean(means)), simulations)


def _shrunk(rates: NDArray[np.float64], samples: int | None) -> NDArray[np.float64]:
    """Rates that scatter between questions as true ones do: measured ones do so more, by the noise of drawing.

    Drawn from as they are, simulated questions would be noisier than real ones.
    """
    if samples is None or len(rates) < 2 or rates.var() == 0:
        return rates
    drawing = float((rates * (1 - rates)).mean()) / samples
    return rates.mean() + (rates - rates.mean()) * np.sqrt(max(0.0, 1 - drawing / rates.var()))


@dataclass(frozen=True)
class Scatter:
    """Standard deviations of joint less apart on log p, nats: between starts, between questions of a start, and from
    drawing (for one sample of one question); drawing is 0 where rates are exact."""

    start: float
    question: float
    sample: float

    def of_start(self, questions: int, samples: int | None) -> float:
        """Standard deviation of what one start gives."""
        drawn = 0.0 if samples is None else self.sample**2 / samples
        return float(np.sqrt(self.start**2 + (self.question**2 + drawn) / questions))


def scatter(starts: Sequence[Start], joint: str, apart: str) -> Scatter:
    """The parts of the scatter, from what was measured. Parts that come out below 0 are 0."""
    differences = [np.log(s.rates[joint]) - np.log(s.rates[apart]) for s in starts]
    questions = len(differences[0])
    within = float(np.mean([d.var(ddof=1) for d in differences])) if questions > 1 else 0.0
    # Delta method: the log of a rate over n samples has variance (1 − p) / (n p).
    odds = [(1 - s.rates[m]) / s.rates[m] for s in starts for m in (joint, apart)]
    drawn = 2 * float(np.mean(odds)) if starts[0].samples else 0.0
    question = max(0.0, within - (drawn / starts[0].samples if starts[0].samples else 0.0))
    between = float(np.var([d.mean() for d in differences], ddof=1)) if len(starts) > 1 else 0.0
    return Scatter(
        float(np.sqrt(max(0.0, between - within / questions))), float(np.sqrt(question)), float(np.sqrt(drawn))
    )


def power(effect: float, found: Scatter, starts: int, questions: int, samples: int | None) -> float:
    """Chance that the interval over so many starts excludes 0 on the right side (noncentral t)."""
    if starts < 2:
        return 0.0
    sd = found.of_start(questions, samples)
    if sd == 0:
        return 1.0
    bound = float(stats.t.ppf((1 + CONFIDENCE) / 2, starts - 1))
    return float(stats.nct.sf(bound, starts - 1, abs(effect) * np.sqrt(starts) / sd))


def starts_needed(effect: float, found: Scatter, questions: int, samples: int | None, wanted: float = 0.8) -> int:
    """Fewest starts with which an effect (nats) is seen with the wanted chance; `MOST_STARTS` if not even with them."""
    for starts in range(2, MOST_STARTS):
        if power(effect, found, starts, questions, samples) >= wanted:
            return starts
    return MOST_STARTS
