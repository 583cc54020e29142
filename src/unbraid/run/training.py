"""From a recipe to a trained policy: read tasks, warm up, train, evaluate."""

import os
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from unbraid import ranks
from unbraid.errors import DataError, RecipeError
from unbraid.evaluate.evaluate import EvaluateConfig, evaluate, spread
from unbraid.evaluate.metrics import Labels, Score
from unbraid.interference.monitor import Monitor
from unbraid.learn.checkpoint import CheckpointStore
from unbraid.learn.constraint import Constraint
from unbraid.learn.log import write_rollouts
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer, labels_to_examples
from unbraid.learn.trainer import Training
from unbraid.policy import Policy, load_policy, sharding
from unbraid.preflight import preflight
from unbraid.prepare import (
    Respond,
    TaskSets,
    load_tasks,
    make_environment,
    open_fleet,
    roll_of,
)
from unbraid.recipe import Recipe
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.scoring import Roll
from unbraid.rollout.trajectory import Trajectory
from unbraid.run.folder import claim, recipe_of, refuse_other_runs, replace_folder, write_scores
from unbraid.tasks.environment import Environment
from unbraid.tasks.task import Task

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called as (stage, steps done, steps in all, metrics) after every step of a stage."""


def silent(stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
    """A `Progress` that shows nothing."""


def train(recipe: Recipe, run_dir: str | Path, resume: bool = False, progress: Progress = silent) -> list[Score]:
    """Do a whole run; returns the final scores.

    Where several processes were started for it (`ranks`) they share the work, and each calls this.

    Args:
        resume: go on with what is in `run_dir`; a stopped run then ends exactly as an unbroken one.

    Raises:
        CheckpointError: `run_dir` holds a run and `resume` is off, or a run of another recipe.
        RanksError: the ranks do not find each other, have different files, or have lost one of them.
    """
    with ranks.joined(recipe.model.device):
        return _train(recipe, Path(run_dir), resume, progress if ranks.is_first() else silent)


def _train(recipe: Recipe, run_dir: Path, resume: bool, progress: Progress) -> list[Score]:
    refuse_ranks(recipe)
    ranks.first(lambda: refuse_other_runs(run_dir, recipe, resume))
    policy, acts_in, tasks, roll = ranks.in_turn(lambda: _load(recipe))
    if sharding.asked_for():
        ranks.agree(lambda: policy.shard(recipe.model.device))
    ranks.check_same("tasks", [task.id for task in (*tasks.train, *tasks.validation, *tasks.test, *tasks.warmup)])
    ranks.first(lambda: preflight(recipe, policy, tasks.train, Console(stderr=True)))
    # Only now: a recipe that cannot start leaves no folder behind that its correction would be refused.
    ranks.first(lambda: claim(run_dir, recipe, tasks.books))
    ranks.agree(lambda: recipe_of(run_dir))
    if recipe.warmup:
        warm_up(recipe, policy, tasks.warmup, run_dir, progress)
    with ExitStack() as stack:
        servers = open_fleet(recipe, policy, tasks.train, run_dir / "servers")
        with policy.whole():
            fleet = ranks.agree(lambda: stack.enter_context(servers) if ranks.is_first() else None)
        respond = Respond(policy, roll_of(recipe, policy, acts_in, fleet) if fleet else roll, recipe.seed)
        _learn(recipe, policy, tasks, respond, fleet, run_dir, progress)
        return evaluate_run(recipe, policy, tasks.test, run_dir, progress, roll=respond.roll)


def refuse_ranks(recipe: Recipe) -> None:
    """What several ranks, or their launcher, cannot have. Raises RecipeError with the first such thing."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no" and not sharding.asked_for():
        raise RecipeError(
            f"accelerate's mixed precision is {precision}, which is for sharded weights (--use_fsdp): launch with "
            "--mixed_precision no; model.dtype says what is computed in"
        )
    if ranks.world() > 1 and ":" in recipe.model.device:
        raise RecipeError(f"model.device is {recipe.model.device}, and so for every rank: set auto, each takes its own")
    if ranks.world() > 1 and recipe.sampler.engine != "local" and recipe.sampler.ahead:
        raise RecipeError("sampler.ahead draws beside what the ranks tell each other: set it to false, or use one rank")


def _load(recipe: Recipe) -> tuple[Policy, Environment | None, TaskSets, Roll]:
    _seed_everything(recipe.seed)
    # What is sharded goes to its device layer by layer: there may be no room for all of it on one.
    model = recipe.model.model_copy(update={"device": "cpu"}) if sharding.asked_for() else recipe.model
    policy = load_policy(model, recipe.chat)
    acts_in = make_environment(recipe)
    return policy, acts_in, load_tasks(recipe, policy, acts_in), roll_of(recipe, policy, acts_in)


