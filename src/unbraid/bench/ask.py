"""Asking a run the questions of a benchmark: what all benchmarks share that we ask ourselves.

A benchmark is questions by category, and either a reward for single responses or an environment to act in. Everything
else is the run's own: its weights, its chat format, its sampler, its budgets.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from unbraid.bench.score import (
    BenchmarkScore,
    Entry,
    Setting,
    add_entries,
    close_record,
    limited,
    open_record,
    package_versions,
)
from unbraid.chat.types import Mode
from unbraid.data.read import content_key
from unbraid.errors import ChatError
from unbraid.policy import Policy, load_policy
from unbraid.policy.saving import weights_folder
from unbraid.prepare import roll_of
from unbraid.recipe import Recipe, load_recipe
from unbraid.rollout.config import EnvironmentConfig
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.scoring import Roll, SingleStep
from unbraid.rollout.trajectory import Trajectory
from unbraid.run.folder import policy_of, recipe_of, take_weights
from unbraid.run.training import Progress, silent
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Ended, ToolFault
from unbraid.tasks.reward import RewardConfig, RewardFunction
from unbraid.tasks.task import Task

BASE = "base"
"""The checkpoint that stands for the recipe's model as it was before training."""
TOGETHER = 64
"""Entries asked at a time and written down together: what a stopped run loses at most."""
SHOWN = 4000
"""Characters of a response that are kept."""
_NOT_THE_MODELS = (ToolFault.EXCEPTION, ToolFault.TIME_LIMIT)


