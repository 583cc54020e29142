"""From tasks of several sources to two disjoint pools: one to warm up on, one for RL. No model is needed.

Five steps, in this order: what cannot be learned from goes, repeats go, what benchmarks ask goes, sources are cut to
size, and what is left is split. Every step says of every task that it drops why, and its books add up by source.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unbraid.data.inspect import schema_problems
from unbraid.data.lines import json_line
from unbraid.data.overlap import SAID, Benchmark, BenchmarkOverlap, OverlapConfig, audit, tool_mark, words_of
from unbraid.data.select import split_tasks
from unbraid.tasks.task import Task

Progress = Callable[[str, int, int, dict[str, Any]], None]
"""Called as (what is being done, done, of how many, numbers to show)."""

BENCHMARK, TWICE, MISFIT = (
    "belongs to a benchmark",
    "wants the same call twice",
    "a call does not fit its tool's schema",
)
LONG = "its prompt has too many characters"
REPEAT, CONTRADICTS = "repeats an earlier task", "repeats an earlier task, and wants other calls"
CROWDED = "no call is right, and its source has enough of these"
CUT = "more than asked for"


class PoolConfig(BaseModel):
    """What is kept, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    candidates: int = Field(default=10_250, ge=0)
    """Tasks to be labelled for the warm-up. Choice: a quarter more than the 8,200 of arXiv 2603.13348, since tasks that
    nobody gets right have no label."""
    pool: int = Field(default=21_000, ge=0)
    """Tasks that RL's are refined from. Source: arXiv 2603.13348, 21k."""
    cut: tuple[str, ...] = ("xlam",)
    """Sources that make room. Source: a reviewer of arXiv 2603.13348 saw equal counts of ToolACE and Hermes before and
    after down-sampling, so only xLAM was cut (inferred). Choice: never below an even share (a third of three sources);
    where the others are too many beside that, they are cut too."""
    no_call: float = Field(default=0.2, ge=0, le=1)
    """Largest share of a source's tasks in which no call is right. Choice: a fifth, as `data.no_call`, but by source:
    cutting one then leaves the shares of the others as they are."""
    misfits: Literal["drop", "keep"] = "drop"
    """Tasks whose right call breaks the schema of its tool (a required argument is missing, a number is a text).
    Choice: dropped; a model that follows the schema would be told that it is wrong."""
    max_characters: int = Field(default=8192, ge=1)
    """Longest prompt, messages and tools as JSON. Choice: about 2,048 tokens (`data.max_prompt_tokens`, which is
    measured exactly before labelling)."""
    overlap: OverlapConfig = OverlapConfig()
    seed: int = 0
    """Keys every choice among equals, with the content of the tasks; file names and the order of rows do not matter."""


@dataclass
class Count:
    """What one step did to one source: `came = kept + sum(dropped)`."""

    came: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Step:
    """A step and its books by source."""

    name: str
    sources: dict[str, Count]


@dataclass(frozen=True)
class Dropped:
    """A task that left, and where and why."""

    task: str
    source: str
    step: str
    reason: str


@dataclass
class Pool:
    """Two disjoint pools, the books of every step, everything that left, and what benchmarks have in common with it."""

    warmup: list[Task]
    rl: list[Task]
    steps: list[Step]
    dropped: list[Dropped]
    overlaps: list[BenchmarkOverlap]


def make_pool(
    tasks: Sequence[Task],
    benchmarks: Sequence[Benchmark],
    config: PoolConfig,
    progress: Progress = lambda what, done, total, numbers: None,
) -> Pool:
    """All five steps.

    Args:
        tasks: their `source` is what the books count by; the first of several repeats is the one that stays.
        benchmarks: what is looked for in the tasks.
    """
    found = Pool([], [], [], [], [])

    def step(name: str, came: Sequence[Task], reasons: Mapping[str, str]) -> list[Task]:
        kept, books, left = sift(name, came, reasons)
        found.steps.append(books)
        found.dropped += left
        return kept

    keys = {task.id: asked_key(task) for task in tasks}
    left = step("filter", tasks, faults(tasks, config, progress))
    left = step("repeats", left, repeats(left, keys))
    for benchmark in benchmarks:
        what = f"overlap {benchmark.name}"
        overlap = audit(left, benchmark, config.overlap, lambda done, total, what=what: progress(what, done, total, {}))
        found.overlaps.append(overlap)
        hit = {h.task: SAID[h.kind] for h in overlap.hits if h.kind in config.overlap.remove}
        left = step(what, left, hit)
    left = step("no call", left, silent_surplus(left, config.no_call, ranks(keys, config.seed, "no call")))
    wanted = config.candidates + config.pool
    left = step("cut", left, surplus(left, wanted, config.cut, ranks(keys, config.seed, "cut")))
    found.rl, found.warmup = split_tasks(left, warmup_size(len(left), config), config.seed)
    return found


