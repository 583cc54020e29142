"""A whole GRPO step, sampling and learning, against the one of TRL; losses and gradients of both are compared first.

    python benchmarks/train_step.py --trl-python ~/trl-venv/bin/python --out benchmarks/results/train_step.json

Both do the same work: 2 prompts × 8 completions of at most 96 random tokens, a random Qwen3 of 17 M parameters with a
vocabulary of 8,192, float32, AdamW, an entropy bonus. TRL runs in an environment of its own (requirements-trl.txt), at
the fastest of its settings here: a step that is not counted, then one on short prompts (64 tokens) and one on long ones
(1,024). `against_trl.py` says what is measured.

The last line is a JSON object. `parity_max_abs`: the largest difference of a loss, or of an element of a gradient, over
all cases of `CASES`.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from against_trl import PROMPTS, SAMPLES, Comparison, apart, arguments, load, our_gradients, our_steps
from rich.console import Console
from rollout_work import MODES, VOCABULARY, make_model

from unbraid.chat.types import Mode
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.policy import Policy
from unbraid.rollout import LocalSampler, Request
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.task import Task
from unbraid.tokens import Role

NEW, ENTROPY = 96, 0.01
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


def case_gradients(policy: Policy, batch: dict[str, np.ndarray], case: dict[str, Any]) -> dict[str, np.ndarray]:
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
    constraints = [Constraint(entropy_bonus(case["entropy"]))] if case["entropy"] else []
    return our_gradients(policy, trajectories, batch["advantages"].tolist(), config, constraints, references)


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


def parity(folder: Path, comparison: Comparison) -> dict[str, dict[str, float]]:
    """How far TRL's loss and gradients are from ours, by case."""
    batch = parity_batch()
    cases = {
        name: {"clip_low": 0.2, "clip_high": 0.2, "whole": case["entropy"] > 0} | case for name, case in CASES.items()
    }
    np.savez(folder / "parity.npz", **batch)  # pyright: ignore[reportArgumentType]
    (folder / "cases.json").write_text(json.dumps(cases))
    comparison.their_gradients(folder)
    policy = load(folder)
    return {
        name: apart(case_gradients(policy, batch, case), folder / f"trl_{name}.npz") for name, case in cases.items()
    }


# Seconds and bytes


def draws(policy: Policy, work: dict[str, Any]) -> Iterator[Callable[[], list[Trajectory]]]:
    """What samples the batch of each step; rewards are thrown."""
    sampler, rng = LocalSampler(policy), np.random.default_rng(0)

    def draw(step: int) -> list[Trajectory]:
        requests = [
            Request(Task(str(task), ()), tuple(policy.tokenizer.encode(text)), sample)
            for task, text in enumerate(work["prompts"][step * PROMPTS : (step + 1) * PROMPTS])
            for sample in range(SAMPLES)
        ]
        trajectories = sampler.sample(requests, temperature=1.0, max_new_tokens=NEW, seed=(work["seed"], step))
        for trajectory in trajectories:
            trajectory.reward = float(rng.choice([0.0, 1.0]))
        return trajectories

    yield from (lambda step=step: draw(step) for step in range(len(LENGTHS)))


def ours(folder: Path, fast: bool) -> list[dict[str, Any]]:
    """What our steps cost."""
    policy, work = load(folder), json.loads((folder / "work.json").read_text())
    config = LearnConfig(learning_rate=1e-6, fast=fast, micro_batch=SAMPLES)
    return our_steps(
        policy,
        config,
        [Constraint(entropy_bonus(ENTROPY))],
        draws(policy, work),
        lambda trajectories: {"tokens": float(sum(t.sampled.sum() for t in trajectories))},
    )


def main() -> int:
    """Compare losses, then seconds and bytes, and print what came out."""
    asked = arguments(__doc__)
    if asked.ours:
        print(json.dumps(ours(asked.ours, not asked.plain)))
        return 0
    comparison = Comparison(asked, __file__, list(LENGTHS)[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, 0)
        differences = parity(folder, comparison)
        Console().print("losses and gradients:", differences)
        for seed in range(asked.seeds):
            make_folder(folder, seed)
            comparison.play(folder)
            Console().print(comparison.table())
            comparison.save(differences)
    print(json.dumps(comparison.last(differences)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
