"""Does training data ask what a benchmark asks? Equal questions, near ones, equal calls of equal tools.

A score on a benchmark says nothing if its questions were trained on, and they come in by other formats and under other
names. So texts are compared, not marks: every user message of a task with every user message of the benchmark.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from unbraid.chat.types import Call
from unbraid.data.formats import FORMATS, detect
from unbraid.data.row import Example, RowError
from unbraid.data.schema import read_tool
from unbraid.data.sources import file_rows
from unbraid.errors import DataError
from unbraid.tasks.task import Task

Kind = Literal["question", "near", "call"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAID: Mapping[Kind, str] = {
    "question": "asks the same",
    "near": "asks nearly the same",
    "call": "wants the same call of the same tool",
}

# Chinese, Japanese and Korean have no spaces: each sign is a word.
_SIGNS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SIGNS}]|[^\W_{_SIGNS}]+")
_USERS = ("user", "human")
_SAYS = ("content", "value", "text")
_ASKS = ("question", "query", "user", "input", "prompt")


class OverlapConfig(BaseModel):
    """When two questions count as the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    remove: tuple[Kind, ...] = KINDS
    """Kinds of overlap that take a task out of training; the others are reported only."""
    words: int = Field(default=5, ge=1)
    """Words of one n-gram. Choice: 5; questions to tools are short, and 13 (GPT-3's) would pass nearly all of them."""
    share: float = Field(default=0.6, gt=0, le=1)
    """Share of a benchmark question's n-grams that occur in ours, from which on it is near. Choice: 0.6; of our real
    rows against BFCL and API-Bank, the pairs above it are the same problem with another number, those below it only
    begin alike."""
    near_from: int = Field(default=8, ge=1)
    """Words from which on a benchmark's question is compared by n-grams. Choice: 8; shorter ones are pieces of phrases
    that everybody uses ("can you help me book a flight")."""
    equal_from: int = Field(default=4, ge=1)
    """From so many words on an equal question is an overlap; shorter ones ("yes, please") need a shared tool."""


@dataclass(frozen=True)
class Question:
    """What one row of a benchmark asks: its user messages as words, the tools it shows, the calls it wants."""

    id: str
    category: str
    texts: tuple[str, ...]
    tools: frozenset[str] = frozenset()
    calls: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Benchmark:
    """All questions of a benchmark, and every tool that it shows or describes. `unread`: rows that ask nothing."""

    name: str
    questions: tuple[Question, ...]
    tools: frozenset[str]
    rows: int = 0
    unread: int = 0


@dataclass(frozen=True)
class Hit:
    """A task that overlaps with a question. `share`: of the question's n-grams; 1 for an equal question or call."""

    task: str
    source: str
    question: str
    category: str
    kind: Kind
    share: float
    ours: str
    theirs: str