def sift(name: str, tasks: Sequence[Task], reasons: Mapping[str, str]) -> tuple[list[Task], Step, list[Dropped]]:
    """(tasks without a reason to go, the books, the others)."""
    step = Step(name, {})
    kept: list[Task] = []
    dropped: list[Dropped] = []
    for task in tasks:
        count = step.sources.setdefault(task.source, Count())
        count.came += 1
        if reason := reasons.get(task.id):
            count.dropped[reason] += 1
            dropped.append(Dropped(task.id, task.source, name, reason))
        else:
            count.kept += 1
            kept.append(task)
    return kept, step, dropped


def faults(
    tasks: Sequence[Task],
    config: PoolConfig,
    progress: Progress = lambda what, done, total, numbers: None,
) -> dict[str, str]:
    """Task id → why nothing good is learned from it."""
    found: dict[str, str] = {}
    for done, task in enumerate(tasks, 1):
        if reason := _fault(task, config):
            found[task.id] = reason
        if done % 500 == 0 or done == len(tasks):
            progress("filter", done, len(tasks), {})
    return found


def _fault(task: Task, config: PoolConfig) -> str:
    calls = [json_line([call.name, call.arguments]) for call in task.expected]
    if task.extra.get("eval_only"):
        return BENCHMARK
    if len(set(calls)) < len(calls):
        return TWICE
    if config.misfits == "drop" and schema_problems(task):
        return MISFIT
    prompt = json_line([[dict(m) for m in task.messages], [dict(t) for t in task.tools]])
    return LONG if len(prompt.decode()) > config.max_characters else ""


def asked_key(task: Task) -> str:
    """What a task asks, as far as repeats are told by it: messages without case and punctuation, tools, no answer."""
    said = [[m.get("role"), words_of(str(m.get("content") or "")), m.get("tool_calls")] for m in task.messages]
    return sha256(json_line([said, sorted(tool_mark(tool) for tool in task.tools)])).hexdigest()


def ranks(keys: Mapping[str, str], seed: int, step: str) -> dict[str, str]:
    """Task id → its place in an order that only the seed and the content decide.

    Every step has an order of its own: what one step has thinned out would come first, or last, in that of the next.
    """
    return {id: sha256(f"{seed}\x1f{step}\x1f{key}".encode()).hexdigest() for id, key in keys.items()}


def repeats(tasks: Iterable[Task], keys: Mapping[str, str]) -> dict[str, str]:
    """Task id → that it asks what an earlier one does, and whether it wants the same."""
    first: dict[str, bytes] = {}
    found: dict[str, str] = {}
    for task in tasks:
        wanted = b"".join(sorted(json_line([call.name, call.arguments]) for call in task.expected))
        key = keys[task.id]
        if key in first:
            found[task.id] = REPEAT if first[key] == wanted else CONTRADICTS
        first.setdefault(key, wanted)
    return found


def silent_surplus(tasks: Sequence[Task], share: float, order: Mapping[str, str]) -> dict[str, str]:
    """Task id → that no call is right in more than a share of its source's tasks; those of the last ranks go."""
    found: dict[str, str] = {}
    for of in _by_source(tasks).values():
        silent = sorted((t.id for t in of if not t.expected), key=lambda id: (order[id], id))
        calling = len(of) - len(silent)
        most = len(silent) if share == 1 else int(share / (1 - share) * calling + 1e-9)
        found |= dict.fromkeys(silent[most:], CROWDED)
    return found


def surplus(tasks: Sequence[Task], most: int, cut: Sequence[str], order: Mapping[str, str]) -> dict[str, str]:
    """Task id → that there are more than `most`. The sources in `cut` make room, down to an even share for each; only
    what is still too much then is taken from the others."""
    sources = _by_source(tasks)
    sizes = {name: len(of) for name, of in sources.items()}
    making = sorted(name for name in sizes if name in cut)
    whole = sum(n for name, n in sizes.items() if name not in making)
    even = sum(min(sizes[name], most // len(sizes)) for name in making)
    room = min(sum(sizes[name] for name in making), max(most - whole, even))
    found: dict[str, str] = {}
    for names, part in ((making, room), (sorted(sizes.keys() - making), most - room)):
        for name, keep in _in_proportion({name: sizes[name] for name in names}, part).items():
            ids = sorted((t.id for t in sources[name]), key=lambda id: (order[id], id))
            found |= dict.fromkeys(ids[keep:], CUT)
    return found


def _in_proportion(sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """What each keeps of `room`, in proportion; what rounding leaves goes to the last."""
    total, kept = sum(sizes.values()), dict[str, int]()
    for name, size in sizes.items():
        kept[name] = size if total <= room else round(room * size / total)
        room, total = room - kept[name], total - size
    return kept


def warmup_size(tasks: int, config: PoolConfig) -> int:
    """How many of `tasks` go to the warm-up: what was asked for, or its part of what there is."""
    wanted = config.candidates + config.pool
    return config.candidates if tasks >= wanted else round(tasks * config.candidates / max(1, wanted))


def _by_source(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    found: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        found[task.source].append(task)
    return found
