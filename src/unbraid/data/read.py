"""Reading tasks: any known format in, `Task`s out, and books in which every row is found again."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from unbraid.chat.types import Answer, Mode
from unbraid.data.formats import FORMATS, Format, detect
from unbraid.data.row import Example, RowError, UnwantedError
from unbraid.data.sources import FileRow, call_source, file_rows
from unbraid.data.task_rows import task_row
from unbraid.errors import DataError
from unbraid.plugins import names_code
from unbraid.tasks.task import Task


class DataConfig(BaseModel):
    """How rows become tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    format: str = "auto"
    """One of the names in `data.formats.FORMATS`, or auto: told from the keys of the rows, file by file."""
    split: str = "train"
    """Split of a data set on the Hugging Face hub; of no meaning for files."""
    strict: bool = False
    """Stop at the first bad row. Choice: off, so that one bad row in a million ends nothing."""
    no_call: float = Field(default=0.2, ge=0, le=1)
    """Largest share of tasks in which no call is right, of all tasks read from rows; a benchmark's are not limited.
    Choice: a fifth. Without them a model learns to call always, and chat data would otherwise be mostly these."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longest prompt in tokens, tools and template included; longer ones are dropped and counted (`fit_prompts`).
    Choice: admits 99 % of ToolRL and Glaive even with a vocabulary of 4,096 (larger ones give shorter prompts)."""
    validation: int = Field(default=100, ge=0)
    """Tasks held out of training for validation, chosen by the seed (`split_tasks`)."""


@dataclass(frozen=True)
class BadRow:
    """A row, or the rest of one, that became no task: where it is (rows count from 0) and why."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


@dataclass
class FileCount:
    """The books of one file. Each row ends in at least one of the last three: `examples = tasks + skipped + bad`."""

    format: str = ""
    rows: int = 0
    examples: int = 0
    tasks: int = 0
    skipped: int = 0
    bad: int = 0
    repeated: int = 0
    """Tasks that ask the same as an earlier one (same messages and tools); kept, and on one side of a split."""


@dataclass
class ReadResult:
    """Tasks, and what became of everything else. `bad` could not be read; `skipped` was readable but not wanted."""

    tasks: list[Task] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    skipped: list[BadRow] = field(default_factory=list)
    counts: dict[str, FileCount] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Task id → (file, row)."""

    def summary(self) -> str:
        """One line per file and one per reason, for people."""
        lines = [
            f"{name} ({c.format or 'unknown format'}): {c.rows} rows, {c.tasks} tasks, {c.skipped} skipped, "
            f"{c.bad} bad, {c.repeated} repeated"
            for name, c in self.counts.items()
        ]
        for word, rows in (("skipped", self.skipped), ("bad", self.bad)):
            lines += [f"  {word} {n} x {reason}" for reason, n in _reasons(rows).most_common()]
        return "\n".join(lines)

    def most_common(self) -> str:
        """The three most common reasons in one line."""
        reasons = _reasons(self.bad + self.skipped).most_common(3)
        if not reasons:
            return "it holds no rows"
        return "most common reasons: " + "; ".join(f"{n} x {reason}" for reason, n in reasons)


def read_tasks(source: str, config: DataConfig) -> ReadResult:
    """All tasks of a source.

    Args:
        source: a file (.json, .jsonl, .parquet), a directory of such files, a data set on the Hugging Face hub
            (`owner/name` or `owner/name:configuration`), or a function that returns tasks
            (`module:function?key=value&key=value`, values read as YAML).

    Raises:
        DataError: if the source cannot be read, gives no task at all, or has a bad row while `config.strict`.
    """
    result = collect(source, config)
    if not result.tasks:
        raise DataError(f"{source}: no usable task; {result.most_common()}")
    return result


