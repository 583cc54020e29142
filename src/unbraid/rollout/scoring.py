"""Asking for responses to tasks, and writing on each what it is worth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.rollout.trajectory import Finish, Request, Trajectory
from unbraid.tasks.reward import RewardFunction
from unbraid.tasks.task import Task


class Sampler(Protocol):
    """Whatever draws trajectories: the local sampler, or a server."""

    def sample(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int, seed: object = 0
    ) -> list[Trajectory]:
        """One trajectory per request, in order."""
        ...


class Roll(Protocol):
    """Rolls out a batch: graded trajectories, one per task and entry of `modes`, in task order."""

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """Temperature 0 is greedy; `seed` is anything printable."""
        ...


@dataclass(frozen=True)
class SingleStep:
    """The `Roll` of tasks that one response answers."""

    sampler: Sampler
    format: ChatFormat
    reward: RewardFunction
    max_new_tokens: int

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """Sample, then score.

        Raises:
            RewardError: a user's reward function failed; the message names the task.
        """
        found = draw(
            self.sampler,
            self.format,
            tasks,
            modes,
            temperature=temperature,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
        )
        score_trajectories(found, tasks, self.format, self.reward)
        return found


def numbered(tasks: Sequence[Task], modes: Sequence[Mode]) -> list[tuple[Task, int, Mode]]:
    """(task, number of the sample, mode) for every response to draw, in task order.

    A task that comes twice goes on counting: equal numbers would draw the same response again.
    """
    counted: Counter[str] = Counter()
    found = []
    for task in tasks:
        found += [(task, counted[task.id] + i, mode) for i, mode in enumerate(modes)]
        counted[task.id] += len(modes)
    return found


def draw(
    sampler: Sampler,
    format: ChatFormat,
    tasks: Sequence[Task],
    modes: Sequence[Mode],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: object = 0,
) -> list[Trajectory]:
    """One response per task and entry of `modes`, in task order; not yet scored."""
    prompts = {task.id: tuple(format.prompt_ids(task.messages, task.tools)) for task in tasks}
    requests = [Request(task, prompts[task.id], sample, mode) for task, sample, mode in numbered(tasks, modes)]
    return sampler.sample(requests, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)


def score_trajectories(
    trajectories: Sequence[Trajectory], tasks: Sequence[Task], format: ChatFormat, reward: RewardFunction
) -> None:
    """Fill in mode, reward, its parts, correctness and reason of each trajectory, in place.

    Args:
        tasks: those that were asked, in any order.

    Raises:
        RewardError: a user's reward function failed; the message names the task.
    """
    by_id = {task.id: task for task in tasks}
    for trajectory in trajectories:
        reading = format.read(trajectory.response_ids.tolist(), truncated=trajectory.finish is Finish.LENGTH)
        result = reward(by_id[trajectory.task_id], reading)
        trajectory.mode = reading.mode
        trajectory.reward = result.total
        trajectory.reward_parts = dict(result.parts)
        trajectory.correct = result.correct
        trajectory.reason = result.reason