def _learn(
    recipe: Recipe,
    policy: Policy,
    tasks: TaskSets,
    respond: Respond,
    fleet: Fleet | None,
    run_dir: Path,
    progress: Progress,
) -> None:
    """RL from the warmed-up policy, or from the latest checkpoint; `final/` is its best step."""
    store = CheckpointStore(run_dir / "checkpoints", recipe.checkpoint, recipe.fingerprint())
    best = Training(
        policy=policy,
        roll=respond.roll,
        tasks=tasks.train,
        rollout=recipe.rollout,
        learn=recipe.learn,
        constraints=[Constraint(c) for c in recipe.constraints],
        store=store,
        run_dir=run_dir,
        seed=recipe.seed,
        served=fleet,
        ahead=recipe.sampler.ahead,
        monitor=None if sharding.asked_for() else Monitor(policy, recipe.learn, recipe.rollout.temperature),
        validate=lambda done: validate(respond, tasks.validation, recipe.evaluate),
        validate_every=recipe.evaluate.every,
        on_step=lambda step, metrics: progress("train", step, recipe.learn.steps, metrics),
    ).run()
    chosen = ranks.first(lambda: next((c for c in store.all() if c.step == best), store.latest()))
    if chosen:
        ranks.agree(lambda: policy.load_weights(chosen.path))
    with policy.whole():
        ranks.first(lambda: replace_folder(run_dir / "final", policy.save))


def warm_up(recipe: Recipe, policy: Policy, tasks: Sequence[Task], run_dir: Path, progress: Progress = silent) -> None:
    """Supervised warm-up in place; `start/` in the run folder is its result, and is taken if it is there already.

    Raises:
        DataError: no task has an answer to learn from.
    """
    assert recipe.warmup
    start, unfinished = run_dir / "start", run_dir / "warmup.pt"
    if ranks.first(start.is_dir):
        ranks.agree(lambda: policy.load_weights(start))
        ranks.first(lambda: unfinished.unlink(missing_ok=True))
        return
    examples, left_out = labels_to_examples(tasks, policy.format, recipe.warmup)
    if not examples:
        reasons = "; ".join(f"{n} x {reason}" for reason, n in left_out.most_common(3))
        source = recipe.tasks.warmup or recipe.tasks.train
        raise DataError(f"{source}: nothing to warm up on ({reasons}): give answers, or set warmup: null")
    batches = epochs(examples, recipe.warmup.batch_examples, recipe.seed)
    trainer = SupervisedTrainer(policy.model, recipe.warmup, batches, fast=recipe.learn.fast)
    if ranks.first(unfinished.exists):
        ranks.agree(lambda: trainer.load_state_dict(torch.load(unfinished, weights_only=True)))

    def on_step(step: int, metrics: dict[str, float]) -> None:
        progress("warm-up", step, trainer.config.steps, metrics)
        if step % recipe.checkpoint.every == 0 and step < trainer.config.steps:
            state = trainer.state_dict()
            ranks.first(lambda: keep(state))

    def keep(state: dict[str, Any]) -> None:
        partial = unfinished.with_suffix(".writing")
        torch.save(state, partial)
        partial.rename(unfinished)

    def done() -> None:
        replace_folder(start, policy.save)
        unfinished.unlink(missing_ok=True)

    trainer.run(on_step)
    with policy.whole():
        ranks.first(done)


def validate(respond: Respond, tasks: Sequence[Task], config: EvaluateConfig) -> tuple[float, dict[str, float]]:
    """Greedy accuracy in every mode; returns that of the first mode, and what to log."""
    greedy = config.model_copy(update={"temperatures": (0.0,)})
    labels = Labels("validation", "", "", respond.policy.parameter_count())
    found: dict[str, float] = {}
    scores = evaluate(respond, tasks, greedy, labels)
    for score in scores:
        found[f"validation/{score.mode}/accuracy"] = score.accuracy.value
        found[f"validation/{score.mode}/tokens"] = score.tokens.value
        found[f"validation/{score.mode}/think_rate"] = score.think_rate.value if score.think_rate else float("nan")
    return scores[0].accuracy.value, found


def evaluate_run(
    recipe: Recipe,
    policy: Policy,
    tasks: Sequence[Task],
    run_dir: Path,
    progress: Progress = silent,
    checkpoint: str = "final",
    roll: Roll | None = None,
) -> list[Score]:
    """Evaluate a policy under its recipe; writes `scores.jsonl` and `evaluation.parquet` (greedy, first mode).

    Args:
        checkpoint: folder of the run that the weights are from: the scores carry it.
        roll: how to roll out; None makes one from the recipe.
    """
    config, done = recipe.evaluate, 0
    chosen = spread(tasks, config.limit)
    shown: list[Trajectory] = []
    total = len(config.modes) * len(config.temperatures)

    def keep(score: Score, trajectories: list[Trajectory]) -> None:
        nonlocal done
        done += 1
        progress("evaluate", done, total, {"accuracy": score.accuracy.value})
        if not shown:
            shown.extend(trajectories)

    preset = recipe.chat.preset
    template = preset if isinstance(preset, str) else "own"
    weights, style = f"{run_dir.name}/{checkpoint}", f"{template}, {recipe.chat.call_format}"
    labels = Labels(recipe.name, weights, style, policy.parameter_count())
    respond = Respond(policy, roll or roll_of(recipe, policy), recipe.seed)
    scores = evaluate(respond, chosen, config, labels, keep)
    ranks.first(lambda: write_scores(run_dir / "scores.jsonl", scores))
    ranks.first(lambda: write_rollouts(run_dir / "evaluation.parquet", shown))
    return scores


def _seed_everything(seed: int) -> None:
    """Nothing here draws from the global generators but new weights; a user's reward or source may."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
