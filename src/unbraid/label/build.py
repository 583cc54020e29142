"""Building a training set of public rows: read, pool, label, sample, refine. Our reading of PubTool (arXiv 2603.13348).

`work/` below the output folder has a folder for each stage. Beside it stand what comes out: `warmup.jsonl`, `rl.jsonl`,
and the card, which says of every row that was read what became of it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import unbraid
from unbraid.chat.types import Mode
from unbraid.data import DataConfig, collect, fit_prompts
from unbraid.data.lines import json_line, write_whole
from unbraid.data.overlap import overlap_row, read_benchmark
from unbraid.data.pool import CUT, Count, PoolConfig, Step, asked_key, make_pool, ranks, sift
from unbraid.data.select import can_write
from unbraid.data.task_rows import read_task_lines, text_row, write_task_lines
from unbraid.errors import CheckpointError, DataError, RecipeError
from unbraid.label.build_config import UNTIL, BuildConfig, Samplers
from unbraid.label.label import MODES, Labelled, Progress, label, silent
from unbraid.label.refining import choose, from_rollouts, from_samples
from unbraid.label.rule import INCOMPLETE
from unbraid.label.stages import OPEN, Stage, digest_of, finished, source_mark, stage
from unbraid.label.table import total
from unbraid.label.tries import SAMPLES
from unbraid.tasks.task import Task

WARMUP, RL, CARD, WORK = "warmup.jsonl", "rl.jsonl", "README.md", "work"
TASKS, DROPPED, PROBLEMS, OVERLAP = "tasks.jsonl", "dropped.jsonl", "problems.jsonl", "overlap.jsonl"


@dataclass(frozen=True)
class Built:
    """What stands: the stages that are finished, by name."""

    folder: Path
    config: BuildConfig
    stages: dict[str, Stage]

    @property
    def steps(self) -> list[Step]:
        """The books of all steps after reading, in order."""
        return [read_step(row) for one in self.stages.values() for row in one.books.get("steps", ())]


def build(
    config: BuildConfig,
    out: str | Path,
    until: str = "refine",
    *,
    samplers: Callable[[], Samplers] | None = None,
    rl_samplers: Callable[[], Samplers] | None = None,
    rounds: str | Path | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> Built:
    """Build, or go on with, the set in `out`. Finished stages stay as they are, unless what they are made of changed.

    Args:
        samplers: for labels; called when they are needed. rl_samplers: for the RL pool; the same if None.
        rounds: a run that trained on the RL pool (`work/pool/rl.jsonl`): refine by its rounds, and sample nothing.
        say: told what a person should know, in lines.

    Raises:
        DataError: a source or a benchmark cannot be read. RecipeError: a model is needed and there is none.
        CheckpointError: tries in the folder were drawn for other tasks, or with other models.
    """
    if until not in UNTIL:
        raise DataError(f"until {until!r}: use one of {', '.join(UNTIL)}")
    out = Path(out)
    work, last = out / WORK, UNTIL.index(until)
    if last > 1 and samplers is None:
        raise RecipeError(f"labels need a model: give a recipe, or stop before them (until pool, not {until})")
    work.mkdir(parents=True, exist_ok=True)
    stages = {f"read {name}": made for name, made in _read_all(config, work, progress, say)}
    if last >= 1:
        stages["pool"] = _pool(config, work, list(stages.values()), progress, say)
    if last >= 2:
        assert samplers
        stages["label"] = _label(config, out, stages["pool"], samplers(), progress, say)
    if last >= 3 and rounds is None:
        assert samplers
        stages["sample"] = _sample(config, work, stages["pool"], (rl_samplers or samplers)(), progress, say)
    if last >= 4:
        stages["refine"] = _refine(config, out, stages, rounds, say)
    return Built(out, config, stages | _later(work, stages))


def _later(work: Path, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Stages after the one that was asked for, where they stand from before and belong to the same pool."""
    if "pool" not in stages:
        return {}
    own = {"label": WARMUP, "sample": RL, "refine": RL}
    found = {name: finished(work / name) for name in own if name not in stages}
    marks = {name: digest_of([stages["pool"].folder / file]) for name, file in own.items()}
    stands = {name: one for name, one in found.items() if one and one.made_of["tasks"] == marks[name]}
    sample, refined = stages.get("sample") or stands.get("sample"), stands.get("refine")
    if refined and "rounds" not in refined.made_of and refined.made_of["samples"] != (sample and sample.digest):
        del stands["refine"]  # of other tries
    return stands


# Read and pool -------------------------------------------------------------------------------------------------------


def _read_all(
    config: BuildConfig, work: Path, progress: Progress, say: Callable[[str], None]
) -> list[tuple[str, Stage]]:
    found: list[tuple[str, Stage]] = []
    seen: Counter[str] = Counter()
    for name, source in config.sources:
        seen[name] += 1
        own = name if seen[name] == 1 else f"{name}.{seen[name]}"
        made_of = {
            **source_mark(source),
            "format": config.format,
            "split": config.split,
            "unbraid": unbraid.__version__,
        }
        read = partial(_read, name, own, source, config, progress)
        found.append((own, stage(work / f"read-{own}", made_of, (TASKS, PROBLEMS), read, say)))
    return found


