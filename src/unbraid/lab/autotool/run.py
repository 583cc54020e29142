"""The claims run: all cells that the time allows, whatever is there already included, and its pages."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from unbraid.lab import base_model
from unbraid.lab.autotool.cells import Cell, cell_folder, check_budgets, plan, read_cell, run_cell, start_folder
from unbraid.lab.autotool.methods import METHODS
from unbraid.lab.autotool.page import write_claims, write_one_base
from unbraid.lab.autotool.table import Claims, claims_of
from unbraid.lab.calls_world import WORLD_VERSION
from unbraid.lab.quickstart import make
from unbraid.lab.sweep import Work, run_within
from unbraid.tasks.cache import cache_folder

BASE_SECONDS, START_SECONDS, CELL_SECONDS, READ_SECONDS = 240.0, 25.0, 90.0, 15.0
"""First guesses on one busy core; measured ones replace them."""


def autotool(
    out: str | Path, bases: int = 6, seeds: int = 1, jobs: int = 1, minutes: float | None = None,
    overrides: Sequence[str] = (), console: Console | None = None,
) -> Claims:  # fmt: skip
    """Run what is missing of the plan in `out`, then write `claims.html` and `report.html` there.

    Args:
        bases, seeds: of the plan; base 0 is shipped, others are built first (three minutes each).
        jobs: processes of one thread each; 0 = one per core.
        minutes: nothing is started that would not end by then; 0 = only read what is there. None = no limit.
        overrides: for every recipe; other overrides are other cells.
    """
    folder, console = Path(out).resolve(), console or Console(stderr=True)
    cells = plan(bases, seeds)
    responses = check_budgets(cells, overrides)
    schedule = run_within(work_for(cells, folder, overrides), jobs, minutes, console)
    found = (read_cell(cell, folder, overrides) for cell in cells)
    results = [one for result in found if result is not None for one in result.with_served]
    claims = claims_of(cells, results, schedule.failed, responses)
    folder.mkdir(parents=True, exist_ok=True)
    command = command_of(out, bases, seeds, jobs, minutes, overrides)
    write_claims(folder / "claims.html", claims, command)
    write_one_base(folder / "report.html", claims, folder, overrides, command)
    return claims


def command_of(
    out: str | Path, bases: int, seeds: int, jobs: int, minutes: float | None, overrides: Sequence[str]
) -> str:
    """The command line of a run."""
    budget = "" if minutes is None else f" --budget {minutes:g}"
    settings = f"--out {out} --bases {bases} --seeds {seeds} --jobs {jobs}{budget}"
    return " ".join(["unbraid lab autotool", settings, *overrides])


def work_for(cells: Sequence[Cell], out: Path, overrides: Sequence[str] = ()) -> list[Work]:
    """What is left to do for these cells: also the bases and starts that they need, each before its first cell."""
    work: dict[str, Work] = {}
    for cell in cells:
        if cell_folder(cell, out, overrides).is_dir():
            continue
        after: tuple[str, ...] = ()
        if not has_base(cell.base):
            name = f"base {cell.base}"
            work.setdefault(name, Work(name, build_base_once, (cell.base,), (), "base", BASE_SECONDS))
            after = (name,)
        begins_as, folder = cell.begins_as, start_folder(cell, out)
        if begins_as is not None and not (folder / "starts" / begins_as).is_dir():
            name = f"{begins_as} start of base {cell.base}, seed {cell.seed}"
            arguments = (begins_as.value, folder, cell.seed, cell.base)
            work.setdefault(name, Work(name, make, arguments, after, "start", START_SECONDS))
            after = (name,)
        trained = METHODS[cell.method].is_trained
        kind, seconds = ("training", CELL_SECONDS) if trained else ("evaluation", READ_SECONDS)
        work[cell.name] = Work(cell.name, run_cell, (cell, out, tuple(overrides)), after, kind, seconds)
    return list(work.values())


def build_base_once(world: int, tell: Callable[..., None]) -> float:
    """Build the base of a world into the cache, unless it is there; returns seconds."""
    began = time.perf_counter()
    base_model.base_path(world)
    return time.perf_counter() - began


def has_base(world: int) -> bool:
    """Whether the base of a world is shipped or in the cache."""
    shipped = Path(base_model.__file__).parent / "bases" / f"calls-{world}"
    return shipped.is_dir() or (cache_folder() / f"calls-v{WORLD_VERSION}-{world}").is_dir()
