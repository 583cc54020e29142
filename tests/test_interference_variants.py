"""Single-role learning, models put together from two, and the live monitor."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.errors import ModelError
from unbraid.interference.monitor import Monitor, owners_of
from unbraid.interference.variants import OffRole, only_role, route_together, take_turns
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.learn.importance import sequence_logprobs
from unbraid.learn.supervised import SupervisedExample, SupervisedTrainer, WarmupConfig
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


def gradients(policy, trajectories, groups, roles, **more):
    """What one update with plain SGD of rate 1 changes, by parameter."""
    config = LearnConfig(steps=1, learning_rate=1.0, roles=roles, max_grad_norm=1e9, fast=False, **more)
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


def moved(policy, size=0.05):
    """The policy a little off the start that it remembers."""
    policy.freeze_reference()
    generator = torch.Generator().manual_seed(3)
    for _, p in policy.trainable():
        p.data += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return policy


def logits_of(policy, ids):
    """(T − 1, V) log-probs of what follows each token, from one plain forward pass."""
    return policy.model(input_ids=torch.tensor(np.array(ids)[None])).logits[0, :-1].log_softmax(-1)


def gradient_of(policy, loss):
    parameters = [p for _, p in policy.trainable()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize(("roles", "other"), [("reasoning", Role.ACTION), ("action", Role.REASONING)])
def test_the_other_role_is_held_at_the_start(roles, other):
    """What `off_role_kl` adds to an update, against k3 token by token."""
    policy = tiny_policy(dtype=torch.float64)
    trajectories, groups = sampled_batch(policy)
    trajectories = with_calls(policy, trajectories)
    moved(policy)
    free, held = (gradients(policy, trajectories, groups, roles, off_role_kl=c) for c in (0.0, 0.5))
    loss = torch.zeros((), dtype=torch.float64)
    for t in trajectories:
        own = logits_of(policy, t.ids)
        with torch.no_grad(), policy.reference():
            start = logits_of(policy, t.ids)
        for place in np.flatnonzero(t.sampled & (t.roles == other)):
            d = start[place - 1, t.ids[place]] - own[place - 1, t.ids[place]]
            loss = loss + (d.exp() - d - 1) / t.sampled.sum() / len(trajectories)
    expected = gradient_of(policy, 0.5 * loss)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for one, two, own in zip(held, free, expected, strict=True):
        torch.testing.assert_close(one - two, own, rtol=1e-4, atol=2e-6)  # sampled log-probs are float32


def test_with_both_roles_there_is_no_other():
    policy = tiny_policy(dtype=torch.float64)
    trajectories, groups = sampled_batch(policy)
    for one, two in zip(
        *(gradients(policy, trajectories, groups, "both", off_role_kl=c) for c in (0.0, 0.5)), strict=True
    ):
        assert torch.equal(one, two)  # and nobody had to freeze a reference
    assert LearnConfig(roles="action", off_role_kl=0.1).needs_reference
    assert not LearnConfig(off_role_kl=0.1).needs_reference


def calls_examples(policy, count=6, length=12):
    """Supervised examples with a call in each, an observation after it, and weights of their own."""
    call, rng = policy.format.automaton.delimiters[-1], np.random.default_rng(0)
    found = []
    for _ in range(count):
        prompt, response = (tuple(rng.integers(40, 60, size=n).tolist()) for n in (int(rng.integers(2, 6)), length))
        response = (response[0], call.open, *response[2:5], call.close, *response[6:])
        weights = rng.uniform(0.5, 2.0, size=length)
        weights[6:8] = 0
        found.append(SupervisedExample(prompt, response, tuple(weights), ((6, 8),)))
    return found


def test_off_role_term_is_the_mean_divergence_from_the_start():
    """Packed rows against one plain forward pass an example and a loop over its tokens."""
    policy = tiny_policy(dtype=torch.float64)
    examples = calls_examples(policy)
    other = [only_role(e, policy.format.automaton, Role.REASONING) for e in examples]
    hold = OffRole(policy, lambda step: other, 0.5, micro_batch_tokens=40)
    with torch.no_grad():
        for _, p in policy.trainable():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype)
    term = hold(0)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in policy.trainable()]
    loss, total = torch.zeros((), dtype=torch.float64), sum(sum(e.weights) for e in other)
    for e in other:
        ids = [*e.prompt_ids, *e.response_ids]
        own = logits_of(policy, ids)
        with torch.no_grad(), policy.reference():
            start = logits_of(policy, ids)
        for i, weight in enumerate(e.weights):
            if weight:
                place = len(e.prompt_ids) + i - 1
                loss = loss + weight * (start[place].exp() * (start[place] - own[place])).sum() / total
    assert term == pytest.approx(float(0.5 * loss.detach()), rel=1e-9)
    for one, own in zip(found, gradient_of(policy, 0.5 * loss), strict=True):
        torch.testing.assert_close(one, own, rtol=1e-8, atol=1e-10)


def test_off_role_term_keeps_what_single_role_training_wrecks():
    """How far the other role's tokens are from the start after learning one role, without the term and with it."""
    apart = []
    for coefficient in (0.0, 3.0):
        policy, start = tiny_policy(), tiny_policy()
        automaton, examples = policy.format.automaton, calls_examples(policy, 4)
        own, other = ([only_role(e, automaton, role) for e in examples] for role in (Role.ACTION, Role.REASONING))
        hold = OffRole(policy, lambda step, other=other: other, coefficient) if coefficient else None
        config = WarmupConfig(steps=25, batch_examples=4, learning_rate=2e-3, ramp_steps=0, decay="constant")
        losses = []
        SupervisedTrainer(policy.model, config, lambda step, own=own: own, hold).run(
            lambda step, metrics, losses=losses: losses.append(metrics["loss"])
        )
        assert losses[-1] < losses[0] - 1
        divergence = 0.0
        for e in other:
            ids, places = [*e.prompt_ids, *e.response_ids], len(e.prompt_ids) - 1 + np.flatnonzero(e.weights)
            with torch.no_grad():
                was, now = (logits_of(p, ids)[places] for p in (start, policy))
            divergence += float((was.exp() * (was - now)).sum())
        apart.append(divergence)
    assert apart[1] < apart[0] / 3


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
