"""Runs against each other, entry by entry: their own evaluation and all benchmarks that they have answered."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unbraid.bench.score import Entry, Setting, read_entries, read_score, records_of
from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.evaluate.statistics import Estimate, clustered_mean, mcnemar, of_means
from unbraid.learn.log import read_rollouts
from unbraid.report.comparison import Compared, Difference, Row, Section
from unbraid.run.folder import read_scores, recipe_of
from unbraid.run.pages import colophon, run_names

OWN = "own evaluation"
FINAL = "final"
Key = tuple[str, str]
"""(title, mode and decoding) of a section."""


@dataclass(frozen=True)
class Answered:
    """What one run has to say in one section. setting: what was asked and how, by name; None if nobody wrote it."""

    row: Row
    entries: Sequence[Entry]
    setting: Setting | None = None
    parameters: int | None = None


def compare_runs(runs: Sequence[str]) -> Compared:
    """Everything about the runs, against the first.

    Args:
        runs: run folders; `FOLDER@CHECKPOINT` is a run as it was there (`base`, or with a choice of adapters:
            `final~reasoning`), of which only benchmarks are known.

    Raises:
        DataError: a folder is no run, or nothing was answered by any.
    """
    places = [_place(run) for run in runs]
    folders = [folder for folder, _ in places]
    distinct = run_names(list(dict.fromkeys(folders)))
    by_folder = dict(zip(dict.fromkeys(folders), distinct, strict=True))
    names = [by_folder[f] + (f"@{checkpoint}" if checkpoint != FINAL else "") for f, checkpoint in places]
    if len(set(names)) < len(names):
        raise DataError(f"{Counter(names).most_common(1)[0][0]} is given twice: compare different runs")
    found = [answered(f, checkpoint, name) for (f, checkpoint), name in zip(places, names, strict=True)]
    keys = list(dict.fromkeys(key for one in found for key in one))
    if not keys:
        raise DataError(f"{', '.join(runs)}: nothing was evaluated: `unbraid evaluate` or `unbraid bench` them first")
    keys.sort(key=lambda key: (key[0] != OWN, key))
    labels = [f"{by_folder[f]}: {label}" for f in by_folder if (label := recipe_of(f).label)]
    settings = [
        f"{name}, {title}, {asked}: {_said(one[title, asked].setting)}"
        for name, one in zip(names, found, strict=True)
        for title, asked in keys
        if (title, asked) in one and one[title, asked].setting
    ]
    written = colophon([f"unbraid compare {' '.join(runs)}"], {})
    return Compared(
        names,
        [_section(key, names[0], found) for key in keys],
        labels,
        type(written)(written.commands, {}, written.versions, {}, settings),
    )


def _place(run: str) -> tuple[str, str]:
    folder, at, checkpoint = run.rpartition("@")
    return (folder, checkpoint) if at and not Path(run).is_dir() else (run, FINAL)


def answered(run_dir: str, checkpoint: str, name: str) -> dict[Key, Answered]:
    """What a run has answered, by section."""
    recipe_of(run_dir)
    found: dict[Key, Answered] = {}
    if checkpoint == FINAL and (Path(run_dir) / "evaluation.parquet").exists():
        # The episodes that are kept are those of the first score.
        score = read_scores(run_dir)[0]
        drawn = read_rollouts(Path(run_dir) / "evaluation.parquet")
        entries = [Entry(t.task_id, t.level, float(t.correct), t.response_tokens, t.mode) for t in drawn]
        row = Row(name, score.accuracy, score.tokens, score.think_rate, score.acu)
        key = (OWN, f"{score.mode.value}, {score.decoding}")
        found[key] = Answered(row, entries, None, score.labels.parameters)
    for folder in records_of(run_dir):
        score = read_score(folder)
        setting = score.setting
        if setting.checkpoint == checkpoint:
            row = Row(name, score.accuracy, score.tokens, score.think_rate, score.acu)
            key = (setting.benchmark, f"{setting.mode.value}, {setting.decoding}")
            found[key] = Answered(row, read_entries(folder), setting, setting.parameters)
    return found


def _section(key: Key, first: str, found: Sequence[Mapping[Key, Answered]]) -> Section:
    base = found[0].get(key)
    rows = []
    for one in found:
        if key not in one:
            continue
        mine = one[key]
        row, difference, note = mine.row, None, ""
        if mine is not base:
            difference = pair(base, mine) if base else None
            if not base:
                note = f"{first} was not asked this"
            elif not difference:
                note = f"no entry in common with {first}"
            elif base.setting and mine.setting:
                note = _asked_otherwise(base.setting, mine.setting)
        rows.append(Row(row.run, row.accuracy, row.tokens, row.think, row.acu, difference, note))
    return Section(key[0], key[1], rows)


def pair(first: Answered, second: Answered) -> Difference | None:
    """`second` less `first`, over the entries of both; None if there are none in common."""
    ours, theirs = (_by_id(one.entries) for one in (first, second))
    ids = [id for id in ours if id in theirs]
    if not ids:
        return None

    def means(measure: Callable[[Entry], float], ids: Sequence[str] = ids) -> tuple[NDArray, NDArray]:
        pairs = [(np.mean(list(map(measure, ours[i]))), np.mean(list(map(measure, theirs[i])))) for i in ids]
        return tuple(np.array(pairs, dtype=np.float64).T)

    def change(measure: Callable[[Entry], float], name: str, ids: Sequence[str] = ids) -> Estimate:
        before, after = means(measure, ids)
        return clustered_mean(after - before, list(ids), f"compare/{name}")

    score, tokens = means(lambda e: e.score), means(lambda e: e.tokens)
    thinking = [i for i in ids if all(e.mode in (Mode.THINK, Mode.NO_THINK) for e in (*ours[i], *theirs[i]))]
    ratio = None
    if first.parameters and second.parameters:
        sizes = first.parameters / second.parameters
        columns = np.stack([score[0], tokens[0], score[1], tokens[1]], axis=1)
        ratio = of_means(columns, lambda m: sizes * (m[..., 2] / m[..., 3]) / (m[..., 0] / m[..., 1]), "compare/acu")
    once = all(len(ours[i]) == len(theirs[i]) == 1 for i in ids)
    plain = once and set(score[0]) | set(score[1]) <= {0.0, 1.0}
    return Difference(
        len(ids),
        change(lambda e: e.score, "score"),
        change(lambda e: e.tokens, "tokens"),
        change(lambda e: e.mode is Mode.THINK, "think", thinking) if thinking else None,
        ratio,
        mcnemar(int((score[0] > score[1]).sum()), int((score[1] > score[0]).sum())) if plain else None,
    )


def _by_id(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.id, []).append(entry)
    return found


def _asked_otherwise(first: Setting, second: Setting) -> str:
    """What was different in how two runs were asked, as far as it matters to a reader of the table."""
    names = ("version", "checker", "template", "max_tokens")
    changed = [f"{name} {getattr(first, name)}" for name in names if getattr(first, name) != getattr(second, name)]
    changed += [f"{k} {v}" for k, v in first.other.items() if second.other.get(k) != v]
    return f"{second.model} was asked otherwise; there: {', '.join(changed)}" if changed else ""


def _said(setting: Setting | None) -> str:
    assert setting
    other = "".join(f", {name} {value}" for name, value in setting.other.items())
    return (
        f"{setting.checker}; {setting.handler}; template {setting.template}; {setting.max_tokens} tokens a response"
        f"{other}; questions {setting.version}; {setting.command}"
    )