@dataclass(frozen=True)
class Benchmark:
    """Questions, how they are answered, and what is right.

    tasks: category → its questions; ids are unique over all. checker: in words, what decides what is right.
    reward: for questions that one response answers. acts_in: for those that take an environment; one of the two.
    totals: further shares that follow from all entries, by name. other: settings of the benchmark's own.
    notes: what was read and left out, for people.
    """

    name: str
    checker: str
    tasks: Mapping[str, Sequence[Task]]
    reward: RewardFunction | None = None
    acts_in: Environment | None = None
    totals: Callable[[Sequence[Entry]], Mapping[str, float]] = lambda _: {}
    other: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def version(self) -> str:
        """A digest of all questions and answers."""
        digest = sha256()
        for tasks in self.tasks.values():
            for task in tasks:
                digest.update(f"{task.id} {content_key(task)} {task.expected} {sorted(task.extra.items())}".encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Asking:
    """How to ask. checkpoint: folder of the run with weights, or `base`. limit: entries of a category at most.

    variant: names a change to the policy, such as adapters that are off; part of the checkpoint's name.
    again: throw away what was answered. together: entries asked at a time.
    """

    mode: Mode = Mode.AUTO
    temperature: float = 0.0
    checkpoint: str = "final"
    variant: str = ""
    limit: int | None = None
    again: bool = False
    together: int = TOGETHER
    command: str = ""


def load_run(run_dir: str | Path, checkpoint: str = "final", overrides: Sequence[str] = ()) -> tuple[Recipe, Policy]:
    """The recipe of a run or of an exported folder, overridden, and its policy.

    Raises:
        DataError: the folder is neither. CheckpointError: it has no such weights.
    """
    made_with = recipe_of(run_dir)  # says in one line that a folder is no run
    recipe = load_recipe([Path(run_dir) / "recipe.yaml"], overrides)
    if checkpoint == BASE:
        return recipe, load_policy(recipe.model, recipe.chat)
    if (recipe.model, recipe.chat) == (made_with.model, made_with.chat):
        return recipe, policy_of(run_dir, checkpoint)
    policy = load_policy(recipe.model, recipe.chat)
    take_weights(policy, weights_folder(run_dir, checkpoint))
    return recipe, policy


def recipe_for(benchmark: Benchmark, recipe: Recipe) -> Recipe:
    """The recipe with the benchmark's environment in place of its own, and the same budgets."""
    if not benchmark.acts_in:
        return recipe.model_copy(update={"environment": None, "reward": RewardConfig()})
    budgets = recipe.environment or EnvironmentConfig(name=benchmark.name)
    return recipe.model_copy(
        update={"environment": budgets.model_copy(update={"name": benchmark.name, "reward": "own"})}
    )


def roll_for(benchmark: Benchmark, recipe: Recipe, policy: Policy, fleet: Fleet | None = None) -> Roll:
    """How the policy answers the benchmark's questions. recipe: as `recipe_for` gives it."""
    roll = roll_of(recipe, policy, benchmark.acts_in, fleet)
    if benchmark.reward is None:
        return roll
    assert isinstance(roll, SingleStep)
    return replace(roll, reward=benchmark.reward)


def setting_of(benchmark: Benchmark, recipe: Recipe, policy: Policy, asking: Asking) -> Setting:
    """What the record says about how it was asked."""
    preset = recipe.chat.preset if isinstance(recipe.chat.preset, str) else "own"
    budget = {}
    if benchmark.acts_in and (limits := recipe_for(benchmark, recipe).environment):
        budget = {"turns": str(limits.turns), "calls": str(limits.calls), "context": str(limits.tokens)}
    return Setting(
        benchmark=benchmark.name,
        version=benchmark.version,
        checker=benchmark.checker,
        handler=f"unbraid, {recipe.sampler.engine} sampler",
        model=recipe.name,
        checkpoint=asking.checkpoint + (f"~{asking.variant}" if asking.variant else ""),
        template=f"{preset}, {recipe.chat.call_format}",
        mode=asking.mode,
        temperature=asking.temperature,
        max_tokens=recipe.rollout.max_new_tokens,
        seed=recipe.seed,
        parameters=policy.parameter_count(),
        other={**budget, **benchmark.other},
        versions=package_versions(),
        limit=asking.limit,
        command=asking.command,
    )


def ask(
    benchmark: Benchmark, recipe: Recipe, policy: Policy, run_dir: str | Path, asking: Asking, roll: Roll,
    progress: Progress = silent,
) -> BenchmarkScore:  # fmt: skip
    """Ask what is not answered yet, and score all that is.

    An entry of which a tool failed, or the environment, is not written down: it is asked again next time.

    Raises:
        DataError: the record was made with another setting, or there is nothing to score.
    """
    setting = setting_of(benchmark, recipe, policy, asking)
    folder = setting.folder(run_dir)
    entries = open_record(folder, setting, asking.again)
    done = {entry.id for entry in entries}
    chosen = [(c, task) for c, tasks in limited(benchmark.tasks, asking.limit).items() for task in tasks]
    left = [(c, task) for c, task in chosen if task.id not in done]
    total, answered = len(chosen), len(chosen) - len(left)
    for start in range(0, len(left), asking.together):
        part = left[start : start + asking.together]
        new = list(_answers(part, recipe, policy, asking, roll, single=benchmark.acts_in is None))
        add_entries(folder, new)
        entries += new
        answered += len(part)
        accuracy = sum(e.score for e in entries) / len(entries) if entries else float("nan")
        stage = " ".join(filter(None, (asking.mode.value, setting.decoding, asking.variant)))
        progress(stage, answered, total, {"accuracy": accuracy})
    return close_record(folder, setting, benchmark.totals(entries))


def _answers(
    part: Sequence[tuple[str, Task]], recipe: Recipe, policy: Policy, asking: Asking, roll: Roll, single: bool
) -> Iterable[Entry]:
    category = {task.id: name for name, task in part}
    asked = []
    for name, task in part:
        fault = _prompt_fault(task, recipe, policy) if single else ""
        if fault:
            yield Entry(task.id, name, 0.0, 0, None, fault)
        else:
            asked.append(task)
    seed = (recipe.seed, "bench", asking.mode, asking.temperature)
    for drawn in roll(asked, [asking.mode], temperature=asking.temperature, seed=seed) if asked else ():
        if not _failed(drawn):
            yield entry_of(drawn, category[drawn.task_id], policy.format.decode)


def _prompt_fault(task: Task, recipe: Recipe, policy: Policy) -> str:
    """Why a question cannot be asked; it counts as answered wrongly, since others can ask it."""
    try:
        prompt = policy.format.prompt_ids(task.messages, task.tools)
    except ChatError as problem:
        return f"the template cannot show it: {problem}"
    most = recipe.data.max_prompt_tokens
    return f"its prompt has {len(prompt)} tokens: raise data.max_prompt_tokens" if len(prompt) > most else ""


def _failed(drawn: Trajectory) -> bool:
    episode = drawn.episode
    if episode is None:
        return False
    return episode.ended is Ended.FAILED or any(result.fault in _NOT_THE_MODELS for result in episode.results)


def entry_of(drawn: Trajectory, category: str, decode: Callable[[Any], str]) -> Entry:
    """The entry of a graded trajectory."""
    return Entry(
        id=drawn.task_id,
        category=category,
        score=float(drawn.correct),
        tokens=drawn.response_tokens,
        mode=drawn.mode,
        reason="" if drawn.correct else drawn.reason,
        response=decode(drawn.response_ids.tolist())[:SHOWN],
        parts={name: value for name, value in drawn.reward_parts.items() if 0 <= value <= 1},
    )


def mean_parts(entries: Sequence[Entry], names: Iterable[str]) -> dict[str, float]:
    """Means of what the checker gave beside the score, over entries that have it."""
    found = {}
    for name in names:
        if values := [entry.parts[name] for entry in entries if name in entry.parts]:
            found[name] = sum(values) / len(values)
    return found
