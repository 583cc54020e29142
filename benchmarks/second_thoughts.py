"""What second thoughts add in the calls world, before any RL: the goal of the claims run, share by share, over bases.

    python benchmarks/second_thoughts.py                          # base 0, the shipped one: two minutes on one core
    python benchmarks/second_thoughts.py --bases 6 --out FILE     # others are built where they are not in the cache

Each base is warmed up in some way or not at all. Thoughts are by these weights; drafts are free answers by them, or
direct ones by the base as it was. The threshold is the most careful one that saves .84 on 1600 RL prompts, found from
tokens without looking at what is right, and is then used on the test set. Per known share, with what the chain-aware
oracle would save against always thinking as the unit:

    free                 without second thoughts
    own anew, base anew  drafts by the same weights, or by the base; what is set aside is written anew after the thought
    own, base            the same, but that what the draft was sure of is kept
    base, to budget      as `base`, with the most careful threshold that saves .8 on the test set itself: from tokens
                         alone too, as a server does that is given a number of tokens per task and keeps to it

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
from rich.progress import track
from rich.table import Table

from unbraid.chat.types import Mode
from unbraid.evaluate.second_thoughts import outcomes
from unbraid.evaluate.statistics import mean_over_runs
from unbraid.lab.autotool.cells import PROMPTS
from unbraid.lab.autotool.methods import KEPT, SAVED, SHARES
from unbraid.lab.autotool.served import DOUBTS, MARGIN
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import CallsWorld, Split
from unbraid.lab.measure import MAX_NEW_TOKENS, load_start
from unbraid.lab.starts import WARMUP, Start, start_examples
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer
from unbraid.policy import Policy
from unbraid.rollout.local import LocalSampler
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.second_thoughts import beginning_kept, drawn_until_doubt
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.reward import RewardConfig, reward_function
from unbraid.tasks.task import Task

STARTS = {
    "none": None,
    "gentle": (Start.CLEAR, WARMUP.learning_rate / 5),
    "clear": (Start.CLEAR, WARMUP.learning_rate),
    "fuzzy": (Start.FUZZY, WARMUP.learning_rate),
}
"""A warm-up and its learning rate. `gentle` is `clear` at a fifth of the rate: it moves less of what the base knows."""
WAYS = ("own anew", "own", "base anew", "base")
FREE, BUDGET = "free", "base, to budget"
Floats = NDArray[np.float64]


class Answers:
    """Tasks answered by some weights, greedily, and what every threshold makes of it: by draft, (threshold, task)."""

    def __init__(self, policy: Policy, tasks: Sequence[Task], direct: Sequence[Trajectory]):
        thoughts, free = greedy(policy, tasks, Mode.THINK), greedy(policy, tasks, Mode.AUTO)
        self.known = np.array([bool(task.extra["known"]) for task in tasks])
        self.thinking = np.array([t.response_tokens for t in thoughts], dtype=float)
        self.right = np.array([t.correct for t in thoughts], dtype=float)
        self.direct = np.array([t.response_tokens for t in direct], dtype=float)
        self.ways: dict[str, tuple[Floats, Floats]] = {}
        for writer, drafts in (("own", free), ("base", direct)):
            found = [outcomes(drafts, thoughts, doubt) for doubt in DOUBTS]
            right, tokens = (np.array([one[i] for one in found], dtype=float) for i in (0, 1))
            given = [[_given(d, t, doubt) for d, t in zip(drafts, thoughts, strict=True)] for doubt in DOUBTS]
            self.ways[writer], self.ways[f"{writer} anew"] = (right, tokens), (right, tokens + np.array(given))

    def weights(self, share: float) -> Floats:
        """(N,) weights of the tasks that make this share of them known; they sum to 1."""
        return np.where(self.known, share / self.known.sum(), (1 - share) / (~self.known).sum())

    def saved(self, share: float, way: str) -> Floats:
        """Of what the oracle saves, at every threshold."""
        weights = self.weights(share)
        oracle = weights @ np.where(self.known, self.thinking - self.direct, 0.0)
        return (self.thinking - self.ways[way][1]) @ weights / oracle

    def kept(self, share: float, way: str) -> Floats:
        """Of always thinking's accuracy, at every threshold."""
        weights = self.weights(share)
        return self.ways[way][0] @ weights / (weights @ self.right)

    def careful(self, share: float, way: str, saving: float) -> int:
        """Which threshold is the smallest that saves so much; the last if none does."""
        enough = self.saved(share, way) >= saving
        return int(enough.argmax()) if enough.any() else len(DOUBTS) - 1