def collect(source: str, config: DataConfig, progress: Callable[[int, int], None] | None = None) -> ReadResult:
    """As `read_tasks`, but a source without a usable task gives an empty result with its books.

    Args:
        progress: told how many rows of how many are read; all rows are then in memory at once.
    """
    if config.format != "auto" and config.format not in FORMATS:
        raise DataError(f"data.format: unknown format {config.format!r}: use auto, {', '.join(FORMATS)}")
    books = _Books(config.strict)
    if names_code(source):
        for index, task in enumerate(call_source(source)):
            books.enter_row(source, index, "function")
            books.add(source, index, task)
    else:
        rows = file_rows(source, config.split)
        _read_rows(_told(list(rows), progress) if progress else rows, config.format, books)
        books.limit_no_call(config.no_call)
    books.count_repeated()
    return books.result


def _reasons(rows: Iterable[BadRow]) -> Counter[str]:
    return Counter(r.reason for r in rows)


def _told(rows: Sequence[FileRow], progress: Callable[[int, int], None]) -> Iterator[FileRow]:
    for done, row in enumerate(rows, 1):
        yield row
        if done % 200 == 0 or done == len(rows):
            progress(done, len(rows))


def _read_rows(rows: Iterable[FileRow], wanted: str, books: "_Books") -> None:
    format_of: dict[str, str] = {}
    for row in rows:
        name = format_of.get(row.file, "")
        if row.value is not None and not name:
            name = wanted if wanted != "auto" else detect(row.value)
            format_of[row.file] = name
        books.enter_row(row.file, row.row, name)
        if row.value is None:
            books.bad(row.file, row.row, row.reason)
        elif not name:
            books.bad(row.file, row.row, "unknown format: no reader knows its keys (data.format forces one)")
        else:
            _read_row(row, row.value, FORMATS[name], books)


def _read_row(row: FileRow, value: Mapping[str, Any], format: Format, books: "_Books") -> None:
    examples = 0
    try:
        for example in format.read(value):
            examples += 1
            if isinstance(example, Task):
                books.add_chosen(row.file, row.row, example)
            else:
                books.add_example(row, example)
    except UnwantedError as reason:
        books.skip(row.file, row.row, str(reason))
    except RowError as problem:
        where = f"after turn {examples}: " if examples else ""
        books.bad(row.file, row.row, f"{where}{problem}")
    except (LookupError, TypeError, ValueError, AttributeError) as problem:
        # A reader that forgot a check: ours never do (fuzzed), and one that a user adds should not end the run.
        books.bad(row.file, row.row, f"its reader failed: {type(problem).__name__}: {problem}")
    else:
        if not examples:
            books.skip(row.file, row.row, "no assistant turn")


