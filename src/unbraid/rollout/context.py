"""A context: one growing sequence of tokens that a sampler keeps warm between an agent's responses."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.rollout.trajectory import Finish


@dataclass(frozen=True)
class Drawn:
    """One response as it was drawn; arrays have one entry per id.

    ids: (N,) int64, the forced prefix first, the stop token last if one was drawn.
    prefix: how many of them were forced. logprobs: (N,) float32, 0 where forced. entropies: (N,) float32, NaN where
    forced. choice_probs, finish: as in `Trajectory`.
    """

    ids: NDArray[np.int64]
    prefix: int
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    choice_probs: tuple[float, float]
    finish: Finish


class Context(Protocol):
    """A sequence that is extended from both sides: by whoever runs the tools, and by the model."""

    @property
    def ids(self) -> Sequence[int]:
        """Everything in the context, responses included."""
        ...

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens that the model did not write."""
        ...

    def restart(self, ids: Sequence[int]) -> None:
        """Replace the whole context; a common beginning need not be computed again."""
        ...

    async def respond(self, key: np.uint64, mode: Mode, max_new_tokens: int) -> Drawn:
        """Draw one response, until a stop id or the budget (forced prefix and stop token included).

        Args:
            key: `stream_key` of this response; the uniform of its t-th token is `uniforms(key, t)`.
        """
        ...

    def close(self) -> None:
        """Give the place back; the context must not be used again. Closing twice is no error."""
        ...


class ContextSampler(Protocol):
    """Whatever can hold many contexts at once: the local slots, or a server."""

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of a context, its last response included; None if nothing limits it."""
        ...

    async def open(self, prompt_ids: Sequence[int]) -> Context:
        """A new context; waits until there is room for one."""
        ...


OpenSampler = Callable[[float], AbstractAsyncContextManager[ContextSampler]]
"""From a temperature to a sampler that runs inside an `async with`."""
