"""Single responses from a sampler of contexts: over slots they are the local sampler's, draw for draw."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest
from agents import Script
from policies import calls_tasks, requests_for, tiny_policy

from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.rollout import Finish, LocalSampler
from unbraid.rollout.loop import EventLoop, together
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.slots import SlotSampler

MODES = [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("budget", [1, 2, 20])
def test_over_slots_it_is_the_local_sampler(temperature, budget):
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(6), MODES)
    arguments = {"temperature": temperature, "max_new_tokens": budget, "seed": ("train", 3)}
    expected = LocalSampler(policy).sample(requests, **arguments)
    with SingleSampler(policy.format, lambda temperature: SlotSampler(policy, 7, temperature)) as sampler:
        for _ in range(2):  # its event loop outlives a call
            found = sampler.sample(requests, **arguments)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.ids.tolist() == theirs.ids.tolist()
                assert ours.roles.tolist() == theirs.roles.tolist()
                assert ours.sampled.tolist() == theirs.sampled.tolist()
                for name in ("task_id", "sample", "prompt_length", "mode", "forced", "finish", "level", "source"):
                    assert getattr(ours, name) == getattr(theirs, name)
                np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=2e-5)
                np.testing.assert_allclose(ours.entropies, theirs.entropies, atol=2e-5)
                np.testing.assert_allclose(ours.choice_probs, theirs.choice_probs, atol=1e-5)


def test_a_response_ends_where_the_positions_do():
    policy = tiny_policy()
    (request, *_) = requests_for(policy, calls_tasks(1), [Mode.AUTO])
    policy.format.stop_ids = (10**6,)
    policy.model.config.max_position_embeddings = len(request.prompt_ids) + 5
    with SingleSampler(policy.format, lambda temperature: SlotSampler(policy, 2, temperature)) as sampler:
        (found,) = sampler.sample([request], temperature=1.0, max_new_tokens=9)
    assert len(found.response_ids) == 5 and found.finish is Finish.LENGTH and found.mode is Mode.NONE


@dataclass
class Failing(Script):
    """Fails in the first context's response, while all others wait for something that never comes."""

    closed: list[bool] = field(default_factory=list)

    async def __aenter__(self) -> "Failing":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed.append(True)

    async def open(self, prompt_ids):
        outer, context = self, await super().open(prompt_ids)

        async def respond(key, mode, max_new_tokens):
            outer.responses = [*outer.responses, "x"]
            if len(outer.responses) == 1:
                await asyncio.sleep(0.01)
                raise ModelError("the first one says it")
            await asyncio.sleep(3600)

        context.respond = respond  # type: ignore[method-assign]
        context.close = lambda: outer.closed.append(False)
        return context


def test_the_first_failure_says_it_and_everything_is_closed():
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(3), MODES)
    failing = Failing(policy.format, [])
    with (
        SingleSampler(policy.format, lambda temperature: failing) as sampler,
        pytest.raises(ModelError, match="the first one says it") as caught,
    ):
        sampler.sample(requests, temperature=1.0, max_new_tokens=4)
    assert failing.closed == [False] * len(requests) + [True]
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None


def test_together_keeps_the_order_and_cancels_the_rest():
    ended: list[int] = []

    async def one(number: int, fails: bool = False) -> int:
        try:
            await asyncio.sleep(0.02 * (3 - number) if not fails else 0)
            if fails:
                raise ValueError(number)
            return number
        finally:
            ended.append(number)

    assert asyncio.run(together(one(number) for number in range(3))) == [0, 1, 2] and ended == [2, 1, 0]
    with pytest.raises(ValueError, match="1"):
        asyncio.run(together(one(number, number == 1) for number in range(3)))
    assert sorted(ended[3:]) == [0, 1, 2] and asyncio.run(together([])) == []


def test_an_event_loop_runs_beside_somebody_elses():
    loop = EventLoop()

    async def work() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def fail() -> None:
        raise ModelError("here")

    async def notebook() -> asyncio.AbstractEventLoop:
        return loop.run(work)

    assert asyncio.run(notebook()) is loop.run(work)
    with pytest.raises(ModelError) as caught:
        loop.run(fail)
    assert caught.value.__context__ is None
    loop.close()