@dataclass
class BenchmarkOverlap:
    """What tasks share with one benchmark. `same_tool`: tasks that show one of its tools (no overlap by itself)."""

    benchmark: Benchmark
    hits: list[Hit] = field(default_factory=list)
    same_tool: int = 0

    @property
    def kinds(self) -> Counter[str]:
        """Tasks by kind; each counts once, for the strongest."""
        return Counter(hit.kind for hit in self.hits)

    @property
    def touched(self) -> Counter[str]:
        """Questions of the benchmark that are hit, by category."""
        return Counter(dict({hit.question: hit.category for hit in self.hits}.items()).values())

    def examples(self, most: int = 5) -> list[Hit]:
        """Hits to show: of every kind some, one for each question."""
        chosen: list[Hit] = []
        for kind in KINDS:
            of_kind = {h.question: h for h in reversed(self.hits) if h.kind == kind}
            chosen += sorted(of_kind.values(), key=lambda h: (-h.share, h.task))[: -(-most // len(KINDS))]
        return chosen[:most]


def overlap_row(found: BenchmarkOverlap) -> dict[str, Any]:
    """What was found, as JSON: counts and examples."""
    of = found.benchmark
    return {
        "name": of.name,
        "rows": of.rows,
        "unread": of.unread,
        "questions": len(of.questions),
        "tools": len(of.tools),
        "kinds": dict(found.kinds),
        "touched": dict(sorted(found.touched.items())),
        "same_tool": found.same_tool,
        "by_source": dict(Counter(hit.source for hit in found.hits)),
        "examples": [asdict(hit) for hit in found.examples()],
    }


def words_of(text: str) -> str:
    """A text as the words that are compared: no case, no punctuation, one space between words."""
    return " ".join(_WORD.findall(text.casefold()))


def tool_mark(tool: Mapping[str, Any]) -> str:
    """What makes two tools the same: their name, spelling of spaces and dots aside, and their parameters' names."""
    inner = tool.get("function", tool)
    parameters = inner.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    name = "".join(_WORD.findall(str(inner.get("name", "")).casefold()))
    return f"{name}({','.join(sorted(properties if isinstance(properties, Mapping) else ()))})"


def call_mark(call: Call, tool: str) -> str:
    """What makes two calls the same: their tool, and arguments that are equal but for case and punctuation."""
    return f"{tool} {json.dumps(_plain(call.arguments), sort_keys=True)}"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return words_of(value) or value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _marks(tools: Iterable[Mapping[str, Any]], calls: Iterable[Call]) -> tuple[frozenset[str], frozenset[str]]:
    """(marks of the tools, marks of the calls that have arguments and belong to one of them)."""
    by_name = {str(tool.get("function", tool).get("name")): tool_mark(tool) for tool in tools}
    called = (call_mark(c, by_name[c.name]) for c in calls if c.name in by_name and c.arguments)
    return frozenset(by_name.values()), frozenset(called)


# A benchmark ---------------------------------------------------------------------------------------------------------


def read_benchmark(name: str, source: str, split: str = "test") -> Benchmark:
    """Everything that a benchmark asks: a file, a folder such as BFCL's data or ACEBench's, or a data set on the hub.

    Rows that are tasks are read as such. Of all others (several turns, environments, unknown formats) the user messages
    are taken, wherever they are, and rows that describe a tool count as that.

    Raises:
        DataError: the source cannot be read, or asks nothing.
    """
    questions: list[Question] = []
    tools: set[str] = set()
    rows = unread = 0
    for row in file_rows(source, split):
        rows += 1
        found = _questions(f"{row.file}:{row.row}", row.value or {})
        described = _described(row.value or {})
        questions += found
        tools.update(described, *(q.tools for q in found))
        unread += not found and not described
    if not questions:
        raise DataError(f"{source}: none of {rows} rows asks anything: give the folder that has {name}'s questions")
    return Benchmark(name, tuple(questions), frozenset(tools), rows, unread)


def benchmark_of(name: str, tasks: Iterable[Task]) -> Benchmark:
    """A benchmark whose rows have been read as tasks already."""
    questions: list[Question] = []
    for task in tasks:
        texts = tuple(dict.fromkeys(asked_texts(task.messages)))
        category = str(task.extra.get("category", ""))
        questions.append(Question(task.id, category, texts, *_marks(task.tools, task.expected)))
    return Benchmark(name, tuple(questions), frozenset().union(*(q.tools for q in questions)), len(questions))


def _questions(where: str, row: Mapping[str, Any]) -> list[Question]:
    id = row["id"] if isinstance(row.get("id"), str) else where
    format = detect(row)
    found: list[Question] = []
    try:
        for one in FORMATS[format].read(row) if format else ():
            calls = one.calls if isinstance(one, Example) else one.expected
            texts = tuple(dict.fromkeys(asked_texts(one.messages)))
            if texts:
                found.append(Question(id, str(one.extra.get("category", "")), texts, *_marks(one.tools, calls)))
    except (RowError, LookupError, TypeError, ValueError, AttributeError):
        found = []
    if not found:
        texts = tuple(dict.fromkeys(filter(None, map(words_of, _said_by_users(row)))))
        found = [Question(id, id.rsplit("_", 1)[0], texts)] if texts else []
    return found


def asked_texts(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The user messages of a conversation as words; empty ones are left out."""
    for message in messages:
        if message.get("role") in _USERS and (text := words_of(str(message.get("content") or ""))):
            yield text


def _said_by_users(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for inner in value:
            yield from _said_by_users(inner)
    elif isinstance(value, dict):
        if str(value.get("role", value.get("from", ""))).casefold() in _USERS:
            yield from (value[key] for key in _SAYS if isinstance(value.get(key), str))
            return
        for key, inner in value.items():
            if isinstance(inner, str) and key in _ASKS:
                yield inner
            else:
                yield from _said_by_users(inner)


def _described(row: Mapping[str, Any]) -> frozenset[str]:
    """The tool that a row describes, if it does."""
    if not isinstance(row.get("name"), str) or not isinstance(row.get("parameters"), Mapping):
        return frozenset()
    try:
        return frozenset([tool_mark(read_tool(row))])
    except RowError:
        return frozenset()


# The audit -----------------------------------------------------------------------------------------------------------


def audit(
    tasks: Sequence[Task],
    benchmark: Benchmark,
    config: OverlapConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchmarkOverlap:
    """Which tasks ask what a benchmark asks. A task has one hit at most: its strongest, with the nearest question.

    Turns of one conversation share its messages: where the first is asked by a benchmark, all of them are hit.
    """
    config = config or OverlapConfig()
    index = _Index(benchmark.questions, config)
    found = BenchmarkOverlap(benchmark)
    for done, task in enumerate(tasks, 1):
        tools, calls = _marks(task.tools, task.expected)
        found.same_tool += not tools.isdisjoint(benchmark.tools)
        texts = tuple(asked_texts(task.messages))
        best = index.same(texts, tools) or index.near(texts) or index.called(calls)
        if best:
            kind, share, ours, theirs, question = best
            ours = ours if kind != "call" else texts[-1] if texts else ""
            found.hits.append(Hit(task.id, task.source, question.id, question.category, kind, share, ours, theirs))
        if done % 500 == 0 or done == len(tasks):
            progress(done, len(tasks))
    return found


_Best = tuple[Kind, float, str, str, Question]
"""(kind, share, our text, their text, the question)."""


class _Index:
    """Questions by their words, by the n-grams in them, and by the calls that they want."""

    def __init__(self, questions: Sequence[Question], config: OverlapConfig):
        self._config = config
        self._by_text: dict[str, list[Question]] = defaultdict(list)
        self._by_call: dict[str, Question] = {}
        for question in questions:
            for text in question.texts:
                self._by_text[text].append(question)
            for call in question.calls:
                self._by_call.setdefault(call, question)
        self._texts = [text for text in self._by_text if text.count(" ") + 1 >= config.near_from]
        self._sizes: list[int] = []
        self._holding: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(self._texts):
            grams = self._grams(text)
            self._sizes.append(len(grams))
            for gram in grams:
                self._holding[gram].append(number)
        self._near: dict[str, tuple[int, float] | None] = {}

    def _grams(self, text: str) -> set[str]:
        words, n = text.split(), self._config.words
        return {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}

    def same(self, texts: Iterable[str], tools: frozenset[str]) -> _Best | None:
        """An equal question; short ones need a tool in common."""
        for text in texts:
            long = text.count(" ") + 1 >= self._config.equal_from
            for question in self._by_text.get(text, ()):
                if long or not tools.isdisjoint(question.tools):
                    return "question", 1.0, text, text, question
        return None

    def near(self, texts: Iterable[str]) -> _Best | None:
        """The question that is held most by one of the texts, from `config.share` on."""
        best: _Best | None = None
        for text in texts:
            if text not in self._near:
                self._near[text] = self._nearest(text)
            found = self._near[text]
            if found and (best is None or found[1] > best[1]):
                theirs = self._texts[found[0]]
                best = "near", found[1], text, theirs, self._by_text[theirs][0]
        return best

    def _nearest(self, text: str) -> tuple[int, float] | None:
        held: Counter[int] = Counter()
        for gram in self._grams(text):
            held.update(self._holding.get(gram, ()))
        shares = ((-n / self._sizes[number], number) for number, n in held.items())
        share, number = min(shares, default=(0.0, 0))
        return (number, -share) if -share >= self._config.share else None

    def called(self, calls: Iterable[str]) -> _Best | None:
        """A question that wants one of the same calls."""
        for call in sorted(calls):
            if question := self._by_call.get(call):
                return "call", 1.0, "", call, question
        return None
