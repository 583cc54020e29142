"""Whose loss moves which adapter: the leak of routing by position, measured; and what strict isolation keeps."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy
from routing_reference import base_of, by_hand, weights_of
from torch import Tensor

from unbraid.learn.batch import TokenBatch, collate
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.learn.isolation import backward
from unbraid.learn.objective import score_tokens
from unbraid.learn.supervised import SupervisedExample, SupervisedTrainer, WarmupConfig
from unbraid.policy import Policy
from unbraid.policy.routed_lora import adapter_parameters, checkpoint_contexts
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import Trajectory
from unbraid.tokens import Role

STRICT = RoutingConfig(isolation="strict")
ROUTINGS = [
    STRICT,
    RoutingConfig(isolation="strict", context=None),
    RoutingConfig(isolation="strict", boundary="shifted"),
]


def spans_everywhere(policy: Policy) -> list[Trajectory]:
    """Sampled trajectories into which spans of both roles were written, in several orders."""
    found, _ = sampled_batch(policy, prompts=2, samples=4, budget=24)
    think, call = policy.format.automaton.delimiters
    rng = np.random.default_rng(0)
    changed = []
    for t in found:
        ids, start = t.ids.copy(), t.prompt_length
        for at, token in ((2, call.open), (6, call.close), (9, think.open), (12, think.close), (14, call.open)):
            if start + at < len(ids):
                ids[start + at] = token
        provenance = np.where(np.arange(len(ids)) < start, 0, 1)
        roles = policy.format.automaton.label(ids, provenance)
        noise = rng.normal(0, 0.2, len(ids)).astype(np.float32)
        changed.append(replace(t, ids=ids, roles=roles, logprobs=np.where(t.sampled, t.logprobs + noise, 0)))
    assert all(
        {Role.REASONING, Role.ACTION} <= set(t.roles.tolist()) for t in changed if len(t.ids) > t.prompt_length + 4
    )
    return changed


def batch_of(policy: Policy, trajectories: list[Trajectory]) -> TokenBatch:
    advantages = np.random.default_rng(1).normal(size=len(trajectories))
    return collate(trajectories, advantages, policy.format.modes.position, router=policy.router)


def exact(policy: Policy) -> Policy:
    """The policy with norms in its own type: those of transformers are in float32, too coarse for differences."""
    for module in policy.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            own: Any = module
            own.forward = lambda x, own=own: own.weight * x * torch.rsqrt(
                x.square().mean(-1, keepdim=True) + own.variance_epsilon
            )  # fmt: skip
    return policy


def mixed(logprobs: Tensor, entropy: Tensor) -> Tensor:
    """A loss that is no sum over tokens: products of neighbours, entropies, a square of the whole."""
    total = (logprobs[:, 1:] * logprobs[:, :-1]).sum() + entropy.square().sum()
    return total / 100 + (total / 1000) ** 2


def kept_gradients(policy: Policy, batch: TokenBatch) -> list[Tensor]:
    scores = score_tokens(policy.model, batch, 0.9, policy.format.modes.choice_ids)
    backward(policy.model, mixed(scores.logprobs, scores.entropy), scores.with_gradient, batch.owners)
    return [torch.zeros_like(p) if p.grad is None else p.grad for _, p in policy.trainable()]


@pytest.mark.parametrize("routing", ROUTINGS, ids=["paper", "bare context", "shifted"])
def test_what_strict_keeps_is_the_slope_of_the_owners_part(routing: RoutingConfig):
    """Against finite differences in float64: move one adapter, and watch what its own tokens' scores do to the loss."""
    policy = exact(tiny_policy(dtype=torch.float64, layers=3, routing=routing))
    batch = batch_of(policy, spans_everywhere(policy))
    found = kept_gradients(policy, batch)
    assert batch.owners is not None and policy.router
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, 0.9, policy.format.modes.choice_ids)
    outer = [s.clone().requires_grad_() for s in (scores.logprobs, scores.entropy)]
    slopes = torch.autograd.grad(mixed(*outer), outer)
    rng = torch.Generator().manual_seed(0)
    for number, adapter in enumerate(policy.router.adapters):
        own = batch.owners == number
        gradients = dict(zip([id(p) for _, p in policy.trainable()], found, strict=True))
        parameters = adapter_parameters(policy.model, adapter)
        directions = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in parameters]

        def part(step: float, own: Tensor = own, parameters: Any = parameters, directions: Any = directions) -> float:
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(d, alpha=step)
                now = score_tokens(policy.model, batch, 0.9, policy.format.modes.choice_ids)
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(d, alpha=-step)
            values = (now.logprobs, now.entropy)
            return sum(float((v * g)[own].sum()) for v, g in zip(values, slopes, strict=True))

        size = 1e-6
        slope = (8 * (part(size) - part(-size)) - (part(2 * size) - part(-2 * size))) / (12 * size)
        expected = sum(float((gradients[id(p)] * d).sum()) for p, d in zip(parameters, directions, strict=True))
        assert expected == pytest.approx(slope, rel=1e-6) and abs(slope) > 1e-3


