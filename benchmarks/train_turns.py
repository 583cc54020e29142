"""A whole multi-turn GRPO step, episodes with tools and learning, against the one of TRL; losses are compared, too.

    python benchmarks/train_turns.py --trl-python ~/trl-venv/bin/python

The episodes are those of `rollout.py`: a model that counts down to its tool call, so that both systems write the same
tokens (the script fails if they do not), in 4 to 6 responses of 8 to 96 tokens, after prompts of 300 to 500 and with
observations of 50 to 150. Two prompts × 8 samples a step, float32, AdamW, no entropy or KL term; tools answer at once,
observations carry no loss in either. TRL runs its tool loop (`environment_factory`) in an environment of its own
(requirements-trl.txt), at the fastest of its settings here. The first step is not counted.

Loss and gradients are compared on what was written in the last step, under random weights: where a model counts, its
gradients are nearly 0. The last line is a JSON object; ratios are ours over TRL's, in CPU seconds of one thread.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from rollout import MAKE_TRL, Look, digest
from rollout_work import LONGEST, SIZES, VOCABULARY, Work, make_model, make_work
from step_memory import peak_bytes, start_peak
from train_step import load, other_process

from unbraid.chat.types import Mode
from unbraid.learn.batch import collate
from unbraid.learn.config import LearnConfig
from unbraid.learn.fast import score
from unbraid.learn.grpo import SUMS, Totals, make_optimiser, micro_batch_loss, update
from unbraid.policy import Policy
from unbraid.rollout.config import EnvironmentConfig
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.slots import SlotSampler
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.reward import RewardConfig
from unbraid.tasks.task import Task

HERE = Path(__file__).parent
STEPS, PROMPTS, SAMPLES = 2, 2, 8
OLD = -float(np.log(VOCABULARY))
"""Log-prob of every token under the old policy, where losses are compared: near a random model's own."""


def make_folder(folder: Path, size: str) -> Work:
    """The model that counts, a random one of its shape in FOLDER/other, and what is played."""
    make_model(folder, *SIZES[size])
    torch.manual_seed(1)
    other = transformers.Qwen3ForCausalLM(transformers.Qwen3Config.from_pretrained(folder))
    other.save_pretrained(folder / "other")
    work = make_work(STEPS * PROMPTS, SAMPLES)
    for of_tasks in work.latencies.values():
        of_tasks[:] = [[[0.0] * len(calls) for calls in samples] for samples in of_tasks]
    (folder / "work.json").write_text(json.dumps(asdict(work) | {"prompts_a_step": PROMPTS, "old": OLD}))
    return work


def our_steps(folder: Path, fast: bool) -> list[dict[str, Any]]:
    """As `steps` of train_turns_trl.py; the last one also writes loss and gradients, to FOLDER/ours.npz."""
    given = json.loads((folder / "work.json").read_text())
    work = Work(given["prompts"], given["observations"], given["latencies"])
    policy, environment = load(folder), Look(work)
    player = Player(environment, policy.format, EnvironmentConfig(name="look"), RewardConfig(), LONGEST + 1)
    config = LearnConfig(learning_rate=1e-6, advantage_scale="group", fast=fast, micro_batch=SAMPLES)
    optimiser, found = make_optimiser(policy, config), []
    trajectories: list[Trajectory] = []
    with closing(EpisodeRoll(player, lambda temperature: SlotSampler(policy, PROMPTS * SAMPLES, temperature))) as roll:
        for step in range(STEPS):
            numbers = range(step * PROMPTS, (step + 1) * PROMPTS)
            tasks = [Task(str(i), ({"role": "user", "content": work.prompts[i]},)) for i in numbers]
            environment.begin("equal")
            base, began = start_peak(), time.process_time()
            trajectories = roll(tasks, [Mode.AUTO] * SAMPLES, temperature=1.0, seed=0)
            for number, trajectory in enumerate(trajectories):
                trajectory.reward = float(number % 2)
            sampled, groups = time.process_time(), np.repeat(np.arange(PROMPTS), SAMPLES)
            update(policy, trajectories, groups, optimiser, [], config, step=step, temperature=1.0)
            ended = time.process_time()
            found.append(
                {
                    "seconds": ended - began,
                    "generate": sampled - began,
                    "peak": peak_bytes() - base,
                    "ids": [t.ids.tolist() for t in trajectories],
                    "trained": sum(int(t.sampled.sum()) for t in trajectories),
                }
            )
    if fast:
        our_gradients(folder, policy, trajectories)
    return found


