"""Checks of the servers that a recipe samples from: is vLLM there, can it serve the model, does all of it fit."""

from rich.console import Console

from unbraid.chat.checks import Finding
from unbraid.errors import ServerError
from unbraid.policy import Policy
from unbraid.preflight import memory_budget
from unbraid.prepare import TaskSets, longest_context
from unbraid.recipe import Recipe
from unbraid.rollout.start_fleet import refuse
from unbraid.vllm.installation import find_vllm


def check_servers(recipe: Recipe, policy: Policy, tasks: TaskSets, console: Console | None = None) -> list[Finding]:
    """What can be known without starting a server; the trial samples from the policy in this process.

    Args:
        console: gets the table of memory.
    """
    found = _installation(recipe, policy)
    planned = memory_budget(recipe, policy, tasks.train, longest_context(recipe))
    (console or Console(stderr=True)).print(planned.table())
    for problem in planned.problems:
        message, _, advice = problem.partition(" | ")
        found.append(Finding("error", "memory", message, advice))
    found += [Finding("warning", "memory", note, "") for note in planned.notes]
    return found


def _installation(recipe: Recipe, policy: Policy) -> list[Finding]:
    sampler = recipe.sampler
    if sampler.urls:
        return [Finding("ok", "servers", f"{len(sampler.urls)} that run already; they are asked when the run starts")]
    try:
        installation = find_vllm(sampler.python, need_plugin=not policy.has_adapter)
        refuse(policy, recipe.model, installation)
    except ServerError as problem:
        return [Finding("error", "servers", str(problem), "correct this first: the run would stop at its start")]
    what = f"vLLM {installation.version} ({installation.backend}) of {installation.python}"
    return [Finding("ok", "servers", f"{len(sampler.devices)} of {what}")]
