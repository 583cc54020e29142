"""A batch drawn by several ranks: each draws whole groups, and all of them get everything.

What is drawn for a task is keyed by task, sample and seed, so it does not depend on who draws it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import islice

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.policy import Policy
from unbraid.rollout.scoring import Roll
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.task import Task


class SharedRoll:
    """A `Roll` whose tasks are shared out over the ranks.

    Args:
        roll: draws a rank's own tasks.
        check: looks at the whole batch, and may refuse it.
        by_first: rank 0 draws everything, for it owns the servers.
        policy: what is drawn from, if its weights may be sharded: they are whole meanwhile.
    """

    def __init__(
        self,
        roll: Roll,
        check: Callable[[Sequence[Trajectory]], None] | None = None,
        by_first: bool = False,
        policy: Policy | None = None,
    ):
        self.roll, self.check, self.by_first, self.policy = roll, check, by_first, policy

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """One graded trajectory per task and entry of `modes`, in task order, the same on every rank."""

        def draw(own: Sequence[Task]) -> list[Trajectory]:
            return self.roll(own, modes, temperature=temperature, seed=seed) if own else []

        owners = [0] * len(tasks) if self.by_first else task_owners(tasks, ranks.world())
        mine = [task for task, owner in zip(tasks, owners, strict=True) if owner == ranks.rank()]
        with self.policy.whole(saved=self.by_first) if self.policy else nullcontext():
            parts = [iter(part) for part in ranks.gather(lambda: draw(mine))]
        found = [t for owner in owners for t in islice(parts[owner], len(modes))]
        if self.check:
            self.check(found)
        return found


def task_owners(tasks: Sequence[Task], world: int) -> list[int]:
    """The rank that draws each task: in turn, and a task that comes twice stays with one rank, which counts on."""
    order = {task: number for number, task in enumerate(dict.fromkeys(task.id for task in tasks))}
    return [order[task.id] % world for task in tasks]