def role_losses(policy: Policy, batch: TokenBatch) -> list[Tensor]:
    """One loss per adapter: the log-probs of the tokens that it owns."""
    scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    assert batch.owners is not None and policy.router
    return [-(scores.logprobs * (batch.owners == k)).sum() / 100 for k in range(len(policy.router.adapters))]


def test_routing_by_position_leaks_through_attention_and_only_there():
    """By finite differences: a reasoning loss moves the action adapter, in one layer by its keys and values alone."""
    policy = exact(tiny_policy(dtype=torch.float64, layers=1, routing=RoutingConfig()))
    batch = batch_of(policy, spans_everywhere(policy))
    named = dict(policy.trainable())
    leak: dict[str, float] = {}
    for name, parameter in named.items():
        if ".action." not in name:
            continue
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=parameter.dtype)
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                parameter.add_(direction, alpha=step)
                values.append(float(role_losses(policy, batch)[0]))
            parameter.add_(direction, alpha=1e-5)
        leak[name.split(".lora")[0].rpartition(".")[2]] = (
            leak.get(name.split(".lora")[0].rpartition(".")[2], 0.0) + abs(values[0] - values[1]) / 2e-5
        )
    assert leak["k_proj"] > 1e-3 and leak["v_proj"] > 1e-3
    assert max(size for layer, size in leak.items() if layer not in ("k_proj", "v_proj")) < 1e-8, leak


@pytest.mark.parametrize("layers", [1, 3])
def test_strict_moves_the_owner_only(layers: int):
    policy = tiny_policy(dtype=torch.float64, layers=layers, routing=STRICT)
    batch = batch_of(policy, spans_everywhere(policy))
    scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    assert batch.owners is not None
    loss = -(scores.logprobs * (batch.owners == 0)).sum()
    backward(policy.model, loss, scores.with_gradient, batch.owners)
    assert all(p.grad is None or not p.grad.any() for p in adapter_parameters(policy.model, "action"))
    assert all(p.grad is not None and p.grad.any() for p in adapter_parameters(policy.model, "reasoning"))


@pytest.mark.parametrize(("layers", "same"), [(1, True), (3, False)])
def test_with_the_other_roles_keys_and_values_held(layers: int, same: bool):
    """The design's reference: for each role's loss, keys and values at the other role's positions are constants.

    In one layer that is what strict keeps. In deeper models it also cuts the ways of an adapter to its own tokens
    through the other role's hidden states, which strict leaves: close, and not the same.
    """
    policy = tiny_policy(dtype=torch.float64, layers=layers, routing=STRICT)
    batch = batch_of(policy, spans_everywhere(policy))
    assert batch.owners is not None and batch.routes is not None
    scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    backward(policy.model, -scores.logprobs.sum() / 100, scores.with_gradient, batch.owners)
    found = {name: p.grad for name, p in policy.trainable() if p.grad is not None}
    reference = held_gradients(policy, batch)
    distance = sum(float((found[n] - reference[n]).square().sum()) for n in reference) ** 0.5
    size = sum(float(reference[n].square().sum()) for n in reference) ** 0.5
    if same:
        assert distance < 1e-9 * size
    else:
        assert 1e-3 * size < distance < 0.5 * size


