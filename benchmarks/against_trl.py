"""What comparisons of a whole step with TRL's have in common: the clock, the processes that take turns, what is told.

For each seed the systems take turns, each in a process of its own, whose first step is not counted:

    time          of the whole step, in CPU seconds of one thread: what a clock shows where nobody else is working
    train part    of it without sampling and rewards: forward and backward passes, the optimiser
    memory        the peak of the process above what model and optimiser take

Ratios are ours over TRL's, medians over seeds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from rich.table import Table
from step_memory import peak_bytes, start_peak

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.preset import Preset
from unbraid.learn.batch import collate
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Constraint
from unbraid.learn.fast import score
from unbraid.learn.grpo import SUMS, Totals, make_optimiser, micro_batch_loss, update
from unbraid.policy import Policy
from unbraid.rollout.trajectory import Trajectory

HERE = Path(__file__).parent
PROMPTS, SAMPLES = 2, 8
"""A step."""
OURS, PLAIN, TRL = "ours", "ours, learn.fast: false", "TRL"


def arguments(says: str | None, **settings: Any) -> argparse.Namespace:
    """The command line. `settings`: more options, by name, as `add_argument` takes them."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of the environment that has TRL")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl-batch", type=int, default=4, help="completions per forward pass of TRL")
    parser.add_argument("--out", type=Path, help="file for the last line, settings, versions and seconds")
    for name, setting in settings.items():
        parser.add_argument(f"--{name}", **setting)
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not asked.ours and not (asked.trl_python and shutil.which(asked.trl_python)):
        parser.error("make an environment for TRL as requirements-trl.txt says, and pass --trl-python")
    return asked


def load(folder: Path) -> Policy:
    """The policy in a folder that `rollout_work.make_model` wrote."""
    chat = ChatConfig(preset=Preset(think="<think> ", after_thought=" </think> ", no_think="<no_think> "))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return Policy(model, tokenizer, ChatFormat.build(tokenizer, chat), torch.device("cpu"))


# Losses and gradients


