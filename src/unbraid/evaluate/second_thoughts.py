"""What second thoughts would come to at every threshold, from greedy evaluations: drafts, and thinking forced.

Nothing is drawn anew: with greedy decoding a task's draft and its thought are the same whatever the threshold, which
only decides between them. `rollout.second_thoughts` does it for real, at one threshold or one that follows the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.rollout.second_thoughts import Allowance, beginning_kept, drawn_until_doubt, thinks_surely
from unbraid.rollout.trajectory import Trajectory

DOUBTS = (*np.geomspace(0.001, 3.0, 29).round(4).tolist(), float("inf"))
"""Thresholds in nats that are looked at: from a token of 99.9 % to one of 5 %, and none at all."""

THINKING_AT_ONCE = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares, of the answers that think by themselves, that are looked at for thinking at once: the surest ones."""


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
    drafts: Sequence[Trajectory], thoughts: Sequence[Trajectory], doubts: Sequence[float], anew: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
    """(right, tokens, thought about again) at every threshold, of every task; each (D, N).

    Args:
        drafts: greedy first answers, graded: free ones, or of whoever writes drafts. thoughts: those with thinking
            forced, in this order. doubts: (D,) nats, ascending. anew: count what is kept of drafts as written again.

    Raises:
        DataError: they are not of the same tasks, one each; or of episodes; or the doubts do not ascend.
    """
    if [t.task_id for t in drafts] != [t.task_id for t in thoughts]:
        raise DataError("drafts and thoughts are not of the same tasks, one each in the same order")
    if list(doubts) != sorted(doubts):
        raise DataError("the thresholds do not ascend: sort them")
    shape, bounds = (len(doubts), len(drafts)), np.asarray(doubts, dtype=np.float32)
    right, tokens, again = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for task, (draft, thought) in enumerate(zip(drafts, thoughts, strict=True)):
        first = 0
        while first < len(doubts):
            drawn, last = drawn_until_doubt(draft, doubts[first]), len(doubts)
            if drawn is None:
                right[first:, task], tokens[first:, task] = draft.correct, draft.response_tokens
                break
            if draft.mode is Mode.NO_THINK:  # the same token sets it aside at every doubt that is less than its own
                token = draft.logprobs[draft.prompt_length + drawn - 1]
                last = max(first + 1, int(np.searchsorted(bounds, -token)))
            right[first:last, task], again[first:last, task] = thought.correct, True
            kept = 0 if anew else beginning_kept(draft, drawn, thought)
            tokens[first:last, task] = drawn + thought.response_tokens - kept
            first = last
    return right, tokens, again


def points(
    drafts: Sequence[Trajectory],
    thoughts: Sequence[Trajectory],
    doubts: Sequence[float] = DOUBTS,
    weights: Sequence[float] | NDArray[np.float64] | None = None,
) -> list[Point]:
    """One point for each threshold; arguments as for `outcomes`.

    Args:
        weights: of the tasks, (N,), in any unit; None weighs them alike.
    """
    weight = np.ones(len(drafts)) if weights is None else np.asarray(weights, dtype=float)
    weight = weight / weight.sum()
    thinks = np.array([t.mode is Mode.THINK for t in drafts])
    right, tokens, again = outcomes(drafts, thoughts, doubts)
    means = (values @ weight for values in (right, tokens, again, again | thinks))
    return [Point(doubt, *map(float, row)) for doubt, *row in zip(doubts, *means, strict=True)]


@dataclass(frozen=True)
class Curve:
    """Every threshold, where what finds thinking likelier than `sure` thinks at once; 1: nothing does."""

    sure: float
    points: Sequence[Point]

    @property
    def least(self) -> float:
        """Tokens of the cheapest threshold."""
        return min(point.tokens for point in self.points)

    @property
    def best(self) -> float:
        """Accuracy of the most accurate threshold, in [0, 1]."""
        return max(point.accuracy for point in self.points)

    def allowance(self, tokens: float) -> Allowance:
        """What keeps to so many tokens per task on other tasks."""
        return Allowance(tokens, [(point.doubt, point.tokens) for point in self.points])


def curves(
    free: Sequence[Trajectory],
    drafts: Sequence[Trajectory],
    thoughts: Sequence[Trajectory],
    doubts: Sequence[float] = DOUBTS,
) -> list[Curve]:
    """One for every share of thoughts that might be thought at once, none of them first.

    Args:
        free: greedy answers of the weights that think. drafts: of those that draft. thoughts: as for `outcomes`.
    """
    chosen = sorted((t.choice_probs[0] for t in free if thinks_surely(t, 0.0)), reverse=True)
    # The least sure of those that think at once is not likelier than itself: the next one is the bound.
    sure = [[*chosen, 0.0][round(share * len(chosen))] for share in THINKING_AT_ONCE if chosen]
    found = [Curve(1.0, points(drafts, thoughts, doubts))]
    for bound in dict.fromkeys(sure):
        first = [t if thinks_surely(t, bound) else draft for t, draft in zip(free, drafts, strict=True)]
        found.append(Curve(bound, points(first, thoughts, doubts)))
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


def best_affordable(found: Sequence[Curve], tokens: float) -> tuple[Curve, Point]:
    """Of the most careful points that take at most so many tokens, one on each curve, the most accurate.

    Raises:
        DataError: none takes so few.
    """
    affordable = [curve for curve in found if curve.least <= tokens] or [min(found, key=lambda curve: curve.least)]
    pairs = [(curve, most_careful(curve.points, tokens)) for curve in affordable]
    return max(pairs, key=lambda pair: pair[1].accuracy)


def cheapest_of(found: Sequence[Curve], accuracy: float) -> tuple[Curve, Point]:
    """The point of the fewest tokens on any curve among those that are right so often.

    Raises:
        DataError: none is.
    """
    good = [curve for curve in found if curve.best >= accuracy] or [max(found, key=lambda curve: curve.best)]
    pairs = [(curve, cheapest(curve.points, accuracy)) for curve in good]
    return min(pairs, key=lambda pair: pair[1].tokens)


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
