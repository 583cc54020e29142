"""From sampled ids to a reward: read every response once, and write what was found on its trajectory."""

from collections.abc import Mapping, Sequence

from unbraid.chat.format import ChatFormat
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.reward import RewardFunction
from unbraid.tasks.task import Task


def score_trajectories(
    trajectories: Sequence[Trajectory], tasks: Mapping[str, Task], format: ChatFormat, reward: RewardFunction
) -> None:
    """Fill in mode, reward, its parts, correctness and reason of each trajectory, in place.

    Args:
        tasks: by id; every trajectory's task must be there.

    Raises:
        RewardError: a user's reward function failed; the message names the task.
    """
    for trajectory in trajectories:
        reading = format.read(trajectory.response_ids.tolist(), truncated=trajectory.finish is Finish.LENGTH)
        result = reward(tasks[trajectory.task_id], reading)
        trajectory.mode = reading.mode
        trajectory.reward = result.total
        trajectory.reward_parts = dict(result.parts)
        trajectory.correct = result.correct
        trajectory.reason = result.reason
