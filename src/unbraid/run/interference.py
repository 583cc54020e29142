"""`unbraid interference RECIPE`: train what has to be compared, measure it, and say what follows.

    OUT/start-0/start/                   the start, if the recipe warms up: every model begins with it
                unified/  reasoning/  tool/  two_agents/  unified_wide/       run folders, all of equally many steps
                successes/MODEL.json     of every model, also of those put together from two
                geometry.json            gradients by role at the start
        start-1/ …
        interference.html  interference.json

Everything that is there is taken, so a run that was stopped goes on; starts are added by asking for more.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.evaluate.evaluate import spread
from unbraid.interference.attribution import COMPOSED
from unbraid.interference.diagnosis import COMPOSED_ROUTED, Diagnosis, diagnose
from unbraid.interference.geometry import Geometry, geometry, role_gradients
from unbraid.interference.monitor import owners_of
from unbraid.interference.sharing import TWO_AGENTS, UNIFIED, WIDE, Start
from unbraid.interference.variants import route_together, take_turns, widen
from unbraid.learn.advantages import group_advantages
from unbraid.policy import AdapterConfig, Policy, load_policy
from unbraid.policy.routing import RoutingConfig, make_router
from unbraid.policy.two_agents import TwoAgents
from unbraid.prepare import TaskSets, load_tasks, make_environment, roll_of
from unbraid.recipe import Recipe
from unbraid.run.folder import refuse_other_runs, replace_folder, take_weights
from unbraid.run.training import Progress, silent, train, warm_up
from unbraid.tasks.task import Task

LOOK_TASKS, LOOK_SAMPLES = 64, 8
"""Training tasks, and responses to each, that gradients are taken of."""
FEWEST_OF_A_KIND = 8
"""Tasks that a level needs to count as a kind of task of its own."""


def interference(
    recipe: Recipe, out: str | Path, starts: int = 3, questions: int = 50, samples: int = 64,
    progress: Progress = silent,
) -> Diagnosis:  # fmt: skip
    """The whole diagnosis of a recipe's model and tasks.

    Args:
        starts: training starts: seeds from the recipe's on. They are the unit of all intervals.
        questions: test tasks that every model is asked. samples: responses to each, at the recipe's temperature.

    Raises:
        ModelError: at the start there is nothing to learn from. CheckpointError: `out` is of another recipe.
    """
    folder = Path(out)
    plain = plain_recipe(recipe)
    measured, geometries = [], []
    for number in range(starts):
        seeded = plain.model_copy(update={"seed": plain.seed + number})
        counts, found = one_start(seeded, folder / f"start-{number}", questions, samples, progress)
        measured.append(counts)
        geometries.append(found)
    return diagnose([Start.sampled(counts, samples) for counts in measured], measured, samples, geometries)


def plain_recipe(recipe: Recipe) -> Recipe:
    """The recipe with one model for both roles, which is trained to its last step: what the others are compared to."""
    adapter = recipe.model.adapter and recipe.model.adapter.model_copy(update={"routing": None})
    model = recipe.model.model_copy(update={"adapter": adapter, "two_agents": False})
    # Equal steps: no choice of the best step, and no evaluation that nobody reads.
    evaluated = recipe.evaluate.model_copy(update={"every": 0, "temperatures": (0.0,), "limit": 16})
    return recipe.model_copy(
        update={
            "model": model,
            "learn": recipe.learn.model_copy(update={"roles": "both"}),
            "evaluate": evaluated.model_copy(update={"modes": recipe.evaluate.modes[:1]}),
        }
    )


def trained_recipes(plain: Recipe) -> dict[str, Recipe]:
    """Model → the recipe that trains it, from the same start and for as many steps."""

    def with_model(**changes: Any) -> Recipe:
        return plain.model_copy(update={"model": plain.model.model_copy(update=changes)})

    def with_roles(roles: str) -> Recipe:
        return plain.model_copy(update={"learn": plain.learn.model_copy(update={"roles": roles})})

    # Two agents are sampled in this process only.
    local = plain.sampler.model_copy(update={"engine": "local"})
    found = {
        UNIFIED: plain,
        "reasoning": with_roles("reasoning"),
        "tool": with_roles("action"),
        TWO_AGENTS: with_model(two_agents=True).model_copy(update={"sampler": local}),
    }
    if (adapter := plain.model.adapter) is not None:
        twice = adapter.model_copy(update={"rank": 2 * adapter.rank, "alpha": 2 * adapter.alpha})
        found[WIDE] = with_model(adapter=twice)
    return {name: r.model_copy(update={"name": name, "label": f"interference: {name}"}) for name, r in found.items()}


def one_start(
    plain: Recipe, folder: Path, questions: int, samples: int, progress: Progress
) -> tuple[dict[str, np.ndarray], Geometry]:
    """Successes of every model, (questions,) each, and the gradients of one start.

    Raises:
        CheckpointError: the folder holds models of another recipe.
    """
    recipes = trained_recipes(plain)
    for name, recipe in recipes.items():
        refuse_other_runs(folder / name, recipe, resume=True)
    begin = _start(plain, folder, progress)
    tasks = load_tasks(plain, begin, make_environment(plain))
    found = look(plain, begin, tasks, folder / "geometry.json")
    for name, recipe in recipes.items():
        if not (folder / name / "final").is_dir():
            _put_start(recipe, begin, folder, name)
            train(recipe, folder / name, resume=True, progress=_named(name, progress))
    chosen = spread(tasks.test, questions)

    def trained(name: str) -> Policy:
        policy = load_policy(recipes[name].model, plain.chat)
        take_weights(policy, folder / name / "final")
        return policy

    def routed(adapter: AdapterConfig) -> Policy:
        own = adapter.model_copy(update={"routing": RoutingConfig()})
        policy = load_policy(plain.model.model_copy(update={"adapter": own}), plain.chat)
        return route_together(policy, {"reasoning": trained("reasoning"), "action": trained("tool")})

    # Made when they are asked: of large models only two need to be held at a time.
    models: dict[str, Callable[[], Policy]] = {
        "base": lambda: begin,
        **{name: (lambda name=name: trained(name)) for name in recipes},
        "hybrid_tool": lambda: take_turns(begin, trained("tool")),
        "hybrid_reasoning": lambda: take_turns(trained("reasoning"), begin),
        COMPOSED: lambda: take_turns(trained("reasoning"), trained("tool")),
    }
    if (adapter := plain.model.adapter) is not None:
        models[COMPOSED_ROUTED] = lambda: routed(adapter)
    counts = {}
    for done, (name, make) in enumerate(models.items(), 1):
        path = folder / "successes" / f"{name}-{questions}x{samples}.json"
        counts[name] = np.array(_kept(path, lambda make=make: successes(plain, make(), chosen, samples).tolist()))
        progress("measure", done, len(models), {"accuracy": float(counts[name].mean()) / samples})
    return counts, found


def successes(recipe: Recipe, policy: Policy, tasks: Sequence[Task], samples: int) -> np.ndarray:
    """How often each task was solved in `samples` tries, (tasks,)."""
    drawn = roll_of(recipe, policy)(
        tasks, [Mode.AUTO] * samples, temperature=recipe.rollout.temperature, seed=(recipe.seed, "interference")
    )
    return np.array([t.correct for t in drawn]).reshape(len(tasks), samples).sum(1)


def look(recipe: Recipe, begin: Policy, tasks: TaskSets, path: Path) -> Geometry:
    """Gradients by role at the start, by level of the tasks where there are several; kept in `path`."""

    def take() -> Any:
        chosen = spread(tasks.train, LOOK_TASKS)
        roll = roll_of(recipe, begin)
        drawn = roll(
            chosen, [Mode.AUTO] * LOOK_SAMPLES, temperature=recipe.rollout.temperature, seed=(recipe.seed, "look")
        )
        rewards = np.array([t.reward for t in drawn], dtype=np.float64)
        groups = np.repeat(np.arange(len(chosen)), LOOK_SAMPLES)
        advantages = group_advantages(rewards, groups, recipe.learn.advantage_scale)
        levels = [task.level for task in chosen]
        known = {level for level in levels if levels.count(level) >= FEWEST_OF_A_KIND}
        kept = [i for i, g in enumerate(groups) if levels[g] in known] if len(known) > 1 else list(range(len(drawn)))
        strata = [levels[groups[i]] for i in kept] if len(known) > 1 else None
        gradients = role_gradients(
            begin, [drawn[i] for i in kept], advantages[kept], strata=strata, averaging=recipe.learn.averaging,
            temperature=recipe.rollout.temperature, micro_batch=recipe.learn.micro_batch, fast=recipe.learn.fast,
        )  # fmt: skip
        if not gradients.keys:
            raise ModelError(
                "at the start no group of responses has both better and worse ones, so no gradient: warm up longer, or "
                "give tasks of other difficulty"
            )
        return asdict(geometry(gradients, owners_of(begin)))

    return TypeAdapter(Geometry).validate_python(_kept(path, take))


def _start(plain: Recipe, folder: Path, progress: Progress) -> Policy:
    """The policy that all models of a start begin with."""
    torch.manual_seed(plain.seed)
    policy = load_policy(plain.model, plain.chat)
    folder.mkdir(parents=True, exist_ok=True)
    if plain.warmup:
        tasks = load_tasks(plain, policy, make_environment(plain))
        warm_up(plain, policy, tasks.warmup, folder, progress)
    return policy


def _put_start(recipe: Recipe, begin: Policy, folder: Path, name: str) -> None:
    """Give a run its `start/`, made of the common one; without a warm-up runs begin from the same model anyway."""
    target = folder / name / "start"
    if not recipe.warmup or target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if name == TWO_AGENTS:
        router = make_router(RoutingConfig(), begin.format.automaton)
        agents = TwoAgents.taking_turns(dict.fromkeys(router.adapters, begin.model), router)
        both = Policy(agents, begin.tokenizer, begin.format, begin.device, begin.has_adapter)
        replace_folder(target, both.save)
    elif name == WIDE:
        torch.manual_seed(recipe.seed)
        replace_folder(target, widen(load_policy(recipe.model, recipe.chat), begin).save)
    else:

        def copy(unfinished: Path) -> None:
            shutil.copytree(folder / "start", unfinished, dirs_exist_ok=True)

        replace_folder(target, copy)


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds; made and written first if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        unfinished.write_text(json.dumps(make()))
        unfinished.rename(path)
    return json.loads(path.read_text())


def _named(name: str, progress: Progress) -> Progress:
    return lambda stage, done, total, metrics: progress(f"{name}: {stage}", done, total, metrics)
