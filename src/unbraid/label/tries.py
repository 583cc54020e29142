"""What a sampler was asked for and what it wrote, kept in a log that survives being killed.

`samples.jsonl` has one line per try, in the order they were finished. Lines that were appended together count together:
each says how many follow (`left`), and what a kill cut short is removed when the log is opened again.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from unbraid.chat.types import Call, Mode, Problem, Reading
from unbraid.data.lines import json_line, write_whole
from unbraid.errors import CheckpointError, DataError
from unbraid.tasks.task import Task

SAMPLES, IDENTITY = "samples.jsonl", "sampled_with.json"


@dataclass(frozen=True)
class Want:
    """One try to draw: the `number`-th of a task in a mode (THINK or NO_THINK)."""

    task: Task
    mode: Mode
    number: int


@dataclass(frozen=True)
class Try:
    """One response, read and judged.

    mode: the one asked for; `reading.mode` is the one found.
    tokens: what was generated; prompt_tokens: what it was generated from. requests: sent for it, retries included.
    """

    task: str
    mode: Mode
    number: int
    reading: Reading
    correct: bool
    reward: float
    reason: str
    tokens: int
    prompt_tokens: int = 0
    requests: int = 0


@dataclass(frozen=True)
class Failure:
    """A try that an endpoint did not give, after `requests` requests. It stays wanted."""

    task: str
    mode: Mode
    number: int
    reason: str
    requests: int


class TrySampler(Protocol):
    """Draws tries: a local model, or an endpoint.

    Attributes:
        identity: everything that its tries depend on, as JSON; never a secret.
    """

    identity: Mapping[str, Any]

    def draw(self, wants: Sequence[Want], spent: "Spent") -> Iterator[Sequence[Try | Failure]]:
        """Every try that is wanted, in parts and in any order; a part is on disk before the next is asked for.

        Args:
            spent: what was drawn before counts against a budget.
        """
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decision needs of a try. The text stays on disk, at byte `offset`.

    right: correct, and in the mode that was asked for. thought: it has one.
    """

    number: int
    right: bool
    thought: bool
    other_mode: bool
    reward: float
    tokens: int
    offset: int


@dataclass
class Spent:
    """Cost so far, failures included. Tokens as the sampler reports them; `bought` are those of an endpoint."""

    tries: int = 0
    failures: int = 0
    requests: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    bought: int = 0

    def add(self, one: Try | Failure) -> None:
        """Count one more."""
        self.requests += one.requests
        if isinstance(one, Failure):
            self.failures += 1
        else:
            self.tries += 1
            self.tokens += one.tokens
            self.prompt_tokens += one.prompt_tokens
            self.bought += one.tokens if one.requests else 0


