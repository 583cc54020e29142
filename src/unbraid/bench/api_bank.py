"""API-Bank, levels 1 and 2: the next API call of a dialogue, from tools that are shown (L-1) or searched for (L-2).

Source: arXiv 2304.08244 and its evaluator (AlibabaResearch/DAMO-ConvAI, api-bank). That evaluator executes the call on
the APIs' own databases and holds the result against the annotated one; with a clone of it, `official_reward` has it do
just that. From rows alone, `same_api_call` decides, by what most of its APIs compare:

* exactly one call, of the right API, with the right names of arguments;
* values are texts (2 equals "2"), without surrounding space and regardless of case;
* the text of an agenda, a reminder or a meeting is right if more than half of all its words are the gold one's;
* `ToolSearcher` is right if its keywords find the tools that the gold keywords find: all APIs that are described
  anywhere in the rows, ranked by BM25 here and by a sentence encoder there.

Known differences: where official APIs compare exactly (passwords), ours ignores case; where they let different
arguments through because the database answers the same (DeleteAgenda, searches), ours does not.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unbraid.bench.ask import Benchmark
from unbraid.bench.official import Checker
from unbraid.chat.types import Call, Problem, Reading
from unbraid.data.formats import FORMATS, detect
from unbraid.data.read import make_task
from unbraid.data.row import Example, RowError
from unbraid.data.sources import FileRow, file_rows
from unbraid.errors import DataError
from unbraid.tasks.reward import Reward, RewardFunction, call_fault
from unbraid.tasks.search.corpus import Document
from unbraid.tasks.search.index import Index
from unbraid.tasks.task import Task

SEARCHER = "ToolSearcher"
LEVELS = ("L-1", "L-2")
FREE_TEXT: Mapping[str, frozenset[str]] = {
    "content": frozenset(
        {"AddAgenda", "ModifyAgenda", "QueryAgenda", "AddReminder", "QueryReminder", "ModifyReminder"}
    ),
    "meeting_topic": frozenset({"AddMeeting", "ModifyMeeting", "QueryMeeting", "DeleteMeeting"}),
}
"""Argument → the APIs whose official check takes it for text with a meaning."""
_FORMATS = ("api-bank", "api-bank-toolrl")
Same = Callable[[Call, Call], bool]


def api_bank(source: str, reward: RewardFunction | None = None, checker: str = "", split: str = "test") -> Benchmark:
    """The benchmark from rows as published (`level-1-api.json`, `level-2-api.json`) or as ToolRL processed them.

    Args:
        source: a file, a folder, or a data set on the hub. split: of the latter.
        reward: another checker than ours (`official_reward`), and `checker`, what it is called.

    Raises:
        DataError: there is no row that expects a call.
    """
    tasks: dict[str, list[Task]] = {level: [] for level in LEVELS}
    left_out: Counter[str] = Counter()
    for row in file_rows(source, split):
        found = _task(row)
        if isinstance(found, Task):
            tasks[found.level].append(found)
        else:
            left_out[found] += 1
    if not any(tasks.values()):
        raise DataError(f"{source}: no API-Bank row that expects a call ({_counts(left_out)}): give level-1-api.json")
    notes = f"{source}: {', '.join(f'{len(t)} of {level}' for level, t in tasks.items())}"
    if left_out:
        notes += f"; left out: {_counts(left_out)}"
    return Benchmark(
        name="api-bank",
        checker=checker or "ours: one call, arguments as most of its APIs compare them",
        tasks={level: found for level, found in tasks.items() if found},
        reward=reward or our_reward([task for found in tasks.values() for task in found]),
        notes=notes,
    )


def _task(row: FileRow) -> Task | str:
    """The task of a row, or why it is none. Choice: gold calls may have arguments that their tool does not have."""
    if row.value is None:
        return row.reason
    name = detect(row.value)
    if name not in _FORMATS:
        return "no API-Bank row"
    try:
        examples = [one for one in FORMATS[name].read(row.value) if isinstance(one, Example)]
    except RowError as problem:
        return str(problem)
    if not examples or not examples[0].calls:
        return "expects a reply, not a call"
    example = examples[0]
    file, number = example.extra.get("file", row.file), example.extra.get("id", row.row)
    searches = any(tool["function"]["name"] == SEARCHER for tool in example.tools)
    level = LEVELS[searches or "level-2" in row.file]
    # One dialogue file has several calls, and a data set may hold a row twice: the row's own place tells them apart.
    task = make_task(f"{level}/{row.file}:{row.row}", "api_bank", example)
    return Task(
        task.id, task.messages, task.tools, task.expected, (), level, "api_bank",
        {"eval_only": True, "file": file, "sample": number},
    )  # fmt: skip


def _counts(reasons: Counter[str]) -> str:
    return "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3)) or "no rows"


def our_reward(tasks: Sequence[Task]) -> RewardFunction:
    """The checker for rows alone; `tasks` describe the tools among which `ToolSearcher` searches."""
    same = same_api_call(_finds(tasks))

    def reward(task: Task, reading: Reading) -> Reward:
        reason = judge(task.expected[0], reading, same)
        right = reason == "right"
        return Reward(float(right), {}, right, reason)

    return reward


def official_reward(checker: Checker) -> RewardFunction:
    """The official evaluator decides; it knows the gold call itself, by the dialogue's file and the row's number."""

    def reward(task: Task, reading: Reading) -> Reward:
        if len(reading.calls) != 1:
            reason = judge(task.expected[0], reading, lambda made, expected: False)
        else:
            call = reading.calls[0]
            where = {"file": task.extra["file"], "sample": task.extra["sample"]}
            reason = checker.ask({**where, "name": call.name, "arguments": call.arguments})
        right = reason == "right"
        return Reward(float(right), {}, right, reason)

    return reward


def judge(expected: Call, reading: Reading, same: Same) -> str:
    """`right`, or what is wrong. Choice: a response that thinks badly but calls well has called well; the official
    evaluator sees nothing but the call."""
    if Problem.TRUNCATED in reading.problems:
        return Problem.TRUNCATED.value
    if len(reading.calls) == 1 and same(reading.calls[0], expected):
        return "right"
    if not reading.calls and reading.reason is not None:
        return reading.reason.value
    return call_fault(reading.calls, (expected,))


def same_api_call(finds: Callable[[str], Sequence[str]]) -> Same:
    """(made, expected) → whether one call does what the other does. finds: names of tools that keywords find."""

    def same(made: Call, expected: Call) -> bool:
        if made.name != expected.name or made.arguments.keys() != expected.arguments.keys():
            return False
        if made.name == SEARCHER:
            mine, gold = (_text(call.arguments.get("keywords")) for call in (made, expected))
            return mine == gold or (bool(found := finds(gold)) and finds(mine) == found)
        return all(_same_value(made.name, key, made.arguments[key], gold) for key, gold in expected.arguments.items())

    return same


def _same_value(api: str, key: str, made: Any, gold: Any) -> bool:
    if api in FREE_TEXT.get(key, ()):
        mine, theirs = set(_text(made).split()), set(_text(gold).split())
        return mine == theirs or len(mine & theirs) > 0.5 * len(mine | theirs)
    return _text(made) == _text(gold)


def _text(value: Any) -> str:
    """A value as the official evaluator has it, where every argument is written as text."""
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(written.casefold().split())


def _finds(tasks: Iterable[Task]) -> Callable[[str], Sequence[str]]:
    """Keywords → names of the tools they find; the official searcher also gives GetUserToken where a token is needed,
    which follows from the tool."""
    tools = {t["function"]["name"]: t["function"] for task in tasks for t in task.tools}
    tools.pop(SEARCHER, None)
    if not tools:
        return lambda _: ()
    index: list[Index] = []  # built when it is first needed: level 1 never searches

    def finds(keywords: str) -> Sequence[str]:
        if not index:
            documents = [
                Document(name, f"{_words(name)} {tool.get('description', '')}") for name, tool in tools.items()
            ]
            index.append(Index.build(documents))
        return [hit.title for hit in index[0].search(keywords, 1)]

    return finds


def _words(name: str) -> str:
    """`QueryHealthData` as its words."""
    return "".join(f" {c}" if c.isupper() else c for c in name).strip()
