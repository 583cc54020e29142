"""One update: the same whatever the micro-batches and the order of samples; dead groups skipped only when idle."""

import copy

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.chat.types import Mode
from unbraid.learn.advantages import group_advantages
from unbraid.learn.constraint import Adaptive, Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.policy import Policy
from unbraid.rollout import Trajectory

CONSTRAINTS = (
    ConstraintConfig(
        name="decoupled",
        group_by="mode+role",
        target={"think/reasoning": 2.0, "no_think/reasoning": 2.5},
        coefficient=Adaptive(start=0.05, learning_rate=0.02),
    ),
    ConstraintConfig(
        name="mode",
        measure="choice",
        target=0.6,
        coefficient=Adaptive(start=0.05, rule="adam", learning_rate=0.01),
        gate="none",
    ),
)


def run(
    policy: Policy,
    trajectories: list[Trajectory],
    groups: np.ndarray,
    constraints: tuple[ConstraintConfig, ...] = CONSTRAINTS,
    **settings: object,
) -> tuple[dict[str, float], dict[str, torch.Tensor], list[dict]]:
    """Metrics, weights and constraint states after one update of a copy of the policy."""
    copied = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.format, policy.device, policy.has_adapter)
    config = LearnConfig(**{"learning_rate": 1e-2, "kl": 0.1, **settings})
    copied.freeze_reference()
    active = [Constraint(c) for c in constraints]
    optimiser = make_optimiser(copied, config)
    result = update(copied, trajectories, groups, optimiser, active, config, step=0, temperature=1.0)
    return result.metrics, copied.model.state_dict(), [c.state_dict() for c in active]


def assert_same(one: tuple, two: tuple, tolerance: float = 1e-9) -> None:
    metrics, weights, states = one
    assert metrics.keys() == two[0].keys()
    for key, value in metrics.items():
        assert value == pytest.approx(two[0][key], abs=tolerance), key
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, two[1][name], atol=1e-6, rtol=0)
    for a, b in zip(states, two[2], strict=True):
        for name in a["groups"]:
            assert a["groups"][name]["beta"] == pytest.approx(b["groups"][name]["beta"], abs=tolerance)


@pytest.fixture(scope="module")
def world() -> tuple[Policy, list[Trajectory], np.ndarray]:
    policy = tiny_policy(dtype=torch.float64)
    trajectories, groups = sampled_batch(policy, prompts=6, samples=4)
    return policy, trajectories, groups


@pytest.mark.parametrize("averaging", ["sample", "token"])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_micro_batches_change_nothing(world: tuple, averaging: str, minibatches: int):
    policy, trajectories, groups = world
    whole = run(policy, trajectories, groups, micro_batch=64, averaging=averaging, minibatches=minibatches)
    for size in (1, 3, 7):
        split = run(policy, trajectories, groups, micro_batch=size, averaging=averaging, minibatches=minibatches)
        assert_same(whole, split)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_order_of_samples_changes_nothing(world: tuple, scale: str):
    policy, trajectories, groups = world
    order = np.random.default_rng(0).permutation(len(trajectories))
    straight = run(policy, trajectories, groups, advantage_scale=scale, micro_batch=5)
    mixed = run(policy, [trajectories[i] for i in order], groups[order], advantage_scale=scale, micro_batch=5)
    assert_same(straight, mixed)


@pytest.mark.parametrize("constraints", [(), CONSTRAINTS[1:], CONSTRAINTS], ids=["none", "choice", "both"])
def test_skipping_dead_groups_changes_nothing_but_time(world: tuple, constraints: tuple[ConstraintConfig, ...]):
    policy, trajectories, groups = world
    dead = copy.deepcopy(trajectories)
    for t, g in zip(dead, groups, strict=True):
        t.reward = 1.0 if g < 4 else t.reward
    skipped = run(policy, dead, groups, constraints, kl=0.0, skip_dead=True)
    full = run(policy, dead, groups, constraints, kl=0.0, skip_dead=False)
    assert skipped[0]["dead_groups"] >= 4 / 6
    for metrics, _, _ in (full, skipped):  # measured over what is scored
        assert metrics.pop("sampler_gap/mean") < metrics.pop("sampler_gap/q99") < 1e-5
        for key in ("learn/entropy", "learn/entropy/think", "learn/entropy/no_think"):
            del metrics[key]
    assert_same(full, skipped)


def test_the_entropy_of_what_was_learned_from_is_the_samplers(world: tuple):
    """The sampler's own entropies are of the same weights; a sampler that tells none is made up for by these."""
    policy, trajectories, groups = world
    metrics = run(policy, trajectories, groups, skip_dead=False, micro_batch=5)[0]
    entropies = np.concatenate([t.entropies[t.sampled] for t in trajectories])
    assert metrics["learn/entropy"] == pytest.approx(entropies.mean(), rel=1e-4)
    for mode in (Mode.THINK, Mode.NO_THINK):
        own = [t.entropies[t.sampled] for t in trajectories if t.mode is mode]
        found = metrics[f"learn/entropy/{mode}"]
        assert found == pytest.approx(np.concatenate(own).mean(), rel=1e-4) if own else np.isnan(found)


def test_gradient_is_that_of_the_written_objective(world: tuple):
    """Against an objective written out over full logits, token by token."""
    policy, trajectories, groups = world
    copied = copy.deepcopy(policy)
    advantages = group_advantages(np.array([t.reward for t in trajectories]), groups, "group")
    objective = torch.zeros((), dtype=torch.float64)
    for t, a in zip(trajectories, advantages, strict=True):
        logp = torch.log_softmax(copied.model(input_ids=torch.tensor(t.ids)[None]).logits[0], -1)
        drawn = np.flatnonzero(t.sampled)
        ratio = torch.exp(logp[drawn - 1, t.ids[drawn]] - torch.tensor(t.logprobs[drawn]))
        objective = objective + a * ratio.mean() / len(trajectories)
    (-objective).backward()
    config = LearnConfig(learning_rate=1.0, max_grad_norm=1e9, advantage_scale="group", micro_batch=4)
    other = copy.deepcopy(policy)
    optimiser = torch.optim.SGD([p for _, p in other.trainable()], lr=0.0)
    update(other, trajectories, groups, optimiser, [], config, step=0, temperature=1.0)
    for (name, ours), (_, wanted) in zip(other.trainable(), copied.trainable(), strict=True):
        torch.testing.assert_close(ours.grad, wanted.grad, atol=1e-9, rtol=1e-6, msg=name)


def test_an_exactly_zero_loss_says_why(world: tuple):
    policy, trajectories, groups = world
    flat = copy.deepcopy(trajectories)
    for t in flat:
        t.reward = 1.2
    copied = copy.deepcopy(policy)
    config = LearnConfig(learning_rate=1e-2)
    before = copy.deepcopy(copied.model.state_dict())
    result = update(copied, flat, groups, make_optimiser(copied, config), [], config, step=0, temperature=1.0)
    assert result.metrics["loss"] == 0 and result.metrics["dead_groups"] == 1
    assert "every reward is 1.2" in result.nothing and "temperature" in result.nothing
    assert all(torch.equal(v, before[k]) for k, v in copied.model.state_dict().items())
