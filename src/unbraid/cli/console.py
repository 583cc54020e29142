"""What all commands share: two consoles, arguments that mean the same everywhere, progress bars, tables."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console, errors = Console(), Console(stderr=True)

Layers = Annotated[
    list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipe files or shipped names, then overrides.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]


def several() -> bool:
    """Whether this process is one of several that were started together (`unbraid.ranks`)."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first() -> bool:
    """Whether this process is the one that talks: alone, or the first of several."""
    return not several() or os.environ.get("RANK", "0") == "0"


class Bars:
    """One progress bar per stage, with the time left; shown by the first of several processes."""

    def __enter__(self) -> "Bars":
        self.progress = Progress(
            TextColumn("{task.description:<9}"), BarColumn(bar_width=12), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("left  {task.fields[note]}"), console=errors, disable=not is_first(),
        )  # fmt: skip
        self.bars: dict[str, Any] = {}
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
        """A `run.Progress`."""
        if stage not in self.bars:
            self.bars[stage] = self.progress.add_task(stage, total=total, note="")
        shown = [("loss", ".2f"), ("accuracy", ".2f"), ("think_rate", ".2f")]
        note = "  ".join(
            f"{key.replace('_', ' ')} {metrics[key]:{form}}"
            for key, form in shown
            if isinstance(metrics.get(key), int | float) and math.isfinite(metrics[key])
        )
        self.progress.update(self.bars[stage], completed=done, total=total, note=note)


def load(items: list[str]) -> Any:
    """The recipe of layers and overrides, told apart by their `=`."""
    from unbraid.recipe import load_recipe

    return load_recipe([i for i in items if "=" not in i], [i for i in items if "=" in i])


def print_scores(found: Any) -> None:
    """The table of all scores of a report."""
    from unbraid.report.terminal import score_table

    console.print(score_table(found, everything=True))
