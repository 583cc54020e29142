"""Question files of Spider, BIRD and their kin: a JSON list, or one JSON object a line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unbraid.errors import DataError, EnvError
from unbraid.tasks.sql.databases import Calls, Databases, check_gold, make_task, schema_text
from unbraid.tasks.sql.sandbox import Limits, Sandbox
from unbraid.tasks.task import Task

_LIMITS = Limits(seconds=5.0)


def question_tasks(
    file: str, databases: str, calls: Calls = "tags", check: bool = True, start: int = 0, stop: int | None = None
) -> Iterator[Task | DataError]:
    """Tasks from rows with `question`, `query` or `SQL`, `db_id`, and perhaps `evidence` and `difficulty`.

    Rows that make no task give a DataError in its place, which says what is wrong with the row.

    Args:
        file: the questions. databases: the folder with `ID/ID.sqlite`, or one file for all.
        check: run every gold query now, so that one that fails is a bad row and not a wrong answer later.
        start, stop: take only these rows, counted from 0.

    Raises:
        DataError: if the file cannot be read. EnvError: if there is no such folder.
    """
    if calls not in ("tags", "chat"):
        raise DataError(f"calls={calls!r}: take tags or chat")
    found, schemas = Databases(databases), dict[Path, str]()
    with Sandbox(_LIMITS, workers=1) as sandbox:
        for number, row in enumerate(question_rows(Path(file))[start:stop], start):
            try:
                yield _task(f"{Path(file).name}:{number}", row, found, schemas, sandbox, calls, check)
            except (DataError, EnvError) as problem:
                yield DataError(str(problem))


def question_rows(path: Path) -> list[Any]:
    """The rows of a file of questions, readable or not.

    Raises:
        DataError: there is no such list.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{path}: cannot be read ({problem}): give a JSON file of questions") from problem
    try:
        rows = json.loads(text)
    except ValueError:
        rows = [_line(line) for line in text.splitlines() if line.strip()]
    if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: holds no list of questions: give a JSON list, or one JSON object a line")
    return rows


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _task(
    id: str, row: Any, databases: Databases, schemas: dict[Path, str], sandbox: Sandbox, calls: Calls, check: bool
) -> Task:
    if not isinstance(row, dict):
        raise DataError("row is no JSON object")
    question, database = _text(row, "question"), _text(row, "db_id")
    sql = _text(row, "query" if "query" in row else "SQL")
    path = databases.path(database)
    if path not in schemas:
        schemas[path] = schema_text(sandbox, path)
    if check:
        _, fault = check_gold(sandbox, path, sql)
        if fault:
            raise DataError(fault)
    level = row.get("difficulty", row.get("hardness", ""))
    hint = row.get("evidence") or ""
    return make_task(
        id, question, sql, schemas[path], database, calls, hint if isinstance(hint, str) else "",
        level if isinstance(level, str) else "", id.rpartition(":")[0],
    )  # fmt: skip


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row.get(key), str) or not row[key].strip():
        raise DataError(f"no text under {key!r}")
    return row[key].strip()
