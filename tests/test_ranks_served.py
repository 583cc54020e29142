"""Ranks that sample from servers: the first owns them and hands them the weights; all learn from what they draw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import calls_tasks, tiny_policy
from ranked import on_ranks
from served_runs import by_words, fleet_of
from stand_in_vllm import StandIn

from unbraid import ranks
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.constraint import Constraint
from unbraid.learn.grpo import LearnConfig
from unbraid.learn.log import read_metrics
from unbraid.learn.trainer import Training
from unbraid.rollout.config import RolloutConfig
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.shared import SharedRoll
from unbraid.rollout.single import SingleSampler


def run(folder: Path, sharded: bool) -> list[tuple[float, ...]]:
    """Three steps; a few numbers of the weights before and after."""
    policy = tiny_policy()
    server = StandIn(policy.model) if ranks.is_first() else None
    seen = [policy.digest()]
    fleet = None
    if server:
        server.start()
        fleet = fleet_of(folder, server)
        fleet.prompts = [policy.format.prompt_ids(task.messages, task.tools) for task in calls_tasks(3)]
    if sharded:
        policy.shard("cpu")

    def served(temperature: float) -> Any:
        assert fleet, "only the first rank draws"
        return ServedSampler(fleet, policy, 16, temperature)

    roll = SingleStep(SingleSampler(policy.format, served), policy.format, by_words, 8)
    Training(
        policy=policy,
        roll=SharedRoll(roll, by_first=True, policy=policy),
        tasks=calls_tasks(4),
        rollout=RolloutConfig(prompts=3, samples=4, max_new_tokens=8),
        learn=LearnConfig(steps=3, learning_rate=1e-2),
        constraints=list[Constraint](),
        store=CheckpointStore(folder / "checkpoints", CheckpointConfig(every=1), "recipe"),
        run_dir=folder,
        served=fleet,
    ).run()
    if server:
        server.stop()
    policy = tiny_policy()
    policy.load_weights(ranks.first(lambda: folder / "checkpoints" / "step-000003"))
    return [*seen, policy.digest()]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_servers_draw_from_what_all_ranks_learned(tmp_path: Path, sharded: bool):
    first, second = on_ranks(run, 2, tmp_path / "ranks", tmp_path / "run", sharded)
    assert isinstance(first, list), first
    assert first == second and first[0] != first[1]
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 3
    for row in rows:  # new weights before every step: old ones would be far off
        assert row["sync/gap_mean"] < 1e-4 and row["sampler_gap/mean"] < 1e-4
    assert len({row["reward"] for row in rows}) > 1 and np.isfinite(rows[-1]["grad_norm"])
