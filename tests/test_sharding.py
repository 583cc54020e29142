"""Weights spread over two ranks (FSDP2): steps, samples and run are those of one; any number takes the checkpoints."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import calls_tasks, requests_for, sampled_batch, tiny_policy
from ranked import on_ranks
from test_ranks import CONSTRAINTS, assert_alike, uneven
from test_supervised import CONFIG, some_examples

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.constraint import Constraint
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.learn.log import WALL_CLOCK, read_metrics
from unbraid.learn.supervised import SupervisedTrainer
from unbraid.learn.trainer import Training
from unbraid.policy import Policy, sharding
from unbraid.rollout import LocalSampler
from unbraid.rollout.config import RolloutConfig
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.shared import SharedRoll

STEPS = 3


def policy_here(sharded: bool = True, dtype: torch.dtype = torch.float64) -> Policy:
    policy = tiny_policy(dtype=dtype)
    if sharded and ranks.world() > 1:
        policy.shard("cpu")
    return policy


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.clone() for name, p in sharding.whole_weights(policy.model).items()}


def learned() -> dict[str, Any]:
    """Three updates, of five groups over two minibatches: ranks have different numbers of micro-batches."""
    policy = policy_here()
    trajectories, groups = sampled_batch(tiny_policy(dtype=torch.float64), prompts=5, samples=3, budget=8)
    config = LearnConfig(
        learning_rate=1e-2, weight_decay=0.1, kl=0.1, minibatches=2, micro_batch=2, importance="always", steps=3,
        fast=False,
    )  # fmt: skip
    constraints, optimiser = [Constraint(c) for c in CONSTRAINTS], make_optimiser(policy, config)
    policy.freeze_reference()
    rows = [
        update(policy, trajectories, groups, optimiser, constraints, config, step=step, temperature=0.9).metrics
        for step in range(3)
    ]
    stamps = []
    for _ in range(2):
        with policy.whole():
            stamps.append(policy.stamp())
        update(policy, trajectories, groups, optimiser, [], config, step=3, temperature=0.9)
    assert ranks.world() == 1 or stamps[0] != stamps[1]  # servers are told that there are new weights
    spread = [p.to_local().numel() if isinstance(p, sharding.DTensor) else p.numel() for _, p in policy.trainable()]
    return {"rows": rows, "held": sum(spread), "weights": weights(policy)}


def learned_in_float32() -> dict[str, torch.Tensor]:
    policy = policy_here(dtype=torch.float32)
    trajectories, groups = sampled_batch(tiny_policy(), prompts=3, samples=3, budget=8)
    config = LearnConfig(learning_rate=1e-2, advantage_scale="group", fast=False)
    optimiser = torch.optim.SGD([p for _, p in policy.trainable()], lr=1.0)
    update(policy, trajectories, groups, optimiser, [], config, step=0, temperature=1.0)
    return weights(policy)


def drawn() -> list[list[int]]:
    policy = policy_here()
    tasks = calls_tasks(2 + ranks.rank())  # as many forward passes as each needs
    with policy.whole(saved=False):
        found = LocalSampler(policy).sample(
            requests_for(policy, tasks, [Mode.AUTO] * 2), temperature=1.0, max_new_tokens=8 + ranks.rank()
        )
    return [t.ids.tolist() for t in found]


def warmed_up(folder: Path, stop: int | None = None, sharded: bool = True) -> dict[str, torch.Tensor]:
    policy = policy_here(sharded)
    trainer = SupervisedTrainer(policy.model, CONFIG, lambda step: some_examples(5 + step))
    unfinished = folder / "warmup.pt"
    if unfinished.exists():
        trainer.load_state_dict(torch.load(unfinished))
    while trainer.step < (stop or 4):
        trainer.train_step()
    state = trainer.state_dict()
    if stop and ranks.is_first():
        torch.save(state, unfinished)
    return state["model"]


def run(folder: Path, sharded: bool = True, stop: int = STEPS) -> dict[str, torch.Tensor]:
    """A run from nothing, or from what is in the folder."""

    def on_step(step: int, metrics: dict[str, Any]) -> None:
        if step > stop:
            raise KeyboardInterrupt

    policy = policy_here(sharded)
    roll = SingleStep(LocalSampler(policy), policy.format, uneven, max_new_tokens=8)
    training = Training(
        policy=policy,
        roll=SharedRoll(roll, policy=policy),
        tasks=calls_tasks(5),
        rollout=RolloutConfig(prompts=3, samples=3, max_new_tokens=8),
        learn=LearnConfig(steps=STEPS, learning_rate=1e-2, kl=0.1, minibatches=2, fast=False),
        constraints=[Constraint(c) for c in CONSTRAINTS],
        store=CheckpointStore(folder / "checkpoints", CheckpointConfig(every=1, keep=9), "recipe"),
        run_dir=folder,
        on_step=on_step,
    )
    with suppress(KeyboardInterrupt):
        training.run()
    return weights(policy) if ranks.world() > 1 else {n: p.detach() for n, p in policy.trainable()}


def all_of_it(folder: Path) -> dict[str, Any]:
    """What a rank finds of everything here; forked once."""
    own = folder / "sharded"
    found = {"learned": learned(), "float32": learned_in_float32(), "drawn": drawn(), "run": run(own / "whole")}
    run(own / "broken", stop=1)
    ranks.first(lambda: shutil.copytree(own / "broken", folder / "alone"))
    found["resumed"] = run(own / "broken", sharded=False)  # replicated weights go on from sharded ones
    run(folder / "spread", sharded=False, stop=1)
    found["spread"] = run(folder / "spread")  # and the other way round
    warmed_up(folder, stop=2)
    found["warm"] = warmed_up(folder)
    with pytest.raises(ModelError, match=r"leave model\.adapter out"):
        tiny_policy(adapter=True).shard("cpu")
    with pytest.raises(ModelError, match="bfloat16 loses small updates"):
        tiny_policy(dtype=torch.bfloat16).shard("cpu")
    return found


@pytest.mark.slow
def test_two_ranks_with_sharded_weights_are_one(tmp_path: Path):
    first, second = on_ranks(all_of_it, 2, tmp_path / "ranks", tmp_path)
    assert isinstance(first, dict) and isinstance(second, dict), (first, second)
    expected = learned()
    total = expected["held"]
    assert first["learned"]["held"] + second["learned"]["held"] == total and first["learned"]["held"] < 0.6 * total
    assert_alike(first["learned"]["rows"], expected["rows"], 1e-9)
    assert_alike(second["learned"]["rows"], expected["rows"], 1e-9)
    close(first["learned"]["weights"], expected["weights"])
    close(first["float32"], learned_in_float32(), 1e-5)
    assert first["drawn"] == drawn() and len(second["drawn"]) == 6
    alone = run(tmp_path / "one")
    rows = logged(tmp_path / "one")
    assert len(rows) == STEPS
    for name, folder in (("run", "sharded/whole"), ("resumed", "sharded/broken"), ("spread", "spread")):
        close(first[name], alone)
        assert_alike(logged(tmp_path / folder), rows, 1e-6)
    close(run(tmp_path / "alone"), alone)
    close(first["warm"], warmed_up(tmp_path / "nowhere"))
    names = os.listdir(tmp_path / "sharded" / "whole" / "checkpoints" / "step-000003")
    assert "model.safetensors" in names and "trainer.pt" in names


def logged(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith((*WALL_CLOCK, "learn/"))} for row in read_metrics(folder)]


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), atol=tolerance, rtol=0, msg=name)
