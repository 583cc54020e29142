"""Refining the tasks of a folder: rewards from label samples or from a run's rollouts, choices from `data.refine`."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from unbraid.chat.types import Mode
from unbraid.data.lines import json_line, write_whole
from unbraid.data.refine import STARVES, RefineConfig, Refined, refine, reward_variance
from unbraid.data.task_rows import write_task_lines
from unbraid.errors import DataError
from unbraid.label.from_recipe import chat_format, training_tasks
from unbraid.label.label import BOOKS
from unbraid.label.task_lines import DROPPED, TASKS, labelled
from unbraid.label.tries import SAMPLES, read_tries
from unbraid.learn.log import ROLLOUTS
from unbraid.recipe import load_recipe
from unbraid.tasks.task import Task

Across = Literal["samples", "rounds"]
NOT_SEEN = "never sampled"


@dataclass(frozen=True)
class Measured:
    """What was seen of one task. `rewards` holds one value per sample, or the mean of each training round."""

    rewards: NDArray[np.float64]
    right: float


@dataclass(frozen=True)
class Refinement:
    """The result: what is kept, why the rest is not, what was measured, and notes for people."""

    tasks: list[Task]
    refined: Refined
    measured: dict[str, Measured]
    notes: list[str]


def from_samples(folder: str | Path, mode: Mode | None = None) -> tuple[list[Task], dict[str, Measured]]:
    """Tasks and rewards of a folder of `unbraid data label`; `mode` takes the tries of that sampler alone.

    Raises:
        DataError: it is no such folder.
    """
    rewards: dict[str, list[tuple[int, str, float, bool]]] = defaultdict(list)
    for one in read_tries(folder):
        if mode in (None, one.mode):
            right = one.correct and one.reading.mode is one.mode
            rewards[one.task].append((one.number, one.mode, one.reward, right))
    # In the order of their numbers: an endpoint's tries come in any.
    found = {
        task: Measured(np.array([r for *_, r, _ in sorted(tries)]), float(np.mean([ok for *_, ok in tries])))
        for task, tries in rewards.items()
    }
    return labelled(str(folder), dropped=True), found


def from_rollouts(run: str | Path, across: Across = "rounds") -> tuple[list[Task], dict[str, Measured]]:
    """Tasks and rewards of a run: with `rounds`, the mean reward of a task in every step that drew it.

    Raises:
        DataError: it is no run, or has no rollouts; or its tasks cannot be read.
    """
    run = Path(run)
    drawn: dict[str, list[list[tuple[float, bool]]]] = defaultdict(list)
    for table in _rollout_tables(run):
        step: dict[str, list[tuple[float, bool]]] = defaultdict(list)
        for row in table.to_pylist():
            step[row["task_id"]].append((row["reward"], row["correct"]))
        for task, samples in step.items():
            drawn[task].append(samples)
    if not drawn:
        raise DataError(f"{run / ROLLOUTS} has no step_*.parquet: give the folder of a run that trained")
    found = {}
    for task, rounds in drawn.items():
        samples = [one for of in rounds for one in of]
        means = [float(np.mean([reward for reward, _ in of])) for of in rounds]
        values = means if across == "rounds" else [reward for reward, _ in samples]
        found[task] = Measured(np.array(values), float(np.mean([ok for _, ok in samples])))
    recipe = load_recipe([run / "recipe.yaml"])
    return training_tasks(recipe, chat_format(recipe)).tasks, found


def _rollout_tables(run: Path) -> Iterator[pa.Table]:
    for path in sorted((run / ROLLOUTS).glob("step_*.parquet")):
        try:
            yield pq.read_table(path, columns=["task_id", "reward", "correct"])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as rollouts ({error}): restore or delete it") from error


def refine_folder(
    source: str | Path,
    out: str | Path,
    config: RefineConfig | None = None,
    across: str | None = None,
    mode: str | None = None,
) -> Refinement:
    """Refine the tasks of a label folder or of a run, and write `out`: tasks, dropped tasks with reasons, books.

    Deterministic: the same source and settings write the same bytes.

    Args:
        source: a folder of `unbraid data label`, or of `unbraid train`.
        across: what the variance is over: `samples` for labels (the only reading there), either for runs.
        mode: for labels, the tries of one sampler, `no_think` or `think`.

    Raises:
        DataError: `source` is neither, `out` is a folder of something else, or `across: rounds` asks too much of it.
    """
    config, source, out = config or RefineConfig(), Path(source), Path(out)
    if across not in (None, "samples", "rounds") or mode not in (None, Mode.NO_THINK, Mode.THINK):
        raise DataError(f"across {across!r}, mode {mode!r}: use samples or rounds, and no_think or think")
    if (out / SAMPLES).exists() or (out / ROLLOUTS).exists():
        raise DataError(f"{out} is a folder of labels or of a run, which this would overwrite: write into another")
    if (source / SAMPLES).is_file():
        if across == "rounds":
            raise DataError(f"{source} holds label samples, which have no rounds: give a run, or across samples")
        over: Across = "samples"
        tasks, measured = from_samples(source, Mode(mode) if mode else None)
    elif (source / ROLLOUTS).is_dir():
        over = "samples" if across == "samples" else "rounds"
        tasks, measured = from_rollouts(source, over)
    else:
        raise DataError(f"{source} has neither {SAMPLES} nor {ROLLOUTS}/: give a folder of data label or of train")
    result = choose(tasks, measured, config, over)
    _write(out, tasks, result)
    return result


def choose(tasks: Sequence[Task], measured: dict[str, Measured], config: RefineConfig, across: Across) -> Refinement:
    """Refine tasks by what was measured of them; tasks that were never sampled are dropped and say so.

    Raises:
        DataError: no task was sampled, or `rounds` saw none of them twice.
    """
    seen = [task for task in tasks if task.id in measured]
    if not seen:
        raise DataError(f"none of {len(tasks)} tasks was sampled: the samples belong to other tasks")
    twice = sum(len(measured[task.id].rewards) > 1 for task in seen)
    if config.method == "paper" and not twice:
        word = "round" if across == "rounds" else "sample"
        raise DataError(f"no task has more than one {word}: train for two passes over the tasks, or sample more")
    refined = refine(
        [task.id for task in seen],
        [measured[task.id].rewards for task in seen],
        [measured[task.id].right for task in seen],
        [task.level for task in seen],
        config,
    )
    refined = Refined(refined.kept, {**refined.dropped, **{t.id: NOT_SEEN for t in tasks if t.id not in measured}})
    kept = set(refined.kept)
    notes = [STARVES] if config.method == "paper" and across == "samples" else []
    return Refinement([task for task in tasks if task.id in kept], refined, measured, notes)


def _write(out: Path, tasks: Sequence[Task], result: Refinement) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_task_lines(out / TASKS, result.tasks)
    write_task_lines(out / DROPPED, [task for task in tasks if task.id in result.refined.dropped])
    rows = [
        {"task": task, "reason": reason, **_numbers(result.measured.get(task))}
        for task, reason in {**dict.fromkeys(result.refined.kept, "kept"), **result.refined.dropped}.items()
    ]
    write_whole(out / "refined.jsonl", [json_line(row) for row in rows])
    books = {
        "tasks": len(tasks), "kept": len(result.tasks), "dropped": dict(sorted(result.refined.reasons.items())),
    }  # fmt: skip
    write_whole(out / BOOKS, [json.dumps(books, indent=2).encode() + b"\n"])


def _numbers(measured: Measured | None) -> dict[str, float | int | None]:
    if measured is None:
        return {"n": 0, "right": None, "variance": None}
    variance = reward_variance(measured.rewards)
    return {
        "n": len(measured.rewards), "right": measured.right, "variance": None if np.isnan(variance) else variance,
    }  # fmt: skip


def refine_table(found: Refinement) -> Group:
    """One row for what was kept and one per reason: tasks, share right, reward variance, all-equal rewards; notes."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in ("tasks", "right, %", "reward variance", "all rewards equal"):
        table.add_column(name, justify="right", no_wrap=True)
    of_reason: dict[str, list[str]] = {"kept": found.refined.kept}
    for task, reason in found.refined.dropped.items():
        of_reason.setdefault(reason, []).append(task)
    for reason, ids in of_reason.items():
        seen = [found.measured[one] for one in ids if one in found.measured]
        variances = [v for v in (reward_variance(m.rewards) for m in seen) if not np.isnan(v)]
        table.add_row(
            Text(reason),
            str(len(ids)),
            f"{100 * np.mean([m.right for m in seen]):.1f}" if seen else "–",
            f"{np.mean(variances):.3f}" if variances else "–",
            str(sum(v == 0 for v in variances)),
        )
    return Group(table, *(Text(note, style="yellow") for note in found.notes))
