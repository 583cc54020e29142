"""Truncated importance weights: the corrected update against one written out, its expectation, and what is logged."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.learn.advantages import group_advantages
from unbraid.learn.batch import collate
from unbraid.learn.constraint import Adaptive, Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig, Totals, micro_batch_loss, update
from unbraid.learn.importance import importance_weights, mismatch_metrics, sequence_logprobs, to_targets
from unbraid.learn.objective import score_tokens
from unbraid.policy import Policy
from unbraid.rollout import Trajectory
from unbraid.rollout.trajectory import PER_TOKEN, Response

CONSTRAINTS = (
    ConstraintConfig(name="tokens", group_by="mode", target=2.5, coefficient=Adaptive(start=0.05, learning_rate=0.02)),
    ConstraintConfig(name="mode", measure="choice", target=0.6, coefficient=0.1, gate="none"),
)
World = tuple[Policy, list[Trajectory], np.ndarray]


def joined(first: Trajectory, second: Trajectory) -> Trajectory:
    """One episode of two responses, the second to a context of its own."""
    gap = len(first.ids)
    parts = tuple(
        Response(start + t.prompt_length, start + len(t.ids), start, t.mode, t.forced, t.choice_probs, t.finish)
        for start, t in ((0, first), (gap, second))
    )
    arrays = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in PER_TOKEN}
    return replace(first, parts=parts, **arrays)


def shifted(trajectories: list[Trajectory], spread: float, seed: int = 0) -> list[Trajectory]:
    """As if a sampler with other log-probs had drawn them: off by a normal number of nats per token."""
    rng = np.random.default_rng(seed)
    found = copy.deepcopy(trajectories)
    for t in found:
        t.logprobs = (t.logprobs + t.sampled * rng.normal(0, spread, len(t.ids))).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def world() -> World:
    """Twenty trajectories of five prompts in float64; those of the first prompt have two sequences each."""
    policy = tiny_policy(dtype=torch.float64)
    trajectories, groups = sampled_batch(policy, prompts=6, samples=4)
    episodes = [joined(trajectories[i], trajectories[i + 4]) for i in range(4)]
    return policy, shifted(episodes + trajectories[8:], spread=0.5), groups[4:]


def learn(world: World, correct: bool = True, rate: float = 0.0, constraints: tuple = (), **settings: object) -> tuple:
    """Metrics, gradients of the last step, and weights after one update by plain descent; the world stays as it is."""
    policy, trajectories, groups = world
    policy = copy.deepcopy(policy)
    config = LearnConfig(
        **{"learning_rate": max(rate, 1e-9), "max_grad_norm": 1e9, "advantage_scale": "group", **settings}
    )
    if config.kl:
        start = copy.deepcopy(policy.model.state_dict())
        with torch.no_grad():
            for _, p in policy.trainable():
                p.mul_(1.1)
        policy.freeze_reference()
        policy.model.load_state_dict(start)
    optimiser = torch.optim.SGD([p for _, p in policy.trainable()], lr=rate)
    active = [Constraint(c) for c in constraints]
    result = update(policy, trajectories, groups, optimiser, active, config, step=0, temperature=1.0, correct=correct)
    gradients = {name: p.grad for name, p in policy.trainable() if p.grad is not None}
    return result.metrics, gradients, {name: p.detach() for name, p in policy.trainable()}


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=tolerance, rtol=1e-7, msg=name)


def logp_of(policy: Policy, t: Trajectory) -> torch.Tensor:
    """Log-probs of the sampled tokens from full logits, sequence by sequence."""
    found = []
    for start, end in t.sequences:
        logp = torch.log_softmax(policy.model(input_ids=torch.tensor(t.ids[start:end])[None]).logits[0], -1)
        drawn = np.flatnonzero(t.sampled[start:end])
        found.append(logp[drawn - 1, t.ids[start + drawn]])
    return torch.cat(found)


def written_out(world: World, epochs: int, rate: float, cap: float) -> tuple[float, dict, dict]:
    """Loss of the last pass, its gradient and the weights after it, token by token as the formula stands."""
    policy, trajectories, groups = world
    policy = copy.deepcopy(policy)
    advantages = group_advantages(np.array([t.reward for t in trajectories]), groups, "group")
    old = [logp_of(policy, t).tolist() for t in trajectories]
    loss = torch.zeros(())
    for _ in range(epochs):
        loss = torch.zeros((), dtype=torch.float64)
        for t, a, before in zip(trajectories, advantages, old, strict=True):
            own, sampler = logp_of(policy, t), t.logprobs[t.sampled].tolist()
            for new, was, said in zip(own, before, sampler, strict=True):
                ratio, weight = torch.exp(new - was), min(math.exp(was - said), cap)
                surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
                loss = loss - weight * surrogate / (len(own) * len(trajectories))
        policy.model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for _, p in policy.trainable():
                p -= rate * p.grad  # type: ignore[operator]
    return loss.item(), {n: p.grad for n, p in policy.trainable()}, {n: p.detach() for n, p in policy.trainable()}


@pytest.mark.parametrize("cap", [1.3, math.inf])
def test_one_step_is_the_written_formula(world: World, cap: float):
    loss, gradients, _ = written_out(world, epochs=1, rate=0.0, cap=cap)
    metrics, found, _ = learn(world, micro_batch=4, importance_cap=cap)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-12) and metrics["clip_share"] == 0
    assert_close(found, gradients)
    plain = learn(world, correct=False, micro_batch=4)[1]
    assert any(not torch.allclose(plain[name], gradient, rtol=0.05) for name, gradient in gradients.items())


def test_several_epochs_hold_on_to_the_policy_before_the_first(world: World):
    """A rate at which ratios pass the clip: three passes, the weights of the importance those of the start."""
    _, gradients, weights = written_out(world, epochs=3, rate=0.3, cap=2.0)
    metrics, found, after = learn(world, rate=0.3, epochs=3, micro_batch=4)
    assert metrics["clip_share"] > 0.05
    assert_close(found, gradients, 1e-8)
    assert_close(after, weights, 1e-8)


@pytest.mark.parametrize("settings", [{}, {"minibatches": 3}, {"minibatches": 2, "epochs": 2, "averaging": "token"}])
def test_micro_batches_and_order_change_nothing(world: World, settings: dict):
    policy, trajectories, groups = world
    settings = {"constraints": CONSTRAINTS, "kl": 0.1, "rate": 0.1, "importance": "always", **settings}
    metrics, gradients, weights = learn(world, micro_batch=64, **settings)
    order = np.random.default_rng(1).permutation(len(trajectories))
    mixed = (policy, [trajectories[i] for i in order], groups[order])
    for given, size in [(world, 1), (world, 3), (mixed, 64), (mixed, 7)]:
        again = learn(given, micro_batch=size, **settings)
        assert again[0] == pytest.approx(metrics, abs=1e-9)
        assert_close(again[1], gradients, 1e-9)
        assert_close(again[2], weights, 1e-9)


def test_kl_and_constraints_are_not_reweighted(world: World):
    """What they add to the gradient is the same with the correction and without."""
    added = []
    for correct in (True, False):
        with_them = learn(world, correct=correct, kl=0.5, constraints=CONSTRAINTS)[1]
        without = learn(world, correct=correct, skip_dead=False)[1]
        added.append({name: with_them[name] - without[name] for name in without})
    assert_close(added[0], added[1], 1e-6)  # the norms inside the model run in float32
    assert max(float(value.abs().max()) for value in added[0].values()) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"minibatches": 3, "kl": 0.1}], ids=["one", "several"])
def test_off_is_off_bit_for_bit(world: World, settings: dict):
    wanted = learn(world, correct=False, rate=0.1, constraints=CONSTRAINTS, **settings)
    never = learn(world, correct=True, importance="never", rate=0.1, constraints=CONSTRAINTS, **settings)
    assert wanted[0] == never[0] and not any(key.startswith("importance/") for key in wanted[0])
    assert all(torch.equal(value, never[2][name]) for name, value in wanted[2].items())


def test_without_correction_the_samplers_log_probs_are_the_old_policys(world: World):
    """The gradient of the clipped surrogate with π_sampler in the ratio, written out."""
    policy, trajectories, groups = world
    policy = copy.deepcopy(policy)
    advantages = group_advantages(np.array([t.reward for t in trajectories]), groups, "group")
    loss = torch.zeros((), dtype=torch.float64)
    for t, a in zip(trajectories, advantages, strict=True):
        ratio = torch.exp(logp_of(policy, t) - torch.tensor(t.logprobs[t.sampled]))
        loss = loss - torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean() / len(trajectories)
    loss.backward()
    assert_close(learn(world, correct=False)[1], {name: p.grad for name, p in policy.trainable()})  # type: ignore[misc]


@pytest.mark.parametrize("settings", [{}, {"minibatches": 2, "epochs": 2}], ids=["one", "several"])
def test_where_sampler_and_trainer_agree_the_weights_change_nothing(settings: dict):
    policy = tiny_policy()
    trajectories, groups = sampled_batch(policy, prompts=3, samples=3)
    # In the batch's own arithmetic: one row at a time nothing is padded.
    for t, own in zip(trajectories, sequence_logprobs(policy, trajectories, 1, 1.0), strict=True):
        t.logprobs = own.astype(np.float32)
    given = (policy, trajectories, groups)
    off, on = (learn(given, correct=correct, rate=0.1, micro_batch=1, **settings) for correct in (False, True))
    assert on[0]["importance/mean"] == 1 and on[0]["sampler_gap/mean"] == off[0]["sampler_gap/mean"] == 0
    assert on[0]["importance/truncated"] == 0 and on[0]["loss"] == off[0]["loss"]
    assert all(torch.equal(value, on[2][name]) for name, value in off[2].items())


@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_the_expected_gradient_is_the_true_one(spread: float):
    """Every response of one token, each as often as the sampler draws it: no estimate, the expectation itself."""
    policy = tiny_policy(dtype=torch.float64, layers=1)
    shown = sampled_batch(policy, prompts=1, samples=1)[0][0]
    prompt = shown.ids[: shown.prompt_length]
    logits = policy.model(input_ids=torch.tensor(prompt)[None]).logits[0, -1]
    size, rng = len(logits), np.random.default_rng(0)
    worth = rng.normal(size=size)
    true = torch.autograd.grad(-(torch.softmax(logits, -1) * torch.tensor(worth)).sum(), policy.model.lm_head.weight)[0]
    sampler = torch.log_softmax(logits.detach() + torch.tensor(rng.normal(0, spread, size)), -1).numpy()
    rows = []
    for token in range(size):
        one = {name: getattr(shown, name)[: shown.prompt_length + 1].copy() for name in PER_TOKEN}
        one["ids"][-1], one["logprobs"][-1], one["sampled"][-1] = token, sampler[token], True
        rows.append(replace(shown, **one))
    # The loss is a mean over rows: times their number and the sampler's probability it is the expectation.
    batch = collate(rows, size * np.exp(sampler) * worth, policy.format.modes.position)

    def expected(cap: float | None) -> torch.Tensor:
        sums: dict[str, float] = dict.fromkeys(("loss", "clip_share", "clip_share/think", "clip_share/no_think"), 0.0)
        scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
        loss = micro_batch_loss(scores, batch, [], LearnConfig(), Totals(size, size, size), sums, cap=cap)
        return torch.autograd.grad(loss, policy.model.lm_head.weight)[0]

    def off(found: torch.Tensor) -> float:
        return float((found - true).norm() / true.norm())

    assert off(expected(1e9)) < 1e-6
    if spread > 0.2:
        assert off(expected(None)) > 0.2  # the clip takes the mismatch for a step gone too far
        assert 1e-3 < off(expected(2.0)) < off(expected(None))
    else:
        assert off(expected(None)) < 1e-6  # within the clip range the plain ratio weighs rightly too


def test_weights_are_truncated_at_the_cap_and_carry_no_gradient():
    trainer = torch.tensor([[0.0, -1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    sampler = torch.tensor([[0.0, -1.5, -1.0, -3.0]], dtype=torch.float64)
    weights = importance_weights(trainer, sampler, 2.0)
    assert weights.tolist()[0] == pytest.approx([1.0, math.exp(0.5), math.exp(-1), 2.0])
    assert not weights.requires_grad


def test_what_is_logged_of_known_distances():
    ratios = torch.tensor([0.0, 0.1, -0.3, 1.0] * 25)
    weights = [1.0, math.exp(0.1), math.exp(-0.3), 2.0]
    gaps = {"sampler_gap/mean": 0.35, "sampler_gap/q99": 1.0}
    assert mismatch_metrics(ratios, None) == pytest.approx(gaps)
    corrected = {**gaps, "importance/mean": sum(weights) / 4, "importance/truncated": 0.25}
    assert mismatch_metrics(ratios, 2.0) == pytest.approx(corrected)
    assert mismatch_metrics(ratios[:0], 2.0) == {}


def test_the_gap_is_logged_over_what_was_scored_before_the_weights_moved(world: World):
    policy, trajectories, groups = world
    distances = [np.abs(logp_of(policy, t).detach().numpy() - t.logprobs[t.sampled]) for t in trajectories]
    whole = np.concatenate(distances)
    for settings in ({"correct": False}, {}, {"minibatches": 2, "epochs": 2, "rate": 0.3}):
        metrics = learn(world, skip_dead=False, **settings)[0]  # type: ignore[arg-type]
        assert metrics["sampler_gap/mean"] == pytest.approx(whole.mean(), abs=1e-9)
        assert metrics["sampler_gap/q99"] == pytest.approx(np.quantile(whole, 0.99), abs=1e-9)
    # Without correction and with several steps the first of them alone sees the weights that sampled: here one group.
    part = learn(world, correct=False, minibatches=5, rate=0.3, skip_dead=False)[0]["sampler_gap/mean"]
    means = [np.concatenate([distances[i] for i in np.flatnonzero(groups == g)]).mean() for g in np.unique(groups)]
    assert min(abs(part - mean) for mean in means) < 1e-9
    # What is left out of the forward pass is not in it.
    dead = copy.deepcopy(trajectories)
    for t, g in zip(dead, groups, strict=True):
        t.reward = 1.0 if g > 1 else float(t.sample)
    found = learn((policy, dead, groups))[0]["sampler_gap/mean"]
    assert found == pytest.approx(np.concatenate(distances[:4]).mean(), abs=1e-9)
    for t in dead:
        t.reward = 1.0
    assert not any(key.startswith("sampler_gap") for key in learn((policy, dead, groups))[0])


def test_log_probs_are_found_again_whatever_the_micro_batch(world: World):
    policy, trajectories, _ = world
    sequences = [piece for t in trajectories for piece in t.split()]
    for size in (1, 5, 64):
        found = sequence_logprobs(policy, sequences, size, 1.0)
        for t, values in zip(sequences, found, strict=True):
            assert values.shape == t.ids.shape and not values[~t.sampled].any()
            np.testing.assert_allclose(values[t.sampled], logp_of(policy, t).detach().numpy(), atol=1e-9)
    batch = collate(sequences, np.zeros(len(sequences)), policy.format.modes.position)
    aligned = to_targets(sequence_logprobs(policy, sequences, 5, 1.0))
    assert aligned.shape == batch.old_logprobs.shape and not aligned[~batch.sampled].any()


@pytest.mark.parametrize(
    ("mode", "correct", "on"),
    [("auto", False, False), ("auto", True, True), ("always", False, True), ("never", True, False)],
)
def test_when_the_correction_acts(world: World, mode: str, correct: bool, on: bool):
    metrics = learn(world, correct=correct, importance=mode)[0]
    assert ("importance/mean" in metrics) == ("importance/truncated" in metrics) == on
