"""A sampler that says what a script tells it, token for token: an oracle, or one that errs on purpose."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from tiny import SEARCH_TAGS, tiny_tokenizer

from unbraid.bench.ask import Benchmark, recipe_for
from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.types import Answer, Call, Mode
from unbraid.policy import ModelConfig
from unbraid.recipe import Recipe, TasksConfig
from unbraid.rollout.context import Drawn
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.scoring import Roll, SingleStep
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.trajectory import Finish
from unbraid.tasks.task import Task

Script = Callable[[Task, int], Answer | str]
"""(task, number of the response) → what is said: an answer, or text that a model might write instead."""


_SHOWN: dict[str, list[int]] = {}
"""Prompts that were rendered: that costs more than all the rest, and several tests ask the same."""


def says(content: str, thinks: bool = False) -> Answer:
    """An answer in words."""
    return Answer(Mode.THINK, "Let me see.", (), content) if thinks else Answer(Mode.NO_THINK, content=content)


def calls(*made: Call, thinks: bool = False) -> Answer:
    """An answer that calls."""
    return Answer(Mode.THINK, "Let me see.", made) if thinks else Answer(Mode.NO_THINK, calls=made)


class StoppedError(Exception):
    """The run is stopped in the middle of a batch."""


@dataclass
class Oracle:
    """A run's recipe, policy and roll, with a script in place of a model.

    asked: ids of the tasks that were asked, in order. stop_after: raise StoppedError with this many asked.
    """

    script: Script
    call_format: str = "hermes"
    asked: list[str] = field(default_factory=list)
    stop_after: int | None = None

    def __post_init__(self) -> None:
        self.format = ChatFormat.build(tiny_tokenizer(tags=SEARCH_TAGS), ChatConfig(call_format=self.call_format))
        render = self.format.prompt_ids

        def prompt_ids(messages: Any, tools: Any = ()) -> list[int]:
            key = repr((self.call_format, messages, tools))
            if key not in _SHOWN:
                _SHOWN[key] = render(messages, tools)
            return _SHOWN[key]

        self.format.prompt_ids = prompt_ids
        self.recipe = Recipe(
            name="oracle",
            model=ModelConfig(path="none"),
            tasks=TasksConfig(train="none"),
            chat=ChatConfig(call_format=self.call_format),
        ).model_copy(update={"data": SimpleNamespace(max_prompt_tokens=100_000)})
        self.policy: Any = SimpleNamespace(format=self.format, parameter_count=lambda: 1_000_000, router=None)

    def roll(self, benchmark: Benchmark) -> Roll:
        """As `roll_for`: by the script."""
        if benchmark.acts_in is None:
            assert benchmark.reward
            sampler = SingleSampler(self.format, self._open(benchmark))
            return SingleStep(sampler, self.format, benchmark.reward, 4096)
        config = recipe_for(benchmark, self.recipe).environment
        assert config
        config = config.model_copy(update={"tokens": 200_000})
        return EpisodeRoll(
            Player(benchmark.acts_in, self.format, config, self.recipe.reward, 4096), self._open(benchmark)
        )

    def _open(self, benchmark: Benchmark) -> Callable[[float], AbstractAsyncContextManager[Any]]:
        tasks = [task for found in benchmark.tasks.values() for task in found]
        tools = benchmark.acts_in.schemas() if benchmark.acts_in else None
        prompts: dict[tuple[int, ...], list[Task]] = {}
        for task in tasks:
            ids = tuple(self.format.prompt_ids(task.messages, task.tools if tools is None else tools))
            prompts.setdefault(ids, []).append(task)

        @asynccontextmanager
        async def opened(temperature: float) -> AsyncIterator[Any]:
            async def begin(ids: Sequence[int]) -> _Context:
                task = prompts[tuple(ids)][0]
                if self.stop_after is not None and len(self.asked) >= self.stop_after:
                    raise StoppedError
                self.asked.append(task.id)
                return _Context(self, task, list(ids))

            yield SimpleNamespace(max_tokens=None, open=begin)

        return opened


@dataclass
class _Context:
    """One task being answered."""

    oracle: Oracle
    task: Task
    ids: list[int]
    turn: int = 0

    def extend(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def restart(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    async def respond(self, key: np.uint64, mode: Mode, max_new_tokens: int) -> Drawn:
        format, said = self.oracle.format, self.oracle.script(self.task, self.turn)
        self.turn += 1
        ids = [*format.encode(said), format.stop_ids[0]] if isinstance(said, str) else format.response_ids(said)
        self.ids += ids
        none = np.zeros(len(ids), dtype=np.float32)
        prefix = len(format.prefix_ids(mode))
        return Drawn(np.array(ids), prefix, none, none, (float("nan"), float("nan")), Finish.STOP)

    def close(self) -> None:
        """Nothing to give back."""
