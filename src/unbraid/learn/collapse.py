"""Mode collapse: seen before it happens, from the vote that the advantages cast on the choice of mode."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

WINDOW = 5
"""Choice: steps that a sign must last. Shorter windows warn on noise, longer ones after the fact."""


@dataclass
class CollapseWatch:
    """Remembers the last few steps; its state is saved with the run."""

    votes: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    dependence: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    warned: bool = False
    collapsed: bool = False

    def see(self, vote: float, error: float, shares: Sequence[float], samples: int) -> list[str]:
        """Take in one step; returns messages, at most one of each kind in a run.

        Args:
            vote, error: predicted vote under the scaling in use, and its standard error (NaN: no vote this step).
            shares: think share of each group's readable responses.
            samples: responses per group.

        The prediction: while groups differ in their think share no more than drawing alone makes them (the choice does
        not depend on the prompt yet), a vote that stays on one side moves all prompts to that mode together.
        """
        rate = float(np.mean(shares)) if len(shares) else math.nan
        noise = rate * (1 - rate) / samples
        self.rates = [*self.rates, rate][-WINDOW:]
        self.dependence = [*self.dependence, float(np.var(shares)) / noise if noise > 0 else math.nan][-WINDOW:]
        self.votes = [*self.votes, vote][-WINDOW:]
        self.errors = [*self.errors, error][-WINDOW:]
        return [message for message in (self._warning(), self._collapse()) if message]

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def _warning(self) -> str:
        known = [(v, e) for v, e in zip(self.votes, self.errors, strict=True) if math.isfinite(v) and math.isfinite(e)]
        if self.warned or self.collapsed or len(known) < WINDOW - 1:
            return ""
        vote = float(np.mean([v for v, _ in known]))
        error = math.sqrt(sum(e * e for _, e in known)) / len(known)
        depends = float(np.nanmedian(self.dependence)) if np.isfinite(self.dependence).any() else math.inf
        if abs(vote) < 3 * error or depends > 2.5:
            return ""
        self.warned = True
        pole = "no_think" if vote < 0 else "think"
        return (
            f"mode collapse ahead: the advantages vote for {pole} on all prompts alike (vote {vote:+.3f} ± {error:.3f}, "
            f"think rate {self.rates[-1]:.2f}, not yet dependent on the prompt); scale advantages by the batch "
            "(learn.advantage_scale) or constrain the entropy of the mode choice (constraints, measure: choice)"
        )

    def _collapse(self) -> str:
        full = len(self.rates) == WINDOW and all(math.isfinite(r) for r in self.rates)
        if self.collapsed or not full or not (max(self.rates) <= 0.01 or min(self.rates) >= 0.99):
            return ""
        self.collapsed = True
        mode = "no_think" if self.rates[-1] < 0.5 else "think"
        return f"the mode choice has collapsed: every response of the last {WINDOW} steps is in mode {mode}"
