"""Which tasks a step trains on: a pure function of (seed, step), so a resumed run needs no saved position."""

from collections.abc import Sequence

import numpy as np

from unbraid.errors import DataError
from unbraid.tasks.task import Task


class TaskStream:
    """Endless epochs over the tasks, each in an order of its own.

    Raises:
        DataError: if there are no tasks.
    """

    def __init__(self, tasks: Sequence[Task], seed: int):
        if not tasks:
            raise DataError("there is no task to train on: look at the reasons under `unbraid doctor`")
        self.tasks = list(tasks)
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int, size: int) -> list[Task]:
        """The `size` tasks of iteration `step` (from 0). A batch may run over the end of an epoch."""
        return [self._task(step * size + i) for i in range(size)]

    def _task(self, position: int) -> Task:
        epoch, index = divmod(position, len(self.tasks))
        if epoch not in self._orders:
            self._orders = {epoch - 1: self._orders[epoch - 1]} if epoch - 1 in self._orders else {}
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(len(self.tasks))
        return self.tasks[self._orders[epoch][index]]
