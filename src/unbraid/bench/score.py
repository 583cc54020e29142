"""The record of one benchmark run: how it was asked, every entry's outcome, and the scores that follow from them.

RUN/benchmarks/NAME/CHECKPOINT-MODE-DECODING/
    setting.json    how entries are asked: written first, and entries asked otherwise are never mixed in
    entries.jsonl   one finished entry a line, in the order they came in: what is there is never asked again
    score.json      the setting, and what the entries add up to

Entries have ids, so that two runs can be compared entry by entry.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.evaluate.metrics import acu
from unbraid.evaluate.statistics import Estimate, clustered_mean, proportion

T = TypeVar("T")
PACKAGES = ("unbraid", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Entry:
    """One question of a benchmark, answered.

    score: what the checker gave, in [0, 1]; most give 0 or 1. tokens: that the model wrote, over all its responses.
    mode: that was found in the response; None where it cannot be told. reason: why it is wrong, in a few words.
    response: what the model wrote, as text; for reading only. parts: further shares in [0, 1] that the checker gave.
    """

    id: str
    category: str
    score: float
    tokens: int
    mode: Mode | None = None
    reason: str = ""
    response: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """How a benchmark was asked. Two runs with other settings are other results.

    version: of the questions and answers, as far as they name one. checker: what decides what is right.
    handler: what makes requests of entries and reads the responses. template: chat preset and call format.
    mode: that was asked for. temperature: 0 is greedy. max_tokens: budget of one response.
    parameters: weights of the model; None if unknown (no ACU then). versions: of packages.
    limit: entries of a category at most. command: that wrote this. These two need not be the same to go on.
    """

    benchmark: str
    version: str
    checker: str
    handler: str
    model: str
    checkpoint: str
    template: str
    mode: Mode
    temperature: float
    max_tokens: int
    seed: int = 0
    parameters: int | None = None
    other: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    command: str = ""

    @property
    def decoding(self) -> str:
        """`greedy`, or the temperature."""
        return "greedy" if self.temperature == 0 else f"T{self.temperature:g}"

    def folder(self, run_dir: str | Path) -> Path:
        """Where the record of a run stands."""
        checkpoint = self.checkpoint.replace("/", ".")
        return Path(run_dir) / "benchmarks" / self.benchmark / f"{checkpoint}-{self.mode.value}-{self.decoding}"


@dataclass(frozen=True)
class BenchmarkScore:
    """What one benchmark run came to.

    accuracy: mean score over all entries, each counting the same. categories: the same, by category.
    think_rate: share of entries that thought, of those whose mode is known (n); None where none is.
    tokens: mean per entry. acu: see `evaluate.acu`. totals: further shares in [0, 1], named as officially.
    """

    setting: Setting
    accuracy: Estimate
    categories: Mapping[str, Estimate]
    think_rate: Estimate | None
    tokens: Estimate
    acu: float | None
    totals: Mapping[str, float] = field(default_factory=dict)


def score_entries(setting: Setting, entries: Sequence[Entry], totals: Mapping[str, float] = {}) -> BenchmarkScore:
    """The scores of finished entries.

    Raises:
        DataError: there are none.
    """
    if not entries:
        raise DataError(f"{setting.benchmark}: no entry is finished: raise --limit, or look at why all of them failed")
    tokens = clustered_mean([e.tokens for e in entries], [e.id for e in entries], "tokens")
    thought = [e.mode is Mode.THINK for e in entries if e.mode in (Mode.THINK, Mode.NO_THINK)]
    accuracy = mean_score(entries)
    return BenchmarkScore(
        setting,
        accuracy,
        {name: mean_score(group) for name, group in by_category(entries).items()},
        proportion(sum(thought), len(thought)) if thought else None,
        tokens,
        acu(accuracy.value, setting.parameters, tokens.value) if setting.parameters and tokens.value else None,
        totals,
    )


def by_category(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Category → its entries, categories in alphabetical order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.category, []).append(entry)
    return {name: found[name] for name in sorted(found)}


def mean_score(entries: Sequence[Entry]) -> Estimate:
    """Wilson's interval where every entry is right or wrong and there once, else the bootstrap over entries."""
    right = [e.score for e in entries]
    if set(right) <= {0.0, 1.0} and len({e.id for e in entries}) == len(entries):
        return proportion(int(sum(right)), len(right))
    return clustered_mean(right, [e.id for e in entries], "score")


