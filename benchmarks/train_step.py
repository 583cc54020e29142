"""A whole GRPO step, sampling and learning, against the one of TRL; losses and gradients of both are compared first.

    python benchmarks/train_step.py --trl-python ~/trl-venv/bin/python --out benchmarks/results/train_step.json

Both do the same work: 2 prompts × 8 completions of at most 96 random tokens, a random Qwen3 of 17 M parameters with a
vocabulary of 8,192, float32, AdamW, an entropy bonus. TRL runs in an environment of its own (requirements-trl.txt), at
the fastest of its settings here. For each seed the two take turns, each in a process of its own: a step that is not
counted, then one on short prompts (64 tokens) and one on long ones (1,024).

    time          of the whole step, in CPU seconds of one thread: what a clock shows where nobody else is working
    train part    of it without sampling and rewards: forward and backward passes, the optimiser
    memory        the peak of the process above what model and optimiser take

The last line is a JSON object; ratios are ours over TRL's, medians over seeds. `parity_max_abs`: the largest difference
of a loss, or of an element of a gradient, over all cases of `CASES`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from rollout_work import MODES, VOCABULARY, make_model
from step_memory import peak_bytes, start_peak

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.preset import Preset
from unbraid.chat.types import Mode
from unbraid.learn.batch import collate
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.learn.fast import score
from unbraid.learn.grpo import SUMS, Totals, make_optimiser, micro_batch_loss, update
from unbraid.policy import Policy
from unbraid.rollout import LocalSampler, Request
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.task import Task
from unbraid.tokens import Role

HERE = Path(__file__).parent
PROMPTS, SAMPLES, NEW, ENTROPY = 2, 8, 96, 0.01
LENGTHS = {"warm": 64, "short_prompt": 64, "long_prompt": 1024}
"""Steps by name, with the tokens of their prompts; the first one is not counted."""
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "kl": 0.0, "entropy": 0.0},
    "grpo, entropy": {"loss_type": "grpo", "kl": 0.0, "entropy": 0.05},
    "grpo, KL": {"loss_type": "grpo", "kl": 0.1, "entropy": 0.0},
    "bnpo": {"loss_type": "bnpo", "kl": 0.0, "entropy": 0.0},
    "dapo": {"loss_type": "dapo", "kl": 0.0, "entropy": 0.0, "clip_high": 0.28},
    "dapo, KL, entropy": {"loss_type": "dapo", "kl": 0.1, "entropy": 0.05, "clip_high": 0.28},
}
"""Ours are `averaging: sample` for grpo, else `token`. With entropy all completions have one length: TRL averages it
over tokens whatever the loss, our constraint over responses."""


def make_folder(folder: Path, seed: int) -> None:
    """A random model and its tokenizer, and what is to be done: FOLDER/work.json."""
    make_model(folder, 384, 6, seed)
    torch.manual_seed(seed)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config.from_pretrained(folder))
    model.save_pretrained(folder)
    rng = np.random.default_rng(seed)
    prompts = [
        " ".join(f"w{i}" for i in rng.integers(1000, size=length))
        for length in LENGTHS.values()
        for _ in range(PROMPTS)
    ]
    work = {"prompts": prompts, "prompts_a_step": PROMPTS, "samples": SAMPLES, "new": NEW, "entropy": ENTROPY}
    (folder / "work.json").write_text(json.dumps(work | {"seed": seed}))


def load(folder: Path) -> Policy:
    """The policy in a folder."""
    chat = ChatConfig(preset=Preset(think="<think> ", after_thought=" </think> ", no_think="<no_think> "))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return Policy(model, tokenizer, ChatFormat.build(tokenizer, chat), torch.device("cpu"))


# Losses and gradients


def parity_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Two prompts of 40 and 64 tokens, padded on the left, with 8 completions each of up to 24 tokens.

    The old log-probs are far enough from the model's that the clip binds for many.
    """
    rng = np.random.default_rng(seed)
    rows, longest, new = PROMPTS * SAMPLES, 64, 24
    # Ordinary words only: a mode token would be a choice, and count as such.
    first, uniform = len(MODES) + 20, -np.log(VOCABULARY)
    prompts, mask = rng.integers(first, VOCABULARY, (PROMPTS, longest)), np.ones((PROMPTS, longest), dtype=np.int64)
    prompts[0, :24] = mask[0, :24] = 0
    lengths = rng.integers(8, new + 1, rows)
    return {
        "prompt_ids": prompts.repeat(SAMPLES, 0),
        "prompt_mask": mask.repeat(SAMPLES, 0),
        "completion_ids": rng.integers(first, VOCABULARY, (rows, new)),
        "completion_mask": (np.arange(new) < lengths[:, None]).astype(np.int64),
        "advantages": rng.normal(size=rows).astype(np.float32),
        "old_per_token_logps": rng.normal(uniform, 0.3, (rows, new)).astype(np.float32),
        "ref_per_token_logps": rng.normal(uniform, 0.3, (rows, new)).astype(np.float32),
    }


