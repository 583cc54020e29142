"""What a run needs before it starts: the tasks of its recipe, and how to roll them out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.data import fit_prompts, read_tasks, split_tasks
from unbraid.data.overlap import audit, benchmark_of
from unbraid.errors import DataError
from unbraid.policy import Policy
from unbraid.policy.two_agents import TwoAgents
from unbraid.recipe import Recipe
from unbraid.rollout.episodes import EpisodeRoll, Player, refuse_failures
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.local import LocalSampler
from unbraid.rollout.scoring import Roll, SingleStep
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.shared import SharedRoll
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.slots import SlotSampler
from unbraid.rollout.start_fleet import run_fleet
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.environment import Environment, environment
from unbraid.tasks.reward import reward_function
from unbraid.tasks.task import Task

PROBE_FROM = 64
"""Tasks whose prompts the probe of servers chooses among."""


@dataclass(frozen=True)
class TaskSets:
    """The tasks of a run, all of them with prompts that fit; `books` says what was read and left out, for people.

    warmup: what the warm-up learns from; the tasks of `train` where the recipe names nothing else.
    """

    train: list[Task]
    validation: list[Task]
    test: list[Task]
    books: str
    warmup: list[Task]


def make_environment(recipe: Recipe) -> Environment | None:
    """The environment of a recipe; None where one response answers a task.

    Raises:
        EnvError: it cannot be loaded.
    """
    return environment(recipe.environment.name) if recipe.environment else None


def load_tasks(recipe: Recipe, policy: Policy, acts_in: Environment | None = None) -> TaskSets:
    """Read, split and fit the tasks of a recipe.

    Args:
        acts_in: the recipe's environment, if it has one: it says which tools a task shows, and may refuse one.

    Raises:
        DataError: a source gives no usable task, or none whose prompt fits.
    """
    lines: list[str] = []

    def read(source: str, acts_in: Environment | None = acts_in) -> list[Task]:
        result = read_tasks(source, recipe.data)
        lines.append(result.summary())
        found, refused = opened(result.tasks, acts_in) if acts_in else (result.tasks, Counter())
        lines.extend(f"  refused {n} x {reason}" for reason, n in refused.most_common())
        fitted = fit_prompts(found, policy.format, recipe.data.max_prompt_tokens)
        lines.extend(f"  dropped {n} x {reason}" for reason, n in fitted.dropped.most_common())
        lines.extend(f"  answers taken out {n} x {reason}" for reason, n in fitted.dropped_answers.most_common())
        if not fitted.kept:
            raise DataError(f"{source}: no prompt fits; {'; '.join(lines)}: raise data.max_prompt_tokens")
        return fitted.kept

    train = read(recipe.tasks.train)
    refuse_benchmarks(recipe.tasks.train, train)
    if recipe.tasks.validation:
        validation = read(recipe.tasks.validation)
    else:
        train, validation = split_tasks(train, recipe.data.validation, recipe.seed)
    test = read(recipe.tasks.test) if recipe.tasks.test else validation
    if not train:
        raise DataError(f"{recipe.tasks.train}: every task was held out for validation: lower data.validation")
    if not test or (recipe.evaluate.every and not validation):
        raise DataError("there is no task to evaluate: raise data.validation, or give tasks.validation and tasks.test")
    warmup = read(recipe.tasks.warmup, None) if recipe.tasks.warmup else train
    refuse_benchmarks(recipe.tasks.warmup or recipe.tasks.train, warmup)
    lines += refuse_asked(recipe.tasks.train, train, test)
    if recipe.tasks.warmup:
        lines += refuse_asked(recipe.tasks.warmup, warmup, test)
    return TaskSets(train, validation, test, "\n".join(lines), warmup)


def refuse_benchmarks(source: str, tasks: Sequence[Task]) -> None:
    """Raises DataError if a task that is to be learned from belongs to a benchmark (`extra["eval_only"]`)."""
    forbidden = sum(bool(task.extra.get("eval_only")) for task in tasks)
    if forbidden:
        raise DataError(
            f"{source}: {forbidden} of {len(tasks)} tasks belong to a benchmark, for evaluation only: "
            "make it tasks.test, and train on others"
        )


def refuse_asked(source: str, tasks: Sequence[Task], test: Sequence[Task]) -> list[str]:
    """A line about tasks to learn from that ask nearly what a benchmark among the test tasks asks.

    A benchmark's rows in another format have no mark; their questions are the same.

    Raises:
        DataError: tasks ask just what it asks.
    """
    asked = benchmark_of("the benchmark of tasks.test", (task for task in test if task.extra.get("eval_only")))
    found = audit(tasks, asked) if asked.questions else None
    same = [hit for hit in found.hits if hit.kind == "question"] if found else []
    if same:
        raise DataError(
            f"{source}: {len(same)} of {len(tasks)} tasks ask what {asked.name} asks, {same[0].task} for one: "
            "take them out (`unbraid data build --benchmark …` does), or test on others"
        )
    return [f"  {source}: {len(found.hits)} tasks ask nearly what {asked.name} asks"] if found and found.hits else []


def opened(tasks: Sequence[Task], acts_in: Environment) -> tuple[list[Task], Counter[str]]:
    """Tasks with the tools that they show first, and why the environment refuses others.

    Prompts are measured and warmed up with these tools; an episode asks the environment again.
    """
    kept: list[Task] = []
    refused: Counter[str] = Counter()
    for task in tasks:
        try:
            copy = acts_in.fresh()
            copy.reset(task)
            kept.append(replace(task, tools=tuple(copy.schemas())))
        except Exception as problem:  # whatever a user's environment raises
            refused[f"environment: {type(problem).__name__}: {problem}".splitlines()[0]] += 1
    return kept, refused


def roll_of(recipe: Recipe, policy: Policy, acts_in: Environment | None = None, fleet: Fleet | None = None) -> Roll:
    """How the recipe rolls out: single responses, or episodes in its environment; shared out where there are ranks.

    Args:
        fleet: the servers to draw from (`open_fleet`); None draws from the policy in this process.

    Raises:
        RewardError, ChatError: the reward cannot be loaded. EnvError: the environment cannot.
    """
    rollout = recipe.rollout

    def served(temperature: float) -> ServedSampler:
        assert fleet
        return ServedSampler(fleet, policy, rollout.max_batch, temperature)

    def slots(temperature: float) -> SlotSampler:
        return SlotSampler(policy, rollout.max_batch, temperature)

    if recipe.environment is None:
        if fleet or isinstance(policy.model, TwoAgents):
            sampler = SingleSampler(policy.format, served if fleet else slots)
        else:
            sampler = LocalSampler(policy, rollout.max_batch)
        roll = SingleStep(sampler, policy.format, reward_function(recipe.reward), rollout.max_new_tokens)
        by_first = recipe.sampler.engine != "local"
        return SharedRoll(roll, by_first=by_first, policy=policy) if ranks.world() > 1 else roll
    player = Player(
        acts_in or environment(recipe.environment.name),
        policy.format,
        recipe.environment,
        recipe.reward,
        rollout.max_new_tokens,
    )
    episodes = EpisodeRoll(player, served if fleet else slots)
    if ranks.world() > 1:
        return SharedRoll(episodes.play, refuse_failures, recipe.sampler.engine != "local", policy)
    return episodes


@contextmanager
def open_fleet(recipe: Recipe, policy: Policy, tasks: Sequence[Task], folder: Path) -> Iterator[Fleet | None]:
    """The servers of a recipe for as long as a run takes; None where it samples from the policy in this process.

    Args:
        tasks: the probe shows the servers some of their prompts. folder: gets the servers' logs.

    Raises:
        ServerError: they cannot be had.
    """
    if recipe.sampler.engine == "local":
        yield None
        return
    with run_fleet(
        policy,
        recipe.model,
        recipe.sampler,
        folder,
        max_tokens=longest_context(recipe),
        prompts=[policy.format.prompt_ids(task.messages, task.tools) for task in tasks[:PROBE_FROM]],
        temperature=recipe.rollout.temperature,
    ) as fleet:
        yield fleet


def longest_context(recipe: Recipe) -> int:
    """Tokens of the longest context that the recipe can ask for."""
    single = recipe.data.max_prompt_tokens + recipe.rollout.max_new_tokens
    return recipe.environment.tokens if recipe.environment else single


@dataclass
class Respond:
    """Asks for graded responses: what `evaluate` wants as its `sample`."""

    policy: Policy
    roll: Roll
    seed: int

    def __call__(self, tasks: Sequence[Task], mode: Mode, temperature: float, samples: int) -> list[Trajectory]:
        seed = (self.seed, "evaluate", mode, temperature)
        return self.roll(tasks, [mode] * samples, temperature=temperature, seed=seed)
