"""Whole runs on a tiny policy: stopped anywhere and resumed they equal the unbroken run; best, collapse, claims."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from policies import calls_tasks, tiny_policy

from unbraid.errors import CheckpointError, CollapseError
from unbraid.interference.monitor import Monitor
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.collapse import CollapseWatch
from unbraid.learn.constraint import Adaptive, Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig
from unbraid.learn.log import read_metrics, read_notes, without_wall_clock
from unbraid.learn.trainer import Training
from unbraid.recipe import load_recipe
from unbraid.rollout import LocalSampler
from unbraid.rollout.config import RolloutConfig
from unbraid.rollout.scoring import SingleStep
from unbraid.run import train
from unbraid.tasks.reward import RewardConfig, RewardFunction, reward_function

STEPS = 6
CONSTRAINTS = (
    ConstraintConfig(name="tokens", group_by="mode", target=3.0, coefficient=Adaptive(start=0.1, rule="adam")),
    ConstraintConfig(name="mode", measure="choice", target=0.6, coefficient=Adaptive(start=0.1, rule="step")),
)
LEARN = LearnConfig(
    steps=STEPS, learning_rate=1e-2, kl=0.1, minibatches=2, probe_every=3, weight_decay=0.1, interference_every=2
)
PUBLISHED = reward_function(RewardConfig())
RESUME = Path(__file__).parents[1] / "benchmarks" / "resume.py"


class Interrupted(Exception):
    """Stands for a process that ends between two lines."""


def training(
    run_dir: Path,
    every: int = 2,
    adapter: bool = False,
    reward: RewardFunction = PUBLISHED,
    **changes: Any,
) -> Training:
    """A new process's view of the run: fresh policy, fresh constraints, whatever is on disk."""
    policy = tiny_policy(layers=1, adapter=adapter)
    parts: dict[str, Any] = {
        "policy": policy,
        "roll": SingleStep(LocalSampler(policy), policy.format, reward, max_new_tokens=10),
        "tasks": calls_tasks(5),
        "rollout": RolloutConfig(prompts=3, samples=3, max_new_tokens=10),
        "learn": LEARN,
        "constraints": [Constraint(c) for c in CONSTRAINTS],
        "store": CheckpointStore(run_dir / "checkpoints", CheckpointConfig(every=every, keep=2), "recipe"),
        "run_dir": run_dir,
        "validate": lambda done: (float(done % 4 == 3), {"validation/accuracy": float(done % 4 == 3)}),
        "validate_every": 3,
        "monitor": Monitor(policy, LEARN, 1.0),
    }
    return Training(**(parts | changes))


def outcome(run: Training) -> dict[str, Any]:
    """All that two equal runs have in common."""
    rollouts = sorted((run.run_dir / "rollouts").glob("*.parquet"))
    return {
        "weights": [p.detach().numpy().tobytes() for _, p in run.policy.trainable()],
        "metrics": [without_wall_clock(row) for row in read_metrics(run.run_dir)],
        "notes": read_notes(run.run_dir),
        "rollouts": {path.name: path.read_bytes() for path in rollouts},
        "constraints": repr([c.state_dict() for c in run.constraints]),
        "watch": run.watch,
        "checkpoints": [c.step for c in run.store.all()],
    }


def interrupt_at(moment: int) -> Callable[[int, dict[str, Any]], None]:
    def on_step(step: int, metrics: dict[str, Any]) -> None:
        if step == moment:
            raise Interrupted

    return on_step


@pytest.mark.parametrize(("every", "adapter"), [(1, False), (2, False), (4, True)])
def test_a_run_stopped_again_and_again_equals_the_unbroken_one(tmp_path: Path, every: int, adapter: bool):
    unbroken = training(tmp_path / "unbroken", every, adapter)
    best = unbroken.run()
    for moment in range(1, STEPS + 1):  # after the step is logged, before its checkpoint
        broken = training(tmp_path / "broken", every, adapter, on_step=interrupt_at(moment))
        with pytest.raises(Interrupted):
            broken.run()
    resumed = training(tmp_path / "broken", every, adapter)
    assert resumed.run() == best == 3
    assert outcome(resumed) == outcome(unbroken)


def test_looking_at_gradients_changes_no_bit_of_a_run(tmp_path: Path):
    def uneven(task: Any, reading: Any) -> Any:
        """Something to learn from in every group, which the plain reward gives a random policy seldom."""
        return replace(PUBLISHED(task, reading), total=float(crc32(repr(reading).encode()) % 7))

    looked = training(tmp_path / "looked", reward=uneven)
    blind = training(tmp_path / "blind", reward=uneven, monitor=None)
    looked.run()
    blind.run()
    seen, unseen = outcome(looked), outcome(blind)
    assert any("interference/norm/reasoning" in row for row in seen["metrics"])
    seen["metrics"] = [{k: v for k, v in row.items() if not k.startswith("interference/")} for row in seen["metrics"]]
    assert seen == unseen