def our_gradients(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    advantages: Sequence[float],
    config: LearnConfig,
    constraints: Sequence[Constraint] = (),
    references: Sequence[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Of a batch, as one micro-batch: the loss, as `loss`, and the gradient of every parameter by name."""
    tokens = collate(trajectories, advantages, policy.format.modes.position, references)
    count = len(trajectories)
    totals = Totals(count, count, float(sum(t.sampled.sum() for t in trajectories)))
    policy.model.train()
    policy.model.zero_grad()
    scores = score(policy, tokens, 1.0)
    loss = micro_batch_loss(scores, tokens, constraints, config, totals, dict.fromkeys(SUMS, 0.0))
    loss.backward()
    found = {name: p.grad.numpy() for name, p in policy.trainable() if p.grad is not None}
    return found | {"loss": np.array(loss.item())}


def apart(ours: dict[str, np.ndarray], theirs: Path) -> dict[str, float]:
    """The largest difference of the loss or of an element of a gradient from those in a file; the largest element."""
    with np.load(theirs) as file:
        other = {name: file[name] for name in file.files if name != "advantages"}
    if other.keys() != ours.keys():
        raise SystemExit(f"gradients of other parameters: {sorted(other.keys() ^ ours.keys())}")
    differences = [float(np.abs(ours[name] - other[name]).max()) for name in ours]
    return {"apart": max(differences), "largest": max(float(np.abs(other[n]).max()) for n in other if n != "loss")}


# Seconds and bytes


def our_steps(
    policy: Policy,
    config: LearnConfig,
    constraints: list[Constraint],
    draws: Iterable[Callable[[], list[Trajectory]]],
    drawn: Callable[[list[Trajectory]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """What every step cost, as `trl_process.steps` tells it.

    Args:
        draws: by step, what samples and rewards its batch, group by group. drawn: what else is to be told of a batch.
    """
    optimiser, found = make_optimiser(policy, config), []
    for step, draw in enumerate(draws):
        base, began = start_peak(), time.process_time()
        trajectories = draw()
        sampled, groups = time.process_time(), np.repeat(np.arange(PROMPTS), SAMPLES)
        update(policy, trajectories, groups, optimiser, constraints, config, step=step, temperature=1.0)
        cost = {"seconds": time.process_time() - began, "generate": sampled - began, "peak": peak_bytes() - base}
        found.append(cost | drawn(trajectories))
    return found


def other_process(command: list[str]) -> Any:
    """What a process says in its last line."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | quiet)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; what it printed is above")
    return json.loads(done.stdout.splitlines()[-1])


class Comparison:
    """The systems' steps by seed; ours the plain way on the first one only.

    Args:
        script: ours; its process for TRL is beside it, as SCRIPT_trl.py. steps: what to call them, the first left out.
    """

    def __init__(self, asked: argparse.Namespace, script: str, steps: Sequence[str]):
        self.asked, self.names = asked, steps
        self.own = [sys.executable, script, "--threads", str(asked.threads)]
        self.trl = [asked.trl_python, script.replace(".py", "_trl.py"), "--threads", str(asked.threads)]
        self.systems: dict[str, list[list[dict[str, Any]]]] = {OURS: [], PLAIN: [], TRL: []}
        self.versions: dict[str, str] = {}

    def their_gradients(self, folder: Path) -> None:
        """Have TRL write what `--parity` asks for."""
        other_process([*self.trl, str(folder), "--parity"])

    def play(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        """One seed's steps by system, TRL's first."""
        said = other_process([*self.trl, str(folder), "--batch", str(self.asked.trl_batch)])
        self.versions = said["versions"]
        found = {TRL: said["steps"], OURS: other_process([*self.own, "--ours", str(folder)])}
        if not self.systems[PLAIN]:
            found[PLAIN] = other_process([*self.own, "--ours", str(folder), "--plain"])
        for system, steps in found.items():
            self.systems[system].append(steps)
        return found

    def table(self) -> Table:
        """Medians over seeds, for people."""
        shown = Table("step", "system", "seconds", "sampling", "train part", "peak above model and optimiser")
        for number, name in enumerate(self.names, 1):
            for system, seeds in self.systems.items():
                at = [steps[number] for steps in seeds]
                seconds, sampling = (median(s[key] for s in at) for key in ("seconds", "generate"))
                train, peak = median(s["seconds"] - s["generate"] for s in at), median(s["peak"] for s in at)
                cells = (f"{seconds:.1f}", f"{sampling:.1f}", f"{train:.1f}", f"{peak / 1e6:.0f} MB")
                shown.add_row(name, system, *cells)
        return shown

    def ratios(self) -> dict[str, dict[str, float]]:
        """By step."""
        found: dict[str, dict[str, float]] = {}
        for number, name in enumerate(self.names, 1):
            pairs = [(a[number], b[number]) for a, b in zip(self.systems[OURS], self.systems[TRL], strict=True)]
            parts = {
                "time_ratio": [a["seconds"] / b["seconds"] for a, b in pairs],
                "sampling_ratio": [a["generate"] / b["generate"] for a, b in pairs],
                "train_part_ratio": [(a["seconds"] - a["generate"]) / (b["seconds"] - b["generate"]) for a, b in pairs],
                "memory_ratio": [a["peak"] / b["peak"] for a, b in pairs],
            }
            found[name] = {part: round(median(by_seed), 3) for part, by_seed in parts.items()}
        return found

    def last(self, parity: dict[str, dict[str, float]]) -> dict[str, Any]:
        """What the last line says. `parity`: what `apart` found, by case."""
        worst = max(case["apart"] for case in parity.values())
        return self.ratios() | {"parity_max_abs": float(f"{worst:.2g}")}

    def save(self, parity: dict[str, dict[str, float]]) -> None:
        """Write that, of the seeds so far, to where `--out` says; with settings, versions and every step."""
        if self.asked.out:
            left_out = ("trl_python", "out", "ours", "plain", "seeds")
            settings = {name: value for name, value in vars(self.asked).items() if name not in left_out}
            settings["seeds"] = len(self.systems[OURS])
            told = {"settings": settings, "cores": os.cpu_count(), "versions": self.versions, "parity": parity}
            self.asked.out.write_text(json.dumps(self.last(parity) | told | {"steps": self.systems}, indent=1) + "\n")
