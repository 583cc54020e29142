"""What a task is, and what a response to it is worth."""

from unbraid.tasks.reward import Reward, RewardConfig, RewardFunction, reward_function, score
from unbraid.tasks.task import Task

__all__ = ["Reward", "RewardConfig", "RewardFunction", "Task", "reward_function", "score"]
