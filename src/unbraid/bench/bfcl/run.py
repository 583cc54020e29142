"""BFCL on a server, by its own harness: ask every entry once, let the harness judge, and keep one record.

In the record's folder, beside what every benchmark has there (`bench.score`):

    answers.jsonl   one answered entry a line, as the harness writes results, and every reply of the server in full
    official/       the harness's own files: result/, score/ with its tables, and harness.log
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbraid.bench.bfcl.installation import Installation, errand
from unbraid.bench.bfcl.served import Server
from unbraid.bench.score import (
    BenchmarkScore,
    Entry,
    Setting,
    add_entries,
    close_record,
    limited,
    open_record,
    package_versions,
    read_entries,
)
from unbraid.chat.types import Mode
from unbraid.errors import DataError, ServerError

CATEGORIES = ("single_turn", "multi_turn")
"""What BFCL v3 consists of. v4 adds agentic ones, which need a search engine's key or torch in the environment."""
REFUSED = ("memory", "web_search", "agentic", "all")
SHOWN = 4000
"""Characters of a response that the record's entries keep; `answers.jsonl` keeps all."""
Progress = Callable[[str, int, int, dict[str, Any]], None]
_GROUPS = {
    "Non-Live AST Acc": (
        "simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple",
    ),
    "Live Acc": ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    "Multi Turn Acc": (
        "multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context",
    ),
    "Relevance Detection": ("live_relevance",),
    "Irrelevance Detection": ("irrelevance", "live_irrelevance"),
}  # fmt: skip
"""Columns of the harness's table, and the categories that each is made of."""


@dataclass(frozen=True)
class Asking:
    """How entries are asked.

    categories: names of the harness, groups of them included. limit: entries of a category at most.
    prompting: functions are described in the prompt and called in text, as the harness does it for models without
    tools; else they are tools of the API. max_tokens: of one response. together: entries asked at a time.
    retries: of a request. template, parameters: of the model, for the record; empty and None if unknown.
    """

    categories: Sequence[str] = CATEGORIES
    limit: int | None = None
    mode: Mode = Mode.AUTO
    prompting: bool = False
    temperature: float = 0.0
    max_tokens: int = 4096
    seed: int = 0
    together: int = 16
    retries: int = 5
    again: bool = False
    model: str = ""
    checkpoint: str = "final"
    template: str = "the server's"
    parameters: int | None = None
    command: str = ""


def bfcl(
    installation: Installation,
    server: Server,
    run_dir: str | Path,
    asking: Asking,
    progress: Progress = lambda *_: None,
) -> BenchmarkScore:
    """Ask, judge and score; an entry that is answered is never asked again.

    Args:
        run_dir: where the record goes, `benchmarks/bfcl/…` below it.

    Raises:
        DataError: a category is none, or has no entries; the record was asked otherwise.
        ServerError: entries got no answer; those that did are kept, and the next call goes on.
    """
    setting = setting_of(installation, server, asking)
    folder = setting.folder(run_dir)
    if asking.again:
        (folder / "answers.jsonl").unlink(missing_ok=True)
        shutil.rmtree(folder / "official", ignore_errors=True)
    wanted = entries_of(installation, asking)
    open_record(folder, setting, asking.again)
    answers = folder / "answers.jsonl"
    answered = {one["id"] for one in read_answers(answers)}
    waiting = {name: [id for id in ids if id not in answered] for name, ids in wanted.items()}
    left = sum(map(len, waiting.values()))
    if left:
        ask(installation, server, asking, {name: ids for name, ids in waiting.items() if ids}, folder, progress)
    verdicts = judge(installation, server, asking, folder)
    done = {entry.id for entry in read_entries(folder)}
    found = [entry_of(answer, verdicts[answer["id"]]) for answer in read_answers(answers) if answer["id"] not in done]
    add_entries(folder, found)
    return close_record(folder, setting, totals_of(verdicts))


def setting_of(installation: Installation, server: Server, asking: Asking) -> Setting:
    """What the record says about how it was asked."""
    return Setting(
        benchmark="bfcl-prompt" if asking.prompting else "bfcl",
        version=f"bfcl-eval {installation.version}",
        checker="bfcl-eval's own, its files as published",
        handler="unbraid's over chat completions, " + ("functions in the prompt" if asking.prompting else "tools"),
        model=asking.model or server.model,
        checkpoint=asking.checkpoint,
        template=asking.template,
        mode=asking.mode,
        temperature=asking.temperature,
        max_tokens=asking.max_tokens,
        seed=asking.seed,
        parameters=asking.parameters,
        other={"server": server.by},
        versions={**package_versions(("unbraid",)), **installation.versions},
        limit=asking.limit,
        command=asking.command,
    )


