"""Trajectories that a server drew: their log-probs are the trainer's, all else is as the local samplers have it."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from agents import Parrot, agent_policy, agent_tasks
from policies import calls_tasks, requests_for, tiny_policy
from served_runs import AGAIN, assert_the_trainers, draw, fleet_of
from slot_agents import MODES, run
from stand_in_vllm import StandIn

from unbraid.chat.modes import ModePrefixes
from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.policy import Policy
from unbraid.rollout import Finish
from unbraid.rollout.config import EnvironmentConfig
from unbraid.rollout.context import Drawn
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.single import SingleSampler, single_trajectory
from unbraid.rollout.slots import SlotSampler
from unbraid.tasks.reward import RewardConfig


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbraid.rollout.fleet.PAUSE", 0.005)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(tiny_policy().model) as server:
        yield server


# -- single responses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_logprobs_are_the_trainers(tmp_path, server, temperature, adapter):
    policy = tiny_policy(adapter=adapter)
    requests = requests_for(policy, calls_tasks(5), AGAIN)
    found = draw(fleet_of(tmp_path, server), policy, requests, temperature)
    assert_the_trainers(policy, found, temperature)
    for request, t in zip(requests, found, strict=True):
        assert (t.task_id, t.sample, t.forced) == (request.task.id, request.sample, request.mode)
        assert tuple(t.ids[: t.prompt_length]) == request.prompt_ids
        prefix = policy.format.modes.of(request.mode)
        assert tuple(t.response_ids[: len(prefix)]) == prefix
        assert t.sampled.tolist() == [False] * (t.prompt_length + len(prefix)) + [True] * (
            len(t.response_ids) - len(prefix)
        )
        stopped = int(t.ids[-1]) in policy.format.stop_ids
        assert (t.finish is Finish.STOP) == stopped and (stopped or len(t.response_ids) == 8)
        assert t.mode is (policy.format.modes.read(t.response_ids.tolist()) if stopped else Mode.NONE)
    if temperature:
        assert len({tuple(t.response_ids) for t in found}) > 15


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_chances_of_the_modes_are_the_slots(tmp_path, server, temperature):
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(5), MODES)
    served = draw(fleet_of(tmp_path, server), policy, requests, temperature, budget=3)
    with SingleSampler(policy.format, lambda t: SlotSampler(policy, 8, t)) as sampler:
        local = sampler.sample(requests, temperature=temperature, max_new_tokens=3)
    found, expected = (np.array([t.choice_probs for t in some]) for some in (served, local))
    assert np.isfinite(expected).all() and 0 < expected.min() < expected.max() < 1
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_a_response_that_never_comes_to_the_choice_has_no_chances(tmp_path):
    policy = tiny_policy(sharp=0.05)
    think, no_think = policy.format.modes.choice_ids
    shared = 30
    policy.format.modes = ModePrefixes((shared, think), (shared, no_think))
    requests = requests_for(policy, calls_tasks(6), [Mode.AUTO] * 30)
    with StandIn(policy.model) as server:
        found = draw(fleet_of(tmp_path, server), policy, requests, budget=2)
        starts = [t.response_ids[0] == shared and len(t.response_ids) > 1 for t in found]
        assert any(starts) and not all(starts)
        assert [bool(np.isfinite(t.choice_probs).all()) for t in found] == starts
        # What chooses is the token after the shared ones.
        assert {tuple(body["token_ids"]) for body in server.questions()} == {
            (*request.prompt_ids, shared) for request in requests
        }


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_budget_may_end_within_what_is_forced(tmp_path, server, budget):
    policy = tiny_policy()
    words = policy.format.encode("<think> now")
    policy.format.modes = ModePrefixes(tuple(words), tuple(policy.format.encode("<no_think>")))
    requests = requests_for(policy, calls_tasks(2), [Mode.THINK, Mode.NO_THINK, Mode.AUTO])
    found = draw(fleet_of(tmp_path, server), policy, requests, budget=budget)
    with SingleSampler(policy.format, lambda t: SlotSampler(policy, 8, t)) as sampler:
        local = sampler.sample(requests, temperature=1.0, max_new_tokens=budget, seed=1)
    for ours, theirs in zip(found, local, strict=True):
        prefix = min(budget, len(policy.format.modes.of(ours.forced)))
        assert len(ours.response_ids) <= budget
        assert ours.response_ids[:prefix].tolist() == theirs.response_ids[:prefix].tolist()
        assert ours.sampled[ours.prompt_length :].tolist() == [i >= prefix for i in range(len(ours.response_ids))]
        np.testing.assert_allclose(ours.choice_probs, theirs.choice_probs, atol=3e-5)
    assert_the_trainers(policy, [t for t in found if t.sampled.any()], 1.0)
    if budget == 1:  # a response that is forced as a whole needs no server
        assert len(server.bodies()) - len(server.questions()) == 2


def test_the_same_ids_make_the_same_trajectory_as_elsewhere(tmp_path, server):
    """Masks, modes and ends follow from what was drawn, whoever drew it."""
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(4), AGAIN)
    found = draw(fleet_of(tmp_path, server), policy, requests)
    for request, t in zip(requests, found, strict=True):
        prefix, length = len(policy.format.modes.of(request.mode)), len(t.response_ids)
        nothing = np.zeros(length, dtype=np.float32)
        drawn = Drawn(t.response_ids, prefix, nothing, nothing, (0.5, 0.5), t.finish)
        again = single_trajectory(policy.format, request, drawn)
        assert (again.mode, again.finish, again.forced) == (t.mode, t.finish, t.forced)
        assert again.roles.tolist() == t.roles.tolist() and again.sampled.tolist() == t.sampled.tolist()


def test_one_question_about_the_choice_per_prompt(tmp_path, server):
    policy = tiny_policy()
    tasks = calls_tasks(5)
    draw(fleet_of(tmp_path, server), policy, requests_for(policy, tasks, AGAIN))
    asked = [tuple(body["token_ids"]) for body in server.questions()]
    assert len(asked) == len(set(asked)) == len(tasks)


def test_what_is_sent(tmp_path, server):
    policy = tiny_policy(adapter=True)
    fleet = fleet_of(tmp_path, server)
    draw(fleet, policy, requests_for(policy, calls_tasks(2), MODES), temperature=0.7)
    for body in server.bodies():
        assert body["model"] == body["cache_salt"] == fleet.model == fleet.salt
        assert body["sampling_params"]["temperature"] == 0.7
        assert body["sampling_params"].get("seed") is None
        assert body in server.questions() or body["sampling_params"]["stop_token_ids"] == list(policy.format.stop_ids)


def test_seeds_make_draws_repeatable(tmp_path, server):
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(3), [Mode.AUTO] * 4)
    fleet = fleet_of(tmp_path, server, seeded=True)
    first, again = (draw(fleet, policy, requests) for _ in range(2))
    assert [t.ids.tolist() for t in first] == [t.ids.tolist() for t in again]
    seeds = [s for body in server.bodies() if (s := body["sampling_params"].get("seed")) is not None]
    assert len(set(seeds)) == len(requests) and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("contexts", [1, 5])
def test_never_more_responses_at_once_than_contexts(tmp_path, contexts):
    policy = tiny_policy()
    with StandIn(policy.model, seconds=0.003) as server:
        found = draw(fleet_of(tmp_path, server), policy, requests_for(policy, calls_tasks(6), AGAIN), budget=2,
                     contexts=contexts)  # fmt: skip
        assert len(found) == 30 and server.busiest == contexts


def test_a_response_ends_where_the_servers_contexts_do(tmp_path, server):
    policy = tiny_policy()
    (request, *_) = requests = requests_for(policy, calls_tasks(1), [Mode.AUTO])
    policy.format.stop_ids = (10**6,)
    length = len(request.prompt_ids)
    (found,) = draw(fleet_of(tmp_path, server, max_tokens=length + 3), policy, requests)
    assert len(found.response_ids) == 3 and found.finish is Finish.LENGTH
    (found,) = draw(fleet_of(tmp_path, server, max_tokens=length + 1), policy, requests)
    assert len(found.response_ids) == 1
    with pytest.raises(ModelError, match=f"a context of {length} tokens .* longest context of {length}: shorten"):
        draw(fleet_of(tmp_path, server, max_tokens=length), policy, requests)


def test_misuse_is_named(tmp_path, server):
    policy = tiny_policy()

    async def play(sampler: Any) -> None:
        context = await sampler.open([1, 2])
        with pytest.raises(ModelError, match="outgrow"):
            await context.respond(np.uint64(0), Mode.AUTO, 10_000)
        with pytest.raises(ModelError, match="at least one"):
            await context.respond(np.uint64(0), Mode.AUTO, 0)
        context.close()
        context.close()
        with pytest.raises(ModelError, match="closed: open a new one"):
            await context.respond(np.uint64(0), Mode.AUTO, 4)
        with pytest.raises(ModelError, match="at least one"):
            await (await sampler.open([])).respond(np.uint64(0), Mode.AUTO, 4)

    fleet = fleet_of(tmp_path, server)
    run(ServedSampler(fleet, policy, 2, 1.0), play)  # type: ignore[arg-type]
    assert not fleet.members[0].reviving


def test_a_response_that_is_given_up_leaves_no_trace(tmp_path, server):
    policy = tiny_policy()
    fleet = fleet_of(tmp_path, server)

    async def play(sampler: Any) -> None:
        context = await sampler.open([1, 5, 7])
        await context.respond(np.uint64(0), Mode.AUTO, 1)
        before = list(context.ids)
        server.seconds = 30
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(context.respond(np.uint64(0), Mode.AUTO, 5), 0.05)
        server.seconds = 0
        assert context.ids == before
        # The question about the choice was not given up with it: others may wait for its answer.
        for _ in range(200):
            if not server.busy:
                break
            await asyncio.sleep(0.01)
        context.close()
        one = await sampler.open([2, 4])
        assert len((await one.respond(np.uint64(0), Mode.AUTO, 2)).ids) <= 2

    run(ServedSampler(fleet, policy, 1, 1.0), play)  # type: ignore[arg-type]


# -- episodes --------------------------------------------------------------------------------------------------------


def play_episodes(fleet: Fleet, policy: Policy, history: str, count: int, temperature: float = 1.0):
    config = EnvironmentConfig(name="test", history=history, turns=4, tokens=160)  # type: ignore[arg-type]
    player = Player(Parrot(delay=lambda query: 0.002 * (len(query) % 4)), policy.format, config, RewardConfig(), 12)
    with EpisodeRoll(player, lambda t: ServedSampler(fleet, policy, 64, t)) as roll:
        return roll(agent_tasks(count), [*MODES, Mode.AUTO], temperature=temperature, seed=1)


@pytest.mark.parametrize(("style", "history"), [("inline", "keep"), ("chat", "as_served")])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_episodes_have_the_trainers_logprobs(tmp_path, style, history, temperature):
    policy = agent_policy(style)
    with StandIn(policy.model) as server:
        found = play_episodes(fleet_of(tmp_path, server), policy, history, 6, temperature)
        assert_the_trainers(policy, found, temperature)
        assert len(found) == 24 and max(len(t.responses) for t in found) > 1
        contexts = [tuple(piece.ids[: r.start].tolist()) for t in found for piece in t.split() for r in piece.responses]
        asked = [tuple(body["token_ids"]) for body in server.questions()]
        assert len(asked) == len(set(asked)) and set(asked) == set(contexts)
        own = chances(policy, contexts, temperature)
        told = [r.choice_probs for t in found for piece in t.split() for r in piece.responses]
        np.testing.assert_allclose(told, own, atol=3e-5)


def chances(policy: Policy, contexts: Sequence[tuple[int, ...]], temperature: float) -> list[tuple[float, ...]]:
    """Probabilities of the (think, no_think) id after each context."""
    with torch.no_grad():
        logits = [policy.model(input_ids=torch.tensor([context])).logits[0, -1] / temperature for context in contexts]
    return [tuple(row.softmax(-1)[list(policy.format.modes.choice_ids)].tolist()) for row in logits]


def test_64_episodes_at_once(tmp_path):
    policy = agent_policy("inline")
    with StandIn(policy.model, seconds=0.005) as server:
        fleet = fleet_of(tmp_path, server)
        found = play_episodes(fleet, policy, "keep", 16)
        assert_the_trainers(policy, found, 1.0)
        assert len({(t.task_id, t.sample) for t in found}) == 64
        assert server.busiest <= 64 and fleet.members[0].busy == 0
