"""What sharing weights does to success: joint training less training apart, start by start.

    effect = mean over questions of  log p(joint) − log p(apart)          nats; below 0 sharing costs something

*Apart* is the co-trained pair of agents (primary), or the two single-role models taking turns, R∘T (a proxy that needs
no further training run, but whose halves never saw each other's work). *Joint* comes in two sizes: with as many weights
on each token as one of the agents has, and with as many in all as both have.

On log p because two skills that must both succeed multiply: what each adds is then the same wherever the other one
stands, which holds neither for probabilities nor for their log-odds. A training start is the unit: questions and
samples of one start share its weights, and their number buys no certainty about the next start.

Source: arXiv 2602.00994 has no such measure; λ23 (`attribution`) is what it reads instead. Choice: all of this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

import numpy as np
from numpy.typing import NDArray

from unbraid.evaluate.statistics import Estimate, mean_over_runs
from unbraid.interference.attribution import COMPOSED, Scale, scaled, smoothed

UNIFIED, WIDE, TWO_AGENTS = "unified", "unified_wide", "two_agents"
"""Joint with one agent's weights; joint with both agents' weights in all; two agents that learn side by side."""
MARGIN = 0.02
"""Nats. Choice: effects this small, two successes in a hundred, are not worth another architecture."""
ENOUGH_STARTS = 3
"""Choice: with fewer the interval says nothing but how few there are."""
EXACT_SIGNS = 12
"""Starts up to which all sign changes are tried; beyond that `DRAWN_SIGNS` of them."""
DRAWN_SIGNS = 4096


class Ruling(StrEnum):
    """What an effect of sharing came to."""

    INTERFERENCE = "interference"
    SYNERGY = "synergy"
    NOT_SHOWN = "not shown"
    TOO_FEW = "too few starts to say"


@dataclass(frozen=True)
class Start:
    """What the models of one training start score on the same Q questions.

    rates: model → success rates inside (0, 1), (Q,). samples: tries behind each rate; None where rates are exact.
    """

    rates: Mapping[str, NDArray[np.float64]]
    samples: int | None = None

    @classmethod
    def sampled(cls, successes: Mapping[str, NDArray[np.int64]], samples: int) -> "Start":
        """From successes in `samples` tries per question."""
        return cls({name: smoothed(counts, samples) for name, counts in successes.items()}, samples)


@dataclass(frozen=True)
class Effect:
    """Joint less apart on one scale.

    values: of every start, a mean over its questions. p: two-sided, by exchanging joint and apart within starts.
    """

    joint: str
    apart: str
    scale: Scale
    values: tuple[float, ...]
    estimate: Estimate
    p: float

    @property
    def ruling(self) -> Ruling:
        """Interference or synergy only where the whole interval lies beyond `MARGIN`."""
        low, high = self.estimate.low, self.estimate.high
        if self.estimate.n < ENOUGH_STARTS or low is None or high is None:
            return Ruling.TOO_FEW
        if high < -MARGIN:
            return Ruling.INTERFERENCE
        return Ruling.SYNERGY if low > MARGIN else Ruling.NOT_SHOWN

    @property
    def is_negligible(self) -> bool:
        """The whole interval lies within `MARGIN`: an effect that matters is ruled out, not only unseen."""
        low, high = self.estimate.low, self.estimate.high
        return low is not None and high is not None and low >= -MARGIN and high <= MARGIN


def effect_of_sharing(starts: Sequence[Start], joint: str, apart: str, scale: Scale = "log") -> Effect:
    """Joint less apart over starts.

    Raises:
        KeyError: a start has no such model.
    """
    values = [float((scaled(s.rates[joint], scale) - scaled(s.rates[apart], scale)).mean()) for s in starts]
    return Effect(joint, apart, scale, tuple(values), mean_over_runs(values), exchange_p(values))


def exchange_p(values: Sequence[float]) -> float:
    """Two-sided p that paired differences are as far from 0 as these, if either sign was as likely.

    With n starts it is never below 2 / 2ⁿ: six starts are needed to come below .05.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) <= EXACT_SIGNS:
        signs = np.array(list(product((1.0, -1.0), repeat=len(data))))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), size=(DRAWN_SIGNS - 1, len(data)))
        signs = np.concatenate([np.ones((1, len(data))), drawn])
    means = np.abs(signs @ data)
    return float((means >= abs(data.sum()) - 1e-12).mean())


def primary(starts: Sequence[Start]) -> Effect:
    """The effect that decides: the largest joint model that was trained less the co-trained pair.

    With as many weights in all as the pair, so that what is missing cannot be put down to missing weights; where there
    is no such model (full fine-tuning), with as many as one of the agents.
    """
    joint = WIDE if all(WIDE in start.rates for start in starts) else UNIFIED
    return effect_of_sharing(starts, joint, TWO_AGENTS)


def proxy(starts: Sequence[Start]) -> Effect:
    """Joint less R∘T: three models that LEAS trains anyway."""
    return effect_of_sharing(starts, UNIFIED, COMPOSED)


def disagree(first: Effect, second: Effect) -> bool:
    """Whether two effects lead to different decisions; NOT_SHOWN and TOO_FEW contradict nothing."""
    decided = {first.ruling, second.ruling} & {Ruling.INTERFERENCE, Ruling.SYNERGY}
    return len(decided) == 2
