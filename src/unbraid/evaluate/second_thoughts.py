"""What second thoughts would come to at every threshold, from two greedy evaluations: drafts, and thinking forced.

Nothing is drawn anew: with greedy decoding a task's draft and its thought are the same whatever the threshold, which
only decides between them. `rollout.second_thoughts` does it for real, at one threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.rollout.second_thoughts import beginning_kept, drawn_until_doubt
from unbraid.rollout.trajectory import Trajectory

DOUBTS = (*np.geomspace(0.001, 3.0, 29).round(4).tolist(), float("inf"))
"""Thresholds in nats that are looked at: from a token of 99.9 % to one of 5 %, and none at all."""


@dataclass(frozen=True)
class Point:
    """What a threshold comes to. doubt: nats. accuracy, again (the share of tasks thought about again), think (the
    share answered in thinking at last): in [0, 1]. tokens: mean of all drawn, drafts that were set aside included, what
    was kept of them once.
    """

    doubt: float
    accuracy: float
    tokens: float
    again: float
    think: float


def outcomes(
    drafts: Sequence[Trajectory], thoughts: Sequence[Trajectory], doubt: float
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """(right, tokens, thought about again) of every task at one threshold in nats; each (N,).

    Args:
        drafts: greedy first answers, graded: free ones, or of whoever writes drafts. thoughts: those with thinking
            forced, in this order.

    Raises:
        DataError: they are not of the same tasks, one each; or of episodes.
    """
    if [t.task_id for t in drafts] != [t.task_id for t in thoughts]:
        raise DataError("drafts and thoughts are not of the same tasks, one each in the same order")
    right, tokens, again = [], [], []
    for draft, thought in zip(drafts, thoughts, strict=True):
        drawn = drawn_until_doubt(draft, doubt)
        again.append(drawn is not None)
        if drawn is None:
            right.append(draft.correct)
            tokens.append(draft.response_tokens)
        else:
            right.append(thought.correct)
            tokens.append(drawn + thought.response_tokens - beginning_kept(draft, drawn, thought))
    return np.array(right, dtype=bool), np.array(tokens, dtype=np.int64), np.array(again, dtype=bool)


def points(
    drafts: Sequence[Trajectory],
    thoughts: Sequence[Trajectory],
    doubts: Sequence[float] = DOUBTS,
    weights: Sequence[float] | NDArray[np.float64] | None = None,
) -> list[Point]:
    """One point for each threshold, as ordered; arguments as for `outcomes`.

    Args:
        weights: of the tasks, (N,), in any unit; None weighs them alike.
    """
    weight = np.ones(len(drafts)) if weights is None else np.asarray(weights, dtype=float)
    weight = weight / weight.sum()
    thinks = np.array([t.mode is Mode.THINK for t in drafts])
    found = []
    for doubt in doubts:
        right, tokens, again = outcomes(drafts, thoughts, doubt)
        found.append(
            Point(doubt, *(float(weight @ values) for values in (right, tokens, again, again | thinks)))
        )  # fmt: skip
    return found


def most_careful(found: Sequence[Point], tokens: float) -> Point:
    """The point of the smallest doubt among those that take at most so many tokens.

    Choice: not the most accurate one, which on a small set is a matter of luck.

    Raises:
        DataError: none takes so few.
    """
    affordable = [point for point in found if point.tokens <= tokens]
    if not affordable:
        least = min(point.tokens for point in found)
        raise DataError(f"no threshold comes to {tokens:g} tokens: the cheapest takes {least:.1f}; allow that many")
    return min(affordable, key=lambda point: point.doubt)


def cheapest(found: Sequence[Point], accuracy: float) -> Point:
    """The point of the fewest tokens among those that are right so often.

    Raises:
        DataError: none is.
    """
    good = [point for point in found if point.accuracy >= accuracy]
    if not good:
        best = max(point.accuracy for point in found)
        raise DataError(f"no threshold is right on {accuracy:.1%}: the best is on {best:.1%}; ask for less")
    return min(good, key=lambda point: point.tokens)
