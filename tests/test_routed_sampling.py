"""What is sampled through routed adapters is what the trainer scores, in both samplers; planted errors are found."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from agents import agent_policy, agent_tasks
from policies import calls_tasks, requests_for, tiny_policy
from slot_agents import Agent, bits, run, together
from test_episodes_exact import STYLES, roller, trainer_logprobs

from unbraid.chat.types import Mode
from unbraid.learn.batch import collate
from unbraid.learn.objective import score_tokens
from unbraid.policy import Policy
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import LocalSampler, Trajectory, slots
from unbraid.rollout.context import Drawn
from unbraid.rollout.probe import own_logprobs
from unbraid.rollout.slots import SlotSampler
from unbraid.tokens import Role, Router

ROUTINGS = {
    "paper": RoutingConfig(),
    "bare context": RoutingConfig(context=None),
    "shifted": RoutingConfig(boundary="shifted"),
    "three, bare, shifted": RoutingConfig(
        owners={"think": "thinks", "reasoning": "says", "action": "calls"}, context=None, boundary="shifted"
    ),
    "random": RoutingConfig(assign="random"),
    "placebo": RoutingConfig(assign="placebo"),
    "all": RoutingConfig(assign="all"),
}
FREE_AND_FORCED = [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO, Mode.AUTO]


@pytest.mark.parametrize("name", ROUTINGS)
def test_single_responses_of_the_local_sampler(name: str):
    policy = tiny_policy(routing=ROUTINGS[name])
    requests = requests_for(policy, calls_tasks(8), FREE_AND_FORCED)
    trajectories = LocalSampler(policy).sample(requests, temperature=0.8, max_new_tokens=24, seed=3)
    batch = collate(trajectories, np.zeros(len(trajectories)), policy.format.modes.position, router=policy.router)
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, 0.8, policy.format.modes.choice_ids)
    assert (scores.logprobs - batch.old_logprobs).abs().max() < 1e-4
    for t in trajectories[:6]:
        own = own_logprobs(policy, t.ids.tolist(), t.prompt_length, 0.8)
        sampled = t.sampled[t.prompt_length :]
        assert np.abs(own - t.logprobs[t.prompt_length :])[sampled].max() < 1e-4


CASES = [(name, *style) for name in ("paper", "bare context") for style in STYLES]
CASES += [(name, *STYLES[number % 4]) for number, name in enumerate(list(ROUTINGS)[2:])]


@pytest.mark.parametrize(("name", "style", "history"), CASES)
def test_episodes_of_the_slots(name: str, style: Any, history: str):
    """Several turns, stray, nested, unclosed and truncated spans, delimiters in prompts and results."""
    policy, seen = agent_policy(style, routing=ROUTINGS[name]), Counter()
    with roller(policy, history=history) as roll:
        found = roll(agent_tasks(8), [Mode.AUTO, Mode.THINK, Mode.NO_THINK], temperature=1.0, seed=1)
    for t in found:
        logprobs, entropies = trainer_logprobs(policy, t, 1.0)
        assert np.abs(t.logprobs - logprobs).max() < 1e-4
        assert np.abs(np.nan_to_num(t.entropies) - entropies)[t.sampled].max() < 1e-4
        seen["responses"] += len(t.responses)
        seen["action tokens"] += int((t.sampled & (t.roles == Role.ACTION)).sum())
        for r in t.responses:
            for fault, _ in policy.format.automaton.scan(t.ids[r.start : r.end].tolist()).faults:
                seen[fault] += 1
    assert len(found) == 24 and seen["responses"] > 30 and seen["action tokens"] > 10, seen
    assert seen["nested"] + seen["stray"] and seen["unclosed"], seen


def test_slots_give_the_same_bits_in_any_company():
    policy = tiny_policy(routing=RoutingConfig(context=None))
    alone = [bits(run(SlotSampler(policy, 4, 1.0), Agent(policy, seed).play)) for seed in range(6)]
    crowd = run(SlotSampler(policy, 5, 1.0), together(*(Agent(policy, seed).play for seed in range(6))))
    assert [bits(played) for played in crowd] == alone


def largest_gap(policy: Policy, found: list[Trajectory]) -> float:
    """Between sampler and trainer, in nats."""
    return max(float(np.abs(t.logprobs - trainer_logprobs(policy, t, 1.0)[0]).max()) for t in found)


class OneLate(Router):
    """Every adapter begins and ends a token too late."""

    def step(self, states, ids):
        after, _ = super().step(states, ids)
        return after, self._of_state[states]  # type: ignore[attr-defined]


class NeverBack(Router):
    """After a span has closed, its adapter stays."""

    def step(self, states, ids):
        after, routes = super().step(states, ids)
        stays = after == 0
        return np.where(stays, states, after), np.where(stays, self._of_state[states], routes)  # type: ignore[attr-defined]


class NotReset(Router):
    """A span that was cut off leaks into the next turn."""

    def state(self, ids, written):
        kept = np.asarray(ids)[np.asarray(written, dtype=bool)]
        return super().state(kept, np.ones(len(kept), dtype=bool)) if len(kept) else super().state(ids, written)

    def route(self, ids, written):
        routes = super().route(ids, written)
        if np.ndim(ids) == 1:
            routes[-1] = self._of_state[self.state(ids, written)]  # type: ignore[attr-defined]
        return routes


@pytest.mark.parametrize(("mutant", "style"), [(OneLate, "inline"), (NeverBack, "inline"), (NotReset, "chat")])
def test_a_sampler_with_a_wrong_router_is_found(mutant: type[Router], style: Any):
    policy = agent_policy(style, routing=RoutingConfig())
    with roller(policy, history="keep") as roll:
        assert largest_gap(policy, roll(agent_tasks(6), [Mode.AUTO] * 3, temperature=1.0, seed=2)) < 1e-4
    router = policy.router
    assert isinstance(router, Router)
    wrong = mutant(
        router.automaton, router.adapters, router.outside, router.spans, router.context, router.boundary
    )  # fmt: skip
    # The sampler alone gets the mutant; the trainer reads the right one.
    with roller(policy, history="keep") as roll:
        policy.model.routing.router = wrong
        found = roll(agent_tasks(6), [Mode.AUTO] * 3, temperature=1.0, seed=2)
        policy.model.routing.router = router
    assert largest_gap(policy, found) > 1e-2


def test_keys_and_values_of_another_route_are_not_used_again(monkeypatch: pytest.MonkeyPatch):
    """A context of the same ids as an earlier one, in which a tool wrote what the model wrote there."""
    policy = agent_policy("inline", routing=RoutingConfig(context=None))

    async def play(sampler: SlotSampler) -> tuple[list[int], Drawn]:
        prompt = list(range(17, 25)) * 4
        first = await sampler.open(prompt)
        drawn = await first.respond(np.uint64(1), Mode.AUTO, 24)
        second = await sampler.open(prompt)
        second.extend([*drawn.ids.tolist(), 21, 22])
        before = list(second.ids)
        return before, await second.respond(np.uint64(2), Mode.AUTO, 12)

    def off() -> float:
        before, drawn = run(SlotSampler(policy, 2, 1.0), play)
        own = own_logprobs(policy, [*before, *drawn.ids.tolist()], len(before), 1.0)
        return float(np.abs(own - drawn.logprobs).max())

    assert off() < 1e-4
    monkeypatch.setattr(slots, "common_length", _ids_only)
    monkeypatch.setattr(SlotSampler, "_common", _common_of_ids)
    assert off() > 1e-3


def _ids_only(ours: np.ndarray, theirs: np.ndarray) -> int:
    length = min(len(ours), len(theirs))
    differs = np.flatnonzero(slots.ids_of(ours[:length]) != slots.ids_of(theirs[:length]))
    return int(differs[0]) if len(differs) else length


def _common_of_ids(self: Any, ids: np.ndarray) -> np.ndarray:
    found = [_ids_only(ids, held[:fed]) for held, fed in zip(self._held, self._fed, strict=True)]
    return np.array(found[: self._used])
