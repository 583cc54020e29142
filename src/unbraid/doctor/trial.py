"""A little of the run, done and measured: warm-up, one rollout, one update, on the doctor's own copy of the policy."""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from unbraid.chat.types import Mode
from unbraid.learn.advantages import mode_votes
from unbraid.learn.batch import collate
from unbraid.learn.constraint import Constraint
from unbraid.learn.grpo import make_optimiser, mode_flags, update
from unbraid.learn.log import write_rollouts
from unbraid.learn.metrics import rollout_metrics
from unbraid.learn.objective import score_tokens
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer, labels_to_examples
from unbraid.policy import Policy
from unbraid.prepare import TaskSets, roll_of
from unbraid.recipe import Recipe
from unbraid.rollout.trajectory import Trajectory

T = TypeVar("T")

FEW = 4
"""Prompts of the first try; the whole step follows where it takes less than `PATIENCE`."""
PATIENCE = 60.0
"""Seconds that the doctor spends on a whole warm-up, or on a whole step; beyond that it measures a part."""


@dataclass(frozen=True)
class Trial:
    """What was measured. Seconds are of this machine.

    warmed_up: the warm-up was done before the rollout, so that the numbers are those of the start of RL.
    prompts: how many of a step's prompts were used; the times of `rollout_s` and `learn_s` are for these.
    metrics: of the rollout and of the update. votes: scale → (vote, its standard error).
    log_probs: largest and mean distance of the sampler's log-probs from the trainer's, in nats.
    peak_bytes, total_bytes: memory in use at the most, and what there is, on the device that trains.
    rollout_bytes: size on disk of the trajectories drawn.
    """

    warmup_s: float
    warmed_up: bool
    prompts: int
    trajectories: list[Trajectory]
    metrics: dict[str, float]
    votes: dict[str, tuple[float, float]]
    log_probs: tuple[float, float]
    rollout_s: float
    learn_s: float
    device: str
    peak_bytes: int
    total_bytes: int
    rollout_bytes: int


def run_trial(recipe: Recipe, policy: Policy, tasks: TaskSets) -> Trial:
    """Warm up if that is short, then roll out and update once: a few prompts, or a whole step if that is short."""
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)
    warmup_s, warmed_up = _warm_up(recipe, policy, tasks)
    few = min(FEW, recipe.rollout.prompts)
    trial = _step(recipe, policy, tasks, few, warmup_s, warmed_up)
    seconds = (trial.rollout_s + trial.learn_s) * recipe.rollout.prompts / few
    if few == recipe.rollout.prompts or seconds > PATIENCE:
        return trial
    return _step(recipe, policy, tasks, recipe.rollout.prompts, warmup_s, warmed_up)


def _warm_up(recipe: Recipe, policy: Policy, tasks: TaskSets) -> tuple[float, bool]:
    """(seconds that the whole warm-up takes, whether it was done)."""
    config = recipe.warmup
    if config is None or not config.steps:
        return 0.0, True
    examples, _ = labels_to_examples(tasks.warmup, policy.format, config)
    trainer = SupervisedTrainer(policy.model, config, epochs(examples, config.batch_examples, recipe.seed))
    first, _ = _timed(trainer.train_step)
    if first * config.steps > PATIENCE:
        return first * config.steps, False
    rest, _ = _timed(trainer.run)
    return first + rest, True


def _step(recipe: Recipe, policy: Policy, tasks: TaskSets, prompts: int, warmup_s: float, warmed_up: bool) -> Trial:
    rollout, batch = recipe.rollout, epochs(tasks.train, prompts, recipe.seed)(0)
    roll, modes = roll_of(recipe, policy), [Mode.AUTO] * rollout.samples
    rollout_s, trajectories = _timed(
        lambda: roll(batch, modes, temperature=rollout.temperature, seed=(recipe.seed, "doctor"))
    )
    groups = np.repeat(np.arange(prompts), rollout.samples)
    think, valid = mode_flags(trajectories)
    rewards = np.array([t.reward for t in trajectories])
    distance = log_prob_distance(policy, trajectories[: recipe.learn.micro_batch], rollout.temperature)
    if recipe.learn.needs_reference:
        policy.freeze_reference()
    optimiser, constraints = make_optimiser(policy, recipe.learn), [Constraint(c) for c in recipe.constraints]
    learn_s, result = _timed(
        lambda: update(
            policy, trajectories, groups, optimiser, constraints, recipe.learn, step=0, temperature=rollout.temperature
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        write_rollouts(Path(folder) / "trial.parquet", trajectories)
        rollout_bytes = (Path(folder) / "trial.parquet").stat().st_size
    peak, total = memory(policy.device)
    return Trial(
        warmup_s=warmup_s,
        warmed_up=warmed_up,
        prompts=prompts,
        trajectories=trajectories,
        metrics=rollout_metrics(trajectories) | result.metrics,
        votes=mode_votes(rewards, groups, think, valid),
        log_probs=distance,
        rollout_s=rollout_s,
        learn_s=learn_s,
        device=str(policy.device),
        peak_bytes=peak,
        total_bytes=total,
        rollout_bytes=rollout_bytes,
    )


@torch.no_grad()
def log_prob_distance(policy: Policy, trajectories: list[Trajectory], temperature: float) -> tuple[float, float]:
    """(largest, mean) distance in nats between the sampler's and the trainer's log-probs of the same tokens."""
    was_training = policy.model.training
    policy.model.train()  # as in an update: this is where dropout would act
    pieces = [piece for trajectory in trajectories for piece in trajectory.split()]
    batch = collate(pieces, np.zeros(len(pieces)), policy.format.modes.position, router=policy.router)
    batch = batch.to(policy.device)
    scores = score_tokens(policy.model, batch, temperature, policy.format.modes.choice_ids)
    policy.model.train(was_training)
    distance = (scores.logprobs.float() - batch.old_logprobs).abs()[batch.sampled]
    return float(distance.max()), float(distance.mean())


def memory(device: torch.device) -> tuple[int, int]:
    """(peak, total) bytes: allocated on a GPU, or resident in this process and installed in this machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result
