"""Sampling from servers: contexts whose responses are drawn over HTTP, each at its own pace.

A context is its token ids; the server finds what it remembers of their beginning by itself. What is kept of a response
came back over the wire: a server that dies takes only the responses it was drawing, and they are drawn again elsewhere.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.policy import Policy
from unbraid.rollout.context import Drawn
from unbraid.rollout.fleet import Fleet, Member
from unbraid.rollout.trajectory import Finish
from unbraid.vllm.client import Client, open_session

if TYPE_CHECKING:
    from aiohttp import ClientSession

T = TypeVar("T")


class ServedContext:
    """One context; `unbraid.rollout.context.Context` says what its methods do."""

    def __init__(self, sampler: "ServedSampler", member: Member, ids: Sequence[int]):
        self._sampler, self._member, self._open = sampler, member, True
        self.ids = list(ids)
        self._written: list[tuple[int, int]] = []
        """The [start, end) stretches of `ids` that are responses, their forced prefixes included."""
        member.busy += 1

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens that the model did not write."""
        self.ids.extend(ids)

    def restart(self, ids: Sequence[int]) -> None:
        """Replace the whole context, by tokens that count as not written by the model."""
        self.ids, self._written = list(ids), []

    async def respond(self, key: np.uint64, mode: Mode, max_new_tokens: int) -> Drawn:
        """Draw one response. A cancelled call leaves the context as it was.

        Raises:
            ModelError: the response could outgrow the longest context, or the context is closed.
            ServerError: the servers refuse it, or no server is left.
        """
        if not self._open:
            raise ModelError("this context is closed: open a new one")
        drawn = await self._sampler._respond(self, key, mode, max_new_tokens)
        start = len(self.ids)
        self.ids.extend(drawn.ids.tolist())
        self._written.append((start, len(self.ids)))
        return drawn

    def close(self) -> None:
        """Make room for the next one."""
        if self._open:
            self._open = False
            self._member.busy -= 1
            self._sampler._room.release()


class ServedSampler:
    """Up to `contexts` contexts on the servers of a fleet. Use within `async with`: weights are handed over there.

    Entropies are not known to servers: they are NaN, and the trainer's own are learned from.

    Args:
        policy: sampled as it is when the `async with` begins.
        temperature: 0 is greedy. Log-probs are of the distribution drawn from (greedy: T = 1).
    """

    def __init__(self, fleet: Fleet, policy: Policy, contexts: int, temperature: float):
        self.fleet, self.policy, self.temperature = fleet, policy, temperature
        self._room = asyncio.Semaphore(contexts)
        self._session: ClientSession | None = None
        self._choices: dict[tuple[Any, ...], asyncio.Task[tuple[float, float]]] = {}
        self._places: dict[tuple[int, ...], Member] = {}

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of a context, its last response included."""
        return self.fleet.max_tokens

    async def __aenter__(self) -> Self:
        self._session = open_session()
        try:
            await self.fleet.follow(self.policy, self._session)
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session
        try:
            for choice in self._choices.values():
                choice.cancel()
            await asyncio.gather(*self._choices.values(), return_exceptions=True)
            await self.fleet.settle()
            await self.fleet.rest(self._session)
        finally:
            await self._session.close()

    async def open(self, prompt_ids: Sequence[int]) -> ServedContext:
        """A new context; waits until there is room for one."""
        await self._room.acquire()
        try:
            prompt = tuple(prompt_ids)
            # All samples of a prompt go where its keys and values are.
            place = self._places.get(prompt)
            if place is None or place.lost:
                place = self._places[prompt] = self.fleet.choose()
            return ServedContext(self, place, prompt)
        except BaseException:
            self._room.release()
            raise

    async def _respond(self, context: ServedContext, key: np.uint64, mode: Mode, budget: int) -> Drawn:
        format = self.policy.format
        ids, written, prefix = list(context.ids), list(context._written), format.modes.of(mode)[:budget]
        if len(ids) + max(budget, 1) > self.fleet.max_tokens:
            raise ModelError(
                f"a context of {len(ids)} tokens and a response of up to {max(budget, 1)} outgrow the servers' longest "
                f"context of {self.fleet.max_tokens}: shorten the prompt or the observations, or lower max_new_tokens"
            )
        if not ids or budget < 1:
            raise ModelError("a response needs a context of at least one token and a budget of at least one")
        # One question per distinct context; the answer also leaves the prompt's keys and values for all its samples.
        choice = await self._choice(context, ids, written)
        drawn, logprobs, stopped = list(prefix), [0.0] * len(prefix), False
        if len(prefix) < budget:
            found = await self._ask(
                context,
                lambda client: client.generate(
                    [*ids, *prefix],
                    model=self.fleet.model,
                    temperature=self.temperature,
                    max_tokens=budget - len(prefix),
                    seed=int(key >> np.uint64(1)) if self.fleet.config.seeded else None,
                    stop_ids=format.stop_ids,
                    salt=self.fleet.salt,
                    written=self._told([*written, (len(ids), len(ids) + len(prefix))]),
                ),
            )
            drawn, logprobs, stopped = [*drawn, *found.ids], [*logprobs, *found.logprobs], found.stopped
        at, shared = format.modes.position, tuple(format.modes.shared)
        chooses = len(drawn) > at and tuple(drawn[:at]) == shared
        return Drawn(
            np.array(drawn, dtype=np.int64),
            len(prefix),
            np.array(logprobs, dtype=np.float32),
            np.full(len(drawn), np.nan, dtype=np.float32),
            choice if chooses else (np.nan, np.nan),
            Finish.STOP if stopped else Finish.LENGTH,
        )

    def _told(self, written: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """What a request tells of its prompt: where the model wrote, if that routes its tokens."""
        return written if self.policy.router else None

    async def _choice(
        self, context: ServedContext, ids: list[int], written: list[tuple[int, int]]
    ) -> tuple[float, float]:
        """Probabilities of the (think, no_think) id where a response to this context would choose."""
        modes = self.policy.format.modes
        place = (*ids, *modes.shared)
        told = self._told([*written, (len(ids), len(place))])
        key = (place, None if told is None else tuple(told))
        if len(place) >= self.fleet.max_tokens:
            return np.nan, np.nan

        async def ask() -> tuple[float, float]:
            think, no_think = await self._ask(
                context,
                lambda client: client.next_logprobs(
                    place,
                    modes.choice_ids,
                    model=self.fleet.model,
                    temperature=self.temperature,
                    salt=self.fleet.salt,
                    written=told,
                ),
            )
            return float(np.exp(think)), float(np.exp(no_think))

        if key not in self._choices:
            self._choices[key] = asyncio.create_task(ask())
        return await asyncio.shield(self._choices[key])

    async def _ask(self, context: ServedContext, work: Callable[[Client], Awaitable[T]]) -> T:
        """The answer of the context's server; of another one where that is lost."""
        session = self._session
        assert session
        return await self.fleet.ask(
            lambda: self._place(context), session, lambda member: work(self.fleet.client(member, session))
        )

    def _place(self, context: ServedContext) -> Member:
        """The context's server; another one from now on if that is lost. A question outlives the context it is for."""
        if context._member.lost:
            lost, context._member = context._member, self.fleet.choose()
            if context._open:
                lost.busy -= 1
                context._member.busy += 1
        return context._member
