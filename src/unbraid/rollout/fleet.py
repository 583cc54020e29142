"""The servers that a run samples from, all of them holding the policy as it is now.

Weights reach them before they are sampled, under a name that was never used before, and what they then draw is held
against the trainer's own log-probs. A server that dies is started again and given the same weights.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from unbraid.errors import ServerError
from unbraid.policy import Policy
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.loop import EventLoop, together
from unbraid.rollout.probe import HARD_FACTOR, MEAN_LIMITS, PROBE_TOKENS, Gap, own_logprobs, probe_prompts
from unbraid.vllm.client import Client, UnavailableError, open_session
from unbraid.vllm.flags import BASE
from unbraid.vllm.server import Server

if TYPE_CHECKING:
    from aiohttp import ClientSession

T = TypeVar("T")
RESTARTS = 3
"""How often a run starts a server again that died."""
PAUSE = 0.5
"""Seconds before a server is asked again; each further attempt waits twice as long."""


@dataclass(eq=False)
class Member:
    """One server. `server`: its process, where it is ours. `busy`: contexts open on it.

    lost: why it is not used any more. reviving: what waits until it can be used again.
    """

    url: str
    server: Server | None = None
    version: str = ""
    busy: int = 0
    lost: str = ""
    reviving: "asyncio.Task[None] | None" = None


class _LostError(Exception):
    """There is nobody left to ask: the run goes on without."""


@dataclass
class Fleet:
    """The servers of one run.

    Args:
        start: starts server number i again, for those that are ours.
        folder: where weights are handed over; every server must see it under the same path.
        max_tokens: longest context.
        prompts: the probe chooses among these, token ids; without any it asks nothing.
        temperature: of the probe.

    `correct`, `metrics()` and `notes()` are what training wants to know of a sampler that is not the trainer.
    """

    members: list[Member]
    config: SamplerConfig
    folder: Path
    dtype: str
    max_tokens: int
    prompts: Sequence[Sequence[int]] = ()
    temperature: float = 1.0
    start: Callable[[int], Server] | None = None
    correct: bool = False
    _model: str = BASE
    _salt: str = "0"
    _stamp: tuple[int, ...] = ()
    _syncs: int = 0
    _restarts: int = 0
    _asleep: bool = False
    _held: bool = False
    _policy: Policy | None = None
    _metrics: dict[str, float] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Choice: servers may outlive a run, so a name is never used twice by any process.
        self._name = f"policy-{os.getpid()}-{time.time_ns():x}"
        # Servers that run already may have been put to sleep by a run that was killed.
        self._asleep = self.config.sleep and bool(self.config.urls)

    def shorten(self, longest: int) -> None:
        """Let no context be longer than `longest` tokens."""
        if longest < self.max_tokens:
            self._notes.append(
                f"the servers take contexts of {longest} tokens, the run has use for {self.max_tokens}: responses end "
                "there; start the servers with a larger --max-model-len"
            )
            self.max_tokens = longest

    @property
    def limit(self) -> float:
        """Mean |Δ log-prob| in nats that is taken for rounding."""
        return self.config.max_gap or MEAN_LIMITS[self.dtype]

    def metrics(self) -> dict[str, float]:
        """Of the last time that weights were handed over: seconds, bytes, and what the probe found."""
        return dict(self._metrics)

    def notes(self) -> list[str]:
        """Warnings since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def client(self, member: Member, session: "ClientSession") -> Client:
        """A client of one member."""
        return Client(member.url, session, self.config.seconds)

    @property
    def model(self) -> str:
        """The name to ask for."""
        return self._model

    @property
    def salt(self) -> str:
        """Keeps what servers remember of beginnings under other weights apart."""
        return self._salt

    async def follow(self, policy: Policy, session: "ClientSession") -> None:
        """Make sure that every server is awake and samples from the policy as it is now.

        Raises:
            ServerError: no server is left, one refuses the weights, or one draws from another policy.
        """
        if self._asleep:
            await self._each(session, lambda member: self.client(member, session).wake())
            self._asleep = False
        if self._held:
            return
        stamp = (id(policy.model), *policy.stamp())
        if stamp == self._stamp:
            return
        started = time.perf_counter()
        self._syncs += 1
        previous, self._salt = self._salt, f"{self._name}-{self._syncs}"
        self._policy = policy
        self._save(policy)
        self._model = self._salt if policy.has_adapter else BASE
        await self._each(session, lambda member: self._load(member, session))
        loaded = time.perf_counter()
        self._metrics = {"seconds/sync": loaded - started, "sync/bytes": float(self._written())}
        await self._probe(policy, session)
        self._metrics["seconds/sync_probe"] = time.perf_counter() - loaded
        if policy.has_adapter and previous != "0":
            await self._each(session, lambda member: self.client(member, session).unload_adapter(previous))
        # The present weights stay: a server that is started again needs them.
        for old in self.folder.iterdir():
            if old.name != self._salt:
                shutil.rmtree(old, ignore_errors=True)
        self._stamp = stamp

    @contextmanager
    def held(self, policy: Policy) -> Iterator[None]:
        """Within, servers draw from the policy as it is now, whatever is learned meanwhile. Raises as `follow` does."""

        async def hand_over(session: "ClientSession") -> None:
            await self.follow(policy, session)
            await self.settle()

        at_once(hand_over)
        self._held = True
        try:
            yield
        finally:
            self._held = False

    async def rest(self, session: "ClientSession") -> None:
        """Let the servers give their memory back, where the recipe asks for it."""
        if self.config.sleep:
            await self._each(session, lambda member: self.client(member, session).sleep())
            self._asleep = True

    async def leave(self, session: "ClientSession") -> None:
        """Take the run's adapter off servers that go on without it; one that does not answer is left as it is."""
        if self._model == BASE:
            return
        for member in self.members:
            with suppress(ServerError):
                await self.client(member, session).unload_adapter(self._model)

    async def settle(self) -> None:
        """Wait until no server is on its way back: those who asked for it may have given up."""
        reviving = [member.reviving for member in self.members if member.reviving]
        await asyncio.gather(*reviving, return_exceptions=True)

    def _save(self, policy: Policy) -> None:
        """Write what every server is to read: of adapters, them alone."""
        weights = self.folder / self._salt
        weights.mkdir(parents=True)
        policy.save_weights(weights)

    def _written(self) -> int:
        """Bytes of what every server is to read."""
        return sum(path.stat().st_size for path in (self.folder / self._salt).rglob("*") if path.is_file())

    async def _load(self, member: Member, session: "ClientSession") -> None:
        """Give a server the present weights, unless it has them."""
        if member.version == self._salt or self._salt == "0":
            return
        weights, client = str((self.folder / self._salt).resolve()), self.client(member, session)
        if self._model == BASE:
            await client.load_weights(weights)
        else:
            await client.load_adapter(self._model, weights)
        member.version = self._salt

    async def ask(
        self, place: Callable[[], Member], session: "ClientSession", work: Callable[[Member], Awaitable[T]]
    ) -> T:
        """What a server answers. One that fails is asked again after a pause, and revived before if it is gone.

        Args:
            place: whom to ask, told before every attempt.

        Raises:
            ServerError: it refuses, still fails after all attempts, or no server is left.
        """
        attempts = self.config.retries + 1
        for attempt in range(attempts):
            member = place()
            try:
                if member.reviving:  # until then its weights may be old ones
                    await asyncio.shield(member.reviving)
                    member = place()
                return await work(member)
            except UnavailableError as problem:
                if attempt + 1 == attempts:
                    raise ServerError(f"{problem}; given up after {attempts} attempts (sampler.retries)") from problem
                await asyncio.sleep(PAUSE * 2**attempt)
                await self.revive(member, session, str(problem))
        raise AssertionError("unreachable")

    async def _each(self, session: "ClientSession", work: Callable[[Member], Awaitable[None]]) -> None:
        """Ask every server for the same; it is done on those that are not lost over it."""

        async def one(member: Member) -> None:
            def place() -> Member:
                if member.lost:
                    raise _LostError
                return member

            with suppress(_LostError):
                await self.ask(place, session, work)

        await together(one(member) for member in self._usable())

    async def revive(self, member: Member, session: "ClientSession", problem: str) -> None:
        """After a failed request: is it still there? If not, start it again, or go on without it.

        Raises:
            ServerError: it was the last one.
        """
        if member.reviving is None:
            member.reviving = asyncio.create_task(self._revive(member, session, problem))
            member.reviving.add_done_callback(lambda _: setattr(member, "reviving", None))
        # Whoever waits may give up, its time being over; a server that is half started must not become nobody's.
        await asyncio.shield(member.reviving)

    async def _revive(self, member: Member, session: "ClientSession", problem: str) -> None:
        if member.lost or await self.client(member, session).healthy():
            return
        number = self.members.index(member)
        why = (member.server.died() if member.server else None) or problem
        while member.server and self.start and self._restarts < RESTARTS:
            self._restarts += 1
            self._notes.append(f"server {number} died ({why}): it is started again")
            try:
                await self._restart(member, number, self.start, session)
                return
            except ServerError as failure:
                why = str(failure)
        member.lost = f"server {number} at {member.url}: {why}"
        self._usable()
        self._notes.append(f"server {number} at {member.url} is lost ({why}): sampling goes on without it")

    async def _restart(
        self, member: Member, number: int, start: Callable[[int], Server], session: "ClientSession"
    ) -> None:
        if member.server:
            await asyncio.to_thread(member.server.stop)
        member.server = await asyncio.to_thread(start, number)
        # Nobody is to ask it before it has the weights: it would answer from those that it started with.
        fresh = Member(member.server.url)
        await self._load(fresh, session)
        prompts = probe_prompts(self.prompts, self.max_tokens)
        # While weights are held the trainer's may be newer ones, which say nothing; the next sync asks again.
        if self._policy and prompts and not self._held:
            await self._gap(self.client(fresh, session), self._policy, prompts)
        member.url, member.version = fresh.url, fresh.version

    def choose(self) -> Member:
        """The server with the fewest contexts.

        Raises:
            ServerError: none is left.
        """
        return min(self._usable(), key=lambda member: (member.reviving is not None, member.busy))

    def _usable(self) -> list[Member]:
        usable = [member for member in self.members if not member.lost]
        if not usable:
            reasons = "; ".join(member.lost for member in self.members)
            raise ServerError(f"no server is left to sample from: {reasons}")
        return usable

    async def _probe(self, policy: Policy, session: "ClientSession") -> None:
        """Hold what every server draws against the trainer's own log-probs.

        Raises:
            ServerError: the gap says that another policy is being sampled.
        """
        prompts = probe_prompts(self.prompts, self.max_tokens)
        if not prompts:
            return
        gaps: list[Gap] = []

        async def probe(member: Member) -> None:
            gaps.append(await self._gap(self.client(member, session), policy, prompts))

        await self._each(session, probe)
        worst = max(gaps, key=lambda gap: gap.over(self.limit))
        self._metrics |= {"sync/gap_mean": worst.mean, "sync/gap_q99": worst.quantile}
        was, self.correct = self.correct, worst.over(self.limit) > 1
        if self.correct and not was:
            self._notes.append(
                f"the server's log-probs differ from the trainer's by {worst}, more than rounding explains "
                f"({self.limit:g}): truncated importance weights make up for it (learn.importance)"
            )

    async def _gap(self, client: Client, policy: Policy, prompts: Sequence[tuple[int, ...]]) -> Gap:
        """What one server draws, against the trainer. Raises ServerError if it is from another policy."""

        async def draw(prompt: tuple[int, ...], tokens: int) -> tuple[list[int], list[float]]:
            drawn = await client.generate(
                prompt,
                model=self._model,
                temperature=self.temperature,
                max_tokens=tokens,
                seed=None,
                stop_ids=policy.format.stop_ids,  # what would follow an answer is never sampled: its gap says little
                salt=self._salt,
                written=() if policy.router else None,
            )
            return [*prompt, *drawn.ids], list(drawn.logprobs)

        # Log-probs of a prompt would not do: they are computed without what the server remembers of it. So the first
        # round leaves the prompts there, and the second one is drawn on top of them.
        await together(draw(prompt, 1) for prompt in prompts)
        drawn = await together(draw(prompt, PROBE_TOKENS) for prompt in prompts)
        differences = [
            np.array(theirs) - own_logprobs(policy, ids, len(ids) - len(theirs), self.temperature)
            for ids, theirs in drawn
        ]
        gap = Gap.of(np.concatenate(differences))
        if gap.over(self.limit) > HARD_FACTOR:
            raise ServerError(
                f"the server at {client.url} draws from another policy than the trainer's: |Δ log-prob| {gap}, where "
                f"rounding explains {self.limit:g}: look for another temperature, dtype, chat template or weights on "
                "the server; sampler.max_gap sets the limit"
            )
        return gap


def at_once(work: Callable[["ClientSession"], Awaitable[T]]) -> T:
    """The result of a few requests."""

    async def inside() -> T:
        async with open_session() as session:
            return await work(session)

    loop = EventLoop()
    try:
        return loop.run(inside)
    finally:
        loop.close()
