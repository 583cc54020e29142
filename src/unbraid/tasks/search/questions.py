"""Questions with gold answers, as HotpotQA and FlashRAG (Search-R1's data) write them, made into tasks."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from unbraid.errors import DataError
from unbraid.tasks.task import Task

Calls = Literal["tags", "tools"]

# The tags are those of `chat.call_format: search`.
INSTRUCTIONS: dict[str, str] = {
    "tags": (
        "You answer questions with the help of a search engine over a collection of documents. To look something up, "
        "write <search> a few words that the passage should contain </search>; the best passages then appear between "
        "<information> and </information>. Search as often as you need to, one query at a time: a question may take "
        "facts from several passages. Then finish with <answer> your answer </answer>: only the name, the date, the "
        "number, yes or no, without an explanation.\n\nQuestion: {question}"
    ),
    "tools": (
        "Answer the question with the help of the search tool. Search as often as you need to: a question may take "
        "facts from several passages. Then reply with the answer alone: only the name, the date, the number, yes or "
        "no, without an explanation.\n\nQuestion: {question}"
    ),
}


@dataclass(frozen=True)
class Questions:
    """What was read: tasks, and rows that are none as (row counted from 0, why)."""

    tasks: tuple[Task, ...]
    bad: tuple[tuple[int, str], ...]

    def summary(self) -> str:
        """One line."""
        reasons = "; ".join(f"{n} x {reason}" for reason, n in Counter(r for _, r in self.bad).most_common())
        return f"{len(self.tasks)} questions, {len(self.bad)} bad" + (f" ({reasons})" if reasons else "")


def hotpotqa(path: str, split: str = "", calls: Calls = "tags", limit: int = 0) -> list[Task]:
    """Tasks for `SearchQA`, to be named in a recipe: `unbraid.tasks.search:hotpotqa?path=questions.json`.

    The arguments are those of `read_questions`; bad rows are counted on standard error.
    """
    read = read_questions(path, split, calls, limit)
    if read.bad:
        Console(stderr=True).print(f"{path}: {read.summary()}", style="yellow", highlight=False, markup=False)
    return list(read.tasks)


def read_questions(path: str | Path, split: str = "", calls: Calls = "tags", limit: int = 0) -> Questions:
    """Read a file of questions, whichever of the two formats it has.

    HotpotQA: `question`, `answer`, and `type`, `level`, `supporting_facts` where known. FlashRAG and Search-R1:
    `question`, `golden_answers`. `extra` of a task holds `question`, `answers`, `titles` (gold
    documents), `id` and `eval_only`.

    Args:
        path: .json (a list), .jsonl or .parquet.
        split: train, dev, test, ... Rows of any but train are marked `eval_only`: HotpotQA's dev questions are what
            people evaluate on. Empty = told from a row's id (`dev_12`) or the file's name, else taken for train.
        calls: how the instruction tells the model to search: by `tags` (`chat.call_format: search`) or by `tools`
            (chat formats, which show the tool themselves).
        limit: read no more than this many tasks; 0 = all.

    Raises:
        DataError: if the file cannot be read or holds no question.
    """
    path = Path(path)
    if calls not in INSTRUCTIONS:
        raise DataError(f"questions {path}: calls='{calls}' is unknown; use one of {', '.join(INSTRUCTIONS)}")
    tasks: list[Task] = []
    bad: list[tuple[int, str]] = []
    for index, row in enumerate(_rows(path)):
        if limit and len(tasks) == limit:
            break
        found = _task(row, f"{path.name}:{index}", split or _split_of(row, path), INSTRUCTIONS[calls], path.name)
        if isinstance(found, Task):
            tasks.append(found)
        else:
            bad.append((index, found))
    read = Questions(tuple(tasks), tuple(bad))
    if not tasks:
        raise DataError(f"questions {path}: no usable row; {read.summary()}")
    return read


def _rows(path: Path) -> Iterator[Any]:
    """Decoded rows; None for a line that is not JSON."""
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
            return
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, pa.ArrowException) as problem:
        raise DataError(f"questions {path}: cannot be read ({str(problem).splitlines()[0]})") from problem
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise DataError(
                f"questions {path}: not JSON ({problem}): name it .jsonl if it has a row a line"
            ) from problem
        if not isinstance(rows, list):
            raise DataError(f"questions {path}: a {type(rows).__name__}, not a list of questions")
        yield from rows
        return
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _task(row: Any, id: str, split: str, instruction: str, source: str) -> Task | str:
    """The task in a row, or why there is none."""
    if not isinstance(row, Mapping):
        return "row is no JSON object"
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        return "no question"
    answers = row.get("golden_answers")
    answers = row.get("answer") if answers is None else answers  # typed columns fill absent keys with None
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        return "no text under `answer` or `golden_answers`"
    answers = [one for one in answers if one.strip()]
    if not answers:
        return "no gold answer"
    titles = _titles(row)
    if isinstance(titles, str):
        return titles
    message = {"role": "user", "content": instruction.format(question=question.strip())}
    extra = {
        "answers": answers,
        "titles": titles,
        "question": question.strip(),
        "id": str(row.get("_id") or row.get("id") or ""),
        "eval_only": split != "train",
    }
    try:
        json.dumps([message, extra], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "text with an unpaired surrogate"
    level = "-".join(str(row[key]) for key in ("type", "level") if row.get(key))
    named = row.get("data_source")  # Search-R1 keeps several sets in one file
    source = named if isinstance(named, str) and named else source
    return Task(id, (message,), level=level, source=source, extra=extra)


def _titles(row: Mapping[str, Any]) -> list[str] | str:
    """Titles of the gold documents in order, each once: pairs (title, sentence), or columns as on the hub."""
    facts = row.get("supporting_facts") or []
    try:
        titles = facts["title"] if isinstance(facts, Mapping) else [title for title, _ in facts]
        return list(dict.fromkeys(" ".join(title.split()) for title in titles))
    except (TypeError, ValueError, KeyError, AttributeError):
        return "supporting_facts are no pairs (title, sentence)"


def _split_of(row: Any, path: Path) -> str:
    """The split that a row's id or the file's name tells; train where neither does."""
    own = row.get("id") if isinstance(row, Mapping) else None
    for name in (own if isinstance(own, str) else "", path.stem.lower()):
        for split in ("train", "dev", "validation", "test"):
            if split in name.replace("-", "_").split("_"):
                return split
    return "train"
