"""What a policy does in the calls world, level by level, and what the best policies conceivable would do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unbraid.chat.types import Mode
from unbraid.lab.calls_chat import CHAT
from unbraid.lab.calls_world import KNOWN, LEVELS
from unbraid.policy import ModelConfig, Policy, load_policy
from unbraid.rollout import LocalSampler, Request
from unbraid.rollout.scoring import score_trajectories
from unbraid.tasks.reward import RewardConfig, reward_function
from unbraid.tasks.task import Task

MAX_NEW_TOKENS = 96
"""The longest thinking answer has 71 tokens."""


@dataclass(frozen=True)
class Measured:
    """Means per level, k = 0..5: accuracy and think rate as shares, response length in tokens."""

    accuracy: tuple[float, ...]
    tokens: tuple[float, ...]
    think_rate: tuple[float, ...]

    def __str__(self) -> str:
        parts = (("accuracy", self.accuracy, 3), ("tokens", self.tokens, 1), ("think", self.think_rate, 2))
        return "   ".join(
            f"{name} {np.mean(values):.{digits}f} ({' '.join(f'{v:.{digits}f}' for v in values)})"
            for name, values, digits in parts
        )


def load_start(path: str | Path) -> Policy:
    """A base or a start of the calls world, on the CPU in float32."""
    return load_policy(ModelConfig(path=str(path), device="cpu"), CHAT)


def measure(
    policy: Policy,
    tasks: Sequence[Task],
    mode: Mode | Callable[[Task], Mode] = Mode.AUTO,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
) -> Measured:
    """Draws `samples` responses per task and averages by level.

    Args:
        mode: asked for everywhere, or a rule that says it for each task.
        temperature: 0 is greedy.
    """
    rule = mode if callable(mode) else lambda _: mode
    prompts = {t.id: tuple(policy.format.prompt_ids(t.messages, t.tools)) for t in tasks}
    requests = [Request(t, prompts[t.id], sample, rule(t)) for t in tasks for sample in range(samples)]
    drawn = LocalSampler(policy).sample(requests, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    score_trajectories(drawn, tasks, policy.format, reward_function(RewardConfig()))
    levels = [[x for x in drawn if x.level == str(k)] for k in range(LEVELS)]
    return Measured(
        accuracy=tuple(float(np.mean([x.correct for x in level])) for level in levels),
        tokens=tuple(float(np.mean([x.response_tokens for x in level])) for level in levels),
        think_rate=tuple(float(np.mean([x.mode is Mode.THINK for x in level])) for level in levels),
    )


def chain_aware(task: Task) -> Mode:
    """The oracle's rule: think exactly where the direct answer is not known. State it beside every result."""
    return Mode.NO_THINK if task.extra["known"] else Mode.THINK


def level_aware(task: Task) -> Mode:
    """The best rule that sees only k, for a reward of 1, .5, -.5, -1: think where fewer than 3 in 4 are known."""
    return Mode.NO_THINK if KNOWN[int(task.level)] >= 0.75 else Mode.THINK
