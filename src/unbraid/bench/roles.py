"""What each adapter of a routed run does by itself: the papers' mechanism tables.

Source: arXiv 2602.00994, Table 2 ("activates the adapter only if reasoning or tool-using respectively"): tokens of the
other role run through the bare base. Choice: `swapped`, where each role runs through the other's adapter, says whether
the adapters are more than one skill learned twice.
"""

from contextlib import AbstractContextManager, nullcontext

from unbraid.bench.ask import Benchmark
from unbraid.errors import ModelError
from unbraid.policy import Policy
from unbraid.policy.control_routers import controlled
from unbraid.policy.two_agents import TwoAgents
from unbraid.prepare import TaskSets
from unbraid.recipe import Recipe
from unbraid.tasks.environment import Environment
from unbraid.tasks.reward import reward_function
from unbraid.tasks.task import Task
from unbraid.tokens import Router

BOTH, SWAPPED = "both", "swapped"


def adapter_choices(policy: Policy) -> tuple[str, ...]:
    """Both, each alone, swapped.

    Raises:
        ModelError: the policy does not route its tokens by role.
    """
    if not isinstance(policy.router, Router) or isinstance(policy.model, TwoAgents):
        raise ModelError("the run has no adapters routed by role: train it with the layer `routed`")
    return (BOTH, *policy.router.adapters, SWAPPED)


def with_adapters(policy: Policy, choice: str) -> AbstractContextManager[None]:
    """Within, the policy runs with the adapters of this choice; `both`, or "", changes nothing.

    Raises:
        ModelError: there is no such choice.
    """
    if choice in ("", BOTH):
        return nullcontext()
    choices = adapter_choices(policy)
    if choice not in choices:
        raise ModelError(f"no adapters '{choice}': choose one of {', '.join(choices)}")
    if choice == SWAPPED:
        return controlled(policy.model, "swapped")
    return controlled(policy.model, "only", (choice,))


def own_tasks(recipe: Recipe, tasks: TaskSets, acts_in: Environment | None) -> Benchmark:
    """The run's own test tasks as a benchmark, by level."""
    by_level: dict[str, list[Task]] = {}
    for task in tasks.test:
        by_level.setdefault(task.level or "all", []).append(task)
    return Benchmark(
        name="own-tasks",
        checker="the recipe's own" + (": its environment" if acts_in else ": its reward"),
        tasks=by_level,
        reward=None if acts_in else reward_function(recipe.reward),
        acts_in=acts_in,
    )
