"""Checks of the servers that a recipe samples from: is vLLM there, can it serve the model, does all of it fit."""

from rich.console import Console

from unbraid.chat.checks import Finding
from unbraid.errors import ServerError
from unbraid.policy import Policy
from unbraid.preflight import find_servers, memory_budget
from unbraid.prepare import TaskSets, longest_context
from unbraid.recipe import Recipe


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
    try:
        installation = find_servers(recipe, policy)
    except ServerError as problem:
        return [Finding("error", "servers", str(problem), "correct this first: the run would stop at its start")]
    if installation is None:
        said = f"{len(recipe.sampler.urls)} that run already and answer"
    else:
        what = f"vLLM {installation.version} ({installation.backend}) of {installation.python}"
        said = f"{len(recipe.sampler.devices)} of {what}"
    return [Finding("ok", "servers", said)]
