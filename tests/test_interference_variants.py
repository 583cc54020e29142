"""Single-role learning, models put together from two, and the live monitor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.errors import ModelError
from unbraid.interference.monitor import Monitor, owners_of
from unbraid.interference.variants import only_role, route_together, take_turns
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.learn.importance import sequence_logprobs
from unbraid.learn.supervised import SupervisedExample
from unbraid.policy.routing import RoutingConfig
from unbraid.tokens import Provenance, Role


def with_calls(policy, trajectories):
    """The trajectories with a call in each response, roles found anew."""
    call = policy.format.automaton.delimiters[-1]
    found = []
    for t in trajectories:
        ids, start = t.ids.copy(), t.prompt_length + 1
        ids[start], ids[start + 5] = call.open, call.close
        written = np.where(np.arange(len(ids)) >= t.prompt_length, Provenance.MODEL, Provenance.PROMPT)
        found.append(replace(t, ids=ids, roles=policy.format.automaton.label(ids, written)))
    return found


def gradients(policy, trajectories, groups, roles):
    """What one update with plain SGD of rate 1 changes, by parameter."""
    config = LearnConfig(steps=1, learning_rate=1.0, roles=roles, max_grad_norm=1e9, fast=False)
    before = [p.detach().clone() for _, p in policy.trainable()]
    optimiser = torch.optim.SGD([p for _, p in policy.trainable()], lr=1.0)
    update(policy, trajectories, groups, optimiser, [], config, step=0, temperature=1.0)
    found = []
    for (_, p), start in zip(policy.trainable(), before, strict=True):
        found.append((start - p).detach().clone())
        p.data.copy_(start)
    return found


def test_roles_learn_their_own_tokens_and_add_up():
    policy = tiny_policy(dtype=torch.float64)
    trajectories, groups = sampled_batch(policy)
    trajectories = with_calls(policy, trajectories)
    both, reasoning, action = (gradients(policy, trajectories, groups, r) for r in ("both", "reasoning", "action"))
    for whole, one, other in zip(both, reasoning, action, strict=True):
        torch.testing.assert_close(one + other, whole, rtol=1e-5, atol=1e-6)  # norms are float32
    assert all(any(float(g.abs().max()) > 1e-6 for g in part) for part in (reasoning, action))


def test_examples_of_one_role():
    policy = tiny_policy()
    call = policy.format.automaton.delimiters[-1]
    example = SupervisedExample((5, 6), (7, call.open, 8, call.close, 9, 7), (1.0, 1.0, 2.0, 1.0, 0.0, 1.0), ((4, 5),))
    action = only_role(example, policy.format.automaton, Role.ACTION)
    reasoning = only_role(example, policy.format.automaton, Role.REASONING)
    assert action.weights == (0.0, 0.0, 2.0, 1.0, 0.0, 0.0)
    assert reasoning.weights == (1.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("adapter", [False, True])
def test_models_take_turns_token_by_token(adapter):
    """Every token has the log-prob that its own model gives it; the opening tag is the reasoning model's."""
    one, two = tiny_policy(seed=1, adapter=adapter), tiny_policy(seed=2, adapter=adapter)
    trajectories = with_calls(one, sampled_batch(one, prompts=2, samples=2)[0])
    together = take_turns(one, two)
    found, first, second = (sequence_logprobs(p, trajectories, 8, 1.0) for p in (together, one, two))
    opened = 0
    for t, own, r, a in zip(trajectories, found, first, second, strict=True):
        np.testing.assert_allclose(own, np.where(t.roles == Role.ACTION, a, r), atol=1e-5)
        opened += int((t.roles[t.prompt_length + 1] == Role.REASONING) and (t.roles == Role.ACTION).any())
    assert opened == len(trajectories)
    assert max(np.abs(r - a).max() for r, a in zip(first, second, strict=True)) > 0.1
    # The models are as they were, and so is what they say.
    np.testing.assert_allclose(sequence_logprobs(two, trajectories, 8, 1.0)[0], second[0])
    assert next(together.model.agents["action"].parameters()) is next(two.model.parameters())


def test_a_routed_model_cannot_take_turns():
    with pytest.raises(ModelError, match="route"):
        take_turns(tiny_policy(), tiny_policy(routing=RoutingConfig()))


def test_adapters_of_two_runs_as_one_routed_model():
    plain = tiny_policy(adapter=True)
    routed = route_together(tiny_policy(routing=RoutingConfig()), {"reasoning": plain, "action": plain})
    trajectories = with_calls(plain, sampled_batch(plain, prompts=2, samples=2)[0])
    for one, other in zip(
        sequence_logprobs(plain, trajectories, 8, 1.0), sequence_logprobs(routed, trajectories, 8, 1.0), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ModelError, match="no place"):
        route_together(tiny_policy(routing=RoutingConfig()), {"search": plain})


@pytest.mark.parametrize("routing", [None, RoutingConfig()])
def test_monitor_looks_and_changes_nothing(routing):
    policy = tiny_policy(routing=routing)
    trajectories, groups = sampled_batch(policy, prompts=8, samples=4)
    trajectories = with_calls(policy, trajectories)
    config = LearnConfig()
    before = [p.detach().clone() for _, p in policy.trainable()]
    look = Monitor(policy, config, 1.0)
    found = look(3, trajectories, groups)
    assert found == pytest.approx(look(3, trajectories, groups), nan_ok=True)
    assert {"interference/cosine", "interference/random", "interference/same/action"} <= set(found)
    assert found["interference/norm/reasoning"] > 0
    assert ("interference/leak/action" in found) == (routing is not None)
    assert all(bool((p == b).all()) for (_, p), b in zip(policy.trainable(), before, strict=True))
    assert all(p.grad is None for _, p in policy.trainable())
    alike = [replace(t, reward=1.0) for t in trajectories]
    assert look(3, alike, groups) == {}


def test_monitor_takes_a_part_of_the_step():
    policy = tiny_policy()
    look = Monitor(policy, LearnConfig(), 1.0)
    groups = np.repeat(np.arange(64), 8)
    rows = look._rows(np.ones(len(groups)), groups)
    assert len(rows) == 64
    dead = np.where(groups < 3, 0.0, 1.0)
    assert look._rows(dead, groups).min() == 24
    assert len(look._rows(np.ones(8), np.zeros(8))) == 8


def test_owners():
    assert owners_of(tiny_policy()) == {}
    assert owners_of(tiny_policy(routing=RoutingConfig())) == {"reasoning": "reasoning", "action": "action"}
    assert owners_of(tiny_policy(routing=RoutingConfig(assign="placebo"))) == {}


def test_optimiser_state_is_not_touched_by_a_look():
    """Two updates with and without a look between them end at the same weights."""
    ends = []
    for looks in (False, True):
        policy = tiny_policy()
        trajectories, groups = sampled_batch(policy, prompts=4, samples=4)
        config = LearnConfig(steps=2, learning_rate=1e-2)
        optimiser = make_optimiser(policy, config)
        for step in range(2):
            if looks:
                Monitor(policy, config, 1.0)(step, trajectories, groups)
            update(policy, trajectories, groups, optimiser, [], config, step=step, temperature=1.0)
        ends.append(torch.cat([p.detach().flatten() for _, p in policy.trainable()]))
    assert torch.equal(*ends)