def held_gradients(policy: Policy, batch: TokenBatch) -> dict[str, Tensor]:
    """Gradients of a plain model with the adapters put in by hooks; keys and values of others are detached."""
    base, weights = base_of(policy), weights_of(policy)
    leaves = {
        layer: {name: (a.clone().requires_grad_(), b.clone().requires_grad_()) for name, (a, b) in own.items()}
        for layer, own in weights.items()
    }
    assert batch.routes is not None and batch.owners is not None and policy.router
    gradients: dict[str, Tensor] = {}
    for number, adapter in enumerate(policy.router.adapters):
        others = batch.routes != number

        def hold(_: Any, __: Any, output: Tensor, others: Tensor = others) -> Tensor:
            return torch.where(others[..., None], output.detach(), output)

        handles = []
        with by_hand(base, leaves, policy.router.adapters, batch.routes, scale=2.0):
            for name, module in base.named_modules():
                if name.endswith(("k_proj", "v_proj")):
                    handles.append(module.register_forward_hook(hold))
            logits = base(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1]
        for handle in handles:
            handle.remove()
        chosen = torch.log_softmax(logits, -1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        loss = -(chosen * (batch.sampled & (batch.owners == number))).sum() / 100
        wanted = [(layer, leaves[layer][adapter]) for layer in leaves]
        grads = torch.autograd.grad(loss, [w for _, pair in wanted for w in pair], allow_unused=True)
        for (layer, _), a, b in zip(wanted, grads[::2], grads[1::2], strict=True):
            for matrix, grad in (("lora_A", a), ("lora_B", b)):
                if grad is not None:
                    gradients[f"base_model.model.{layer}.{matrix}.{adapter}.weight"] = grad
    return gradients


@pytest.mark.parametrize("routing", [RoutingConfig(), STRICT, ROUTINGS[1]], ids=["positional", "strict", "bare"])
def test_micro_batches_order_and_checkpointing_change_no_gradient(routing: RoutingConfig):
    policy = tiny_policy(dtype=torch.float64, routing=routing)
    trajectories = spans_everywhere(policy)
    groups = np.repeat([0, 1], 4)
    rule = ConstraintConfig(name="e", group_by="mode", target=4.0, coefficient=0.1)
    found = []
    for micro_batch, order, checkpointing in ((16, 1, False), (1, -1, False), (3, 1, True)):
        copy = deepcopy(policy)
        if checkpointing:
            options = {"use_reentrant": False, "context_fn": lambda copy=copy: checkpoint_contexts(copy.model)}
            copy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            copy.model.enable_input_require_grads()
        config = LearnConfig(micro_batch=micro_batch, learning_rate=1e-2, max_grad_norm=1e9)
        optimiser = make_optimiser(copy, config)
        update(
            copy, trajectories[::order], groups[::order], optimiser, [Constraint(rule)], config, step=0, temperature=1.0
        )  # fmt: skip
        found.append({name: p.grad for name, p in copy.trainable()})
    for other in found[1:]:
        for name, grad in found[0].items():
            torch.testing.assert_close(other[name], grad, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("strict", [False, True])
def test_supervised_packed_or_not_moves_the_same(strict: bool):
    routing = STRICT if strict else RoutingConfig()
    rng = np.random.default_rng(0)
    policies = [tiny_policy(dtype=torch.float64, routing=routing) for _ in range(2)]
    _, call = policies[0].format.automaton.delimiters
    examples = []
    for length in (6, 9, 17):
        words = rng.integers(20, 60, length)
        words[1], words[4] = call.open, call.close
        observed = ((6, 9),) if length > 9 else ()
        weights = [0.0 if any(a <= i < b for a, b in observed) else 1.0 for i in range(length)]
        examples.append(SupervisedExample((30, 31), tuple(words.tolist()), tuple(weights), observed))
    gradients = []
    for policy, tokens in zip(policies, (4096, 1), strict=True):
        trainer = SupervisedTrainer(
            policy.model, WarmupConfig(steps=1, micro_batch_tokens=tokens, max_grad_norm=1e9), lambda _: examples
        )
        seen: dict[str, Tensor] = {}

        def look(*_: object, seen: dict[str, Tensor] = seen, policy: Policy = policy) -> None:
            seen.update({n: p.grad.clone() for n, p in policy.trainable() if p.grad is not None})

        trainer.optimizer.register_step_pre_hook(look)
        trainer.train_step()
        gradients.append(seen)
    assert gradients[0].keys() == gradients[1].keys() and any(".action." in name for name in gradients[0])
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, atol=1e-12, rtol=1e-9)
