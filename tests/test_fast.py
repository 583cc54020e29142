"""Fast scores against plain ones in float64: losses and all gradients, on trees of every kind of sequence."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy
from torch import nn

from unbraid.chat.types import Mode
from unbraid.learn import fast
from unbraid.learn.batch import TokenBatch, collate
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.learn.fast import fast_of, score
from unbraid.learn.forest import WORTH_SHARING, Forest, plant
from unbraid.learn.grpo import make_optimiser, update
from unbraid.learn.importance import sequence_logprobs
from unbraid.learn.isolation import backward
from unbraid.learn.log import without_wall_clock
from unbraid.learn.objective import score_tokens
from unbraid.learn.profile import training_flops
from unbraid.policy import Policy
from unbraid.policy.routed_lora import checkpoint_contexts
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tokens import Role


def trajectory(policy: Policy, ids: list[int], sampled: list[bool], start: int) -> Trajectory:
    written = np.array(sampled)
    return Trajectory(
        "task", 0, np.array(ids), start, np.where(written, Role.ACTION, Role.PROMPT).astype(np.uint8), written,
        np.where(written, -1.0, 0.0).astype(np.float32), np.full(len(ids), np.nan, np.float32), (0.5, 0.5),
        Mode.THINK, Mode.AUTO, Finish.STOP,
    )  # fmt: skip


def made_up(policy: Policy, seed: int = 0) -> list[Trajectory]:
    """Two prompts; completions of 1 to 30 tokens, some alike for a while, one twice; later turns after earlier ones."""
    rng = np.random.default_rng(seed)
    opening = policy.format.modes.of(Mode.THINK)
    found = []

    def draw(count: int) -> list[int]:
        return rng.integers(5, 90, count).tolist()

    for prompt in (draw(25), draw(40)):
        earlier = [*opening, *draw(12)]
        for length in (1, 5, 30):
            response = [*opening, *draw(length)]
            found.append(
                trajectory(policy, prompt + response, [False] * len(prompt) + [True] * len(response), len(prompt))
            )
            # As a server shows an episode: the first turn again, an observation, and a second turn.
            second, observed = draw(length), draw(9)
            ids = prompt + earlier + observed + second
            sampled = [False] * (len(prompt) + len(earlier) + len(observed)) + [True] * len(second)
            found.append(trajectory(policy, ids, sampled, len(prompt)))
        found.append(copy.deepcopy(found[-1]))
    return found


@pytest.fixture(autouse=True)
def segments_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model is not worth the trouble otherwise."""
    monkeypatch.setitem(fast.CALL, "cpu", 0.0)


def in_float64(model: Any) -> Any:
    """All of a model: the norms of transformers would go through float32, and 1e-8 lies below its rounding."""
    for module in list(model.double().modules()):
        for name, norm in module.named_children():
            if type(norm).__name__ == "Qwen2RMSNorm":
                exact = nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(module, name, exact)
    return model


def with_checkpoints(policy: Policy) -> Any:
    """The policy's model, which recomputes its layers in the backward pass, as `load_policy` sets it up."""
    options: dict[str, Any] = {"use_reentrant": False}
    if policy.router:
        options["context_fn"] = lambda: checkpoint_contexts(policy.model)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    policy.model.enable_input_require_grads()
    return policy.model


def batch_of(policy: Policy, trajectories: list[Trajectory]) -> TokenBatch:
    return collate(trajectories, np.zeros(len(trajectories)), policy.format.modes.position, router=policy.router)


KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "adapter": {"adapter": True},
    "routed": {"routing": RoutingConfig()},
    "routed strictly": {"routing": RoutingConfig(isolation="strict")},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_all_gradients_equal_the_plain_path(kind: str, checkpointing: bool):
    policy = tiny_policy(dtype=torch.float64, **KINDS[kind])
    model = in_float64(policy.model).train()
    if checkpointing:
        with_checkpoints(policy)
    batch = batch_of(policy, made_up(policy))
    assert batch.choice.any() and (batch.routes is None or len(batch.routes.unique()) > 1)
    forest = fast_of(model).forest(batch)
    assert forest and forest.tokens < 0.6 * int(batch.attention.sum())
    plain, wanted = mixture(policy, batch, fast=False)
    ours, found = mixture(policy, batch, fast=True)
    assert fast_of(model).head and fast_of(model).forests  # nothing was found wrong with it
    assert abs(plain - ours) < 1e-9
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def mixture(policy: Policy, batch: TokenBatch, fast: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A loss that all scores take part in, and every trained gradient."""
    policy.model.zero_grad()
    scores = score(policy, batch, 0.8, fast)
    waves = [torch.arange(part.numel(), dtype=part.dtype).view(part.shape).sin() for part in scores.with_gradient]
    loss = torch.stack([(part * w).sum() for part, w in zip(scores.with_gradient, waves, strict=True)]).sum()
    backward(policy.model, loss, scores.with_gradient, batch.owners)
    return loss.detach(), [p.grad.clone() for _, p in policy.trainable() if p.grad is not None]


def test_tokens_of_different_routes_are_not_shared():
    ids = np.arange(40)[None].repeat(2, 0)
    routes = np.zeros((2, 40), dtype=np.int8)
    assert plant(ids, [40, 40], routes).tokens == 40
    routes[1, 30] = 1
    assert plant(ids, [40, 40], routes).tokens == 50


@pytest.mark.parametrize("seed", range(20))
def test_a_forest_holds_every_sequence_and_shares_what_is_worth_it(seed: int):
    """Rows that branch at random places, each read back along its path."""
    rng = np.random.default_rng(seed)
    rows: list[list[int]] = []
    for _ in range(12):
        kept = rows[rng.integers(len(rows))][: rng.integers(60)] if rows else []
        rows.append([*kept, *rng.integers(3, size=rng.integers(1, 40)).tolist()])
    ids = np.zeros((12, max(map(len, rows))), dtype=np.int64)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
    forest = plant(ids, [len(row) for row in rows])
    in_row = ids.ravel()[forest.source]
    segment_of = np.concatenate([np.full(len(s), n) for n, s in enumerate(forest.segments)])
    for b, row in enumerate(rows):
        place = forest.place[b, : len(row)]
        assert in_row[place].tolist() == row
        assert forest.positions[place].tolist() == list(range(len(row)))
        path = list(dict.fromkeys(segment_of[place].tolist()))
        assert tuple(path[:-1]) == forest.segments[path[-1]].past
    for a in range(12):
        for b in range(a):
            alike = forest.place[a, : len(rows[a])][: len(rows[b])] == forest.place[b, : len(rows[b])][: len(rows[a])]
            length = next((i for i, (x, y) in enumerate(zip(rows[a], rows[b], strict=False)) if x != y), len(alike))
            assert alike.sum() > length - WORTH_SHARING


class Biased(nn.Module):
    """What a family of models may do to its logits without saying so in its configuration."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)


def test_a_head_that_is_no_plain_linear_is_left_alone():
    policy = tiny_policy()
    policy.model.lm_head = Biased(policy.model.lm_head)
    batch = batch_of(policy, made_up(policy))
    with pytest.warns(UserWarning, match="no plain linear"):
        scores = score(policy, batch, 1.0)
    wanted = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    assert torch.equal(scores.logprobs, wanted.logprobs)


def test_a_model_that_does_something_else_to_its_logits_is_found_out():
    policy = tiny_policy()
    policy.model.register_forward_hook(lambda module, inputs, out: out | {"logits": out.logits * 1.1})
    with pytest.warns(UserWarning, match="the head differs"):
        score(policy, batch_of(policy, made_up(policy)), 1.0)
    assert fast_of(policy.model).head is None


@pytest.mark.parametrize("wrong", ["attention", "positions", "gradient"])
def test_a_forest_that_goes_wrong_is_found_out(wrong: str, monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy()
    batch = batch_of(policy, made_up(policy))
    attend, positions = Forest.attend, Forest.positions
    if wrong == "attention":  # a model that drops what it does not know: its row is one long sequence

        def ignorant(forest: Forest, q: Any, k: Any, v: Any, scale: Any) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        monkeypatch.setattr(Forest, "attend", ignorant)
    elif wrong == "positions":
        monkeypatch.setattr(Forest, "positions", property(lambda self: positions.fget(self) // 2))  # type: ignore[misc]
    else:
        monkeypatch.setattr(Forest, "attend", lambda self, q, k, v, scale: attend(self, q, k.detach(), v, scale))
    with pytest.warns(UserWarning, match="the forest differs"):
        scores = score(policy, batch, 1.0)
    wanted = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    torch.testing.assert_close(scores.logprobs, wanted.logprobs, atol=1e-4, rtol=0)
    assert fast_of(policy.model).head and not fast_of(policy.model).forests


@pytest.mark.parametrize("setting", [{"micro_batch": 64}, {"micro_batch": 3}, {"minibatches": 2, "epochs": 2}])
def test_an_update_ends_at_the_same_weights(setting: dict[str, Any]):
    policy = tiny_policy(dtype=torch.float64)
    trajectories, groups = sampled_batch(policy, prompts=4, samples=4)
    found = []
    for switch in (True, False):
        own = copy.deepcopy(policy)
        own.freeze_reference()
        config = LearnConfig(learning_rate=1e-2, kl=0.1, advantage_scale="group", fast=switch, **setting)
        constraints = [Constraint(ConstraintConfig(name="choice", measure="choice", coefficient=0.1))]
        optimiser = torch.optim.SGD([p for _, p in own.trainable()], lr=1e-2)
        result = update(own, trajectories, groups, optimiser, constraints, config, step=0, temperature=1.0)
        found.append((result.metrics, own.model.state_dict(), result.costs))
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], atol=1e-8, rtol=0)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-7)
    assert found[0][2]["learn/padding"] == 0 < found[1][2]["learn/padding"]
    assert found[0][2]["learn/shared"] > 0.3 and found[1][2]["learn/shared"] == 0


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_kl_term_between_equal_weights_has_no_gradient_at_all(minibatches: int):
    """AdamW would make a whole step even of a rounding error."""
    policy = tiny_policy(sharp=1.0)  # so sure of itself that responses are alike, for a while or to the end
    trajectories, groups = sampled_batch(policy, prompts=4, samples=6)
    for t in trajectories:
        t.reward = 1.0
    policy.freeze_reference()
    config = LearnConfig(learning_rate=1e-2, kl=0.1, micro_batch=7, minibatches=minibatches)
    was = copy.deepcopy(policy.model.state_dict())
    result = update(policy, trajectories, groups, make_optimiser(policy, config), [], config, step=0, temperature=1.0)
    assert result.costs["learn/shared"] > 0.3 and result.metrics["grad_norm"] == 0
    assert all(torch.equal(value, was[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize("kind", ["adapter", "routed"])
def test_the_reference_of_a_fresh_adapter_is_the_base_bit_for_bit(kind: str):
    policy = tiny_policy(**KINDS[kind])
    for name, parameter in policy.trainable():
        if "lora_B" in name:
            parameter.data.zero_()
    trajectories = made_up(policy)
    policy.freeze_reference()
    for _, parameter in policy.trainable():
        parameter.data += 0.1
    moved, names = sequence_logprobs(policy, trajectories, 5, 1.0), [name for name, _ in policy.trainable()]
    assert policy._starts_bare
    with policy.reference():
        assert not policy.trainable()  # PEFT switches them off
        off = sequence_logprobs(policy, trajectories, 5, 1.0)
    assert [name for name, _ in policy.trainable()] == names
    policy._starts_bare = False
    with policy.reference():
        swapped = sequence_logprobs(policy, trajectories, 5, 1.0)
    for one, other, now in zip(off, swapped, moved, strict=True):
        assert np.array_equal(one, other) and not np.allclose(one, now)
    again = sequence_logprobs(policy, trajectories, 5, 1.0)
    assert all(np.array_equal(one, other) for one, other in zip(again, moved, strict=True))
    policy.freeze_reference()
    assert not policy._starts_bare


def test_what_a_step_costs_is_logged():
    policy = tiny_policy()
    trajectories, groups = sampled_batch(policy, prompts=2, samples=4)
    config = LearnConfig()
    costs = update(
        policy, trajectories, groups, make_optimiser(policy, config), [], config, step=0, temperature=1.0
    ).costs  # fmt: skip
    assert {f"seconds/learn/{stage}" for stage in ("forward", "backward", "optimiser")} <= costs.keys()
    assert costs["tokens_per_s/trained"] > 0 and costs["learn/plain"] == 0
    assert not any(key.startswith("mfu/") for key in costs)  # no GPU
    assert without_wall_clock(costs).keys() == {"learn/padding", "learn/shared", "learn/plain"}


def test_operations_are_those_counted_by_hand():
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    attention = 12 * 32 * 2 * 500
    assert training_flops(tiny_policy().model, 100, 500) == 6 * 2 * layer * 100 + attention
    lora = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # rank 4 at every matrix
    expected = (4 * layer + 6 * lora) * 2 * 100 + attention  # a frozen weight has no gradient of its own
    assert training_flops(tiny_policy(adapter=True).model, 100, 500) == expected
