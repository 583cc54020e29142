"""Pages about runs: one report about one or several, and episodes to read."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from unbraid.chat.format import ChatFormat
from unbraid.data import read_tasks
from unbraid.errors import DataError, UnbraidError
from unbraid.evaluate.metrics import Score
from unbraid.learn.log import read_metrics, read_notes, read_rollouts
from unbraid.policy import load_tokenizer
from unbraid.recipe import Recipe
from unbraid.report.episode_page import write_episodes
from unbraid.report.episodes import EpisodeView, episode_views
from unbraid.report.page import write_report
from unbraid.report.views import Colophon, Report, RunView, Transcript, transcript
from unbraid.rollout.trajectory import Trajectory
from unbraid.run.folder import read_scores, recipe_of
from unbraid.tasks.task import Task

EPISODES_SHOWN = 60
"""Most episodes of a run in its report."""
EPISODES_IN_PAGE = 400
"""Most episodes in a page of their own."""


def run_view(run_dir: str | Path, name: str = "") -> RunView:
    """A run as the report shows it. `name`: instead of its recipe's."""
    recipe = recipe_of(run_dir)
    return RunView(
        name or recipe.name,
        recipe.label or recipe.name,
        read_metrics(run_dir),
        read_notes(run_dir),
        vote=f"vote/{recipe.learn.advantage_scale}",
    )


def transcripts_of(
    method: str, format: ChatFormat, trajectories: Sequence[Trajectory], per_level: int = 1
) -> list[Transcript]:
    """A few transcripts of each level: a wrong answer before a right one, since those are worth reading."""
    levels = sorted({t.level for t in trajectories})
    shown: list[Transcript] = []
    for level in levels:
        here = sorted((t for t in trajectories if t.level == level), key=lambda t: (t.correct, t.task_id))
        shown += [transcript(t, format.decode, method) for t in here[:per_level]]
    return shown


def run_names(run_dirs: Sequence[str | Path]) -> list[str]:
    """What runs are called beside each other: by their recipes, or by their folders where two have one name.

    Raises:
        DataError: a folder is no run.
    """
    names = [recipe_of(run_dir).name for run_dir in run_dirs]
    return names if len(set(names)) == len(names) else [str(run_dir) for run_dir in run_dirs]


def report_runs(run_dirs: Sequence[str | Path], out: str | Path, title: str = "") -> Report:
    """One page about one or more finished runs; returns what it was made from.

    Runs are called by their recipes' names, or by their folders where two recipes have one name.

    Raises:
        DataError: a folder is no run, or an unfinished one.
    """
    shown: list[Transcript] = []
    episodes: list[EpisodeView] = []
    scores: list[Score] = []
    recipes = [recipe_of(run_dir) for run_dir in run_dirs]
    names = run_names(run_dirs)
    for run_dir, recipe, name in zip(run_dirs, recipes, names, strict=True):
        scores += [replace(s, labels=replace(s.labels, method=name)) for s in read_scores(run_dir)]
        format = chat_format_of(recipe)
        found = read_rollouts(Path(run_dir) / "evaluation.parquet")
        shown += transcripts_of(name, format, [t for t in found if t.episode is None])
        played = [t for t in found if t.episode]
        episodes += episode_views(played, format.decode, name, _tasks_of(recipe), EPISODES_SHOWN)
    report = Report(
        title=title or ", ".join(names),
        summary=[f"{name}: {r.label}" for name, r in zip(names, recipes, strict=True) if r.label],
        scores=scores,
        runs=[run_view(run_dir, name) for run_dir, name in zip(run_dirs, names, strict=True)],
        transcripts=shown,
        episodes=episodes,
        colophon=colophon(
            [f"unbraid report {' '.join(map(str, run_dirs))}"],
            {name: r.seed for name, r in zip(names, recipes, strict=True)},
        ),
    )
    write_report(out, report)
    return report


def write_run_episodes(run_dir: str | Path, out: str | Path, step: int | None = None) -> Path:
    """A page of episodes to read: those of the final evaluation, or of one training step; returns what was written.

    Raises:
        DataError: the folder is no run, or holds no such step.
    """
    recipe = recipe_of(run_dir)
    name = "evaluation.parquet" if step is None else f"rollouts/step_{step:06d}.parquet"
    if not (Path(run_dir) / name).exists():
        steps = sorted(int(f.stem.removeprefix("step_")) for f in (Path(run_dir) / "rollouts").glob("step_*.parquet"))
        there = f"it has rollouts of steps {steps[0]} to {steps[-1]} (--step)" if steps else "it has no rollouts yet"
        raise DataError(f"{run_dir} holds no {name}: {there}")
    found = read_rollouts(Path(run_dir) / name)
    decode = chat_format_of(recipe).decode
    views = episode_views(found, decode, recipe.name, _tasks_of(recipe), EPISODES_IN_PAGE)
    return write_episodes(out, views, f"Episodes of {recipe.name}", f"{name}: {len(views)} of {len(found)} episodes")


def chat_format_of(recipe: Recipe) -> ChatFormat:
    """The chat format of a recipe; no weights are loaded."""
    return ChatFormat.build(load_tokenizer(recipe.model), recipe.chat)


def _tasks_of(recipe: Recipe) -> list[Task]:
    """The tasks of a recipe for looking up, as far as they can still be read."""
    sources = dict.fromkeys(s for s in (recipe.tasks.train, recipe.tasks.validation, recipe.tasks.test) if s)
    tasks: list[Task] = []
    for source in sources:
        with suppress(UnbraidError):
            tasks += read_tasks(source, recipe.data).tasks
    return tasks


def colophon(commands: Sequence[str], seeds: dict[str, Any], seconds: dict[str, float] | None = None) -> Colophon:
    """Where numbers come from: commands, seeds, versions, seconds per stage."""
    from importlib.metadata import version

    packages = ("unbraid", "torch", "transformers", "peft", "numpy")
    return Colophon(commands, seeds, {name: version(name) for name in packages}, seconds or {})
