"""Fast scores against plain ones in float64: losses and all gradients, on trees of every kind of sequence."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from policies import tiny_policy
from torch import nn

from unbraid.chat.types import Mode
from unbraid.learn import fast
from unbraid.learn.batch import TokenBatch, collate
from unbraid.learn.fast import fast_of, score
from unbraid.learn.objective import score_tokens
from unbraid.policy import Policy
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


def mixture(model: Any, batch: TokenBatch, policy: Policy, fast: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A loss that all scores take part in, and every trained gradient."""
    model.zero_grad()
    scores = score(policy, batch, 0.8) if fast else score_tokens(model, batch, 0.8, policy.format.modes.choice_ids)
    loss = sum(
        (
            (part * torch.arange(part.numel(), dtype=part.dtype).view(part.shape).sin()).sum()
            for part in scores.with_gradient
        ),
        torch.zeros(()),
    )
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_loss_and_all_gradients_equal_the_plain_path(adapter: bool, checkpointing: bool):
    policy = tiny_policy(dtype=torch.float64, adapter=adapter)
    in_float64(policy.model).train()
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.model.enable_input_require_grads()
    batch = collate(made_up(policy), np.zeros(14), policy.format.modes.position)
    assert batch.choice.any()
    plain, wanted = mixture(policy.model, batch, policy, fast=False)
    ours, found = mixture(policy.model, batch, policy, fast=True)
    assert fast_of(policy.model).forest(batch)
    assert abs(plain - ours) < 1e-9
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
