"""Per known share: what the oracle saves, how much of that a method reaches, and what it loses for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from unbraid.evaluate.statistics import Estimate
from unbraid.lab.autotool.cells import CellResult, Part, mixture
from unbraid.lab.autotool.methods import (
    CLAIM_SHARE,
    CLAIM_START,
    COLLAPSED,
    KEPT,
    SAVED,
    SHARES,
    predicted_collapse,
)
from unbraid.lab.autotool.paired import Unit, units
from unbraid.lab.claims import by_base, estimate


@dataclass(frozen=True)
class Reached:
    """One method at one share, on test sets of that share. Estimates are over bases.

    oracle_saving: tokens that the chain-aware oracle saves against distilled. saved: share of it that the method saves.
    kept: accuracy over that of distilled. think_rate: of sampled responses at the end of training; of answers to the
        tests where there is no training. met_on, stopped_on: on how many bases the goal is met; thinking is given up.
    """

    share: float
    method: str
    oracle_saving: Estimate
    saved: Estimate
    kept: Estimate
    think_rate: Estimate
    met_on: int
    stopped_on: int

    @property
    def is_met(self) -> bool:
        """Whether both means meet the goal."""
        return self.saved.value >= SAVED and self.kept.value >= KEPT

    @property
    def has_collapsed(self) -> bool:
        """Whether it gave up thinking on most bases."""
        return 2 * self.stopped_on > self.think_rate.n

    @property
    def is_as_predicted(self) -> bool:
        """Whether it did or did not, as the vote on the mode predicts."""
        return self.has_collapsed == predicted_collapse(self.method, self.share)


def oracle(unit: Unit, share: float | None = None) -> Part:
    """Direct answers to known questions, thoughts on the others: computed from direct and distilled, not run."""
    return mixture(unit["direct"].known, unit["distilled"].unknown, share)


def reached(results: Sequence[CellResult], method: str, share: float) -> Reached | None:
    """What a method reaches at a share; None if no base has it with direct and distilled.

    These two do not depend on the share of RL prompts: they are taken from the full list.
    """
    fixed, own = units(results, CLAIM_START, CLAIM_SHARE), units(results, CLAIM_START, share)
    found = {place: {**own[place], **_only(fixed.get(place, {}))} for place in own if method in own[place]}

    def saving(unit: Unit) -> float:
        return unit["distilled"].test(share).tokens - oracle(unit, share).tokens

    def saved(unit: Unit) -> float:
        return (unit["distilled"].test(share).tokens - unit[method].test(share).tokens) / saving(unit)

    def kept(unit: Unit) -> float:
        return unit[method].test(share).accuracy / unit["distilled"].test(share).accuracy

    def rate(unit: Unit) -> float:
        end = unit[method].end_think_rate
        return unit[method].test(share).think_rate if end is None else end

    savings, shares, accuracies, rates = (by_base(found, measure) for measure in (saving, saved, kept, rate))
    oracle_saving, share_saved = estimate(savings), estimate(shares)
    accuracy, think_rate = estimate(accuracies), estimate(rates)
    if not (oracle_saving and share_saved and accuracy and think_rate):
        return None
    met_on = sum(shares[base] >= SAVED and accuracies[base] >= KEPT for base in shares)
    stopped_on = sum(end < COLLAPSED for end in rates.values())
    return Reached(share, method, oracle_saving, share_saved, accuracy, think_rate, met_on, stopped_on)


def all_reached(results: Sequence[CellResult], methods: Sequence[str]) -> list[Reached]:
    """Every method at every share where it was run."""
    found = (reached(results, method, share) for method in methods for share in SHARES)
    return [one for one in found if one is not None]


def _only(unit: Unit) -> dict[str, CellResult]:
    return {name: unit[name] for name in ("direct", "distilled") if name in unit}
