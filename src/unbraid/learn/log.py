"""The record of a run: `metrics.jsonl`, `notes.jsonl` and `rollouts/step_*.parquet` in its directory.

What survives a kill: a line is on disk (fsync) before `step` or `note` returns, and a rollout file appears whole or
not at all, so a SIGKILL loses at most the step in flight. What a resume does: everything after the step of the
checkpoint is cut off and written again. The files of a resumed run then equal those of an unbroken one byte for
byte, except for wall-clock numbers, which is why those have keys of their own (`WALL_CLOCK`).

Order of writing: log a step first, then save its checkpoint; a checkpoint never knows more than the log.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, SupportsFloat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from unbraid.chat.types import Mode
from unbraid.errors import CheckpointError, DataError
from unbraid.learn.episode_json import dump_episode, load_episode
from unbraid.rollout.trajectory import Finish, Response, Trajectory

METRICS, NOTES, ROLLOUTS = "metrics.jsonl", "notes.jsonl", "rollouts"
WALL_CLOCK = ("seconds/", "tokens_per_s/", "memory/", "mfu/", "time")
"""Prefixes of the keys whose values depend on clock and machine: two equal runs differ here and nowhere else."""

Level = Literal["info", "warning"]
Row = dict[str, Any]


class RunLog:
    """Writes the record of one run. Use as a context manager, or call `close`.

    Args:
        run_dir: created if absent.
        resume_step: continue after this step: rows, notes and rollouts of later steps are removed. None = a new run.
        tensorboard: also write `tensorboard/` events, if the package is installed.
        console: where notes are printed; standard error by default.

    Raises:
        CheckpointError: if a new run is started in a directory that already holds a record.
    """

    def __init__(
        self,
        run_dir: str | Path,
        resume_step: int | None = None,
        tensorboard: bool = True,
        console: Console | None = None,
    ):
        self.run_dir = Path(run_dir)
        self.console = console or Console(stderr=True)
        metrics, notes = self.run_dir / METRICS, self.run_dir / NOTES
        (self.run_dir / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        last = resume_step
        if resume_step is not None:
            last = _truncate_after(metrics, resume_step)
            _truncate_after(notes, resume_step)
            for path in (self.run_dir / ROLLOUTS).glob("step_*.parquet"):
                if int(path.stem.removeprefix("step_")) > resume_step:
                    path.unlink()
        elif any(path.exists() and path.stat().st_size for path in (metrics, notes)):
            raise CheckpointError(f"{self.run_dir} already holds a run: resume it, or choose another run directory")
        self._metrics = metrics.open("ab")
        self._notes = notes.open("ab")
        self._tensorboard = _tensorboard_writer(self.run_dir / "tensorboard", resume_step) if tensorboard else None
        if resume_step and last is not None and last < resume_step:
            self.note(
                f"{METRICS} ends at step {last} but the checkpoint is of step {resume_step}: rows are missing",
                step=resume_step,
                level="warning",
            )

    def step(self, step: int, metrics: Mapping[str, SupportsFloat | str | bool | None]) -> None:
        """Append one row. Values are numbers (numpy and torch scalars too), strings or None; NaN and inf become null.

        The row also gets `time`, in seconds since the epoch.

        Raises:
            TypeError: if a value is none of these.
        """
        row = {"step": step, **{key: _plain(value) for key, value in metrics.items()}, "time": round(time.time(), 3)}
        _append(self._metrics, row)
        if self._tensorboard is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key not in ("step", "time"):
                    self._tensorboard.add_scalar(key, value, step)

    def note(self, message: str, step: int, level: Level = "info") -> None:
        """Append a line for people, and print it."""
        _append(self._notes, {"step": step, "level": level, "message": message})
        style = "bold yellow" if level == "warning" else "dim"
        self.console.print(Text.assemble((f"step {step} ", "dim"), (message, style)), highlight=False)

    def rollouts(self, step: int, trajectories: Sequence[Trajectory]) -> Path:
        """Write one step's trajectories; returns the file's path."""
        path = self.run_dir / ROLLOUTS / f"step_{step:06d}.parquet"
        write_rollouts(path, trajectories)
        return path

    def close(self) -> None:
        self._metrics.close()
        self._notes.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoLog:
    """What a rank that is not the first has for a log: the first writes what all of them found."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def note(self, message: str, step: int, level: Level = "info") -> None:
        """Nothing."""

    def rollouts(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


def read_metrics(run_dir: str | Path) -> list[Row]:
    """The rows of a run, oldest first. A torn last line (the machine died while writing) is left out.

    Raises:
        DataError: if the file is absent or some other line is not a row.
    """
    return _read_lines(Path(run_dir) / METRICS)


def read_notes(run_dir: str | Path) -> list[Row]:
    """The notes of a run as {"step", "level", "message"}; raises as `read_metrics` does."""
    return _read_lines(Path(run_dir) / NOTES)


def without_wall_clock(row: Mapping[str, Any]) -> Row:
    """A row without the numbers that depend on the clock: what two equal runs have in common."""
    return {key: value for key, value in row.items() if not key.startswith(WALL_CLOCK)}


PART = pa.struct(
    [
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("context", pa.int64()),
        ("mode", pa.string()),
        ("forced", pa.string()),
        ("think_prob", pa.float64()),
        ("no_think_prob", pa.float64()),
        ("finish", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("task_id", pa.string()),
        ("sample", pa.int32()),
        ("level", pa.string()),
        ("source", pa.string()),
        ("mode", pa.string()),
        ("forced", pa.string()),
        ("finish", pa.string()),
        ("reward", pa.float64()),
        ("reward_parts", pa.map_(pa.string(), pa.float64())),
        ("correct", pa.bool_()),
        ("reason", pa.string()),
        ("prompt_ids", pa.list_(pa.int64())),
        ("response_ids", pa.list_(pa.int64())),
        # One entry per token of prompt and response together, as in `Trajectory`.
        ("roles", pa.list_(pa.uint8())),
        ("sampled", pa.list_(pa.bool_())),
        ("logprobs", pa.list_(pa.float32())),
        ("entropies", pa.list_(pa.float32())),
        ("choice_probs", pa.list_(pa.float64(), 2)),
        # Empty and null for single-step tasks.
        ("parts", pa.list_(PART)),
        ("episode", pa.string()),  # `learn.episode_json`
    ]
)
OLD_SCHEMA = pa.schema([field for field in SCHEMA if field.name not in ("parts", "episode")])
"""Rollout files of single-step runs from before episodes: they are read as they are."""


def write_rollouts(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Write trajectories to one parquet file, whole or not at all. Equal trajectories give equal bytes.

    The seconds of tool calls are not written: two equal runs differ in them.
    """
    rows = [
        {
            "task_id": t.task_id,
            "sample": t.sample,
            "level": t.level,
            "source": t.source,
            "mode": t.mode.value,
            "forced": t.forced.value,
            "finish": t.finish.value,
            "reward": t.reward,
            "reward_parts": list(t.reward_parts.items()),
            "correct": t.correct,
            "reason": t.reason,
            "prompt_ids": t.ids[: t.prompt_length],
            "response_ids": t.response_ids,
            "roles": t.roles,
            "sampled": t.sampled,
            "logprobs": t.logprobs,
            "entropies": t.entropies,
            "choice_probs": t.choice_probs,
            "parts": [_part_row(part) for part in t.parts],
            "episode": None if t.episode is None else dump_episode(t.episode),
        }
        for t in trajectories
    ]
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, compression="zstd")
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_rollouts(path: str | Path) -> list[Trajectory]:
    """Read back what `write_rollouts` wrote, token for token and text for text.

    Raises:
        DataError: if the file is absent, not parquet, has other columns, or holds an episode that cannot be read.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as rollouts ({error}): give a step_*.parquet file of a run") from error
    if not any(table.schema.equals(schema) for schema in (SCHEMA, OLD_SCHEMA)):
        missing = sorted(set(SCHEMA.names) - set(table.column_names)) or "none, but types differ"
        raise DataError(
            f"{path} is not a rollout file (missing columns: {missing}): give a step_*.parquet file of a run"
        )
    try:
        return [_trajectory(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds a row that is no trajectory ({error}): it was not written by unbraid") from error


def _trajectory(row: Row) -> Trajectory:
    return Trajectory(
        task_id=row["task_id"],
        sample=row["sample"],
        ids=np.array(row["prompt_ids"] + row["response_ids"], dtype=np.int64),
        prompt_length=len(row["prompt_ids"]),
        roles=np.array(row["roles"], dtype=np.uint8),
        sampled=np.array(row["sampled"], dtype=np.bool_),
        logprobs=np.array(row["logprobs"], dtype=np.float32),
        entropies=np.array(row["entropies"], dtype=np.float32),
        choice_probs=(row["choice_probs"][0], row["choice_probs"][1]),
        mode=Mode(row["mode"]),
        forced=Mode(row["forced"]),
        finish=Finish(row["finish"]),
        level=row["level"],
        source=row["source"],
        reward=row["reward"],
        reward_parts=row["reward_parts"],
        correct=row["correct"],
        reason=row["reason"],
        parts=tuple(_part(part) for part in row.get("parts", ())),
        episode=load_episode(row["episode"]) if row.get("episode") is not None else None,
    )


def _part_row(part: Response) -> Row:
    return {
        "start": part.start,
        "end": part.end,
        "context": part.context,
        "mode": part.mode.value,
        "forced": part.forced.value,
        "think_prob": part.choice_probs[0],
        "no_think_prob": part.choice_probs[1],
        "finish": part.finish.value,
    }


def _part(row: Row) -> Response:
    return Response(
        start=row["start"],
        end=row["end"],
        context=row["context"],
        mode=Mode(row["mode"]),
        forced=Mode(row["forced"]),
        choice_probs=(row["think_prob"], row["no_think_prob"]),
        finish=Finish(row["finish"]),
    )


def _plain(value: SupportsFloat | str | bool | None) -> float | int | str | None:
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _append(file: Any, row: Row) -> None:
    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _truncate_after(path: Path, step: int) -> int | None:
    """Cut the file before its first row of a later step (or its torn end); returns the last step kept."""
    if not path.exists():
        return None
    keep, last = 0, None
    for line in path.read_bytes().splitlines(keepends=True):
        row = _parse(line)
        if row is None or row["step"] > step:
            break
        keep, last = keep + len(line), row["step"]
    os.truncate(path, keep)
    return last


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _read_lines(path: Path) -> list[Row]:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the directory of a run") from error
    rows = [_parse(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()
    bad = next((number for number, row in enumerate(rows, 1) if row is None), None)
    if bad is not None:
        raise DataError(f"{path}, line {bad} is not a JSON object with a step: delete the line or restore the file")
    return [row for row in rows if row is not None]


def _tensorboard_writer(path: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(path), purge_step=None if resume_step is None else resume_step + 1)
