"""A run folder: which recipe it is, which weights, which scores.

runs/NAME/  recipe.yaml  metrics.jsonl  notes.jsonl  rollouts/  start/  checkpoints/  final/
            scores.jsonl  evaluation.parquet  report.html
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unbraid.errors import CheckpointError, DataError
from unbraid.evaluate.metrics import Score
from unbraid.learn.checkpoint import UNREADABLE
from unbraid.policy import Policy, load_policy
from unbraid.policy.saving import weights_folder
from unbraid.recipe import Recipe, load_recipe


def recipe_of(run_dir: str | Path) -> Recipe:
    """The recipe that a run was made with.

    Raises:
        DataError: the folder is no run.
    """
    path = Path(run_dir) / "recipe.yaml"
    if not path.exists():
        raise DataError(f"{run_dir} is not a run folder: it holds no recipe.yaml")
    return load_recipe([path])


def claim(run_dir: Path, recipe: Recipe, books: str) -> None:
    """Make the folder this recipe's. `books`: what was read and left out of its tasks, for people."""
    path = run_dir / "recipe.yaml"
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(".writing-recipe.yaml")
        partial.write_text(recipe.to_yaml())
        partial.rename(path)
    (run_dir / "tasks.txt").write_text(books + "\n")


def refuse_other_runs(run_dir: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that holds a run, unless it is this recipe's and is to go on.

    Raises:
        CheckpointError: it is not.
    """
    path = run_dir / "recipe.yaml"
    if not path.exists():
        return
    if not resume:
        raise CheckpointError(f"{run_dir} holds a run already: add --resume to go on with it, or choose another --out")
    if load_recipe([path]).fingerprint() != recipe.fingerprint():
        changed = _differences(load_recipe([path]).model_dump(mode="json"), recipe.model_dump(mode="json"))
        raise CheckpointError(
            f"{run_dir} was started with another recipe (other now: {', '.join(changed[:5])}): resume with {path}, or "
            "choose another --out"
        )


def _differences(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Dotted keys at which two recipes differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = dict.fromkeys([*ours, *theirs])
        below = [_differences(ours.get(k), theirs.get(k), f"{place}.{k}".lstrip(".")) for k in keys]
        return [key for found in below for key in found]
    return [] if ours == theirs else [place]


def take_weights(policy: Policy, folder: Path) -> None:
    """Load the weights that a run has written: its `final`, `start` or `checkpoints/step-…`.

    Raises:
        CheckpointError: the folder is absent, or holds no weights of this model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}: finish the run, or name a folder of it that holds weights")
    try:
        policy.load_weights(folder)
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{folder} holds no weights of this model ({reason}): name another folder") from error


def policy_of(run_dir: str | Path, checkpoint: str = "final") -> Policy:
    """The policy of a run, or of an exported folder, with its weights.

    Raises:
        DataError: the folder is neither. CheckpointError: it holds no such weights. ModelError: they cannot be loaded.
    """
    recipe, folder = recipe_of(run_dir), weights_folder(run_dir, checkpoint)
    if (
        folder == Path(run_dir) and (folder / "config.json").is_file()
    ):  # it is a model by itself, the base is not needed
        return load_policy(recipe.model.model_copy(update={"path": str(folder), "adapter": None}), recipe.chat)
    policy = load_policy(recipe.model, recipe.chat)
    take_weights(policy, folder)
    return policy


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that then takes the place of `target`, whole or not at all."""
    partial = target.with_name(f".writing-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(score.to_json()) + "\n" for score in scores))


def read_scores(run_dir: str | Path) -> list[Score]:
    """The scores of a run.

    Raises:
        DataError: the folder holds none.
    """
    path = Path(run_dir) / "scores.jsonl"
    if not path.exists():
        raise DataError(f"{run_dir} holds no scores.jsonl: finish the run, or `unbraid evaluate` it")
    return [Score.from_json(json.loads(line)) for line in path.read_text().splitlines()]