def our_gradients(policy: Policy, batch: dict[str, np.ndarray], case: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Our loss of a case and its gradients by name."""
    trajectories, references = [], []
    for row in range(len(batch["completion_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row] > 0]
        length = batch["completion_ids"].shape[1] if case["whole"] else int(batch["completion_mask"][row].sum())
        trajectories.append(
            made_up(prompt, batch["completion_ids"][row, :length], batch["old_per_token_logps"][row, :length])
        )
        references.append(np.concatenate([np.zeros(len(prompt)), batch["ref_per_token_logps"][row, :length]]))
    config = LearnConfig(
        averaging="sample" if case["loss_type"] == "grpo" else "token",
        kl=case["kl"],
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
    )
    tokens = collate(trajectories, batch["advantages"], policy.format.modes.position, references)
    constraints = [Constraint(entropy_bonus(case["entropy"]))] if case["entropy"] else []
    count = len(trajectories)
    totals = Totals(count, count, float(sum(t.sampled.sum() for t in trajectories)))
    policy.model.train()
    policy.model.zero_grad()
    loss = micro_batch_loss(score(policy, tokens, 1.0), tokens, constraints, config, totals, dict.fromkeys(SUMS, 0.0))
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in policy.trainable() if p.grad is not None}


def entropy_bonus(coefficient: float) -> ConstraintConfig:
    """The mean entropy of responses, whatever it is."""
    return ConstraintConfig(name="entropy", coefficient=coefficient, gate="none")


def made_up(prompt: np.ndarray, response: np.ndarray, logprobs: np.ndarray) -> Trajectory:
    """A trajectory of given ids."""
    ids = np.concatenate([prompt, response])
    sampled = np.arange(len(ids)) >= len(prompt)
    return Trajectory(
        task_id="",
        sample=0,
        ids=ids,
        prompt_length=len(prompt),
        roles=np.where(sampled, Role.ACTION, Role.PROMPT).astype(np.uint8),
        sampled=sampled,
        logprobs=np.concatenate([np.zeros(len(prompt)), logprobs]).astype(np.float32),
        entropies=np.full(len(ids), np.nan, dtype=np.float32),
        choice_probs=(np.nan, np.nan),
        mode=Mode.NO_THINK,
        forced=Mode.AUTO,
        finish=Finish.STOP,
    )


def parity(folder: Path, python: str, threads: int) -> dict[str, float]:
    """Largest difference between TRL's and our loss and gradients, by case."""
    batch = parity_batch()
    cases = {
        name: {"clip_low": 0.2, "clip_high": 0.2, "whole": case["entropy"] > 0} | case for name, case in CASES.items()
    }
    np.savez(folder / "parity.npz", **batch)  # pyright: ignore[reportArgumentType]
    (folder / "cases.json").write_text(json.dumps(cases))
    other_process([python, str(HERE / "train_step_trl.py"), "parity", str(folder), "--threads", str(threads)])
    policy, found = load(folder), {}
    for name, case in cases.items():
        loss, gradients = our_gradients(policy, batch, case)
        theirs = dict(np.load(folder / f"trl_{name}.npz"))
        apart = [abs(loss - float(theirs.pop("loss")))]
        assert gradients.keys() == theirs.keys()
        apart += [float(np.abs(gradients[parameter] - theirs[parameter]).max()) for parameter in theirs]
        found[name] = max(apart)
    return found


# Seconds and bytes


def our_steps(folder: Path, fast: bool) -> list[dict[str, float]]:
    """As `steps` of train_step_trl.py."""
    work = json.loads((folder / "work.json").read_text())
    policy = load(folder)
    config = LearnConfig(learning_rate=1e-6, fast=fast, micro_batch=SAMPLES)
    optimiser, constraints = make_optimiser(policy, config), [Constraint(entropy_bonus(ENTROPY))]
    sampler, rng, found = LocalSampler(policy), np.random.default_rng(0), []
    for step in range(len(LENGTHS)):
        base = start_peak()
        began = time.process_time()
        requests = [
            Request(Task(str(task), ()), tuple(policy.tokenizer.encode(text)), sample)
            for task, text in enumerate(work["prompts"][step * PROMPTS : (step + 1) * PROMPTS])
            for sample in range(SAMPLES)
        ]
        trajectories = sampler.sample(requests, temperature=1.0, max_new_tokens=NEW, seed=(work["seed"], step))
        for trajectory in trajectories:
            trajectory.reward = float(rng.choice([0.0, 1.0]))
        sampled = time.process_time()
        groups = np.repeat(np.arange(PROMPTS), SAMPLES)
        update(policy, trajectories, groups, optimiser, constraints, config, step=step, temperature=1.0)
        ended = time.process_time()
        found.append(
            {
                "seconds": ended - began,
                "generate": sampled - began,
                "tokens": float(sum(t.sampled.sum() for t in trajectories)),
                "peak": peak_bytes() - base,
            }
        )
    return found


def other_process(command: list[str]) -> Any:
    """What a process says in its last line."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | quiet)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; what it printed is above")
    return json.loads(done.stdout.splitlines()[-1])


def summary(ours: list[list[dict[str, float]]], theirs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Ratios by length of the prompts, medians over seeds."""
    found: dict[str, Any] = {}
    for number, name in enumerate(LENGTHS):
        if name == "warm":
            continue
        pairs = [(a[number], b[number]) for a, b in zip(ours, theirs, strict=True)]
        found[name] = {
            "time_ratio": round(median(a["seconds"] / b["seconds"] for a, b in pairs), 3),
            "train_part_ratio": round(
                median((a["seconds"] - a["generate"]) / (b["seconds"] - b["generate"]) for a, b in pairs), 3
            ),
            "memory_ratio": round(median(a["peak"] / b["peak"] for a, b in pairs), 3),
        }
    return found


def table(systems: dict[str, list[list[dict[str, float]]]]) -> Table:
    """The same for people: medians over seeds."""
    shown = Table("prompts", "system", "seconds", "sampling", "train part", "peak above model and optimiser")
    for number, name in enumerate(LENGTHS):
        for system, seeds in systems.items() if name != "warm" else ():
            at = [steps[number] for steps in seeds]
            seconds, sampling = median(s["seconds"] for s in at), median(s["generate"] for s in at)
            train, peak = median(s["seconds"] - s["generate"] for s in at), median(s["peak"] for s in at)
            cells = (f"{seconds:.1f}", f"{sampling:.1f}", f"{train:.1f}", f"{peak / 1e6:.0f} MB")
            shown.add_row(f"{LENGTHS[name]} tokens", system, *cells)
    return shown


def main() -> int:
    """Compare losses, then seconds and bytes, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of the environment that has TRL")
    parser.add_argument("--seeds", type=int, default=3)
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
        parser.error("make an environment for TRL as requirements-trl.txt says, and pass --trl-python")
    console, ours, plain, theirs, versions = Console(), [], [], [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, 0)
        differences = parity(folder, asked.trl_python, asked.threads)
        console.print("largest difference of a loss or gradient:", differences)
        own = [sys.executable, __file__, "--threads", str(asked.threads), "--ours", str(folder)]
        trl = [asked.trl_python, str(HERE / "train_step_trl.py"), "step", str(folder)]
        trl += ["--threads", str(asked.threads), "--batch", str(asked.trl_batch)]
        for seed in range(asked.seeds):
            make_folder(folder, seed)
            ours.append(other_process(own))
            said = other_process(trl)
            theirs.append(said["steps"])
            versions = said["versions"]
            if seed == 0:
                plain.append(other_process([*own, "--plain"]))
            console.print(table({"ours": ours, "ours, learn.fast: false": plain, "TRL": theirs}))
    systems = {"ours": ours, "ours, learn.fast: false": plain, "TRL": theirs}
    last: dict[str, Any] = summary(ours, theirs) | {"parity_max_abs": float(f"{max(differences.values()):.2g}")}
    if asked.out:
        settings = {name: value for name, value in vars(asked).items() if name not in ("trl_python", "out", "ours")}
        told = {"settings": settings, "cores": os.cpu_count(), "versions": versions, "parity": differences}
        asked.out.write_text(json.dumps(last | told | {"steps": systems}, indent=1) + "\n")
    print(json.dumps(last))
    return 0


if __name__ == "__main__":
    sys.exit(main())
