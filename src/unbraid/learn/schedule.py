"""What warm-up and RL share: learning rate and data order, pure functions of the step; resuming needs no state."""

from collections.abc import Callable, Sequence
from math import cos, pi
from typing import Literal, TypeVar

import numpy as np

Decay = Literal["constant", "linear", "cosine"]
T = TypeVar("T")


def rate_at(step: int, steps: int, peak: float, ramp: int, decay: Decay) -> float:
    """Learning rate of step `step` (from 0) of `steps`: a linear rise over `ramp` steps, then held or down to 5 %.

    Choice: not to 0, so that the last steps are not wasted.
    """
    if step < ramp:
        return peak * (step + 1) / ramp
    share = min(1.0, (step - ramp) / max(1, steps - ramp))
    left = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + cos(pi * share)) / 2}[decay]
    return peak * (0.05 + 0.95 * left)


def epochs(items: Sequence[T], batch: int, seed: int) -> Callable[[int], list[T]]:
    """Endless passes over `items`, each in an order of its own keyed by (seed, pass); step → its batch.

    A batch may run over the end of a pass.

    Raises:
        ValueError: there are no items.
    """
    size, orders = len(items), dict[int, np.ndarray]()
    if not size:
        raise ValueError("there is nothing to train on: see what was read and left out (unbraid doctor)")

    def order(number: int) -> np.ndarray:
        if number not in orders:
            orders.pop(number - 2, None)
            orders[number] = np.random.default_rng((seed, number)).permutation(size)
        return orders[number]

    def at(step: int) -> list[T]:
        places = range(step * batch, (step + 1) * batch)
        return [items[order(p // size)[p % size]] for p in places]

    return at
