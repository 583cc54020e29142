"""Claims of a paper, each as a number that a lab's world can give for a base model, and what the bases say together.

Tasks, seeds and responses of one base share its weights and its world: only bases are independent. So a measure is
averaged over the seeds of a base first, Student's t over bases makes the interval, and the interval makes the verdict.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

import numpy as np

from unbraid.evaluate.statistics import Estimate, mean_over_runs

ENOUGH_BASES = 6
U = TypeVar("U")
"""What was measured on one base and seed."""


class Ruling(StrEnum):
    """What a claim came to. TOO_FEW: fewer than `ENOUGH_BASES` bases, whatever their numbers say."""

    SEEN = "seen"
    NOT_SEEN = "not seen"
    OPPOSITE = "opposite"
    TOO_FEW = "too few bases to say"


@dataclass(frozen=True)
class Claim(Generic[U]):
    """What is claimed, and how it is put to the test.

    measure: a number per base and seed; KeyError where something it needs was not run. It is seen if the whole interval
        lies beyond `line` on the claimed side (above if `more`), opposite if it lies beyond `against` on the other; by
        default both lines are one.
    scale, digits: how it is printed. note: what to know when reading it.
    """

    name: str
    says: str
    number: str
    measure: Callable[[U], float]
    more: bool = True
    line: float = 0.0
    against: float | None = None
    scale: float = 1.0
    digits: int = 1
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim, its number for each base, and what follows."""

    claim: Claim[Any]
    values: Mapping[int, float]
    estimate: Estimate | None
    ruling: Ruling

    @property
    def shown(self) -> str:
        """The number with its interval and how many bases it is from."""
        if self.estimate is None:
            return "not run"
        e, scale, digits = self.estimate, self.claim.scale, self.claim.digits
        text = f"{scale * e.value:.{digits}f}"
        if e.low is not None and e.high is not None:
            text += f" ({scale * e.low:.{digits}f} … {scale * e.high:.{digits}f})"
        return f"{text}, {e.n} base{'s' if e.n != 1 else ''}".replace("-", "\N{MINUS SIGN}")


def by_base(found: Mapping[tuple[int, int], U], measure: Callable[[U], float]) -> dict[int, float]:
    """The measure of each base, averaged over those of its seeds that have everything it needs.

    Args:
        found: by (base, seed).
    """
    values: dict[int, list[float]] = {}
    for (base, _), unit in found.items():
        try:
            values.setdefault(base, []).append(measure(unit))
        except KeyError:
            continue
    return {base: float(np.mean(seeds)) for base, seeds in values.items() if seeds}


def estimate(values: Mapping[int, float]) -> Estimate | None:
    """Mean and t interval over bases; no interval from a single one, None from none."""
    return mean_over_runs(list(values.values())) if values else None


def judge(claim: Claim[Any], values: Mapping[int, float]) -> Verdict:
    """The verdict on a claim from its number for each base."""
    found = estimate(values)
    if found is None or found.n < ENOUGH_BASES or found.low is None or found.high is None:
        return Verdict(claim, values, found, Ruling.TOO_FEW)
    against = claim.line if claim.against is None else claim.against
    if (found.low > claim.line) if claim.more else (found.high < claim.line):
        ruling = Ruling.SEEN
    elif (found.high < against) if claim.more else (found.low > against):
        ruling = Ruling.OPPOSITE
    else:
        ruling = Ruling.NOT_SEEN
    return Verdict(claim, values, found, ruling)