def _given(draft: Trajectory, thought: Trajectory, doubt: float) -> int:
    drawn = drawn_until_doubt(draft, doubt)
    return 0 if drawn is None else beginning_kept(draft, drawn, thought)


def greedy(policy: Policy, tasks: Sequence[Task], mode: Mode) -> list[Trajectory]:
    """One greedy answer to each task."""
    roll = SingleStep(LocalSampler(policy), policy.format, reward_function(RewardConfig()), MAX_NEW_TOKENS)
    return roll(tasks, [mode], temperature=0.0, seed=0)


def look(base: int) -> dict[str, dict[float, dict[str, dict[str, float]]]]:
    """One base after every warm-up: warm-up, share, way, what it reaches."""
    world = CallsWorld(base)
    sets = (world.training_tasks(PROMPTS, 0.5, 0), world.evaluation_tasks(Split.TEST))
    untouched = load_start(base_path(base))
    direct = [greedy(untouched, tasks, Mode.NO_THINK) for tasks in sets]
    shown: dict[str, dict[float, dict[str, dict[str, float]]]] = {}
    for name, made in STARTS.items():
        policy = load_start(base_path(base))
        if made:
            config = WARMUP.model_copy(update={"learning_rate": made[1]})
            examples = start_examples(world, policy.format, made[0], config.steps * config.batch_examples)
            SupervisedTrainer(policy.model, config, epochs(examples, config.batch_examples, 0)).run(None)
        prompts, test = (Answers(policy, tasks, drafts) for tasks, drafts in zip(sets, direct, strict=True))
        # Without a warm-up there is no opinion on the mode, and drafts are by the base in any case.
        ways = [way for way in WAYS if made or way.startswith("base")]
        shown[name] = {}
        for share in SHARES:
            places = {way: (way, prompts.careful(share, way, SAVED + MARGIN)) for way in ways}
            places[BUDGET] = "base", test.careful(share, "base", SAVED)
            if made:
                places[FREE] = "own", len(DOUBTS) - 1
            shown[name][share] = {
                label: {
                    "kept": float(test.kept(share, way)[at]),
                    "saved": float(test.saved(share, way)[at]),
                    "doubt": DOUBTS[at],
                }
                for label, (way, at) in places.items()
            }
    return shown


def summary(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over bases with 95 % intervals (Student's t), the least of them, and on how many the goal is met."""
    rows: dict[str, Any] = {}
    for measure in ("kept", "saved"):
        e = mean_over_runs([one[measure] for one in found])
        rows[measure] = [round(x, 4) for x in (e.value, e.low, e.high) if x is not None]
        rows[f"least {measure}"] = round(min(one[measure] for one in found), 4)
    doubts = [one["doubt"] for one in found]
    met = [one["kept"] >= KEPT and one["saved"] >= SAVED for one in found]
    return rows | {"met": sum(met), "doubts": [float(f"{d:.3g}") if d < float("inf") else None for d in doubts]}


def main() -> None:
    """Answer, print a table for each warm-up, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console, shown = Console(width=130), {}
    found = []
    for base in track(range(asked.bases), "bases", console=Console(stderr=True)):
        found.append(look(base))
    for name in STARTS:
        ways = list(found[0][name][SHARES[0]])
        shown[name] = {
            f"{share:g}": {way: summary([one[name][share][way] for one in found]) for way in ways} for share in SHARES
        }
        title = f"warm-up {name}: accuracy kept, saving, both in %; on how many bases the goal is met"
        table = Table(title=title, title_justify="left", box=None)
        for column in ("known share", *ways):
            table.add_column(column, justify="right")
        for share, numbers in shown[name].items():
            cells = (
                f"{100 * numbers[way]['kept'][0]:.1f}  {100 * numbers[way]['saved'][0]:.0f}  "
                f"{numbers[way]['met']} of {asked.bases}"
                for way in ways
            )
            table.add_row(share, *cells)
        console.print(table)
    result = {"bases": asked.bases, **shown}
    if asked.out:
        asked.out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
