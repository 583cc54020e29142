"""Open-domain questions in FlashRAG's or Search-R1's form: NQ, TriviaQA, PopQA, HotpotQA, 2Wiki, MuSiQue, Bamboogle.

Source: arXiv 2503.09516 (Search-R1), whose seven sets these are; arXiv 2602.00994 evaluates on them as well. Right is
an exact match after the usual normalisation; the average over sets is what both papers print, `retrieved` the share of
questions of which a gold answer stood in what was found. Unlike Search-R1's script, an answer without `<answer>` tags
counts as one: chat formats have none.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unbraid.bench.ask import Benchmark, mean_parts
from unbraid.bench.score import Entry, by_category
from unbraid.errors import DataError
from unbraid.recipe import Recipe
from unbraid.tasks.search.qa import SearchQA
from unbraid.tasks.search.questions import read_questions
from unbraid.tasks.task import Task

SUFFIXES = (".jsonl", ".json", ".parquet")
SPLITS = ("train", "dev", "test", "validation")


def questions(source: str, recipe: Recipe, corpus: str = "", url: str = "", topk: int = 3, name: str = "") -> Benchmark:
    """The benchmark from one file, or from all files below a folder.

    A set is called by its rows' `data_source`, else by its file, or by the folder of a file called after a split.

    Args:
        recipe: of the run: its call format says how the prompt explains the search.
        corpus, url: where to search, one of the two, as `SearchQA` has them. topk: passages of a search.
        name: of the record; by default `qa`, or `qa-SET` where there is one set.

    Raises:
        DataError: there is no question. EnvError: nowhere to search.
    """
    calls = "tags" if recipe.chat.call_format == "search" else "tools"
    path, notes = Path(source), list[str]()
    tasks: dict[str, list[Task]] = {}
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
    for file in files:
        read = read_questions(file, split="test", calls=calls)
        for task in read.tasks:
            tasks.setdefault(_set_of(task, file), []).append(task)
        if read.bad:
            notes.append(f"{file}: {read.summary()}")
    for known, found in tasks.items():
        ids = [task.extra["id"] for task in found]
        keys = ids if all(ids) and len(set(ids)) == len(ids) else range(len(ids))
        tasks[known] = [replace(t, id=f"{known}/{key}", source=known) for t, key in zip(found, keys, strict=True)]
    if not tasks:
        raise DataError(f"{source}: no {', '.join(SUFFIXES)} file with questions")
    searched: dict[str, Any] = {"url": url} if url else {"corpus": corpus}
    return Benchmark(
        name=name or ("qa" if len(tasks) > 1 else f"qa-{next(iter(tasks))}"),
        checker="ours: exact match as in Search-R1",
        tasks=tasks,
        acts_in=SearchQA(**searched, topk=topk),
        totals=totals,
        other={"searched": url or Path(corpus).name, "topk": str(topk)},
        notes="; ".join([*(f"{len(found)} of {name}" for name, found in tasks.items()), *notes]),
    )


def _set_of(task: Task, file: Path) -> str:
    if task.source != file.name:
        return task.source
    return file.parent.name if file.stem in SPLITS and file.parent.name else file.stem


def totals(entries: Sequence[Entry]) -> dict[str, float]:
    """Mean over sets, F1, and how often a gold answer was retrieved."""
    groups = by_category(entries).values()
    means = [sum(entry.score for entry in group) / len(group) for group in groups]
    named = mean_parts(entries, ("f1", "hit"))
    found = {"average over sets": sum(means) / len(means)} if means else {}
    return found | {name: named[key] for key, name in (("f1", "F1"), ("hit", "retrieved")) if key in named}