class _Books:
    """Takes tasks and reasons, and keeps count of both."""

    def __init__(self, strict: bool):
        self.result = ReadResult()
        self._strict = strict
        self._ids: set[str] = set()
        self._chosen: set[str] = set()

    def enter_row(self, file: str, row: int, format: str) -> None:
        count = self.result.counts.setdefault(file, FileCount())
        count.rows += 1
        count.format = count.format or format

    def bad(self, file: str, row: int, reason: str) -> None:
        bad = BadRow(file, row, reason)
        if self._strict:
            raise DataError(f"{bad}; mend the row, or set data.strict to false to skip it")
        self.result.bad.append(bad)
        count = self.result.counts[file]
        count.examples, count.bad = count.examples + 1, count.bad + 1

    def skip(self, file: str, row: int, reason: str) -> None:
        self.result.skipped.append(BadRow(file, row, reason))
        count = self.result.counts[file]
        count.examples, count.skipped = count.examples + 1, count.skipped + 1

    def add_example(self, row: FileRow, example: Example) -> None:
        """Make a task of an example, unless there is nothing in it to train on."""
        if not any(m["role"] == "user" for m in example.messages):
            self.skip(row.file, row.row, "no user message before the turn")
        elif not example.calls and not example.content and not example.silent:
            self.bad(row.file, row.row, "an assistant turn with neither calls nor text")
        elif not example.calls and not example.tools:
            self.skip(row.file, row.row, "no tools, no call: nothing to choose")
        elif fault := _unknown_to_tools(example):
            self.bad(row.file, row.row, fault)
        else:
            self.add(row.file, row.row, make_task(f"{row.file}:{row.row}:{example.turn}", row.file, example))

    def add_chosen(self, file: str, row: int, task: Task) -> None:
        """A row that is a task already was chosen by somebody: it does not count towards `no_call`."""
        self._chosen.add(task.id)
        self.add(file, row, task)

    def add(self, file: str, row: int, task: Any) -> None:
        if isinstance(task, DataError):  # how a function says why a row of its own made no task
            return self.bad(file, row, str(task))
        if not isinstance(task, Task):
            return self.bad(file, row, f"a {type(task).__name__}, not a Task")
        if task.id in self._ids:
            return self.bad(file, row, "the task id is taken by an earlier task")
        try:
            json.dumps(task_row(task), allow_nan=False, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return self.bad(file, row, "text with an unpaired surrogate")
        except (TypeError, ValueError, AttributeError, RecursionError):
            return self.bad(file, row, "values that JSON cannot hold")
        count = self.result.counts[file]
        count.examples, count.tasks = count.examples + 1, count.tasks + 1
        self._ids.add(task.id)
        self.result.places[task.id] = (file, row)
        self.result.tasks.append(task)
        return None

    def limit_no_call(self, share: float) -> None:
        """Keep at most `share` of tasks without a call: those with the smallest hash, so that the choice is stable."""
        limited = [t for t in self.result.tasks if not t.extra.get("eval_only") and t.id not in self._chosen]
        silent = [t.id for t in limited if not t.expected]
        calling = len(limited) - len(silent)
        keep = len(silent) if share == 1 else min(len(silent), int(share / (1 - share) * calling + 1e-9))
        dropped = set(sorted(silent, key=lambda i: sha256(i.encode()).hexdigest())[keep:])
        for task in self.result.tasks:
            if task.id in dropped:
                file, row = self.result.places[task.id]
                count = self.result.counts[file]
                count.tasks, count.examples = count.tasks - 1, count.examples - 1
                self.skip(file, row, "no call is right, and there are enough of these (data.no_call)")
        self.result.tasks = [t for t in self.result.tasks if t.id not in dropped]

    def count_repeated(self) -> None:
        asked: set[str] = set()
        for task in self.result.tasks:
            key = content_key(task)
            self.result.counts[self.result.places[task.id][0]].repeated += key in asked
            asked.add(key)


def _unknown_to_tools(example: Example) -> str:
    """What the calls of an example use that its tools do not have: no model could have known it."""
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in example.tools}
    for call in example.calls:
        if call.name not in schemas:
            return "calls a tool that is not among its tools"
        schema = schemas[call.name]
        if not schema.get("additionalProperties") and call.arguments.keys() - schema["properties"].keys():
            return "a call has an argument that its tool does not have"
    return ""


_TAG = re.compile(r"<(/?(?:think|tool_call|tool_response))>")


def make_task(id: str, source: str, example: Example) -> Task:
    """A task of one example. With a thought it has two gold answers: thinking, and the same without the thought.

    Answers that talk about delimiters ("inside the <tool_call> tags") lose the angle brackets: a delimiter is one
    token that acts wherever the model writes it, and learning to mention it is learning malformed responses.
    """
    thought, content = _TAG.sub(r"\1", example.thought), _TAG.sub(r"\1", example.content)
    short = Answer(Mode.NO_THINK, "", example.calls, content)
    long = Answer(Mode.THINK, thought, example.calls, content)
    level = "no_call" if not example.calls else "single" if len(example.calls) == 1 else "parallel"
    answers = () if example.silent and not content else (long, short) if example.thought else (short,)
    return Task(
        id, example.messages, example.tools, example.calls, answers, level, example.source or source,
        dict(example.extra),
    )  # fmt: skip


def content_key(task: Task) -> str:
    """A hash of what a task asks: messages and tools."""
    asked = json.dumps([list(map(dict, task.messages)), list(map(dict, task.tools))], sort_keys=True)
    return sha256(asked.encode()).hexdigest()
