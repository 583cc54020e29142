"""Whole runs through routed adapters, and two agents: stopped and resumed bit for bit, by recipe, evaluated again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from policies import tiny_policy
from test_training import Interrupted, interrupt_at, outcome, training

from unbraid.learn.log import read_metrics
from unbraid.policy import load_policy
from unbraid.policy.routing import RoutingConfig
from unbraid.prepare import load_tasks, make_environment
from unbraid.recipe import load_recipe
from unbraid.rollout import LocalSampler
from unbraid.rollout.scoring import SingleStep
from unbraid.run import evaluate_run, train
from unbraid.tasks.reward import RewardConfig, reward_function
from unbraid.tokens import Router

SMALL = [
    "learn.steps=2", "learn.learning_rate=2e-3", "learn.ramp_steps=0", "rollout.prompts=3", "rollout.samples=4",
    "evaluate.limit=6", "evaluate.temperatures=[0.0]", "checkpoint.every=1", "learn.micro_batch=8",
]  # fmt: skip


def parts(routing: RoutingConfig) -> dict[str, Any]:
    policy = tiny_policy(layers=1, routing=routing)
    roll = SingleStep(LocalSampler(policy), policy.format, reward_function(RewardConfig()), max_new_tokens=10)
    return {"policy": policy, "roll": roll}


@pytest.mark.parametrize("isolation", ["positional", "strict"])
def test_a_run_stopped_and_resumed_equals_the_unbroken_one(tmp_path: Path, isolation: Any):
    routing = RoutingConfig(isolation=isolation)
    unbroken = training(tmp_path / "unbroken", 2, **parts(routing))
    unbroken.run()
    for moment in (1, 3, 4):
        broken = training(tmp_path / "broken", 2, on_step=interrupt_at(moment), **parts(routing))
        with pytest.raises(Interrupted):
            broken.run()
    resumed = training(tmp_path / "broken", 2, **parts(routing))
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)


@pytest.mark.parametrize(
    ("overlay", "more"),
    [
        ("dart_published", []),
        ("dart_published", ["model.adapter.routing.isolation=strict", "model.adapter.routing.context=null"]),
        ("dart_published", ["model.adapter.routing.assign=placebo"]),
        ("plain", ["model.two_agents=true", "model.adapter={rank: 4, alpha: 8}"]),
    ],
    ids=["published", "strict", "placebo", "two agents"],
)
def test_agents_of_the_search_world_by_recipe(tmp_path: Path, overlay: str, more: list[str]):
    recipe = load_recipe(["search-world", overlay], [*SMALL, *more])
    scores = train(recipe, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 2
    assert max(row["sampler_gap/q99"] for row in read_metrics(tmp_path / "run")) < 1e-4
    again = load_policy(recipe.model, recipe.chat)
    before = {name: p.detach().clone() for name, p in again.trainable()}
    again.load_weights(tmp_path / "run" / "final")
    moved = {name for name, p in again.trainable() if not torch.equal(p, before[name])}
    for adapter in ("reasoning", "action"):
        # With a placebo the run's few prompts may all be one adapter's.
        assert any(adapter in name for name in moved) or "assign=placebo" in str(more)
    assert moved
    (tmp_path / "again").mkdir()
    tests = load_tasks(recipe, again, make_environment(recipe)).test
    assert evaluate_run(recipe, again, tests, tmp_path / "again")[0].accuracy == scores[0].accuracy


def test_both_ideas_in_one_run(tmp_path: Path):
    """Routed adapters under entropy constraints on the choice of mode, on single responses."""
    calls = [s for s in SMALL if "ramp" not in s]
    recipe = load_recipe(["calls", "recommended", "routed"], [*calls, "warmup.steps=2", "warmup.batch_examples=8"])
    train(recipe, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert all("constraint/think_rate/all/coefficient" in row for row in rows)
    assert Router.load(tmp_path / "run" / "final").adapters == ("reasoning", "action")