def entries_of(installation: Installation, asking: Asking) -> dict[str, list[str]]:
    """Category → the ids that are asked.

    Raises:
        DataError: a category is none, or one that this cannot ask.
    """
    for name in asking.categories:
        if any(name.startswith(one) for one in REFUSED):
            raise DataError(f"--categories {name}: what is agentic is not asked here, see docs/bfcl.md; leave it out")
        if name == "format_sensitivity" and not asking.prompting:
            raise DataError("--categories format_sensitivity: it varies the prompt, so it goes with --prompting")
    try:
        found = errand(installation, "entries", {"categories": list(asking.categories)})
    except ServerError as problem:
        if "Invalid test category" in str(problem):
            raise DataError(f"--categories {' '.join(asking.categories)}: {problem}") from problem
        raise
    return limited({line["category"]: line["ids"] for line in found}, asking.limit)


def ask(
    installation: Installation,
    server: Server,
    asking: Asking,
    ids: Mapping[str, Sequence[str]],
    folder: Path,
    progress: Progress,
) -> None:
    """Have the harness ask these entries.

    Raises:
        ServerError: some got no answer.
    """
    total, heard = sum(map(len, ids.values())), 0
    failed: list[str] = []

    def tell(line: dict[str, Any]) -> None:
        nonlocal heard
        heard += 1
        if "failed" in line:
            failed.append(f"{line['id']}: {line['failed']}")
        progress("ask", heard - len(failed), total, {})

    plan = {
        **_model(server, asking),
        "server": {
            "url": server.url, "key": server.key or "none", "mode": asking.mode.value, "seed": asking.seed,
            "temperature": asking.temperature, "max_tokens": asking.max_tokens, "retries": asking.retries,
        },
        "ids": {name: list(some) for name, some in ids.items()},
        "answers": str((folder / "answers.jsonl").absolute()),
        "concurrency": asking.together,
    }  # fmt: skip
    errand(installation, "ask", plan, folder / "official", tell=tell)
    if missing := total - heard + len(failed):
        raise ServerError(
            f"{missing} of {total} entries got no answer ({failed[0] if failed else 'the harness stopped'}); the rest "
            "is kept, and the same command goes on"
        )


def judge(installation: Installation, server: Server, asking: Asking, folder: Path) -> dict[str, dict[str, Any]]:
    """The official verdict on every answer, by id; the harness's table of percentages under ""."""
    plan = {**_model(server, asking), "answers": str((folder / "answers.jsonl").absolute())}
    told = errand(installation, "judge", plan, folder / "official")
    table = next((line["table"] for line in told if "table" in line), {})
    return {"": table, **{line["id"]: line for line in told if "id" in line}}


def _model(server: Server, asking: Asking) -> dict[str, Any]:
    """How the harness calls the model: a row of its table, whose name must not hold what it reads as something else."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{asking.model or server.model}-{asking.mode.value}").replace("FC", "Fc")
    return {"row": name, "model": server.model, "prompting": asking.prompting}


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The answered entries. A last line that a stopped harness left unfinished is taken off the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + "\n" * bool(whole), encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def entry_of(answer: Mapping[str, Any], verdict: Mapping[str, Any]) -> Entry:
    """One entry of the record."""
    replies = answer["replies"]
    refused = f"refused by the server: {answer['refused']}" if "refused" in answer else ""
    return Entry(
        id=answer["id"],
        category=category_of(answer["id"]),
        score=float(verdict["right"]),
        tokens=sum(reply["completion_tokens"] for reply in replies),
        mode=mode_of(replies),
        reason=refused or verdict["reason"],
        response="\n".join(map(_said, replies))[:SHOWN],
    )


def category_of(id: str) -> str:
    """The category of an entry, `live_simple` of `live_simple_0-0-0`."""
    return id.partition(":")[0].rpartition("_")[0]


def mode_of(replies: Iterable[Mapping[str, Any]]) -> Mode | None:
    """THINK if any reply thought; None where the server does not tell thinking apart."""
    thoughts = [reply["reasoning"] for reply in replies]
    if any(thoughts):
        return Mode.THINK
    return None if None in thoughts or not thoughts else Mode.NO_THINK


def totals_of(verdicts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness's own columns of which every category was asked, as shares. With a limit they are of those asked."""
    asked = {category_of(id) for id in verdicts if id}
    table = verdicts[""]
    complete = [name for name, parts in _GROUPS.items() if asked.issuperset(parts) and "%" in table.get(name, "")]
    return {name: float(table[name].rstrip("%")) / 100 for name in complete}


def _said(reply: Mapping[str, Any]) -> str:
    thought = f"<think>{reply['reasoning']}</think> " if reply["reasoning"] else ""
    calls = " ".join(f"{c['function']['name']}({c['function']['arguments']})" for c in reply["tool_calls"])
    return f"{thought}{reply['content'] or ''} {calls}".strip()
