"""Running a cell of the conflict world: supervised or by GRPO, with exact success all along the way."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbraid.lab.calls_world import Split
from unbraid.lab.conflict_base import conflict_example
from unbraid.lab.conflict_measure import SKILLS, Forcing
from unbraid.lab.conflict_world import Question, tasks_of
from unbraid.lab.dart.cells import Cell, CellResult, Learner, supervised_config
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer
from unbraid.learn.trainer import Training
from unbraid.policy import Policy, load_policy
from unbraid.policy.control_routers import controlled
from unbraid.policy.two_agents import TwoAgents
from unbraid.prepare import roll_of
from unbraid.recipe import Recipe
from unbraid.tasks.task import Task
from unbraid.tokens import Router

SUPERVISED_EVERY, GRPO_EVERY = 20, 5
"""Steps between two points of a curve."""


def run_conflict(cell: Cell, recipe: Recipe, tell: Callable[..., None]) -> CellResult:
    """Train as the cell says, and measure on its questions."""
    torch.manual_seed(cell.seed)
    policy = load_policy(recipe.model, recipe.chat)
    forcing = Forcing(policy, tasks_of(cell.base, cell.rho, cell.split))
    curve: list[tuple[int, float]] = []

    def point(step: int) -> float:
        success = forcing.success(policy)
        curve.append((step, success))
        return success

    point(0)
    more: dict[str, float] = {}
    if cell.rate and cell.learner is Learner.SUPERVISED:

        def on_step(step: int, _: dict[str, float]) -> None:
            if step % SUPERVISED_EVERY == 0:
                point(step)

        supervise(cell, policy, on_step)
    elif cell.rate:
        more = _reinforced(cell, policy, recipe, point)
    found = forcing.measure(policy)
    skill = found.skill.mean(0)
    return CellResult(
        cell,
        final=curve[-1][1],
        auc=area(curve),
        curve=curve,
        action=float(skill[0]),
        reasoning=float(skill[1]),
        only=adapters_alone(policy, forcing),
        nats={role.name.lower(): float(nats) for role, nats in zip(SKILLS, found.logprobs.mean(0), strict=True)},
        information=information(policy, forcing),
        more=more,
    )


def supervise(cell: Cell, policy: Policy, on_step: Callable[[int, dict[str, float]], None]) -> None:
    """Supervised training as the cell says, in place."""
    vocabulary = policy.tokenizer.get_vocab()
    questions = [Question.of(task) for task in tasks_of(cell.base, cell.rho, Split.TRAIN)]
    examples = [conflict_example(question, vocabulary) for question in questions]
    config = supervised_config(cell)
    SupervisedTrainer(policy.model, config, epochs(examples, config.batch_examples, cell.seed)).run(on_step)


def _reinforced(cell: Cell, policy: Policy, recipe: Recipe, point: Callable[[int], float]) -> dict[str, float]:
    """GRPO, with `point` for a validation; returns what its last steps logged."""
    last: dict[str, float] = {}

    def on_step(step: int, metrics: dict[str, float]) -> None:
        last.update(
            {name: metrics[name] for name in ("reward", "none_rate", "truncated_rate", "entropy") if name in metrics}
        )

    tasks = tasks_of(cell.base, cell.rho, Split.TRAIN)
    reinforce(
        policy, recipe, tasks, on_step=on_step, validate=lambda done: (point(done), {}), validate_every=GRPO_EVERY
    )
    return last


def reinforce(policy: Policy, recipe: Recipe, tasks: Sequence[Task], **further: Any) -> None:
    """GRPO as the recipe says, in place; nothing stays on disk.

    Args:
        further: fields of `Training`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        Training(
            policy=policy,
            roll=roll_of(recipe, policy),
            tasks=tasks,
            rollout=recipe.rollout,
            learn=recipe.learn,
            constraints=[],
            store=CheckpointStore(Path(scratch) / "checkpoints", CheckpointConfig(every=10**6, keep=1), ""),
            run_dir=Path(scratch),
            seed=recipe.seed,
            keep_rollouts=False,
            **further,
        ).run()


def area(curve: list[tuple[int, float]]) -> float:
    """Mean success over training, trapezoidal, in [0, 1]."""
    steps, values = np.array(curve).T
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0])) if len(curve) > 1 else float(values[0])


def only_adapter(policy: Policy, name: str) -> AbstractContextManager[None]:
    """Within, tokens of other adapters run through the bare base: the paper's study of each adapter by itself."""
    return controlled(policy.model, "only", (name,))


def adapters_alone(policy: Policy, forcing: Forcing) -> dict[str, tuple[float, float]]:
    """Skills with one adapter on at a time, by the adapter; empty for policies that do not route by role."""
    found: dict[str, tuple[float, float]] = {}
    if not isinstance(policy.router, Router) or isinstance(policy.model, TwoAgents):
        return found
    for name in policy.router.adapters:
        with only_adapter(policy, name):
            action, reasoning = forcing.measure(policy).skill.mean(0)
        found[name] = float(action), float(reasoning)
    return found


def information(policy: Policy, forcing: Forcing) -> float | None:
    """Mutual information in bits of role and adapter at the input positions that write the forms, over all episodes.

    1 for routing by role. None for policies that do not route.
    """
    if policy.router is None:
        return None
    counts = np.zeros((len(SKILLS), len(policy.router.adapters) + 2))  # and all of them, and, last, none
    for episode, places in zip(forcing.right, forcing.places, strict=True):
        routes = policy.routes(episode.ids, episode.roles)
        assert routes is not None
        for skill, place in enumerate(places):
            counts[skill, routes[place - 1]] += 1
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / independent[seen])).sum())
