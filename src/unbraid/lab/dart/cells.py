"""One cell of the claims run: a world, a base, a dose, a method and how it learns; and a folder with what came out.

    OUT/cells/NAME-FINGERPRINT/cell.json

A cell is there whole or not at all, so whatever is there is not run again. The fingerprint is of everything that
decides the result: a changed recipe, world or pre-training gives other names, and the old cells stay unread.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from unbraid.lab import conflict_base, search_base
from unbraid.lab.calls_world import Split
from unbraid.lab.conflict_world import CONFLICT_WORLD_VERSION
from unbraid.lab.dart.methods import METHODS, TARGETS, Learner, Sharing, World
from unbraid.lab.search_world import SEARCH_WORLD_VERSION
from unbraid.learn.supervised import WarmupConfig
from unbraid.recipe import Recipe, load_recipe

TUNING_BASE = 0
"""The conflict world's base on whose dev set learning rates are chosen; no result is from it."""
SUPERVISED_STEPS, SUPERVISED_EXAMPLES = 200, 16
GRPO_STEPS = 60
TRAINING_QUESTIONS = 1440
"""Of the search world: 90 steps of 16, each once."""


@dataclass(frozen=True)
class Cell:
    """What is run. `base` is the seed of the world and of its base model, `seed` that of adapters, order and sampling.

    rho: dose of the conflict world (1 aligned, 0 opposed); 1 in the search world, which has none.
    rate: the learning rate; 0 where nothing is trained.
    """

    world: World
    sharing: Sharing
    base: int
    rho: float
    learner: Learner
    method: str
    rate: float
    seed: int = 0

    @property
    def name(self) -> str:
        dose = f"-{self.sharing}-rho-{self.rho:g}" if self.world is World.CONFLICT else ""
        return f"{self.world}-base-{self.base}{dose}-{self.learner}-{self.method}-rate-{self.rate:g}-seed-{self.seed}"

    @property
    def split(self) -> Split:
        """The questions that it is measured on."""
        return Split.DEV if (self.world, self.base) == (World.CONFLICT, TUNING_BASE) else Split.TEST


@dataclass(frozen=True)
class CellResult:
    """What came out of a cell.

    final: success at the end: in the conflict world the mean probability of a right episode (computed), in the search
        world the share of right answers, sampled at temperature 1. auc: its mean over training, trapezoidal.
    curve: (step, success), the start included.
    action, reasoning: what each role does well by itself, in [0, 1]. Conflict: the probability of the right call, and
        of all the rest. Search: queries in both of the documents' words, and reading the document that was asked for.
    only: the adapter that alone is on → (action, reasoning).
    nats: role → mean log-prob of what it writes in right episodes; conflict world only.
    information: bits that the adapter at the two places of a form tells about the role there; routed methods of the
        conflict world only. 1 = all, 0 = nothing.
    more: other numbers, for people.
    """

    cell: Cell
    final: float
    auc: float
    curve: list[tuple[int, float]]
    action: float
    reasoning: float
    only: dict[str, tuple[float, float]] = field(default_factory=dict)
    nats: dict[str, float] = field(default_factory=dict)
    information: float | None = None
    more: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def recipe_of(cell: Cell, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a cell; supervised ones take model, chat and environment from it."""
    method = METHODS[cell.method]
    rate = [f"learn.learning_rate={cell.rate!r}"] if cell.rate else []
    common = [f"name={cell.method}", f"label={method.label}", f"seed={cell.seed}", *rate, *method.overrides]
    if cell.world is World.SEARCH:
        world = "unbraid.lab.search_world"
        return load_recipe(
            ["search-world"],
            [
                f"model.path=unbraid.lab.search_base:search_base_path?world={cell.base}",
                f"environment.name={world}:SearchWorld?world={cell.base}",
                f"tasks.train={world}:train_set?world={cell.base}&count={TRAINING_QUESTIONS}&seed={cell.seed}",
                f"tasks.validation={world}:held_out?world={cell.base}&split=dev",
                f"tasks.test={world}:held_out?world={cell.base}&split=test",
                "evaluate.temperatures=[1.0, 0.0]",
                "evaluate.samples=2",
                *common,
                *overrides,
            ],
        )
    world, dose = "unbraid.lab.conflict_world", f"world={cell.base}&rho={cell.rho:g}"
    targets = [f"model.adapter.targets={TARGETS[cell.sharing]}"] if method.has_adapter else []
    return load_recipe(
        ["conflict-world"],
        [
            f"model.path=unbraid.lab.conflict_base:conflict_base_path?world={cell.base}",
            f"tasks.train={world}:train_set?{dose}",
            f"tasks.validation={world}:held_out?{dose}&split=dev",
            f"tasks.test={world}:held_out?{dose}&split=test",
            f"learn.steps={GRPO_STEPS}",
            *common,
            *targets,
            *overrides,
        ],
    )


def supervised_config(cell: Cell) -> WarmupConfig:
    """How a supervised cell learns."""
    return WarmupConfig(
        steps=SUPERVISED_STEPS,
        batch_examples=SUPERVISED_EXAMPLES,
        learning_rate=cell.rate,
        ramp_steps=5,
        decay="constant",
    )


def cell_folder(cell: Cell, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Where the result of a cell is, or will be."""
    recipe = recipe_of(cell, overrides)
    # What is at its default says nothing: a setting that is new to recipes does not make old cells wrong.
    kept = recipe.model_dump(mode="json", exclude={"label", "checkpoint", "sampler"}, exclude_defaults=True)
    parts: list[Any] = [kept]
    if cell.world is World.CONFLICT:
        parts += [CONFLICT_WORLD_VERSION, conflict_base.PRETRAINING.model_dump()]
        if cell.learner is Learner.SUPERVISED and cell.rate:
            parts.append(supervised_config(cell).model_dump())
    else:
        parts += [SEARCH_WORLD_VERSION, search_base.PRETRAINING.model_dump()]
    digest = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
    return out / "cells" / f"{cell.name}-{digest}"


def read_cell(cell: Cell, out: Path, overrides: Sequence[str] = ()) -> CellResult | None:
    """The result of a cell; None if it was not run."""
    path = cell_folder(cell, out, overrides) / "cell.json"
    return TypeAdapter(CellResult).validate_json(path.read_bytes()) if path.exists() else None


def run_cell(cell: Cell, out: Path, overrides: Sequence[str], tell: Callable[..., None]) -> float:
    """Run a cell and keep its result; returns seconds. Its base must be there."""
    from unbraid.lab.dart.conflict import run_conflict
    from unbraid.lab.dart.search import run_search
    from unbraid.run import replace_folder

    began, target = time.perf_counter(), cell_folder(cell, out, overrides)
    if target.is_dir():
        return 0.0
    recipe = recipe_of(cell, overrides)
    if cell.world is World.CONFLICT:
        result = run_conflict(cell, recipe, tell)
    else:
        result = run_search(cell, recipe, out / "unfinished" / target.name, tell)
    seconds = time.perf_counter() - began
    found = TypeAdapter(CellResult).dump_json(replace(result, seconds=seconds), indent=1)

    def keep(folder: Path) -> None:
        (folder / "cell.json").write_bytes(found)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())

    target.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(target, keep)
    return seconds