def our_gradients(folder: Path, policy: Policy, trajectories: list[Trajectory]) -> None:
    """The loss of a batch under the weights in FOLDER/other, with the advantages that TRL gave it; and gradients."""
    theirs = np.load(folder / "trl.npz")
    policy.load_weights(folder / "other")
    for trajectory in trajectories:
        trajectory.logprobs = np.where(trajectory.sampled, np.float32(OLD), np.float32(0))
    written = json.loads((folder / "written.json").read_text())
    of = {tuple(ids): float(advantage) for ids, advantage in zip(written, theirs["advantages"], strict=True)}
    advantages = [of[tuple(t.ids.tolist())] for t in trajectories]
    tokens = collate(trajectories, advantages, policy.format.modes.position)
    totals = Totals(len(trajectories), len(trajectories), float(sum(t.sampled.sum() for t in trajectories)))
    policy.model.train()
    policy.model.zero_grad()
    sums = dict.fromkeys(SUMS, 0.0)
    loss = micro_batch_loss(score(policy, tokens, 1.0), tokens, [], LearnConfig(), totals, sums)
    loss.backward()
    found = {name: p.grad.numpy() for name, p in policy.trainable() if p.grad is not None}
    np.savez(folder / "ours.npz", loss=np.array(loss.item()), **found)  # pyright: ignore[reportArgumentType]


def parity(folder: Path) -> float:
    """Largest difference of the loss or of an element of a gradient."""
    ours, theirs = np.load(folder / "ours.npz"), np.load(folder / "trl.npz")
    names = set(theirs.files) - {"advantages"}
    if names != set(ours.files):
        raise SystemExit(f"gradients of other parameters: {sorted(names ^ set(ours.files))}")
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in names)


def main() -> int:
    """TRL's steps, ours, and ours the plain way; then what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of the environment that has TRL")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl-batch", type=int, default=4, help="completions per forward pass of TRL")
    parser.add_argument("--out", type=Path, help="file for the last line, settings, versions and seconds")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if asked.ours:
        print(json.dumps(our_steps(asked.ours, not asked.plain)))
        return 0
    if not (asked.trl_python and shutil.which(asked.trl_python)):
        parser.error(MAKE_TRL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, asked.size)
        threads = ["--threads", str(asked.threads)]
        command = [asked.trl_python, str(HERE / "train_turns_trl.py"), str(folder), "--batch", str(asked.trl_batch)]
        said = other_process([*command, *threads])
        own = [sys.executable, __file__, *threads, "--ours", str(folder)]
        systems = {
            "ours": other_process(own),
            "ours, learn.fast: false": other_process([*own, "--plain"]),
            "TRL": said["steps"],
        }
        apart = parity(folder)
    written = {(digest(step["ids"]), step["trained"]) for steps in systems.values() for step in steps[-1:]}
    if len(written) > 1:
        raise SystemExit(f"the systems wrote different tokens, or train on different ones: {written}")
    table = Table("system", "seconds", "episodes", "train part", "peak above model and optimiser")
    for system, steps in systems.items():
        s = steps[-1]
        cells = (f"{s[key]:.1f}" for key in ("seconds", "generate", "train"))
        s["train"] = s["seconds"] - s["generate"]
        table.add_row(system, *cells, f"{s['peak'] / 1e6:.0f} MB")
    Console().print(table)
    ours, theirs = systems["ours"][-1], systems["TRL"][-1]
    last: dict[str, Any] = {
        "time_ratio": ours["seconds"] / theirs["seconds"],
        "episodes_ratio": ours["generate"] / theirs["generate"],
        "train_part_ratio": ours["train"] / theirs["train"],
        "memory_ratio": ours["peak"] / theirs["peak"],
    }
    last = {name: round(value, 3) for name, value in last.items()} | {"parity_max_abs": float(f"{apart:.2g}")}
    if asked.out:
        settings = {"size": asked.size, "threads": asked.threads, "trl_batch": asked.trl_batch}
        shown = {k: {n: v for n, v in steps[-1].items() if n != "ids"} for k, steps in systems.items()}
        asked.out.write_text(json.dumps(last | {"settings": settings, "versions": said["versions"], "steps": shown}))
    print(json.dumps(last))
    return 0


if __name__ == "__main__":
    sys.exit(main())
