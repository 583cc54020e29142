"""Adapters over two processes: each learns from half of the samples, and one of them sees no action token."""

from typing import Any

import numpy as np
import pytest
import torch
from policies import tiny_policy
from ranked import on_ranks
from test_isolation import spans_everywhere
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from unbraid import ranks
from unbraid.errors import ModelError
from unbraid.learn import reduce
from unbraid.learn.config import LearnConfig
from unbraid.learn.grpo import make_optimiser, update
from unbraid.learn.reduce import sum_counts, sum_gradients
from unbraid.learn.shares import share_out
from unbraid.policy.routed_lora import route_adapters
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import Trajectory
from unbraid.tokens import Role


def halves() -> tuple[Any, list[Trajectory], np.ndarray]:
    """A policy, and two groups: in the first nobody calls anything."""
    policy = tiny_policy(dtype=torch.float64, routing=RoutingConfig())
    found = spans_everywhere(policy)
    call = policy.format.automaton.delimiters[1]
    for t in found[:4]:
        t.ids[(t.ids == call.open) | (t.ids == call.close)] = 30
        provenance = np.where(np.arange(len(t.ids)) < t.prompt_length, 0, 1)
        t.roles = policy.format.automaton.label(t.ids, provenance)
        assert Role.ACTION not in t.roles
    return policy, found, np.repeat([0, 1], 4)


def learn(policy: Any, found: list[Trajectory], groups: np.ndarray) -> dict[str, Tensor]:
    config = LearnConfig(learning_rate=1e-2, advantage_scale="group", max_grad_norm=0.01)
    update(policy, found, groups, make_optimiser(policy, config), [], config, step=0, temperature=1.0)
    return {name: p.detach().clone() for name, p in policy.trainable()}


def one_of_two() -> dict[str, Tensor]:
    policy, found, groups = halves()
    lengths = np.array([len(t.ids) for t in found])
    assert set(share_out([np.arange(8)], groups, lengths, 2).tolist()) == {0, 1}
    learned = learn(policy, found, groups)
    alone = torch.nn.Parameter(torch.zeros(3))
    sum_gradients([alone])
    assert alone.grad is None and sum_counts([1, ranks.rank()]) == [2.0, 1.0]
    bare = tiny_policy(adapter=True).model
    bare.base_model.model.lm_head.requires_grad_(True)
    bare.base_model.model.lm_head = DistributedDataParallel(bare.base_model.model.lm_head)
    assert policy.router
    with pytest.raises(ModelError, match="DistributedDataParallel wraps routed adapters"):
        route_adapters(bare, policy.router)
    return learned


def in_small_messages() -> dict[str, Tensor]:
    """Most parameters do not fit into a message: each then has one of its own."""
    reduce.BUCKET = 100
    return one_of_two()


@pytest.mark.parametrize("work", [one_of_two, in_small_messages])
def test_two_processes_make_the_step_of_one(tmp_path, work):
    expected = learn(*halves())
    for found in on_ranks(work, 2, tmp_path):
        assert isinstance(found, dict), found
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=0)


def test_a_process_that_is_alone_sums_nothing():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    sum_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0] and sum_counts([3, 4]) == [3.0, 4.0]