def _read(name: str, own: str, source: str, config: BuildConfig, progress: Progress, folder: Path) -> dict[str, Any]:
    """One source as tasks of single steps, under its name; ids say which row of which file they are from."""
    rules = DataConfig(format=config.format, split=config.split, no_call=1.0)
    found = collect(source, rules, lambda done, total: progress(f"read {own}", done, total, {}))
    write_task_lines(folder / TASKS, (replace(t, id=f"{own}/{t.id}", source=name) for t in found.tasks))
    problems = [("bad", row) for row in found.bad] + [("skipped", row) for row in found.skipped]
    rows = [{"kind": kind, "file": row.file, "row": row.row, "reason": row.reason} for kind, row in problems]
    write_whole(folder / PROBLEMS, map(json_line, rows))
    counts = found.counts.values()
    return {
        "source": name,
        "formats": sorted({count.format for count in counts}),
        **{
            key: sum(getattr(count, key) for count in counts) for key in ("rows", "examples", "tasks", "skipped", "bad")
        },
        "reasons": dict(Counter(f"{kind}: {row.reason}" for kind, row in problems).most_common()),
    }


def _pool(
    config: BuildConfig, work: Path, read: Sequence[Stage], progress: Progress, say: Callable[[str], None]
) -> Stage:
    rules = config.model_dump(mode="json", include=set(PoolConfig.model_fields))
    benchmarks = [{"name": name, **source_mark(source)} for name, source in config.benchmarks]
    made_of = {"tasks": [one.digest for one in read], "benchmarks": benchmarks, **rules, "unbraid": unbraid.__version__}

    def make(folder: Path) -> dict[str, Any]:
        tasks = [task for one in read for task in read_task_lines(one.folder / TASKS)]
        if not tasks:
            raise DataError("no source has a usable task: `unbraid data inspect` says why")
        sets = [read_benchmark(name, source) for name, source in config.benchmarks]
        found = make_pool(tasks, sets, config, progress)
        write_task_lines(folder / WARMUP, found.warmup)
        write_task_lines(folder / RL, found.rl)
        write_whole(folder / DROPPED, (json_line(asdict(one)) for one in found.dropped))
        hits = ({"benchmark": one.benchmark.name, **asdict(hit)} for one in found.overlaps for hit in one.hits)
        write_whole(folder / OVERLAP, map(json_line, hits))
        return {
            "steps": [step_row(step) for step in found.steps],
            "overlaps": [overlap_row(one) for one in found.overlaps],
            "warmup": Counter(task.source for task in found.warmup),
            "rl": Counter(task.source for task in found.rl),
        }

    return stage(work / "pool", made_of, (WARMUP, RL, DROPPED, OVERLAP), make, say)


# Label, sample and refine --------------------------------------------------------------------------------------------


def _label(
    config: BuildConfig, out: Path, pool: Stage, who: Samplers, progress: Progress, say: Callable[[str], None]
) -> Stage:
    """The warm-up set: labelled tasks, no more than were asked for."""
    made_of = {**_tried_by(config, pool.folder / WARMUP, who), "warmup": config.warmup, "seed": config.seed}

    def make(folder: Path) -> dict[str, Any]:
        fit, found = _try(config, folder, read_task_lines(pool.folder / WARMUP), who, "label", progress)
        labelled, step = _labelled(found)
        kept, size = _trim(labelled, config.warmup, config.seed, "warm-up size")
        _write_set(out / WARMUP, kept)
        return {
            "steps": [step_row(one) for one in (fit, step, size)],
            "thinks": Counter(task.source for task in kept if task.extra["needs_thinking"]),
            "books": _label_books(found),
            "warnings": found.warnings,
            OPEN: _incomplete(found),
        }

    return stage(out / WORK / "label", made_of, (f"../../{WARMUP}",), make, say)


def _sample(
    config: BuildConfig, work: Path, pool: Stage, who: Samplers, progress: Progress, say: Callable[[str], None]
) -> Stage:
    """Tries of the RL pool, whose rewards refine it."""

    def make(folder: Path) -> dict[str, Any]:
        fit, found = _try(config, folder, read_task_lines(pool.folder / RL), who, "sample", progress)
        return {
            "steps": [step_row(fit)],
            "books": _label_books(found),
            "warnings": found.warnings,
            OPEN: _incomplete(found),
        }

    return stage(work / "sample", _tried_by(config, pool.folder / RL, who), (SAMPLES,), make, say)


def _tried_by(config: BuildConfig, tasks: Path, who: Samplers) -> dict[str, Any]:
    return {
        "tasks": digest_of([tasks]),
        "max_prompt_tokens": who.max_prompt_tokens,
        "labels": config.labels.model_dump(mode="json"),
        "no_think": dict(who.no_think.identity),
        "think": dict(who.think.identity),
        "unbraid": unbraid.__version__,
    }


