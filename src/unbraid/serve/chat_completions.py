"""A policy of this process that answers chat requests: many at a time, decoded together, without vLLM."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Answer, Call, Mode
from unbraid.errors import ChatError, ModelError
from unbraid.policy import Policy
from unbraid.rollout import Finish
from unbraid.rollout.context import Drawn
from unbraid.rollout.randomness import stream_key
from unbraid.rollout.slots import SlotSampler
from unbraid.serve.completion_wire import Asked, BadRequestError, Choice, Completion
from unbraid.tokens import Role

DEFAULT_TOKENS = 4096
"""Choice: most tokens of an answer where the request sets no limit and the model has the room."""
STREAM = "chat"
"""Answer i to a request with a seed is drawn from the stream `stream_key(seed, STREAM, i)`."""


@dataclass
class _Engine:
    """A slot sampler at work, and how many answers it is drawing."""

    sampler: SlotSampler
    users: int = 0


class LocalModel:
    """Answers requests on the policy's own weights. Use within `with`; `submit` may be called from any thread.

    One thread of its own does all that touches the policy, so that whoever asks never waits for a step. A slot sampler
    has one temperature: there is one for every temperature in use, and the last is kept for whoever comes next; what
    it has computed of a conversation is there for its next turn. What is drawn depends on the prompt, the seed and the
    settings only, not on the company (on a CPU in float32 bit for bit).

    Args:
        policy: sampled as it is; nothing else may use it meanwhile. name: of the model, for clients.
        slots: most answers drawn at a time; further ones wait, first come, first served.

    Raises:
        ModelError: the model keeps its past otherwise than as keys and values.
    """

    def __init__(self, policy: Policy, name: str, slots: int = 16):
        self.policy, self.name, self.slots = policy, name, slots
        self.max_tokens = SlotSampler(policy, slots, 1.0).max_tokens
        """Most tokens of a prompt and its answer; None if the model sets no limit."""
        self._engines: dict[float, _Engine] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        ready = threading.Event()
        # A daemon: a prefill that takes long must not keep an interrupted program alive.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        loop, self._loop = self._loop, None
        assert loop is not None
        loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def submit(self, asked: Asked) -> "Future[Completion]":
        """Start answering. Cancelling the future ends the drawing and frees the slots.

        The future raises BadRequestError where the prompt cannot be made or is too long, ModelError and whatever else
        the model raises where it fails.
        """
        if self._loop is None:
            raise ModelError(f"the model '{self.name}' does not run: use it within `with`")
        return asyncio.run_coroutine_threadsafe(self._complete(asked), self._loop)

    async def _main(self, ready: threading.Event) -> None:
        training = self.policy.model.training
        self.policy.model.eval()
        self._room, self._closing = asyncio.Semaphore(self.slots), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        ready.set()
        await self._closing.wait()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._close_idle()
        self.policy.model.train(training)

    async def _complete(self, asked: Asked) -> Completion:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            prompt, budget = self._prompt(asked)
            seed = secrets.randbits(63) if asked.seed is None else asked.seed
            async with asyncio.TaskGroup() as group:
                draws = [group.create_task(self._draw(asked, prompt, seed, i, budget)) for i in range(asked.n)]
        except ExceptionGroup as several:  # the others were cancelled
            raise several.exceptions[0] from several
        finally:
            self._under_way.discard(task)
        forced = len(self.policy.format.prefix_ids(asked.mode))
        choices = [self._choice(asked, draw.result(), f"{seed} {i} {prompt}") for i, draw in enumerate(draws)]
        return Completion(len(prompt) + forced, tuple(choices))

    def _prompt(self, asked: Asked) -> tuple[list[int], int]:
        """(ids, budget): the budget has the prefix of a forced mode in it, as samplers count."""
        try:
            ids = shown_prompt(self.policy.format, asked.messages, asked.tools)
        except (ChatError, RecursionError) as problem:
            raise BadRequestError(str(problem), "messages") from problem
        forced = len(self.policy.format.prefix_ids(asked.mode))
        most = asked.max_tokens or DEFAULT_TOKENS
        if self.max_tokens is not None:
            most = min(most, self.max_tokens - len(ids) - forced)
        if most < 1:
            raise BadRequestError(
                f"the prompt has {len(ids) + forced} tokens and the model {self.max_tokens} positions, which leaves "
                "none for an answer: shorten the conversation",
                "messages", "context_length_exceeded",
            )  # fmt: skip
        if not ids:
            raise BadRequestError("the chat template makes an empty prompt of these messages", "messages")
        return ids, most + forced

    async def _draw(self, asked: Asked, prompt: list[int], seed: int, index: int, budget: int) -> Drawn:
        async with self._room, self._sampler(asked.temperature) as sampler:
            context = await sampler.open(prompt)
            try:
                return await context.respond(stream_key(seed, STREAM, index), asked.mode, budget)
            finally:
                context.close()

    @asynccontextmanager
    async def _sampler(self, temperature: float) -> AsyncIterator[SlotSampler]:
        """The sampler of a temperature; one that failed is not used again, the next request gets a fresh one."""
        engine = self._engines.get(temperature)
        if engine is None:
            engine = self._engines[temperature] = _Engine(SlotSampler(self.policy, self.slots, temperature))
            await engine.sampler.__aenter__()  # without a pause: nobody sees one that is not open
        engine.users += 1
        failed = False
        try:
            yield engine.sampler
        except Exception:
            failed = True
            raise
        finally:
            engine.users -= 1
            if failed and self._engines.get(temperature) is engine:
                del self._engines[temperature]
            if not engine.users:
                kept = self._engines.get(temperature) is engine
                await self._close_idle(engine if kept else None)
                if not kept:
                    await engine.sampler.__aexit__()

    async def _close_idle(self, kept: _Engine | None = None) -> None:
        """Give back the memory of samplers that draw nothing."""
        for temperature, engine in list(self._engines.items()):
            if not engine.users and engine is not kept:
                del self._engines[temperature]
                await engine.sampler.__aexit__()

    def _choice(self, asked: Asked, drawn: Drawn, stream: str) -> Choice:
        truncated = drawn.finish is Finish.LENGTH
        thought, content, calls = said(self.policy.format, drawn.ids.tolist(), truncated, bool(asked.tools))
        # Nine characters, as in training and as Mistral's templates ask for; the same ones for the same answer.
        ids = tuple(f"call{int(stream_key('call', stream, place)) >> 44:05x}" for place in range(len(calls)))
        finish = "length" if truncated else "tool_calls" if calls else "stop"
        return Choice(thought, content, calls, ids, finish, len(drawn.ids) - drawn.prefix)


def said(format: ChatFormat, ids: Sequence[int], truncated: bool, tools: bool) -> tuple[str, str, tuple[Call, ...]]:
    """(thought, content, calls) of a response, as a server shows it.

    Calls that cannot be read, or that nobody offered tools for (`tools` is false), are content, as they were written.
    """
    closing = {delimiter.close for delimiter in format.automaton.delimiters}
    if ids and ids[-1] in set(format.stop_ids) - closing:  # a thought that never closed would show it
        ids = ids[:-1]
    reading = format.read(ids, truncated)
    called = any(span.role is Role.ACTION for span in format.automaton.scan(ids).spans)
    if not called or (reading.calls and tools):
        return reading.thought, reading.content, reading.calls
    mode = format.modes.read(ids)
    written = format.body(ids[0 if mode is Mode.NONE else len(format.modes.of(mode)) :])
    return reading.thought, written, ()


def shown_prompt(
    format: ChatFormat, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[int]:
    """The ids of a conversation, up to where the answer starts: what training shows with `history: as_served`.

    Earlier thinking is not shown. Call formats that have results inside the assistant's own turn go on with that turn;
    turns before the last message of the user are then shown without their calls and results (Choice).

    Raises:
        ChatError: the template cannot render it, or ignores tools that it should show.
    """
    plain = [{key: value for key, value in one.items() if key != "reasoning"} for one in messages]
    if not format.calls.observation:
        return format.prompt_ids(plain, tools)
    roles = [one["role"] for one in messages]
    start = 1 + max((place for place, role in enumerate(roles) if role in ("user", "system")), default=-1)
    before = [one for one in plain[:start] if one["role"] != "tool" and not one.get("tool_calls")]
    ids = format.prompt_ids(before, tools)
    head, _, tail = format.calls.observation.partition("{}")
    for role, run in groupby(messages[start:], key=lambda one: one["role"]):
        if role == "assistant":
            ids += [token for one in run for token in format.response_ids(_answer(one))]
        else:
            ids += format.encode(head + "\n".join(one["content"] for one in run) + tail)
    return ids


def _answer(message: Mapping[str, Any]) -> Answer:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = tuple(Call(function["name"], function["arguments"]) for function in functions)
    thought = message.get("reasoning", "")
    return Answer(Mode.THINK if thought else Mode.NO_THINK, thought, calls, message["content"])
