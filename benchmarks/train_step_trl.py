"""TRL's GRPOTrainer as a process that `train_step.py` drives; needs requirements-trl.txt, not unbraid.

train_step_trl.py FOLDER               steps of the trainer, one JSON line: seconds, of them generating, peak bytes
train_step_trl.py FOLDER --parity      losses and gradients of `_compute_loss` on the batch in FOLDER/parity.npz
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from trl_process import answer, make_config, save_gradients, steps, trl


def make_trainer(folder: Path, work: dict[str, Any], batch: int) -> Any:
    """A trainer for plain prompts; rewards are thrown."""
    rng = random.Random(0)
    return trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [rng.choice([0.0, 1.0]) for _ in completions],
        args=make_config(
            folder, work, batch, max_completion_length=work["new"], entropy_coef=work["entropy"], seed=work["seed"]
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in work["prompts"]]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )


def parity(trainer: Any, folder: Path) -> None:
    """Write FOLDER/trl_CASE.npz: the loss of each case, and the gradient of every parameter by name."""
    batch = {name: torch.from_numpy(value) for name, value in np.load(folder / "parity.npz").items()}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        trainer.loss_type, trainer.beta = case["loss_type"], case["kl"]
        trainer.entropy_coef, trainer._entropy_bonus_enabled = case["entropy"], case["entropy"] > 0
        trainer.epsilon_low, trainer.epsilon_high = case["clip_low"], case["clip_high"]
        inputs = dict(batch)
        if case["whole"]:
            inputs["completion_mask"] = torch.ones_like(inputs["completion_mask"])
        inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
        save_gradients(trainer, inputs, folder / f"trl_{name}.npz")


def run(asked: argparse.Namespace, work: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The steps, or losses and gradients."""
    if asked.parity:
        return parity(make_trainer(asked.folder, work, work["samples"] * work["prompts_a_step"]), asked.folder)
    trainer = make_trainer(asked.folder, work, asked.batch)
    return steps(trainer, lambda batch: {"tokens": float(batch["completion_mask"].sum())})


if __name__ == "__main__":
    answer(__doc__, run)
