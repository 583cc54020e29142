"""Asking for responses to tasks, and writing on each what it is worth."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.rollout.local import Request
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.reward import RewardFunction
from unbraid.tasks.task import Task


class Sampler(Protocol):
    """Whatever draws trajectories: the local sampler, or a server."""

    def sample(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int, seed: object = 0
    ) -> list[Trajectory]:
        """One trajectory per request, in order."""
        ...


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
    requests: list[Request] = []
    drawn: Counter[str] = Counter()
    for task in tasks:
        prompt = tuple(format.prompt_ids(task.messages, task.tools))
        # A task that comes twice goes on counting: equal (task, sample) would draw the same response again.
        requests += [Request(task, prompt, drawn[task.id] + i, mode) for i, mode in enumerate(modes)]
        drawn[task.id] += len(modes)
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
