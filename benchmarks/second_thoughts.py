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
    base, allowance      as `base`, but that the threshold follows what a stream of tests took, so that it keeps to the
                         tokens that save .84 on the prompts: as many of these as make the share
    base, choice first   the same, and what the warmed-up weights are sure to think about they think about at once; how
                         sure, their rewards on the prompts say

The goal: at least .95 of the accuracy of always thinking, at least .8 of the saving. The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
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
from unbraid.lab.autotool.cells import PROMPTS, Part, mixture
from unbraid.lab.autotool.methods import KEPT, SAVED, SHARES
from unbraid.lab.autotool.served import DOUBTS, MARGIN, stream, with_second_thoughts
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import CallsWorld, Split
from unbraid.lab.measure import MAX_NEW_TOKENS, load_start
from unbraid.lab.starts import WARMUP, Start, start_examples
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer
from unbraid.policy import Policy
from unbraid.rollout.local import LocalSampler
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.second_thoughts import Allowance
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
FREE, ALLOWANCE, CHOICE = "free", "base, allowance", "base, choice first"
Floats = NDArray[np.float64]


class Answers:
    """Tasks answered by some weights, greedily, and what every threshold makes of it: by draft, (threshold, task)."""

    def __init__(self, policy: Policy, tasks: Sequence[Task], direct: Sequence[Trajectory]):
        self.tasks, self.direct = tasks, direct
        self.thoughts, self.free = greedy(policy, tasks, Mode.THINK), greedy(policy, tasks, Mode.AUTO)
        self.known = np.array([bool(task.extra["known"]) for task in tasks])
        self.thinking = np.array([t.response_tokens for t in self.thoughts], dtype=float)
        self.right = np.array([t.correct for t in self.thoughts], dtype=float)
        self.short = np.array([t.response_tokens for t in direct], dtype=float)
        self.ways: dict[str, tuple[Floats, Floats]] = {}
        for writer, drafts in (("own", self.free), ("base", direct)):
            for anew in (False, True):
                right, tokens, _ = outcomes(drafts, self.thoughts, DOUBTS, anew)
                self.ways[f"{writer} anew" if anew else writer] = right.astype(float), tokens.astype(float)

    def weights(self, share: float) -> Floats:
        """(N,) weights of the tasks that make this share of them known; they sum to 1."""
        return np.where(self.known, share / self.known.sum(), (1 - share) / (~self.known).sum())

    def saving(self, share: float, tokens: Floats) -> Floats:
        """Of what the oracle saves; tokens: means per task at this share, any shape."""
        weights = self.weights(share)
        return (weights @ self.thinking - tokens) / (weights @ np.where(self.known, self.thinking - self.short, 0.0))

    def saved(self, share: float, way: str) -> Floats:
        """Of what the oracle saves, at every threshold."""
        return self.saving(share, self.ways[way][1] @ self.weights(share))

    def kept(self, share: float, way: str) -> Floats:
        """Of always thinking's accuracy, at every threshold."""
        weights = self.weights(share)
        return self.ways[way][0] @ weights / (weights @ self.right)

    def careful(self, share: float, way: str, saving: float) -> int:
        """Which threshold is the smallest that saves so much; the last if none does."""
        enough = self.saved(share, way) >= saving
        return int(enough.argmax()) if enough.any() else len(DOUBTS) - 1

    def rolls(self, chooses: bool) -> tuple["Remembered", "Remembered"]:
        """Who drafts and who thinks, once more; chooses: and whether to think is asked of it, too."""
        free = self.free if chooses else self.direct
        return Remembered({Mode.NO_THINK: self.direct}), Remembered({Mode.AUTO: free, Mode.THINK: self.thoughts})

    def at(self, share: float) -> list[Task]:
        """As many of the tasks as make this share of them known."""
        known, unknown = ([t for t, k in zip(self.tasks, self.known, strict=True) if k == which] for which in (1, 0))
        total = min(len(known) / share, len(unknown) / (1 - share))
        return [*known[: round(share * total)], *unknown[: round((1 - share) * total)]]


class Remembered:
    """A `Roll` of greedy answers that were drawn already, by mode."""

    def __init__(self, answers: dict[Mode, Sequence[Trajectory]]):
        self.by_mode = {mode: {t.task_id: t for t in drawn} for mode, drawn in answers.items()}

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """Copies, as whoever asks may number them."""
        assert temperature == 0
        return [replace(self.by_mode[mode][task.id]) for task in tasks for mode in modes]


def served(prompts: Answers, test: Answers, share: float, chooses: bool) -> dict[str, float]:
    """What is reached with an allowance, as the claims run serves its weights."""
    drafting, thinking = prompts.rolls(chooses)
    for mine, theirs in zip((drafting, thinking), test.rolls(chooses), strict=True):
        for mode, answers in mine.by_mode.items():
            answers |= theirs.by_mode[mode]
    drawn, how, _ = with_second_thoughts(drafting, thinking, prompts.at(share), stream(test.tasks, share))
    kinds = {task.id: bool(task.extra["known"]) for task in test.tasks}
    parts = [Part.of([t for t in drawn if kinds[t.task_id] is known]) for known in (True, False)]
    part = mixture(parts[0], parts[1], share)
    assert isinstance(how.doubt, Allowance)
    kept = part.accuracy / float(test.weights(share) @ test.right)
    saved = float(test.saving(share, np.array([part.tokens]))[0])
    return {"kept": kept, "saved": saved, "doubt": how.doubt.doubt(), "sure": how.sure}


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
            places = {FREE: ("own", len(DOUBTS) - 1)} if made else {}
            places |= {way: (way, prompts.careful(share, way, SAVED + MARGIN)) for way in ways}
            shown[name][share] = {
                label: {
                    "kept": float(test.kept(share, way)[at]),
                    "saved": float(test.saved(share, way)[at]),
                    "doubt": DOUBTS[at],
                }
                for label, (way, at) in places.items()
            }
            shown[name][share][ALLOWANCE] = served(prompts, test, share, chooses=False)
            if made:
                shown[name][share][CHOICE] = served(prompts, test, share, chooses=True)
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
    rows |= {"met": sum(met), "doubts": [float(f"{d:.3g}") if d < float("inf") else None for d in doubts]}
    return rows | ({"sure": [round(one["sure"], 4) for one in found]} if "sure" in found[0] else {})


def main() -> None:
    """Answer, print a table for each warm-up, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console, shown = Console(width=150), {}
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
