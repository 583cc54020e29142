"""The claims run: all cells that the time allows, whatever is there already included, and its page."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from unbraid.lab import base_model, conflict_base, search_base
from unbraid.lab.conflict_world import CONFLICT_WORLD_VERSION
from unbraid.lab.dart.cells import Cell, CellResult, cell_folder, read_cell, run_cell
from unbraid.lab.dart.methods import Learner, World
from unbraid.lab.dart.plan import Arm, arm_of, chosen_rates, result_cells, search_plan, stages, tuning, untrained_cells
from unbraid.lab.search_world import SEARCH_WORLD_VERSION
from unbraid.lab.sweep import Work, run_within
from unbraid.tasks.cache import cache_folder

SECONDS = {
    (World.CONFLICT, Learner.SUPERVISED): 8.0,
    (World.CONFLICT, Learner.GRPO): 30.0,
    (World.SEARCH, Learner.GRPO): 150.0,
}
BASE_SECONDS = {World.CONFLICT: 30.0, World.SEARCH: 240.0}
"""First guesses on one busy core; measured ones replace them."""


@dataclass
class Ran:
    """What a claims run has: results of the plan as far as they are there, the rest of the plan, and failures.

    rates: the learning rates that tuning chose. tuned: the tuning cells' results.
    """

    cells: list[Cell] = field(default_factory=list)
    results: list[CellResult] = field(default_factory=list)
    tuned: list[CellResult] = field(default_factory=list)
    rates: dict[Arm, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run_plan(
    out: Path, bases: int, worlds: Sequence[World], jobs: int, minutes: float | None, overrides: Sequence[str],
    console: Console,
) -> Ran:  # fmt: skip
    """Run what is missing: the conflict world stage by stage, each tuned first, and then the search world.

    Args:
        worlds: where anything is run; what is there of the other one is read all the same.
    """
    began, ran = time.monotonic(), Ran()

    def do(cells: Sequence[Cell]) -> list[CellResult]:
        left = None if minutes is None else max(0.0, minutes - (time.monotonic() - began) / 60)
        if not all(cell.world in worlds for cell in cells):
            left = 0.0
        ran.failed |= run_within(work_for(cells, out, overrides), jobs, left, console).failed
        return [result for cell in cells if (result := read_cell(cell, out, overrides)) is not None]

    def keep(cells: Sequence[Cell]) -> None:
        ran.cells += cells
        ran.results += do(cells)

    keep(untrained_cells(bases))
    for stage in stages():
        ran.tuned += do([cell for arm in stage.arms for cell in tuning(arm)])
        ran.rates = chosen_rates(ran.tuned)
        # What is not tuned yet belongs to the plan all the same.
        planned = result_cells(stage, bases, dict.fromkeys(stage.arms, 0.0))
        ran.cells += [cell for cell in planned if arm_of(cell) not in ran.rates]
        keep(result_cells(stage, bases, ran.rates))
    keep(search_plan(bases))
    return ran


def work_for(cells: Sequence[Cell], out: Path, overrides: Sequence[str] = ()) -> list[Work]:
    """What is left to do for these cells: also the bases that they need, each before its first cell."""
    work: dict[str, Work] = {}
    for cell in cells:
        if cell_folder(cell, out, overrides).is_dir():
            continue
        after: tuple[str, ...] = ()
        if not has_base(cell.world, cell.base):
            name = f"{cell.world} base {cell.base}"
            kind, expected = f"{cell.world} base", BASE_SECONDS[cell.world]
            work.setdefault(name, Work(name, build_base_once, (cell.world, cell.base), (), kind, expected))
            after = (name,)
        kind = f"{cell.world} {cell.learner}" if cell.rate else f"{cell.world} untrained"
        seconds = SECONDS[cell.world, cell.learner] if cell.rate else 5.0
        work[cell.name] = Work(cell.name, run_cell, (cell, out, tuple(overrides)), after, kind, seconds)
    return list(work.values())


def build_base_once(world: World, seed: int, tell: Callable[..., None]) -> float:
    """Build a base into the cache, unless it is there; returns seconds."""
    began = time.perf_counter()
    build = conflict_base.conflict_base_path if world is World.CONFLICT else search_base.search_base_path
    build(seed)
    return time.perf_counter() - began


def has_base(world: World, seed: int) -> bool:
    """Whether a base is shipped or in the cache."""
    version = CONFLICT_WORLD_VERSION if world is World.CONFLICT else SEARCH_WORLD_VERSION
    shipped = Path(base_model.__file__).parent / "bases" / f"{world}-{seed}"
    return shipped.is_dir() or (cache_folder() / f"{world}-v{version}-{seed}").is_dir()
