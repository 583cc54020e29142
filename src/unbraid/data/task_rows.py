"""Tasks as rows: JSON objects that hold everything a task has, for our own folders and for data sets on the hub.

Two spellings are read. Lines of our own folders are nested. Rows for others hold every nested value as JSON text: the
arguments of calls have as many types as there are tools, and no table of typed columns takes them as they are.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unbraid.chat.types import Answer, Call, Mode
from unbraid.data.lines import json_line, write_whole
from unbraid.data.row import RowError
from unbraid.errors import DataError
from unbraid.tasks.task import Task

_NESTED = ("messages", "tools", "expected", "answers", "extra")


def tasks(row: Mapping[str, Any]) -> Iterator[Task]:
    """`{"id", "messages", "tools", "expected", "answers", "level", "source", "extra"}`: a task as it is."""
    try:
        task = row_task(row)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise RowError(f"not a task as unbraid writes it ({type(problem).__name__})") from None
    if fault := _fault(task):
        raise RowError(f"not a task as unbraid writes it: {fault}")
    yield task


def _fault(task: Task) -> str:
    """What is wrong with the values of a task that was read; "" if nothing is."""
    texts = (task.id, task.level, task.source, *(m.get("content") for m in task.messages if isinstance(m, Mapping)))
    said = [text for a in task.answers for text in (a.thought, a.content)]
    calls = [*task.expected, *(call for a in task.answers for call in a.calls)]
    if not all(isinstance(text, str) for text in (*texts, *said, *(call.name for call in calls))):
        return "an id, level, source, name or content is no text"
    if not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in task.messages):
        return "a message is no object with a role"
    if not all(isinstance(t, Mapping) and _is_function(t.get("function")) for t in task.tools):
        return "a tool is no function with a name and parameters"
    if not all(isinstance(call.arguments, Mapping) for call in calls) or not isinstance(task.extra, Mapping):
        return "arguments or extra are no object"
    return "" if any(m["role"] == "user" for m in task.messages) else "no user message"


def _is_function(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("parameters"), Mapping)
    )


def task_row(task: Task) -> dict[str, Any]:
    """A task as a JSON object."""
    return {
        "id": task.id,
        "messages": [dict(m) for m in task.messages],
        "tools": [dict(t) for t in task.tools],
        "expected": _call_rows(task.expected),
        "answers": [
            {"mode": a.mode, "thought": a.thought, "calls": _call_rows(a.calls), "content": a.content}
            for a in task.answers
        ],
        "level": task.level,
        "source": task.source,
        "extra": dict(task.extra),
    }


def text_row(task: Task) -> dict[str, str]:
    """A task as a row of texts: what is nested is JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if key in _NESTED else value for key, value in task_row(task).items()
    }


def row_task(row: Mapping[str, Any]) -> Task:
    """Read back what `task_row` or `text_row` gave.

    Raises LookupError, TypeError, AttributeError or ValueError for anything else.
    """
    found = {key: json.loads(row[key]) if isinstance(row[key], str) else row[key] for key in _NESTED}
    return Task(
        row["id"],
        tuple(found["messages"]),
        tuple(found["tools"]),
        _calls(found["expected"]),
        tuple(Answer(Mode(a["mode"]), a["thought"], _calls(a["calls"]), a["content"]) for a in found["answers"]),
        row["level"],
        row["source"],
        found["extra"],
    )


def as_json(task: Task) -> Task | None:
    """The task as it will be read back: tuples become lists. None if it cannot be written as JSON."""
    try:
        return row_task(json.loads(json_line(task_row(task))))
    except (TypeError, ValueError, RecursionError):
        return None


def write_task_lines(path: Path, tasks: Iterable[Task]) -> None:
    """One task a line, whole or not at all."""
    write_whole(path, (json_line(task_row(task)) for task in tasks))


def read_task_lines(path: Path) -> list[Task]:
    """What `write_task_lines` wrote.

    Raises:
        DataError: the file cannot be read, or a line is not a task.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a folder of `unbraid data label`") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(row_task(json.loads(line)))
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a task ({type(error).__name__}: {error})") from error
    return found


def _call_rows(calls: Iterable[Call]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _calls(rows: Iterable[Mapping[str, Any]]) -> tuple[Call, ...]:
    return tuple(Call(row["name"], row["arguments"]) for row in rows)
