"""The trained weights served with second thoughts: they choose where they are sure that thinking pays, else the base
drafts, and they think where it was unsure.

The tests come as a stream, of which the cell's share is known, and a number of tokens per task is kept to: the goal's,
as it is on the RL prompts. Which chains are known says how many tokens that is, and the rewards of the RL prompts how
sure a choice must be; of the tests nothing is looked at but the tokens that they took.
"""

from collections.abc import Sequence

import numpy as np

from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.evaluate.second_thoughts import best_affordable, curves
from unbraid.lab.autotool.methods import SAVED
from unbraid.rollout.scoring import Roll
from unbraid.rollout.second_thoughts import SecondThoughts
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.task import Task

MARGIN = 0.04
"""Choice: so much more of the oracle's saving is asked for on the RL prompts than the goal asks for on others: the
tokens that it comes to differ between two sets of prompts."""
PASSES = 4
"""How many times as many tasks as there are tests a stream has. Choice: what an allowance has not made up for yet when
a stream ends is little then, as in a service that goes on."""
DOUBTS = (*np.geomspace(0.0002, 3.0, 160).tolist(), float("inf"))
"""Thresholds to choose from, in nats."""


def stream(tests: Sequence[Task], share: float) -> list[Task]:
    """Tests in random order, `PASSES` times as many as there are, of which so large a share is known.

    Of the known ones, and of the others, none comes more than once more often than another.

    Raises:
        DataError: there are none of a kind that is asked for.
    """
    random, total = np.random.default_rng(0), PASSES * len(tests)
    places: list[int] = []
    for known, count in ((True, round(share * total)), (False, total - round(share * total))):
        kind = [i for i, task in enumerate(tests) if bool(task.extra["known"]) is known]
        if count and not kind:
            word = "known" if known else "unknown"
            raise DataError(f"{count} tests are to be {word}, and none is: answer more tests, or take another share")
        rounds = [random.permutation(kind) for _ in range(-(-count // max(1, len(kind))))]
        places += np.concatenate(rounds)[:count].tolist() if rounds else []
    return [tests[i] for i in random.permutation(places)]


def with_second_thoughts(
    drafting: Roll, thinking: Roll, prompts: Sequence[Task], tests: Sequence[Task]
) -> tuple[list[Trajectory], SecondThoughts, int]:
    """Greedy answers to the tests in their order, how they came about, and the tokens that were drawn to choose how.

    Args:
        drafting, thinking: the base's and the trained weights'. prompts: of the RL set, as they come: their known share
            is that of the allowance.
    """
    drafts = drafting(prompts, [Mode.NO_THINK], temperature=0.0, seed=0)
    free, thoughts = (thinking(prompts, [mode], temperature=0.0, seed=0) for mode in (Mode.AUTO, Mode.THINK))
    known = np.array([bool(task.extra["known"]) for task in prompts])
    direct, long = (np.array([t.response_tokens for t in drawn]) for drawn in (drafts, thoughts))
    allowed = float(long.mean() - (SAVED + MARGIN) * (known * (long - direct)).mean())
    found = curves(free, drafts, thoughts, DOUBTS)
    # Even drafts alone may take more, where next to nothing is known: then every draft stands.
    curve, _ = best_affordable(found, max(allowed, found[0].points[-1].tokens))
    served = SecondThoughts(thinking, curve.allowance(allowed), drafting, curve.sure)
    spent = sum(t.response_tokens for drawn in (drafts, free, thoughts) for t in drawn)
    return served(tests, [Mode.AUTO], temperature=0.0, seed=0), served, spent
