"""Playing episodes: each its own coroutine over one batching sampler, nobody waits for anybody else's tools."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unbraid.chat.format import ChatFormat
from unbraid.chat.history import Conversation, Shown
from unbraid.chat.types import Call, Mode, Problem, Reading
from unbraid.errors import EnvError
from unbraid.rollout.assembly import Assembly
from unbraid.rollout.config import EnvironmentConfig
from unbraid.rollout.context import Context, ContextSampler, Drawn, OpenSampler
from unbraid.rollout.execution import Limits, execute
from unbraid.rollout.loop import EventLoop
from unbraid.rollout.randomness import stream_key
from unbraid.rollout.scoring import numbered
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.background import THREADS
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Ended, Episode, ToolFault, ToolResult, Turn
from unbraid.tasks.reward import Reward, RewardConfig, fault_in_reward, reward_by_mode
from unbraid.tasks.task import Task

_CALL_PROBLEMS = {Problem.EMPTY, Problem.NOT_JSON, Problem.NOT_OBJECT, Problem.NO_NAME, Problem.BAD_ARGUMENTS}


@dataclass(frozen=True)
class Player:
    """What all episodes of a run have in common.

    max_new_tokens: budget of one response. reward: for `config.reward: by_mode`.
    """

    environment: Environment
    format: ChatFormat
    config: EnvironmentConfig
    reward: RewardConfig
    max_new_tokens: int

    async def play(self, sampler: ContextSampler, task: Task, sample: int, mode: Mode, seed: object) -> Trajectory:
        """One episode, scored. Whatever its tools do becomes part of it; where the environment fails, it ends.

        Raises:
            EnvError: `score` raised, or returned no reward. ChatError: the template cannot show the conversation.
        """
        return await _Play(self, task, sample, mode, (seed, task.id, sample)).run(sampler)


class _Play:
    """One episode while it is played."""

    def __init__(self, player: Player, task: Task, sample: int, mode: Mode, key: tuple[object, ...]):
        self.player, self.config, self.format = player, player.config, player.format
        self.task, self.mode, self.key = task, mode, key
        self.environment, self.episode = player.environment.fresh(), Episode()
        self.assembly = Assembly(player.format, task, sample, mode)
        self.calls_left = player.config.calls
        self.deadline = time.monotonic() + player.config.seconds

    async def run(self, sampler: ContextSampler) -> Trajectory:
        first = await self._ask("reset", self.task)
        said = [{"role": "user", "content": first}] if first else []
        self.conversation = Conversation(self.format, [*self.task.messages, *said], self.config.history)
        prompt = self.conversation.opening(self.environment.schemas())
        self.assembly.open(prompt)
        if self.episode.ended is not Ended.FAILED:
            self.most_tokens = min(self.config.tokens, sampler.max_tokens or self.config.tokens)
            context = await sampler.open(prompt)
            try:
                await self._turns(context)
            finally:
                context.close()
        self.episode.tokens = self.assembly.written
        return self.assembly.finish(self.episode, await self._reward())

    async def _turns(self, context: Context) -> None:
        """Responses and what follows them, until something ends the episode."""
        for turn in range(self.config.turns):
            drawn = await self._respond(context, turn)
            if drawn is None:
                return
            reading = self.format.read(drawn.ids.tolist(), truncated=drawn.finish is Finish.LENGTH)
            self.assembly.respond(drawn, reading.mode)
            self.episode.turns.append(Turn(reading))
            if drawn.finish is Finish.LENGTH:
                self.episode.ended = Ended.TRUNCATED
                return
            shown = await self._follow(reading, drawn, context)
            if shown is None:
                return
            if shown.goes_on:
                context.extend(shown.ids)
                self.assembly.extend(shown.ids)
            else:
                context.restart(shown.ids)
                self.assembly.restart(shown.ids)
        self.episode.ended = Ended.TURNS

    async def _respond(self, context: Context, turn: int) -> Drawn | None:
        """The next response; None if there is nothing left to draw it with."""
        budget = min(self.player.max_new_tokens, self.most_tokens - len(context.ids))
        if budget <= len(self.format.prefix_ids(self.mode)):
            self.episode.ended = Ended.TOKENS
            return None
        # The first response of an episode draws what a single-step response of the same key does.
        key = stream_key(*self.key, *([turn] if turn else []))
        try:
            async with asyncio.timeout(self._left()):
                if self._left():
                    return await context.respond(key, self.mode, budget)
        except TimeoutError:
            pass
        self.episode.ended = Ended.SECONDS
        return None

    async def _follow(self, reading: Reading, drawn: Drawn, context: Context) -> Shown | None:
        """What tools or the user say to a response; None if the episode ended with it."""
        if reading.calls or not _CALL_PROBLEMS.isdisjoint(reading.problems):
            results = await self._results(reading)
            self.episode.turns[-1] = Turn(reading, results)
            written = "" if reading.calls else self.format.body(drawn.ids.tolist())
            texts = [result.text for result in results]
            return self.conversation.results(reading, texts, self.environment.schemas(), context.ids, written)
        reply = await self._ask("reply", reading.content)
        if reply is None:
            return None
        self.episode.turns[-1] = Turn(reading, reply=reply)
        return self.conversation.reply(reading, reply, self.environment.schemas(), context.ids)

    async def _results(self, reading: Reading) -> tuple[ToolResult, ...]:
        """Execute the calls of a response, one after the other: later ones may need what earlier ones did."""
        if not reading.calls:
            text = f"error: the call could not be read ({reading.reason}): write it as described"
            return (ToolResult(Call(""), text, ToolFault.UNREADABLE),)
        results = []
        for call in reading.calls:
            if self.calls_left <= 0:
                results.append(ToolResult(call, "error: no calls are left: answer now", ToolFault.CALL_LIMIT))
                continue
            self.calls_left -= 1
            limits = Limits(self.config.tool_seconds, self.config.tool_chars, self._left())
            results.append(await execute(self.environment.tools, call, limits))
        return tuple(results)

    async def _ask(self, method: str, argument: Any) -> str | None:
        """Call a method of the environment that may take its time; where it raises, the episode has failed."""
        try:
            return await THREADS.run(lambda: getattr(self.environment, method)(argument), self._left())
        except Exception as problem:
            self.episode.ended = Ended.FAILED if self._left() else Ended.SECONDS
            self.episode.failure = f"{method}: {type(problem).__name__}: {problem}".splitlines()[0]
            return None

    async def _reward(self) -> Reward:
        if self.episode.ended is Ended.FAILED:
            return Reward(math.nan, {}, False, f"failed: {self.episode.failure}")
        name = type(self.environment).__name__
        try:
            reward = await THREADS.run(lambda: self.environment.score(self.episode), self.config.seconds)
        except Exception as problem:
            raise EnvError(
                f"{name}.score raised {type(problem).__name__} on task {self.task.id}: {problem}; "
                "make it return a Reward for every episode (`unbraid check-env` tries them)"
            ) from problem
        if fault := fault_in_reward(reward):
            raise EnvError(f"{name}.score returned {fault} for task {self.task.id}: return unbraid.tasks.Reward(…)")
        if self.config.reward == "by_mode":
            return reward_by_mode(reward, self.episode.mode, self.episode.well_formed, self.player.reward)
        return reward

    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


def refuse_failures(found: Sequence[Trajectory]) -> None:
    """Raises EnvError if the environment failed in every single episode of a batch."""
    failures = [t.episode.failure for t in found if t.episode and t.episode.ended is Ended.FAILED]
    if found and len(failures) == len(found):
        raise EnvError(f"the environment failed in all {len(found)} episodes, first with: {failures[0]}")


class EpisodeRoll:
    """Rolls out a batch of tasks in an environment: a `Roll`.

    Keeps one event loop for its whole life: tools may keep connections. Use it as a context manager, or `close` it.
    """

    def __init__(self, player: Player, open_sampler: OpenSampler):
        self.player, self.open_sampler = player, open_sampler
        self._loop = EventLoop()

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """One graded trajectory per task and entry of `modes`, in task order.

        Raises:
            EnvError: the environment failed in every single episode.
        """
        found = self.play(tasks, modes, temperature=temperature, seed=seed)
        refuse_failures(found)
        return found

    def play(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """The same for a part of a batch: that the environment fails in all of it says nothing yet."""
        return self._loop.run(lambda: self._play_all(tasks, modes, temperature, seed))

    async def _play_all(
        self, tasks: Sequence[Task], modes: Sequence[Mode], temperature: float, seed: object
    ) -> list[Trajectory]:
        async with self.open_sampler(temperature) as sampler:
            try:
                async with asyncio.TaskGroup() as group:
                    playing = [
                        group.create_task(self.player.play(sampler, task, sample, mode, seed))
                        for task, sample, mode in numbered(tasks, modes)
                    ]
            except BaseExceptionGroup as problems:  # the first one says it; the others were cancelled for it
                raise problems.exceptions[0] from None
        return [one.result() for one in playing]

    def close(self) -> None:
        """End the event loop and whatever tools keep in it."""
        self._loop.close()

    def __enter__(self) -> "EpisodeRoll":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
