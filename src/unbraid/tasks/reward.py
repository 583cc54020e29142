"""What a response is worth: a format term, and an answer term that makes a wrong guess cost more than a wrong thought.

A reward is any plain function `(Task, Reading) -> Reward`. Ours is `score`; a recipe names another one in
`reward.function`, and nothing else changes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from unbraid.chat.accepted import accepted_match
from unbraid.chat.compare import comparator
from unbraid.chat.types import Call, Mode, Problem, Reading
from unbraid.errors import RewardError
from unbraid.plugins import load_object
from unbraid.tasks.task import Task


@dataclass(frozen=True)
class Reward:
    """The worth of one response. `parts` are logged one by one; `reason` says why it is right or wrong."""

    total: float
    parts: dict[str, float]
    correct: bool
    reason: str


RewardFunction = Callable[[Task, Reading], Reward]


class RewardConfig(BaseModel):
    """How responses are rewarded. Pairs are (no_think, think)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    right: tuple[float, float] = (1.0, 0.5)
    """Answer term of a right response, (no_think, think). Source: arXiv 2603.13348, Eq. 5."""
    wrong: tuple[float, float] = (-1.0, -0.5)
    """Answer term of a wrong or malformed response, (no_think, think). Source: arXiv 2603.13348, Eq. 5."""
    format: float = Field(default=0.2, ge=0)
    """Added when the response is well-formed. Choice (the paper has the term but not its value): below the
    smallest step of the answer table (0.5), so no malformed response can climb past a step and the order of
    the table stands; large enough to tell a malformed response from a wrong one in a group that has no right one."""
    compare: str = "same_calls"
    """When calls count as right: same_calls, ast_match, accepted (what a row in BFCL's form lists), or
    `module:function` (`chat.compare.comparator`). Choice: order-free exact match, as in Tool-N1; the paper does not
    say."""
    function: str = ""
    """Replace the whole reward: `module:function` or `file.py:function`. Empty = the one described here."""


def score(task: Task, reading: Reading, config: RewardConfig) -> Reward:
    """The published reward: format term plus asymmetric answer term.

    A malformed response counts as wrong in its mode. A response without a mode counts as a wrong no_think one.
    Choice: the paper checks the format first and leaves open what a failure does to the answer term; letting a
    malformed call be right would pay for calls that no tool server would take. What is said beside the calls is not
    judged: where no call is right, not calling is.
    """
    well_formed = reading.reason is None and reading.mode is not Mode.NONE
    correct = well_formed and _is_right(reading.calls, task, config)
    answer = (config.right if correct else config.wrong)[reading.mode is Mode.THINK]
    parts = {"format": config.format if well_formed else 0.0, "answer": answer}
    return Reward(sum(parts.values()), parts, correct, "right" if correct else _fault(task, reading))


def _is_right(calls: Sequence[Call], task: Task, config: RewardConfig) -> bool:
    if config.compare == "accepted" and isinstance(accepted := task.extra.get("accepted"), list):
        return accepted_match(calls, accepted, task.tools)
    return comparator(config.compare, "reward.compare")(calls, task.expected, task.tools)


def reward_by_mode(reward: Reward, mode: Mode, well_formed: bool, config: RewardConfig) -> Reward:
    """The asymmetric reward of an episode that an environment has judged: its `correct`, and whether it thought.

    Choice: the paper says nothing of several responses. An episode counts as thinking if any response thought, and as
    well-formed if all were and the last one answered. What the environment paid stays among the parts, for the log.
    """
    correct = reward.correct and mode is not Mode.NONE
    answer = (config.right if correct else config.wrong)[mode is Mode.THINK]
    parts = {"format": config.format if well_formed else 0.0, "answer": answer}
    return Reward(sum(parts.values()), {**reward.parts, **parts}, correct, reward.reason)


def _fault(task: Task, reading: Reading) -> str:
    """Why a response is not right: its first problem, or what is wrong with its calls."""
    if reading.reason is not None:
        return reading.reason.value
    if reading.mode is Mode.NONE:
        return Problem.NO_MODE.value
    return call_fault(reading.calls, task.expected)


def call_fault(calls: Sequence[Call], expected: Sequence[Call]) -> str:
    """What is wrong with calls that do not match: missing_call, extra_call, wrong_name or wrong_arguments."""
    if len(calls) != len(expected):
        return "missing_call" if len(calls) < len(expected) else "extra_call"
    same_names = Counter(c.name for c in calls) == Counter(c.name for c in expected)
    return "wrong_arguments" if same_names else "wrong_name"


def reward_function(config: RewardConfig) -> RewardFunction:
    """The reward that a recipe asks for.

    Raises:
        ChatError: if `config.compare` names no comparison.
        RewardError: here if `config.function` cannot be loaded; from the returned function if the user's function
            raises or returns something other than a Reward with finite numbers.
    """
    if not config.function:
        comparator(config.compare, "reward.compare")  # fails here and not in the middle of a run
        return lambda task, reading: score(task, reading, config)
    theirs = load_object(config.function, RewardError, "reward.function")

    def checked(task: Task, reading: Reading) -> Reward:
        try:
            reward = theirs(task, reading)
        except Exception as problem:
            raise RewardError(
                f"reward function {config.function} raised {type(problem).__name__} on task {task.id}: {problem}; "
                "make it return a Reward for every reading, malformed ones included"
            ) from problem
        fault = fault_in_reward(reward)
        if fault:
            raise RewardError(
                f"reward function {config.function} returned {fault} for task {task.id}: return "
                "unbraid.tasks.Reward(total: float, parts: dict[str, float], correct: bool, reason: str)"
            )
        return reward

    return checked


def fault_in_reward(value: object) -> str:
    """What is wrong with a returned value, or "" if it is a Reward with finite numbers."""
    if not isinstance(value, Reward):
        return f"a {type(value).__name__}"
    if not isinstance(value.parts, dict):
        return f"parts of type {type(value.parts).__name__}"
    for name, number in {"total": value.total, **value.parts}.items():
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            return f"{name} = {number!r}"
    return "" if isinstance(value.correct, bool) else f"correct = {value.correct!r}"
