"""Second thoughts for a finished run: a threshold chosen on validation tasks, and what it gives on test tasks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.errors import DataError, RecipeError
from unbraid.evaluate.evaluate import spread
from unbraid.evaluate.metrics import Labels, compare, score
from unbraid.evaluate.second_thoughts import Curve, best_affordable, cheapest_of, curves, points
from unbraid.policy import Policy, load_policy
from unbraid.prepare import Respond, TaskSets, roll_of
from unbraid.recipe import Recipe
from unbraid.report.second_thoughts import Seconds
from unbraid.rollout.scoring import Roll
from unbraid.rollout.second_thoughts import SecondThoughts
from unbraid.rollout.trajectory import Trajectory
from unbraid.run.folder import take_weights
from unbraid.run.training import Progress, silent

FILE = "second_thoughts.json"
KEEP = 0.97
"""Choice: the share of always thinking's accuracy that is asked for where nothing is said."""
BASE = "base"
"""Whose drafts are those of the model as it was before any training."""


@dataclass(frozen=True)
class Drafts:
    """Who writes drafts, if not the run's own weights, free to think. name: a folder of the run, or `BASE`."""

    name: str
    roll: Roll


def drafts_of(recipe: Recipe, run_dir: Path, name: str) -> Drafts:
    """Drafts by other weights of a run, drawn in this process even where the run has servers.

    Choice: a second model in memory, also where the weights differ by an adapter only.

    Args:
        name: a folder of the run that holds weights, or `BASE`: the model that the recipe names.

    Raises:
        CheckpointError: there is no such folder, or it holds no weights of this model.
    """
    policy = ranks.in_turn(lambda: load_policy(recipe.model, recipe.chat))
    if name != BASE:
        take_weights(policy, run_dir / name)
    return Drafts(name, roll_of(recipe, policy))


def second_thoughts(
    recipe: Recipe,
    policy: Policy,
    tasks: TaskSets,
    run_dir: Path,
    roll: Roll,
    tokens: float | None = None,
    keep: float | None = None,
    progress: Progress = silent,
    checkpoint: str = "final",
    drafts: Drafts | None = None,
) -> Seconds:
    """Choose a threshold on the validation tasks and evaluate it on the test tasks; writes `second_thoughts.json`.

    Args:
        roll: how the run rolls out. tokens: per task, kept to on the test tasks, and as careful as that allows; the
            threshold is where that begins. keep: the share of always thinking's accuracy that must be kept, and as
            cheap as that allows; `KEEP` where neither is given.
        checkpoint: folder of the run that the weights are from. drafts: who writes first answers, told not to think;
            None: these weights, free to think.

    Raises:
        RecipeError: the run acts in an environment. DataError: no threshold gives what was asked for.
    """
    if recipe.environment:
        raise RecipeError(
            f"{run_dir} acts in the environment {recipe.environment.name}: second thoughts are of single responses"
        )
    if tokens is not None and keep is not None:
        raise RecipeError("a number of tokens and a share to keep were asked for: give one of them")
    done, total = 0, 6 if drafts else 5

    def draw(part: Sequence[Any], mode: Mode, how: Roll = roll) -> list[Trajectory]:
        nonlocal done
        done += 1
        found = Respond(policy, how, recipe.seed)(part, mode, 0.0, 1)
        progress("second thoughts", done, total, {"accuracy": sum(t.correct for t in found) / len(found)})
        return found

    part = spread(tasks.validation, recipe.evaluate.limit)
    free, thoughts = draw(part, Mode.AUTO), draw(part, Mode.THINK)
    if drafts:
        looked_at = curves(free, draw(part, Mode.NO_THINK, drafts.roll), thoughts)
    else:
        looked_at = [Curve(1.0, points(free, thoughts))]
    thinking = sum(t.correct for t in thoughts) / len(thoughts)
    share = KEEP if keep is None else keep
    asked = f"{tokens:g} tokens per task" if tokens is not None else f"{share:.0%} of always thinking's accuracy"
    try:
        if tokens is not None:
            curve, chosen = best_affordable(looked_at, tokens)
        else:
            curve, chosen = cheapest_of(looked_at, share * thinking)
    except DataError as problem:
        raise DataError(f"on {len(part)} validation tasks {problem}") from None
    allowance = None if tokens is None else curve.allowance(tokens)
    part = spread(tasks.test, recipe.evaluate.limit)
    by_itself, always = (draw(part, mode) for mode in (Mode.AUTO, Mode.THINK))
    careful = SecondThoughts(roll, allowance or chosen.doubt, drafts.roll if drafts else None, curve.sure)
    # Tasks may grow harder from first to last, and an allowance would be spent by then.
    order = np.random.default_rng(recipe.seed).permutation(len(part))
    mixed = draw([part[i] for i in order], Mode.AUTO, careful)
    second = [mixed[i] for i in np.argsort(order)]
    ways = {
        "by itself": (by_itself, Mode.AUTO),
        "always thinking": (always, Mode.THINK),
        "second thoughts": (second, Mode.AUTO),
    }
    scores = [
        score(drawn, Labels(name, f"{run_dir.name}/{checkpoint}", "", policy.parameter_count()), mode, 0.0)
        for name, (drawn, mode) in ways.items()
    ]
    last = ways["second thoughts"][0]
    names = [name for name in ways if name != "second thoughts"]
    against = [compare(ways[name][0], last, (name, "second thoughts")) for name in names]
    result = Seconds(
        run_dir.name, asked, drafts.name if drafts else None, curve, chosen, allowance.doubt() if allowance else None,
        thinking, len(thoughts), scores, against,
    )  # fmt: skip
    ranks.first(lambda: (run_dir / FILE).write_text(json.dumps(result.to_json(), indent=1) + "\n"))
    return result
