"""The source that reads labelled tasks back: `unbraid.label:labelled?path=FOLDER`."""

from dataclasses import replace
from pathlib import Path

from unbraid.chat.types import Mode
from unbraid.data.task_rows import read_task_lines
from unbraid.errors import DataError
from unbraid.tasks.task import Task

TASKS, DROPPED = "tasks.jsonl", "dropped.jsonl"
CHOICES = ("all", "mixed", "long", "short")


def labelled(path: str, labels: str = "all", dropped: bool = False) -> list[Task]:
    """The tasks that `label` or `refine` wrote: a source, `unbraid.label:labelled?path=FOLDER&labels=long`.

    Args:
        path: the folder, or a file of such tasks.
        labels: which answers. all: as they were written, both where both modes were right, so that `warmup.labels`
            still chooses. mixed: the label alone. long: the long answer alone, and only tasks that have one: the
            distilled baseline. short: likewise.
        dropped: also those that `label` gave no label (for RL; they come last).

    Raises:
        DataError: a file cannot be read, a line is not a task, or `labels` is none of these.
    """
    if labels not in CHOICES:
        raise DataError(f"labels={labels!r}: use one of {', '.join(CHOICES)}")
    place = Path(path)
    files = [place / TASKS, *([place / DROPPED] if dropped else [])] if place.is_dir() else [place]
    tasks = [task for file in files for task in read_task_lines(file)]
    return tasks if labels == "all" else [chosen for task in tasks for chosen in _choose(task, labels)]


def _choose(task: Task, labels: str) -> list[Task]:
    thinks = labels == "long" or (labels == "mixed" and bool(task.extra.get("needs_thinking")))
    answers = tuple(a for a in task.answers if (a.mode is Mode.THINK) == thinks)
    return [replace(task, answers=answers, extra={**task.extra, "needs_thinking": thinks})] if answers else []