def _try(
    config: BuildConfig, folder: Path, tasks: Sequence[Task], who: Samplers, what: str, progress: Progress
) -> tuple[Step, Labelled]:
    """Fit the tasks to the prompt budget, and label them in `folder`; goes on with the tries that are there."""
    step, kept = Step(f"fit {what}", {}), list[Task]()
    for start in range(0, len(tasks), 200):
        for source in dict.fromkeys(task.source for task in tasks[start : start + 200]):
            part = [task for task in tasks[start : start + 200] if task.source == source]
            fitted = fit_prompts(part, who.chat, who.max_prompt_tokens)
            count = step.sources.setdefault(source, Count())
            count.came, count.kept = count.came + len(part), count.kept + len(fitted.kept)
            count.dropped.update(fitted.dropped)
            kept += fitted.kept
        progress(step.name, min(start + 200, len(tasks)), len(tasks), {})
    if not kept:
        return step, Labelled([], [], {}, [])
    try:
        found = label(
            kept, who.no_think, who.think, folder, config.labels, partial(can_write, who.chat),
            lambda mode, done, total, numbers: progress(f"{what} {mode}", done, total, numbers),
        )  # fmt: skip
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a build goes on only with the same sources, rules and models") from error
    return step, found


def _label_books(found: Labelled) -> dict[str, Any]:
    """Share of right tries by mode, difficulties, and cost, over all sources."""
    whole = total(found.books)
    return {
        "right": {mode.value: whole.accuracy(mode) for mode in MODES},
        "difficulty": dict(sorted(whole.difficulty.items())),
        "cost": {mode: vars(cost) for mode, cost in whole.cost.items()},
    }


def _incomplete(found: Labelled) -> int:
    """Tasks whose tries are missing: a larger budget goes on."""
    return sum(books.dropped[INCOMPLETE] for books in found.books.values())


def _labelled(found: Labelled) -> tuple[list[Task], Step]:
    step = Step("label", {name: Count(b.tasks, b.kept, Counter(b.dropped)) for name, b in found.books.items()})
    return found.tasks, step


def _refine(
    config: BuildConfig,
    out: Path,
    stages: Mapping[str, Stage],
    rounds: str | Path | None,
    say: Callable[[str], None],
) -> Stage:
    """The RL set: chosen by the rewards that its pool was seen to give."""
    pool, sample = stages["pool"], stages.get("sample")
    rule = config.refine.model_dump(mode="json", exclude={"keep"})
    by = {"rounds": _run_mark(Path(rounds))} if rounds else {"samples": sample.digest if sample else ""}
    made_of = {"tasks": digest_of([pool.folder / RL]), **by, "mode": config.refine_mode, "rl": config.rl, **rule}

    def make(folder: Path) -> dict[str, Any]:
        if rounds:
            tasks, measured = read_task_lines(pool.folder / RL), from_rollouts(rounds, "rounds")[1]
        else:
            assert sample
            mode = Mode(config.refine_mode) if config.refine_mode else None
            tasks, measured = from_samples(sample.folder, mode)
        seen = sum(task.id in measured for task in tasks)
        of = config.refine.model_copy(update={"keep": min(1.0, config.rl / max(1, seen))})
        found = choose(tasks, measured, of, "rounds" if rounds else "samples")
        kept, step, dropped = sift("refine", tasks, found.refined.dropped)
        kept, size = _trim(kept, config.rl, config.seed, "RL size")
        write_whole(folder / DROPPED, (json_line(asdict(one)) for one in dropped))
        _write_set(out / RL, kept)
        return {"steps": [step_row(step), step_row(size)], "notes": found.notes}

    return stage(out / WORK / "refine", made_of, (f"../../{RL}", DROPPED), make, say)


def _run_mark(run: Path) -> list[Any]:
    files = sorted((run / "rollouts").glob("step_*.parquet"))
    return [len(files), sum(path.stat().st_size for path in files)]


def _trim(tasks: Sequence[Task], most: int, seed: int, name: str) -> tuple[list[Task], Step]:
    """No more than `most`, whichever the seed and what they ask pick."""
    order = ranks({task.id: asked_key(task) for task in tasks}, seed, name)
    over = sorted(order, key=lambda id: (order[id], id))[most:]
    kept, step, _ = sift(name, tasks, dict.fromkeys(over, CUT))
    return kept, step


def _write_set(path: Path, tasks: Sequence[Task]) -> None:
    write_whole(path, (json_line(text_row(task)) for task in tasks))


def step_row(step: Step) -> dict[str, Any]:
    """A step's books as JSON."""
    counts = {n: {"came": c.came, "kept": c.kept, "dropped": dict(c.dropped)} for n, c in step.sources.items()}
    return {"name": step.name, "sources": counts}


def read_step(row: Mapping[str, Any]) -> Step:
    """Read back what `step_row` gave."""
    counts = {name: Count(c["came"], c["kept"], Counter(c["dropped"])) for name, c in row["sources"].items()}
    return Step(row["name"], counts)