class TryLog:
    """The tries of one folder. Append-only: what `append` returned from is on disk, and is never drawn again.

    Args:
        identity: what the tries depend on; a folder holds tries of one identity.

    Raises:
        CheckpointError: the folder was sampled with another identity; the message names what differs.
        DataError: a line inside the log is not a try.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        _claim(self.folder, identity)
        self.marks: dict[tuple[str, Mode], dict[int, Mark]] = defaultdict(dict)
        self.spent: dict[tuple[str, Mode], Spent] = defaultdict(Spent)
        path = self.folder / SAMPLES
        self._end = self._load(path)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(self._end)

    def missing(self, wants: Iterable[Want]) -> list[Want]:
        """Those of `wants` that are not in the log yet, in their order."""
        return [w for w in wants if w.number not in self.marks.get((w.task.id, w.mode), ())]

    def append(self, part: Sequence[Try | Failure]) -> None:
        """Write tries that were finished together: after a kill, all of them are there or none."""
        lines = [_line(one, left) for one, left in zip(part, range(len(part) - 1, -1, -1), strict=True)]
        self._file.seek(self._end)
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        for one, line in zip(part, lines, strict=True):
            self._enter(one, self._end)
            self._end += len(line)

    def read(self, mark: Mark) -> Try:
        """The whole try behind a mark."""
        self._file.seek(mark.offset)
        found = _read(self._file.readline())
        assert found is not None and isinstance(found[0], Try)
        return found[0]

    def total(self, mode: Mode | None = None) -> Spent:
        """Cost of everything, or of one mode."""
        total = Spent()
        for (_, of), spent in self.spent.items():
            if mode in (None, of):
                for name, value in vars(spent).items():
                    setattr(total, name, getattr(total, name) + value)
        return total

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, path: Path) -> int:
        """Enter what the file holds; returns where its last whole part ends."""
        if not path.exists():
            return 0
        end, offset, part = 0, 0, list[tuple[Try | Failure, int]]()
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                found = _read(line)
                if found is None and not line.endswith(b"\n"):
                    break  # torn by a kill
                if found is None:
                    raise DataError(f"{path}, line {number} is not a try: restore the file, or label into a new folder")
                part.append((found[0], offset))
                offset += len(line)
                if found[1] == 0:
                    for one, at in part:
                        self._enter(one, at)
                    part, end = [], offset
        return end

    def _enter(self, one: Try | Failure, offset: int) -> None:
        self.spent[one.task, one.mode].add(one)
        if isinstance(one, Try):
            found = one.reading.mode
            self.marks[one.task, one.mode][one.number] = Mark(
                number=one.number,
                right=one.correct and found is one.mode,
                thought=bool(one.reading.thought),
                other_mode=found is not one.mode and found is not Mode.NONE,
                reward=one.reward,
                tokens=one.tokens,
                offset=offset,
            )


def read_tries(folder: str | Path) -> Iterator[Try]:
    """The tries in a folder that `label` wrote, in the order of the log; failures and a torn end are left out.

    Raises:
        DataError: there is no log, or a line inside it is not a try.
    """
    path = Path(folder) / SAMPLES
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a folder of `unbraid data label`") from error
    for number, line in enumerate(lines, 1):
        found = _read(line)
        if found is None and line.endswith(b"\n"):
            raise DataError(f"{path}, line {number} is not a try: restore the file, or label into a new folder")
        if found is not None and isinstance(found[0], Try):
            yield found[0]


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write down what the folder is sampled with, or compare."""
    path, mine = folder / IDENTITY, json.loads(json.dumps(identity))
    try:
        theirs = json.loads(path.read_bytes())
    except FileNotFoundError:
        if (folder / SAMPLES).exists():
            raise CheckpointError(f"{folder} has {SAMPLES} but no {IDENTITY}: label into a new folder") from None
        write_whole(path, [json.dumps(mine, indent=2, ensure_ascii=False).encode() + b"\n"])
        return
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): label into a new folder") from error
    if theirs != mine:
        changed = ", ".join(differences(theirs, mine)[:4])
        raise CheckpointError(
            f"{folder} was sampled otherwise ({changed}): label into a new folder, or go back to those settings"
        )


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """`key: old, now new` for everything that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        found = [differences(old.get(k), new.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [line for lines in found for line in lines]
    return [] if old == new else [f"{where}: {old!r}, now {new!r}"]


def _line(one: Try | Failure, left: int) -> bytes:
    head = {"task": one.task, "mode": one.mode, "number": one.number}
    if isinstance(one, Failure):
        return json_line({**head, "failure": one.reason, "requests": one.requests, "left": left})
    read = one.reading
    return json_line(
        {
            **head,
            "found": read.mode,
            "thought": read.thought,
            "calls": [[call.name, call.arguments] for call in read.calls],
            "content": read.content,
            "problems": read.problems,
            "correct": one.correct,
            "reward": one.reward,
            "reason": one.reason,
            "tokens": one.tokens,
            "prompt_tokens": one.prompt_tokens,
            "requests": one.requests,
            "left": left,
        }
    )


def _read(line: bytes) -> tuple[Try | Failure, int] | None:
    """A line of the log and how many belong to it after it; None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        head = (row["task"], Mode(row["mode"]), row["number"])
        if "failure" in row:
            return Failure(*head, row["failure"], row["requests"]), row["left"]
        reading = Reading(
            Mode(row["found"]),
            row["thought"],
            tuple(Call(name, arguments) for name, arguments in row["calls"]),
            row["content"],
            tuple(Problem(problem) for problem in row["problems"]),
        )
        judged = (row["correct"], row["reward"], row["reason"])
        return Try(*head, reading, *judged, row["tokens"], row["prompt_tokens"], row["requests"]), row["left"]
    except (ValueError, LookupError, TypeError):
        return None
