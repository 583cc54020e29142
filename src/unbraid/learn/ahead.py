"""The batches of a run, in order: each drawn when it is due, or with look-ahead while the step before learns.

Step k then learns from what was drawn with the weights that step k − 1 began with: one update old. Servers need not
wait for the trainer, nor the trainer for them. The log-probs of a batch are those of the weights that drew it, and
truncated importance weights make up for the update between (`importance`).

A policy that samples for itself draws first and learns then: the same tokens, no time saved.

Source: one-step off-policy RL, Noukhovitch et al. 2024, "Asynchronous RLHF" (arXiv 2410.18252). Choice: one step, not
more, and whole batches: what a step learns from does not depend on who was faster.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from unbraid.policy import Policy
from unbraid.rollout.trajectory import Trajectory


class Served(Protocol):
    """What samples for a trainer and is not the trainer: model servers, as the training loop sees them."""

    @property
    def correct(self) -> bool:
        """The last sync left the servers further from the trainer than rounding explains: correct for it."""
        ...

    def metrics(self) -> dict[str, float]:
        """What syncing cost and measured, logged at every step; wall-clock numbers as `seconds/…` (`learn.log`)."""
        ...

    def notes(self) -> list[str]:
        """Warnings since the last call, for the run's log."""
        ...

    def held(self, policy: Policy) -> AbstractContextManager[None]:
        """Within, they draw from the policy as it is now, whatever is learned meanwhile."""
        ...


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    staleness: updates between the weights that drew it and those that learn from it. seconds: drawing took; NaN if it
    was drawn before the run was resumed.
    """

    trajectories: list[Trajectory]
    staleness: int = 0
    seconds: float = math.nan


@dataclass
class Batches:
    """Draws the batches of a run.

    Args:
        draw: the batch of a step, with the weights of now.
        steps: of the run: none is drawn beyond.
        served: the servers that `draw` asks; None where the policy samples for itself.
        ahead: draw one step before.
    """

    draw: Callable[[int], list[Trajectory]]
    steps: int
    policy: Policy
    served: Served | None = None
    ahead: bool = False
    _next: Batch | None = None

    def take(self, step: int) -> Batch:
        """The batch of a step, drawn now if it was not before."""
        found, self._next = self._next, None
        return found or self._timed(step, staleness=0)

    @contextmanager
    def beside(self, step: int, clock: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
        """Draw the batch of a step with the weights of now, while the block learns; it is there when the block is left.

        A block that fails waits for what is being drawn all the same: servers must not be asked by nobody.

        Args:
            clock: gets what drawing keeps the trainer waiting, as `rollout`.
        """
        if not self.ahead or step >= self.steps:
            yield
        elif self.served is None:
            with clock("rollout"):
                self._next = self._timed(step, staleness=1)
            yield
        else:
            with ExitStack() as stack:
                with clock("rollout"):
                    stack.enter_context(self.served.held(self.policy))
                drawing = stack.enter_context(ThreadPoolExecutor(1)).submit(self._timed, step, 1)
                yield
                with clock("rollout"):
                    self._next = drawing.result()

    def _timed(self, step: int, staleness: int) -> Batch:
        began = time.perf_counter()
        trajectories = self.draw(step)
        return Batch(trajectories, staleness, time.perf_counter() - began)

    @property
    def drawn(self) -> Sequence[Trajectory]:
        """What was drawn for the next step, for a checkpoint; empty without look-ahead."""
        return self._next.trajectories if self._next else ()

    def restore(self, drawn: list[Trajectory]) -> None:
        """Go on from what a checkpoint had as `drawn`."""
        self._next = Batch(drawn, staleness=1) if drawn else None
