"""Adapters over two processes: each has half of the samples, and one of them never sees an action token."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import tiny_policy
from test_isolation import spans_everywhere
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from unbraid.errors import ModelError
from unbraid.learn.config import LearnConfig
from unbraid.learn.grpo import make_optimiser, update
from unbraid.learn.reduce import sum_counts, sum_gradients
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


def one_of_two(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    policy, found, groups = halves()
    part = groups == rank
    mine = learn(policy, [t for t, own in zip(found, part, strict=True) if own], groups[part])
    torch.save(mine, Path(folder) / f"{rank}.pt")
    alone = torch.nn.Parameter(torch.zeros(3))
    sum_gradients([alone])
    assert alone.grad is None and sum_counts([1, rank]) == [2.0, 1.0]
    bare = tiny_policy(adapter=True).model
    bare.base_model.model.lm_head.requires_grad_(True)
    bare.base_model.model.lm_head = DistributedDataParallel(bare.base_model.model.lm_head)
    assert policy.router
    with pytest.raises(ModelError, match="DistributedDataParallel wraps routed adapters"):
        route_adapters(bare, policy.router)
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_step_of_one(tmp_path):
    expected = learn(*halves())
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=0)


def test_a_process_that_is_alone_sums_nothing():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    sum_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0] and sum_counts([3, 4]) == [3.0, 4.0]
