"""Mode collapse: seen before it happens, from the drift of the mode choice and the vote that the advantages cast on it.

While the choice does not depend on the prompt, all prompts share one logit of "think", and the vote moves it for all of
them together. The watch fits a line to that logit over the last few steps. It warns when the line takes nearly every
prompt to one pole within as many steps more: then there is still something left to learn from.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

WINDOW = 5
"""Choice: steps that the line is fitted to, and that it is followed ahead."""
POLE = 0.05
"""Choice: a mode is as good as gone where it is chosen less often than this: groups of 8 are then mostly of one mode."""
GONE = 0.01
"""Choice: mean rate over the whole window at which the rarer mode has vanished."""


@dataclass
class CollapseWatch:
    """Remembers the last few steps; its state is saved with the run."""

    logits: list[float] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    warned: bool = False
    collapsed: bool = False

    def see(self, vote: float, error: float, shares: Sequence[float], samples: int | None, held: bool) -> list[str]:
        """Take in one step; returns messages, at most one of each kind in a run.

        Args:
            vote, error: predicted vote under the scaling in use, and its standard error (NaN: no vote this step).
            shares: think share of each prompt.
            samples: responses that each share was counted from; None if shares are the policy's own probabilities.
            held: a constraint acts on the choice; drift and vote are then not the only forces, and predict nothing.
        """
        if not len(shares):
            return []
        rate = float(np.mean(shares))
        # Half a response of either mode: a batch without one of them has a finite logit.
        margin = 0.5 / (len(shares) * samples + 1) if samples else 1e-9
        rate = min(max(rate, margin), 1 - margin)
        self.logits = [*self.logits, math.log(rate / (1 - rate))][-WINDOW:]
        self.votes = [*self.votes, vote][-WINDOW:]
        self.errors = [*self.errors, error][-WINDOW:]
        noise = rate * (1 - rate) / samples if samples else 0.0
        spread = math.sqrt(max(0.0, float(np.var(shares)) - noise)) / (rate * (1 - rate))
        return [message for message in ("" if held else self._warning(rate, spread), self._collapse(rate)) if message]

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def _warning(self, rate: float, spread: float) -> str:
        """Warn if the slope, less two standard errors, takes all prompts but the last few (2 spreads) to a pole.

        Args:
            spread: standard deviation of the logit over prompts.
        """
        if self.warned or self.collapsed or len(self.logits) < WINDOW:
            return ""
        slope, slope_error = _line(self.logits)
        reach = WINDOW * max(0.0, abs(slope) - 2 * slope_error) - 2 * spread
        position = math.copysign(1, slope) * self.logits[-1]
        vote, vote_error = self._mean_vote()
        # A vote clearly the other way will turn the drift around; none at all (one mode per group) will not.
        opposed = vote * slope < 0 and abs(vote) > 2 * vote_error
        if opposed or position + reach < math.log((1 - POLE) / POLE):
            return ""
        self.warned = True
        return (
            f"mode collapse ahead: in {WINDOW} steps nearly all prompts will be answered in mode "
            f"{'think' if slope > 0 else 'no_think'} (think rate {rate:.2f}, its log-odds {slope:+.2f} per step whatever "
            f"the prompt, vote of the advantages {vote:+.3f} ± {vote_error:.3f}); scale advantages by the batch "
            "(learn.advantage_scale) or constrain the entropy of the choice (constraints, measure: choice_rate)"
        )

    def _mean_vote(self) -> tuple[float, float]:
        known = [(v, e) for v, e in zip(self.votes, self.errors, strict=True) if math.isfinite(v) and math.isfinite(e)]
        if not known:
            return math.nan, math.nan
        return float(np.mean([v for v, _ in known])), math.sqrt(sum(e * e for _, e in known)) / len(known)

    def _collapse(self, rate: float) -> str:
        edge = math.log((1 - GONE) / GONE)
        gone = max(self.logits) <= -edge or min(self.logits) >= edge
        if self.collapsed or len(self.logits) < WINDOW or not gone:
            return ""
        self.collapsed = True
        mode = "no_think" if rate < 0.5 else "think"
        return (
            f"the mode choice has collapsed: for {WINDOW} steps at least {1 - GONE:.0%} of the answers are in mode {mode}"
        )


def _line(values: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line through equally spaced values, and its standard error."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    y = np.asarray(values) - np.mean(values)
    slope = float(x @ y / (x @ x))
    residual = y - slope * x
    return slope, math.sqrt(float(residual @ residual) / (len(values) - 2) / float(x @ x))
