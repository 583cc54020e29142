"""Labelling: tries of every task from two samplers, the label that they give, and books in which every task is found.

A folder holds the tries (`samples.jsonl`), the tasks with labels (`tasks.jsonl`), those without (`dropped.jsonl`) and
the books (`books.json`). The tries are only ever added to; the rest is written anew from them each time.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from unbraid.chat.types import Answer, Mode
from unbraid.data.lines import json_line, write_whole
from unbraid.data.task_rows import as_json, task_row, write_task_lines
from unbraid.errors import DataError
from unbraid.label.rule import NOT_JSON, Label, LabelConfig, decide, is_right
from unbraid.label.task_lines import DROPPED, TASKS
from unbraid.label.tries import Mark, Spent, TryLog, TrySampler, Want
from unbraid.tasks.task import Task

BOOKS = "books.json"
MODES = (Mode.NO_THINK, Mode.THINK)

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called as (mode, tries done, tries wanted, {"accuracy": share right}) after every part."""


def silent(stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
    """A `Progress` that shows nothing."""


@dataclass
class SourceBooks:
    """The books of one source: `tasks = short + long + gold + sum(dropped)`.

    right: sum of the shares of right tries over `tried` tasks, by mode.
    both: labelled tasks that have an answer in both modes.
    """

    tasks: int = 0
    short: int = 0
    long: int = 0
    gold: int = 0
    both: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    difficulty: Counter[str] = field(default_factory=Counter)
    right: dict[str, float] = field(default_factory=lambda: {mode.value: 0.0 for mode in MODES})
    tried: dict[str, int] = field(default_factory=lambda: {mode.value: 0 for mode in MODES})
    cost: dict[str, Spent] = field(default_factory=lambda: {mode.value: Spent() for mode in MODES})

    @property
    def kept(self) -> int:
        """Tasks with a label."""
        return self.short + self.long + self.gold

    @property
    def think_rate(self) -> float | None:
        """Share of the labels that think; gold ones count as long."""
        return (self.long + self.gold) / self.kept if self.kept else None

    def accuracy(self, mode: Mode) -> float | None:
        """Mean share of right tries per task; None where nothing was tried."""
        return self.right[mode.value] / self.tried[mode.value] if self.tried[mode.value] else None

    def enter(self, label: Label) -> None:
        """Count a task."""
        self.tasks += 1
        if label.kind:
            setattr(self, label.kind, getattr(self, label.kind) + 1)
            self.both += len({a.mode for a in label.answers}) == 2
        else:
            self.dropped[label.reason] += 1
        self.difficulty.update([label.difficulty] if label.difficulty else [])
        for mode, share in zip(MODES, label.right, strict=True):
            if share is not None:
                self.right[mode.value] += share
                self.tried[mode.value] += 1


@dataclass(frozen=True)
class Labelled:
    """The result: labelled tasks, tasks without a label, the books of every source, and what a person should know."""

    tasks: list[Task]
    dropped: list[Task]
    books: dict[str, SourceBooks]
    warnings: list[str]


def label(
    tasks: Sequence[Task],
    no_think: TrySampler,
    think: TrySampler,
    out: str | Path,
    config: LabelConfig | None = None,
    can_write: Callable[[Answer], bool] = lambda answer: True,
    progress: Progress = silent,
) -> Labelled:
    """Label tasks, and write the folder `out`.

    Called again on the same folder it draws only what is missing, so that a stopped labelling goes on, a larger budget
    is used, and another rule costs nothing.

    Args:
        no_think, think: the samplers of either mode; they may be the same.
        can_write: whether an answer can be written in the chat format of the model that will learn it.
        progress: told about every part that is on disk.

    Raises:
        CheckpointError: `out` was sampled with other models, settings or tasks.
        DataError: there are no tasks, or two share an id.
        ModelError: an endpoint refuses its key or its model, or is down.
    """
    config, out = config or LabelConfig(), Path(out)
    written = [(task, as_json(task)) for task in tasks]
    usable = [task for _, task in written if task]
    if not usable:
        raise DataError("there is no task to label: see what was read and left out")
    _refuse_repeats(tasks)
    with TryLog(out, _identity(usable, no_think, think, config)) as log:
        _draw(log, usable, no_think, Mode.NO_THINK, config, progress)
        asked = [t for t in usable if _needs_think(log, t, config)]
        _draw(log, asked, think, Mode.THINK, config, progress)
        result = _write_labels(log, written, config, can_write)
    write_task_lines(out / TASKS, result.tasks)
    write_task_lines(out / DROPPED, result.dropped)
    books = {
        name: {**vars(one), "cost": {mode: vars(cost) for mode, cost in one.cost.items()}}
        for name, one in result.books.items()
    }
    write_whole(out / BOOKS, [json.dumps(books, indent=2).encode() + b"\n"])
    return result


def _draw(
    log: TryLog, tasks: Sequence[Task], sampler: TrySampler, mode: Mode, config: LabelConfig, progress: Progress
) -> None:
    wants = [Want(task, mode, number) for task in tasks for number in range(config.tries)]
    missing = log.missing(wants)
    done, total = len(wants) - len(missing), len(wants)
    right = sum(m.right for task in tasks for m in log.marks.get((task.id, mode), {}).values())
    if total:
        progress(mode, done, total, {"accuracy": right / max(1, done)})
    if not missing:
        return
    for part in sampler.draw(missing, log.total()):
        log.append(part)
        marks = [log.marks[one.task, mode].get(one.number) for one in part]
        done += sum(mark is not None for mark in marks)
        right += sum(mark is not None and mark.right for mark in marks)
        progress(mode, done, total, {"accuracy": right / max(1, done)})


def _needs_think(log: TryLog, task: Task, config: LabelConfig) -> bool:
    if config.think == "always":
        return True
    tried = _marks(log, task, Mode.NO_THINK, config)
    return len(tried) == config.tries and not is_right(tried, config.rule)


def _marks(log: TryLog, task: Task, mode: Mode, config: LabelConfig) -> list[Mark]:
    found = log.marks.get((task.id, mode), {})
    return [found[number] for number in range(config.tries) if number in found]


def _write_labels(
    log: TryLog,
    written: Iterable[tuple[Task, Task | None]],
    config: LabelConfig,
    can_write: Callable[[Answer], bool],
) -> Labelled:
    kept: list[Task] = []
    dropped: list[Task] = []
    books: dict[str, SourceBooks] = {}
    marks: dict[Mode, list[Mark]] = {mode: [] for mode in MODES}
    for original, task in written:
        of = books.setdefault(original.source, SourceBooks())
        if task is None:
            of.enter(Label("", reason=NOT_JSON))
            continue
        no_think, think = (_marks(log, task, mode, config) for mode in MODES)
        found = decide(task, no_think, think, config, log.read, can_write)
        of.enter(found)
        for mode, tried in zip(MODES, (no_think, think), strict=True):
            marks[mode] += tried
            for name, value in vars(log.spent.get((task.id, mode), Spent())).items():
                cost = of.cost[mode.value]
                setattr(cost, name, getattr(cost, name) + value)
        (kept if found.kind else dropped).append(_with_label(task, found))
    return Labelled(kept, dropped, books, _warnings(marks))


def _with_label(task: Task, found: Label) -> Task:
    """The task with its label: answers, difficulty as its level, and in `extra` what the samples said."""
    shares = {mode.value: share for mode, share in zip(MODES, found.right, strict=True) if share is not None}
    said: dict[str, Any] = {"right": shares, "kind": task.level}
    if not found.kind:
        return replace(task, level=found.difficulty, extra={**task.extra, **said, "dropped": found.reason})
    said["needs_thinking"] = found.kind != "short"
    return replace(task, answers=found.answers, level=found.difficulty, extra={**task.extra, **said})


def _warnings(marks: dict[Mode, list[Mark]]) -> list[str]:
    lines = []
    thought = sum(m.other_mode for m in marks[Mode.NO_THINK])
    if thought:
        lines.append(
            f"{thought} of {len(marks[Mode.NO_THINK])} no_think tries think all the same and count as wrong: "
            "check how the endpoint is told not to think"
        )
    silent_ones = sum(m.other_mode for m in marks[Mode.THINK])
    if silent_ones:
        lines.append(
            f"{silent_ones} of {len(marks[Mode.THINK])} think tries come without a thought and count as wrong: "
            "check that the endpoint returns reasoning_content"
        )
    return lines


def _identity(tasks: Sequence[Task], no_think: TrySampler, think: TrySampler, config: LabelConfig) -> dict[str, Any]:
    """What the tries in a folder depend on. Which label follows from them may change."""
    digest = sha256()
    for task in tasks:
        row = task_row(task)
        digest.update(json_line([row[key] for key in ("id", "messages", "tools", "expected")]))
    return {
        "tries": config.tries,
        "tasks": {"count": len(tasks), "content": digest.hexdigest()[:16]},
        "no_think": dict(no_think.identity),
        "think": dict(think.identity),
    }


def _refuse_repeats(tasks: Sequence[Task]) -> None:
    repeated = [name for name, n in Counter(task.id for task in tasks).items() if n > 1]
    if repeated:
        raise DataError(f"{len(repeated)} ids belong to several tasks, {repeated[0]!r} first: give each its own")