def limited(items: Mapping[str, Sequence[T]], limit: int | None, seed: int = 0) -> dict[str, list[T]]:
    """At most `limit` items of every category, in their order; a larger limit keeps those of a smaller one.

    Args:
        items: category → its items. Choice: drawn by lot, since files are often sorted by difficulty.
    """

    def lot(place: tuple[str, int]) -> bytes:
        return sha256(f"{seed}/{place[0]}/{place[1]}".encode()).digest()

    chosen = {}
    for name, found in items.items():
        drawn = sorted(range(len(found)), key=lambda i: lot((name, i)))[: len(found) if limit is None else limit]
        chosen[name] = [found[i] for i in sorted(drawn)]
    return chosen


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Package → its version, for those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def open_record(folder: Path, setting: Setting, again: bool = False) -> list[Entry]:
    """Begin a record, or go on with one: the entries that are finished.

    Args:
        again: start anew; what was there is thrown away.

    Raises:
        DataError: the folder holds entries that were asked otherwise, and `again` is not set.
    """
    path = folder / "setting.json"
    if path.exists() and not again:
        there = _read(path, Setting)
        if changed := _differences(there, setting):
            raise DataError(f"{folder} was asked with {'; '.join(changed)}: add --again to throw it away and ask anew")
        path.write_text(_text(setting))
        return read_entries(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("entries.jsonl", "score.json"):
        (folder / name).unlink(missing_ok=True)
    path.write_text(_text(setting))
    return []


def add_entries(folder: Path, entries: Iterable[Entry]) -> None:
    """Write down finished entries, at once."""
    lines = "".join(json.dumps(TypeAdapter(Entry).dump_python(e, mode="json")) + "\n" for e in entries)
    with (folder / "entries.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines)


def close_record(folder: Path, setting: Setting, totals: Mapping[str, float] = {}) -> BenchmarkScore:
    """Score what is finished, and write it."""
    score = score_entries(setting, read_entries(folder), totals)
    partial = folder / ".score.json"
    partial.write_text(_text(score))
    partial.rename(folder / "score.json")
    return score


def read_entries(folder: Path) -> list[Entry]:
    """The finished entries of a record. A last line that a killed process left unfinished is taken off the file.

    Raises:
        DataError: another line is broken.
    """
    path = folder / "entries.jsonl"
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + "\n" * bool(whole), encoding="utf-8")
    found = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found.append(TypeAdapter(Entry).validate_json(line))
        except ValidationError as problem:
            raise DataError(f"{path}:{number}: no entry ({_first(problem)}): remove the line") from problem
    return found


def read_score(folder: Path) -> BenchmarkScore:
    """The scores of a finished record.

    Raises:
        DataError: there are none.
    """
    path = folder / "score.json"
    if not path.exists():
        raise DataError(f"{folder} holds no score.json: run the same `unbraid bench` again, it goes on")
    return _read(path, BenchmarkScore)


def records_of(run_dir: str | Path) -> list[Path]:
    """The folders of a run's finished benchmark records, in order of name."""
    return sorted(path.parent for path in Path(run_dir).glob("benchmarks/*/*/score.json"))


def _differences(there: Setting, now: Setting) -> list[str]:
    """What stands in the way of going on."""
    mine, other = ({**vars(s), **s.other, **s.versions} for s in (now, replace(there, limit=now.limit)))
    skipped = {"command", "other", "versions"}
    keys = [key for key in dict.fromkeys([*other, *mine]) if key not in skipped]
    return [f"{key} {other.get(key)} (now {mine.get(key)})" for key in keys if other.get(key) != mine.get(key)]


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as problem:
        raise DataError(f"{path} is not what this version writes ({_first(problem)}): run it with --again") from problem


def _first(problem: ValidationError) -> str:
    one = problem.errors()[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']}"


def _text(value: Any) -> str:
    return json.dumps(TypeAdapter(type(value)).dump_python(value, mode="json"), indent=1, ensure_ascii=False) + "\n"
