"""What second thoughts add in the calls world, before any RL: the goal of the claims run, share by share, over bases.

    python benchmarks/second_thoughts.py                          # base 0, the shipped one: a minute on one core
    python benchmarks/second_thoughts.py --bases 6 --out FILE     # others are built where they are not in the cache

Each base is warmed up three ways, then every task is answered twice, greedily: freely, and in thinking. From these two
answers follows what any threshold comes to (`unbraid.evaluate.second_thoughts`). Per known share, and with what the
chain-aware oracle would save against always thinking as the unit:

    free        without second thoughts
    dev         the most careful threshold that saves .8 on the dev set, used on the test set
    budget      the most careful threshold that saves .8 on the test set itself. It is found from tokens alone, without
                looking at what is right: a server that is given a number of tokens per task can keep to it that way

The goal: at least .95 of the accuracy of always thinking, at least .8 of the saving. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from unbraid.chat.types import Mode
from unbraid.evaluate.second_thoughts import DOUBTS, most_careful, outcomes, points
from unbraid.evaluate.statistics import mean_over_runs
from unbraid.lab.autotool.methods import KEPT, SAVED, SHARES
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import CallsWorld, Split
from unbraid.lab.measure import MAX_NEW_TOKENS, load_start
from unbraid.lab.starts import WARMUP, Start, start_examples
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer
from unbraid.policy import Policy
from unbraid.rollout.local import LocalSampler
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.reward import RewardConfig, reward_function
from unbraid.tasks.task import Task

STARTS = {"clear": (Start.CLEAR, WARMUP.learning_rate), "gentle": (Start.CLEAR, 2e-4), "fuzzy": (Start.FUZZY, 1e-3)}
"""A warm-up and its learning rate. `gentle` is `clear` at a fifth of the rate: it moves less of what the base knows."""
FINE = (*np.geomspace(0.002, 3.0, 120).tolist(), DOUBTS[-1])
WAYS = ("free", "dev", "budget")


class Answers:
    """One set of tasks, answered freely and in thinking."""

    def __init__(self, policy: Policy, tasks: Sequence[Task]):
        roll = SingleStep(LocalSampler(policy), policy.format, reward_function(RewardConfig()), MAX_NEW_TOKENS)
        self.known = np.array([bool(task.extra["known"]) for task in tasks])
        self.free, self.thoughts = (self._greedy(roll, tasks, mode) for mode in (Mode.AUTO, Mode.THINK))
        direct = self._greedy(roll, tasks, Mode.NO_THINK)
        self.thinking = np.array([t.response_tokens for t in self.thoughts], dtype=float)
        self.direct = np.array([t.response_tokens for t in direct], dtype=float)
        self.right = np.array([t.correct for t in self.thoughts], dtype=float)

    @staticmethod
    def _greedy(roll: SingleStep, tasks: Sequence[Task], mode: Mode) -> list[Trajectory]:
        return roll(tasks, [mode], temperature=0.0, seed=0)

    def weights(self, share: float) -> NDArray[np.float64]:
        """(N,) weights of the tasks that make this share of them known; they sum to 1."""
        return np.where(self.known, share / self.known.sum(), (1 - share) / (~self.known).sum())

    def saving(self, share: float) -> float:
        """Tokens per task that the oracle saves."""
        return float(self.weights(share) @ np.where(self.known, self.thinking - self.direct, 0.0))

    def budget(self, share: float) -> float:
        """Tokens per task that are left if `SAVED` of that is saved."""
        return float(self.weights(share) @ self.thinking) - SAVED * self.saving(share)

    def careful(self, share: float) -> float:
        """The smallest doubt within the budget; infinite where even free answers take more."""
        found = points(self.free, self.thoughts, FINE, self.weights(share))
        budget = self.budget(share)
        return most_careful(found, budget).doubt if min(p.tokens for p in found) <= budget else FINE[-1]

    def reached(self, share: float, doubt: float) -> dict[str, float]:
        """Accuracy as a share of always thinking's, the share of the oracle's saving, how often it thought again."""
        weights = self.weights(share)
        right, tokens, again = outcomes(self.free, self.thoughts, doubt)
        return {
            "kept": float(weights @ right) / float(weights @ self.right),
            "saved": float(weights @ (self.thinking - tokens)) / self.saving(share),
            "again": float(weights @ again),
            "doubt": doubt,
        }


def look(base: int, name: str) -> dict[float, dict[str, dict[str, float]]]:
    """One base after one warm-up: share, way, what it reaches."""
    world, policy = CallsWorld(base), load_start(base_path(base))
    start, rate = STARTS[name]
    config = WARMUP.model_copy(update={"learning_rate": rate})
    examples = start_examples(world, policy.format, start, config.steps * config.batch_examples)
    SupervisedTrainer(policy.model, config, epochs(examples, config.batch_examples, 0)).run(None)
    dev, test = (Answers(policy, world.evaluation_tasks(split)) for split in (Split.DEV, Split.TEST))
    return {
        share: {
            "free": test.reached(share, FINE[-1]),
            "dev": test.reached(share, dev.careful(share)),
            "budget": test.reached(share, test.careful(share)),
        }
        for share in SHARES
    }


def summary(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over bases with 95 % intervals (Student's t), and on how many of them the goal is met."""
    rows: dict[str, Any] = {}
    for measure in ("kept", "saved", "again"):
        e = mean_over_runs([one[measure] for one in found])
        rows[measure] = [round(x, 4) for x in (e.value, e.low, e.high) if x is not None]
    doubts = [one["doubt"] for one in found]
    met = [one["kept"] >= KEPT and one["saved"] >= SAVED - 1e-9 for one in found]
    return rows | {"met": sum(met), "doubts": [float(f"{d:.3g}") if d < float("inf") else None for d in doubts]}


def main() -> None:
    """Answer, print a table for each warm-up, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console, shown = Console(), {}
    for name in STARTS:
        found = [look(base, name) for base in range(asked.bases)]
        shown[name] = {
            f"{share:g}": {way: summary([one[share][way] for one in found]) for way in WAYS} for share in SHARES
        }
        table = Table(title=f"{name}: kept / saved (again), goal met on bases", title_justify="left", box=None)
        for column in ("known share", *WAYS):
            table.add_column(column, justify="right")
        for share, ways in shown[name].items():
            cells = (
                f"{100 * ways[way]['kept'][0]:.1f} / {100 * ways[way]['saved'][0]:.0f} "
                f"({100 * ways[way]['again'][0]:.0f}), {ways[way]['met']} of {asked.bases}"
                for way in WAYS
            )
            table.add_row(share, *cells)
        console.print(table)
    result = {"bases": asked.bases, **shown}
    if asked.out:
        asked.out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
