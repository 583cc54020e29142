"""Running a cell of the search world: an ordinary run of the recipe `search-world`, and its skills."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unbraid.chat.types import Mode
from unbraid.errors import CheckpointError
from unbraid.evaluate.evaluate import spread
from unbraid.lab.dart.cells import Cell, CellResult
from unbraid.lab.dart.conflict import area, only_adapter
from unbraid.lab.search_skills import Skills, skills
from unbraid.lab.search_world import QueryKind
from unbraid.learn.log import read_metrics, read_rollouts
from unbraid.policy import Policy, load_policy
from unbraid.policy.two_agents import TwoAgents
from unbraid.prepare import TaskSets, load_tasks, make_environment, roll_of
from unbraid.recipe import Recipe
from unbraid.tokens import Router

ALONE = 150
"""Test questions that each adapter is tried on by itself, once each."""


def run_search(cell: Cell, recipe: Recipe, work: Path, tell: Callable[..., None]) -> CellResult:
    """Run or resume the cell in `work`, which is gone afterwards."""
    from unbraid.run import evaluate_run, read_scores, take_weights, train

    if cell.rate:
        try:
            train(recipe, work, resume=True, progress=tell)
        except CheckpointError:  # its checkpoint cannot be read, or is of another place: only time is lost
            shutil.rmtree(work)
            train(recipe, work, progress=tell)
    policy = load_policy(recipe.model, recipe.chat)
    tasks = load_tasks(recipe, policy, make_environment(recipe))
    if cell.rate:
        take_weights(policy, work / "final")
    else:
        work.mkdir(parents=True, exist_ok=True)
        evaluate_run(recipe, policy, tasks.test, work, tell)
    drawn = read_rollouts(work / "evaluation.parquet")
    found = skills(drawn, policy.format.decode)
    final = float(np.mean([t.correct for t in drawn]))
    greedy = next(score.accuracy.value for score in read_scores(work) if not score.temperature)
    curve = [(row["step"], row["accuracy"]) for row in read_metrics(work)] if cell.rate else [(0, final)]
    more = {"greedy": greedy, "order": found.order, "searches": found.searches}
    if cell.rate and isinstance(policy.router, Router) and not isinstance(policy.model, TwoAgents):
        only = {name: _skills_alone(policy, recipe, tasks, name) for name in policy.router.adapters}
    else:
        only = {}
    shutil.rmtree(work)
    return CellResult(
        cell, final, area(curve), curve, *_skill_pair(found), only={n: _skill_pair(s) for n, s in only.items()},
        more=more | {f"order/{name}": s.order for name, s in only.items()},
    )  # fmt: skip


def _skill_pair(found: Skills) -> tuple[float, float]:
    """(tool quality, reading quality); an occasion that never came counts as a failure."""
    return tuple(float(np.nan_to_num(x)) for x in (found.wording[QueryKind.BOTH_WORDS], found.reading))  # type: ignore[return-value]


def _skills_alone(policy: Policy, recipe: Recipe, tasks: TaskSets, adapter: str) -> Skills:
    with only_adapter(policy, adapter):
        chosen = spread(tasks.test, ALONE)
        drawn = roll_of(recipe, policy)(chosen, [Mode.AUTO], temperature=1.0, seed=(recipe.seed, "alone", adapter))
    return skills(drawn, policy.format.decode)
