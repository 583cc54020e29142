"""The servers that a run samples from, all of them holding the policy as it is now.

Weights reach them before they are sampled, under a name that was never used before, and what they then draw is held
against the trainer's own log-probs. A server that dies is started again and given the same weights.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unbraid.errors import ServerError
from unbraid.policy import Policy
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.probe import HARD_FACTOR, MEAN_LIMITS, PROBE_TOKENS, Gap, own_logprobs
from unbraid.vllm.client import Client, UnavailableError
from unbraid.vllm.flags import BASE
from unbraid.vllm.server import Server

if TYPE_CHECKING:
    from aiohttp import ClientSession

RESTARTS = 3
"""How often a run starts a server again that died."""


@dataclass(eq=False)
class Member:
    """One server. `server`: its process, where it is ours. `busy`: contexts open on it."""

    url: str
    server: Server | None = None
    version: str = ""
    busy: int = 0
    lost: bool = False
    reviving: "asyncio.Lock" = field(default_factory=asyncio.Lock)


@dataclass
class Fleet:
    """The servers of one run.

    Args:
        start: starts server number i again, for those that are ours.
        folder: where weights are handed over; every server must see it under the same path.
        max_tokens: longest context.
        prompts: what the probe asks, token ids; empty asks nothing.
        temperature: of the probe.

    `correct`, `metrics()` and `notes()` are what training wants to know of a sampler that is not the trainer.
    """

    members: list[Member]
    config: SamplerConfig
    folder: Path
    dtype: str
    max_tokens: int
    prompts: Sequence[tuple[int, ...]] = ()
    temperature: float = 1.0
    start: Callable[[int], Server] | None = None
    correct: bool = False
    _model: str = BASE
    _salt: str = "0"
    _stamp: tuple[int, ...] = ()
    _syncs: int = 0
    _restarts: int = 0
    _asleep: bool = False
    _metrics: dict[str, float] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Choice: servers may outlive a run, so a name is never used twice by any process.
        self._name = f"policy-{os.getpid()}-{time.time_ns():x}"

    @property
    def limit(self) -> float:
        """Mean |Δ log-prob| in nats that is taken for rounding."""
        return self.config.max_gap or MEAN_LIMITS[self.dtype]

    def metrics(self) -> dict[str, float]:
        """Of the last time that weights were handed over: seconds, and what the probe found."""
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
            await self._each(session, lambda client: client.wake())
            self._asleep = False
        if policy.stamp() == self._stamp:
            return
        started = time.perf_counter()
        self._syncs += 1
        previous, self._salt = self._salt, f"{self._name}-{self._syncs}"
        weights = self._save(policy)
        if policy.has_adapter:
            self._model = self._salt
        await asyncio.gather(*(self._reach(member, session) for member in self._usable()))
        loaded = time.perf_counter()
        self._metrics = {"seconds/sync": loaded - started}
        await self._probe(policy, session)
        self._metrics["seconds/sync_probe"] = time.perf_counter() - loaded
        if policy.has_adapter and previous != "0":
            await self._each(session, lambda client: client.unload_adapter(previous))
        for old in self.folder.iterdir():
            if old != weights:
                shutil.rmtree(old, ignore_errors=True)
        self._stamp = policy.stamp()

    async def rest(self, session: "ClientSession") -> None:
        """Let the servers give their memory back, where the recipe asks for it."""
        if self.config.sleep:
            await self._each(session, lambda client: client.sleep())
            self._asleep = True

    def _save(self, policy: Policy) -> Path:
        weights = self.folder / self._salt
        weights.mkdir(parents=True)
        policy.model.save_pretrained(weights)
        return weights.resolve()

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

    async def _reach(self, member: Member, session: "ClientSession") -> None:
        try:
            await self._load(member, session)
        except UnavailableError as problem:
            await self.revive(member, session, str(problem))
            if not member.lost:
                await self._load(member, session)

    async def revive(self, member: Member, session: "ClientSession", problem: str) -> None:
        """After a failed request: is it still there? If not, start it again, or go on without it.

        Raises:
            ServerError: it was the last one.
        """
        async with member.reviving:
            if member.lost or await self.client(member, session).healthy():
                return
            number = self.members.index(member)
            why = (member.server.died() if member.server else None) or problem
            if member.server and self.start and self._restarts < RESTARTS:
                self._restarts += 1
                self._notes.append(f"server {number} died ({why}): it is started again")
                member.server.stop()
                member.server = await asyncio.to_thread(self.start, number)
                member.url, member.version = member.server.url, ""
                await self._load(member, session)
                return
            member.lost = True
            self._notes.append(f"server {number} at {member.url} is lost ({why}): sampling goes on without it")
        self._usable()

    def choose(self) -> Member:
        """The server with the fewest contexts.

        Raises:
            ServerError: none is left.
        """
        return min(self._usable(), key=lambda member: member.busy)

    def _usable(self) -> list[Member]:
        usable = [member for member in self.members if not member.lost]
        if not usable:
            reason = self._notes[-1] if self._notes else "all of them are lost"
            raise ServerError(f"no server is left to sample from: {reason}; see the logs beside {self.folder}")
        return usable

    async def _each(self, session: "ClientSession", work: Callable[[Client], Awaitable[None]]) -> None:
        """Ask every server for the same; one that cannot be reached is noticed when it is sampled from."""

        async def ask(member: Member) -> None:
            try:
                await work(self.client(member, session))
            except UnavailableError as problem:
                await self.revive(member, session, str(problem))

        await asyncio.gather(*(ask(member) for member in self._usable()))

    async def _probe(self, policy: Policy, session: "ClientSession") -> None:
        """Hold what every server draws against the trainer's own log-probs.

        Raises:
            ServerError: the gap says that another policy is being sampled.
        """
        if not self.prompts:
            return
        worst: Gap | None = None
        for member in self._usable():
            gap = await self._gap(member, policy, session)
            if gap.over(self.limit) > HARD_FACTOR:
                raise ServerError(
                    f"the server at {member.url} draws from another policy than the trainer's: |Δ log-prob| {gap}, "
                    f"where rounding explains {self.limit:g}: look for another temperature, dtype, chat template or "
                    "weights on the server; sampler.max_gap sets the limit"
                )
            worst = gap if worst is None or gap.over(self.limit) > worst.over(self.limit) else worst
        assert worst
        self._metrics |= {"sync/gap_mean": worst.mean, "sync/gap_q99": worst.quantile}
        was, self.correct = self.correct, worst.over(self.limit) > 1
        if self.correct and not was:
            self._notes.append(
                f"the server's log-probs differ from the trainer's by {worst}, more than rounding explains "
                f"({self.limit:g}): truncated importance weights make up for it (learn.importance)"
            )

    async def _gap(self, member: Member, policy: Policy, session: "ClientSession") -> Gap:
        client = self.client(member, session)

        async def draw(prompt: tuple[int, ...], tokens: int) -> tuple[list[int], list[float]]:
            drawn = await client.generate(
                prompt,
                model=self._model,
                temperature=self.temperature,
                max_tokens=tokens,
                seed=None,
                stop_ids=policy.format.stop_ids,
                salt=self._salt,
            )
            return [*prompt, *drawn.ids], list(drawn.logprobs)

        # Log-probs of a prompt would not do: they are computed without what the server remembers of it. So the first
        # round leaves the prompts there, and the second one is drawn on top of them.
        await asyncio.gather(*(draw(prompt, 1) for prompt in self.prompts))
        drawn = await asyncio.gather(*(draw(prompt, PROBE_TOKENS) for prompt in self.prompts))
        differences = [
            np.array(theirs) - own_logprobs(policy, ids, len(ids) - len(theirs), self.temperature)
            for ids, theirs in drawn
        ]
        return Gap.of(np.concatenate(differences))
