"""Single responses from any sampler of contexts: a `Sampler` like the local one."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.rollout.context import ContextSampler, Drawn, OpenSampler
from unbraid.rollout.loop import EventLoop, together
from unbraid.rollout.randomness import stream_key
from unbraid.rollout.trajectory import Finish, Request, Trajectory
from unbraid.tokens import Provenance


class SingleSampler:
    """Draws one response to each request, all of them at once. Close it, or use it as a context manager."""

    def __init__(self, format: ChatFormat, open_sampler: OpenSampler):
        self.format, self.open_sampler = format, open_sampler
        self._loop = EventLoop()

    def sample(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int, seed: object = 0
    ) -> list[Trajectory]:
        """One trajectory per request, in order; arguments as for the local sampler."""

        async def one(sampler: ContextSampler, request: Request) -> Trajectory:
            context = await sampler.open(request.prompt_ids)
            try:
                key = stream_key(seed, request.task.id, request.sample)
                # Where the model's positions end, so does the response: it is truncated.
                budget = min(max_new_tokens, (sampler.max_tokens or math.inf) - len(request.prompt_ids))
                drawn = await context.respond(key, request.mode, int(budget))
            finally:
                context.close()
            return single_trajectory(self.format, request, drawn)

        async def every() -> list[Trajectory]:
            async with self.open_sampler(temperature) as sampler:
                return await together(one(sampler, request) for request in requests)

        return self._loop.run(every)

    def close(self) -> None:
        """End the event loop."""
        self._loop.close()

    def __enter__(self) -> "SingleSampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def single_trajectory(
    format: ChatFormat, request: Request, drawn: Drawn, roles: NDArray[np.uint8] | None = None
) -> Trajectory:
    """The trajectory of one response, not yet scored.

    Args:
        roles: of prompt and response, where they are known already; (T,).
    """
    prompt = len(request.prompt_ids)
    ids = np.concatenate([np.array(request.prompt_ids, dtype=np.int64), drawn.ids])
    if roles is None:
        provenance = np.where(np.arange(len(ids)) < prompt, Provenance.PROMPT, Provenance.MODEL)
        roles = format.automaton.label(ids, provenance)
    stopped = drawn.finish is Finish.STOP
    return Trajectory(
        task_id=request.task.id,
        sample=request.sample,
        ids=ids,
        prompt_length=prompt,
        roles=roles,
        sampled=np.arange(len(ids)) >= prompt + drawn.prefix,
        logprobs=_after_prompt(drawn.logprobs, prompt, 0.0),
        entropies=_after_prompt(drawn.entropies, prompt, np.nan),
        choice_probs=drawn.choice_probs,
        mode=format.modes.read(drawn.ids.tolist()) if stopped else Mode.NONE,
        forced=request.mode,
        finish=drawn.finish,
        level=request.task.level,
        source=request.task.source,
    )


def _after_prompt(values: NDArray[np.float32], prompt: int, fill: float) -> NDArray[np.float32]:
    return np.concatenate([np.full(prompt, fill, dtype=np.float32), values])