def test_the_generators_that_a_users_reward_draws_from_are_part_of_the_run(tmp_path: Path):
    def noisy(scale: float) -> Callable[..., Any]:
        plain = reward_function(RewardConfig())

        def reward(task: Any, reading: Any) -> Any:
            result = plain(task, reading)
            result.parts["noise"] = scale * float(np.random.standard_normal() + torch.randn(()))
            return result

        return reward

    def run(folder: Path, **changes: Any) -> Training:
        np.random.seed(0)
        torch.manual_seed(0)
        return training(folder, reward=noisy(0.1), **changes)

    unbroken = run(tmp_path / "unbroken")
    unbroken.run()
    with pytest.raises(Interrupted):
        run(tmp_path / "broken", on_step=interrupt_at(5)).run()
    resumed = run(tmp_path / "broken")
    resumed.run()
    assert outcome(resumed) == outcome(unbroken)
    assert any(row["reward_part/noise"] for row in read_metrics(tmp_path / "broken"))


def test_the_best_step_has_a_checkpoint_between_the_regular_ones(tmp_path: Path):
    run = training(tmp_path, every=50)
    assert run.run() == 3
    assert [c.step for c in run.store.all()] == [3, STEPS]


def test_without_validation_the_last_step_is_the_result(tmp_path: Path):
    assert training(tmp_path, validate=None, validate_every=0).run() == STEPS


def test_a_finished_run_is_left_alone(tmp_path: Path):
    first = training(tmp_path)
    first.run()
    again = training(tmp_path)
    again.run()
    assert outcome(again) == outcome(first)


def test_a_collapse_ends_the_run_where_asked_and_again_at_once_on_resume(tmp_path: Path):
    class Collapses(CollapseWatch):
        def see(self, *_: Any, **__: Any) -> list[str]:
            self.logits.append(0.0)
            self.collapsed = len(self.logits) == 3
            return ["collapsed"] if self.collapsed else []

    learn = LearnConfig(steps=STEPS, stop_on_collapse=True)
    run = training(tmp_path, every=50, learn=learn, watch=Collapses(), validate=None)
    with pytest.raises(CollapseError, match="after step 3"):
        run.run()
    assert [c.step for c in run.store.all()] == [3]
    with pytest.raises(CollapseError, match="after step 3"):
        training(tmp_path, every=50, learn=learn, validate=None).run()
    assert len(read_metrics(tmp_path)) == 3


def test_a_run_folder_belongs_to_one_recipe(tmp_path: Path):
    recipe = load_recipe(["calls"], ["learn.steps=1"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    with pytest.raises(CheckpointError, match="--resume"):
        train(recipe, tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(load_recipe(["calls"], ["learn.steps=2"]), tmp_path, resume=True)


class Servers:
    """Stands for model servers: measured after every sync, with something to say at times."""

    def __init__(self, correct: bool):
        self.correct, self.asked, self.waiting = correct, 0, ["a server is slow"]

    def metrics(self) -> dict[str, float]:
        self.asked += 1
        return {"sync/gap": 0.5, "seconds/sync": 0.1}

    def notes(self) -> list[str]:
        found, self.waiting = self.waiting, []
        return found


@pytest.mark.parametrize("correct", [True, False])
def test_servers_are_corrected_for_logged_and_listened_to(tmp_path: Path, correct: bool):
    servers = Servers(correct)

    def validate(done: int) -> tuple[float, dict[str, float]]:
        servers.waiting.append(f"found while validating after step {done}")
        return 0.0, {}

    run = training(tmp_path, served=servers, validate=validate)
    run.run()
    rows = read_metrics(tmp_path)
    assert servers.asked == len(rows) == STEPS
    for row in rows:
        assert (row["sync/gap"], row["seconds/sync"]) == (0.5, 0.1) and row["sampler_gap/mean"] < 1e-4
        assert ("importance/mean" in row) == correct
    warned = [(note["step"], note["message"]) for note in read_notes(tmp_path) if note["level"] == "warning"]
    wanted = [(1, "a server is slow"), *((n, f"found while validating after step {n}") for n in (3, 6))]
    assert [pair for pair in warned if pair in wanted] == wanted


def test_sigkill_and_resume_give_the_same_bits():
    """In the warm-up and while a checkpoint is written; `benchmarks/resume.py` alone does more of it."""
    command = [sys.executable, str(RESUME), "--kills", "2", "--steps", "3", "--start", "fork"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["kills"] == 2 and found["identical"] is True
