"""Is a killed and resumed run the unbroken run? Kill one with SIGKILL at random points, resume it, compare every file.

    python benchmarks/resume.py --kills 5

The last line is a JSON object: `kills`, `identical`, `seconds`. The exit status is 1 if anything differs.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from unbraid.learn.log import METRICS, read_metrics, without_wall_clock
from unbraid.recipe import load_recipe
from unbraid.run import train

RECIPE = """
extends: calls
name: resume
tasks: {train: "unbraid.lab.calls_world:train_set?world=0&known_share=0.66&count=64"}
warmup: {steps: 6, batch_examples: 12}
rollout: {prompts: 4, samples: 4, max_new_tokens: 40}
learn: {learning_rate: 1.0e-3, decay: cosine, weight_decay: 0.01, kl: 0.02, minibatches: 2, probe_every: 3}
constraints:
  - name: decoupled
    group_by: mode
    target: {no_think: 0.1, think: 0.2}
    coefficient: {no_think: 0.0, think: {start: 0.01, rule: adam, learning_rate: 0.01}}
  - name: mode
    measure: choice
    target: 0.6
    coefficient: {start: 0.05, rule: gradient, learning_rate: 0.05}
    anneal: {start: 0.5}
evaluate: {every: 2, limit: 6, temperatures: [0.0], samples: 1}
checkpoint: {every: 1, keep: 2}
"""
"""Everything that has state is on: both optimisers, both kinds of coefficient, an annealed target, the reference."""

WARMUP_STEPS = 6


@dataclass(frozen=True)
class Kill:
    """When to kill: once `stage` has done `step` steps, after `delay` seconds more or while a checkpoint is written."""

    stage: str
    step: int
    delay: float
    while_writing: bool = False


def plan_kills(kills: int, steps: int, rng: np.random.Generator) -> list[Kill]:
    """The first in the warm-up, the others at distinct training steps, every second of them while writing."""
    plan = [Kill("warm-up", int(rng.integers(1, WARMUP_STEPS)), rng.uniform(0, 0.1))] if kills else []
    for i, step in enumerate(sorted(rng.choice(np.arange(1, steps), size=kills - 1, replace=False)) if kills else []):
        plan.append(Kill("train", int(step), rng.uniform(0, 0.4), while_writing=i % 2 == 0))
    return plan


def child(recipe: Path, run_dir: Path, events: Connection) -> None:
    """What each process does: start the run, or go on with it."""
    torch.set_num_threads(1)
    train(load_recipe([recipe]), run_dir, resume=True, progress=lambda stage, done, *_: events.send((stage, done)))


class Runner:
    """Starts the run in a process of its own, as often as it takes."""

    def __init__(self, recipe: Path, start: Literal["spawn", "fork"]):
        self.recipe = recipe
        fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
        self.processes = fork if start == "fork" else spawn

    def __call__(self, run_dir: Path, kill: Kill | None = None) -> str:
        """Run to the end, or up to `kill`; returns what was going on then.

        Raises:
            RuntimeError: the run failed by itself.
        """
        receiver, sender = self.processes.Pipe(duplex=False)
        process = self.processes.Process(target=child, args=(self.recipe, run_dir, sender))
        process.start()
        sender.close()
        last = ("", 0)
        try:
            while True:
                last = receiver.recv()
                if kill and last[0] == kill.stage and last[1] >= kill.step:
                    wait_for(kill, run_dir, process.is_alive)
                    process.kill()
                    kill = None
        except EOFError:
            process.join()
        if process.exitcode not in (0, -9):
            raise RuntimeError(f"the run ended with status {process.exitcode} after {last[0]} {last[1]}")
        torn = sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob(".writing-*"))
        return f"{last[0]} {last[1]}" + (f", left {', '.join(torn)}" if torn else "")


def wait_for(kill: Kill, run_dir: Path, alive: Callable[[], bool]) -> None:
    """Return at the moment to kill, or when the process has ended."""
    if not kill.while_writing:
        time.sleep(kill.delay)
        return
    # A random part of the few milliseconds that writing takes.
    while alive() and not any((run_dir / "checkpoints").glob(".writing-*")):
        time.sleep(1e-4)
    time.sleep(kill.delay / 40)


def differences(one: Path, two: Path) -> list[str]:
    """Files in which two runs differ. TensorBoard's are left out: they hold nothing but copies and times."""
    files = [
        {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
        for run in (one, two)
    ]
    found = [f"{name}: in one run only" for name in sorted(files[0] ^ files[1])]
    return found + [f"{name}: differs" for name in sorted(files[0] & files[1]) if not same_file(one, two, name)]


def same_file(one: Path, two: Path, name: str) -> bool:
    """Byte for byte, but for clock readings in the metrics and the archive layout of `trainer.pt`."""
    if name == METRICS:
        rows = [[without_wall_clock(row) for row in read_metrics(run)] for run in (one, two)]
        return rows[0] == rows[1]
    if name.endswith(".pt"):
        first, second = (torch.load(run / name, weights_only=False) for run in (one, two))
        return same_value(first, second)
    return (one / name).read_bytes() == (two / name).read_bytes()


def same_value(one: Any, two: Any) -> bool:
    """Equal to the last bit, NaN equal to NaN."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return list(one) == list(two) and all(same_value(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same_value, one, two))
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.numpy().tobytes() == two.numpy().tobytes()
    return repr(one) == repr(two)


def main() -> int:
    """Run once unbroken and once with kills; print what was killed when, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="RL steps of the run; more than kills")
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: others each time")
    parser.add_argument("--start", choices=("spawn", "fork"), default="spawn", help="fork: faster, less independent")
    asked = parser.parse_args()
    console, began = Console(), time.perf_counter()
    table = Table("kill", "planned", "killed at", title="SIGKILL and resume")
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "resume.yaml"
        recipe.write_text(RECIPE)
        # Composed once, so that every process has the same recipe whatever happens to the layers below.
        recipe.write_text(load_recipe([recipe], [f"learn.steps={asked.steps}"]).to_yaml())
        run = Runner(recipe, asked.start)
        # Scores name their run folder: both must have the same name.
        unbroken, broken = Path(scratch) / "unbroken" / "run", Path(scratch) / "broken" / "run"
        run(unbroken)
        for number, kill in enumerate(plan_kills(asked.kills, asked.steps, np.random.default_rng(asked.seed)), 1):
            moment = "while writing a checkpoint" if kill.while_writing else f"+ {kill.delay:.2f} s"
            table.add_row(str(number), f"{kill.stage} {kill.step} {moment}", run(broken, kill))
        run(broken)
        found = differences(unbroken, broken)
    console.print(table)
    for line in found:
        console.print(line, style="red")
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"kills": asked.kills, "identical": not found, "seconds": seconds}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
