"""TRL's GRPOTrainer as a process that `train_step.py` drives; needs requirements-trl.txt, not unbraid.

train_step_trl.py step FOLDER      steps of the trainer, one JSON line: seconds, of them generating, peak bytes
train_step_trl.py parity FOLDER    losses and gradients of `_compute_loss` on the batch in FOLDER/parity.npz
"""

import argparse
import json
import random
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from step_memory import peak_bytes, start_peak

trl: Any = import_module("trl")
"""In an environment of its own, so no checker knows it."""

REPLIES = sys.stdout
sys.stdout = sys.stderr  # what libraries print must not be taken for a reply


def make_trainer(folder: Path, work: dict[str, Any], batch: int) -> Any:
    """The trainer at its defaults, but for what the step is: sizes, entropy bonus, float32 on a CPU.

    Args:
        batch: completions per forward pass; the others accumulate.
    """
    completions = work["samples"] * work["prompts_a_step"]
    config = trl.GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=completions // batch,
        num_generations=work["samples"],
        max_completion_length=work["new"],
        temperature=1.0,
        beta=0.0,
        use_bias_correction_kl=False,  # a KL term of another kind than ours
        entropy_coef=work["entropy"],
        loss_type="grpo",
        learning_rate=1e-6,
        max_grad_norm=1.0,
        max_steps=len(work["prompts"]) // work["prompts_a_step"],
        shuffle_dataset=False,
        lr_scheduler_type="constant",
        logging_steps=1000,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        seed=work["seed"],
    )
    rng = random.Random(0)
    return trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [rng.choice([0.0, 1.0]) for _ in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in work["prompts"]]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )


def steps(folder: Path, work: dict[str, Any], batch: int) -> list[dict[str, float]]:
    """Run the trainer; seconds of every step, of them generating and scoring, and its peak above what was there."""
    trainer = make_trainer(folder, work, batch)
    found: list[dict[str, float]] = []
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        began = time.process_time()
        outputs = generate(inputs)
        found[-1]["generate"] = time.process_time() - began
        found[-1]["tokens"] = float(outputs["completion_mask"].sum())
        return outputs

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            found.append({"base": start_peak()})
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found[-1]["seconds"] = time.process_time() - self.began
            found[-1]["peak"] = peak_bytes() - found[-1].pop("base")

    trainer._generate_and_score_completions = timed
    trainer.add_callback(Clock())
    trainer.train()
    return found


def parity(folder: Path, work: dict[str, Any]) -> None:
    """Write FOLDER/trl_CASE.npz: the loss of each case, and the gradient of every parameter by name."""
    trainer = make_trainer(folder, work, 2 * work["samples"])
    trainer.current_gradient_accumulation_steps = 1
    batch = {name: torch.from_numpy(value) for name, value in np.load(folder / "parity.npz").items()}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        trainer.loss_type, trainer.beta = case["loss_type"], case["kl"]
        trainer.entropy_coef, trainer._entropy_bonus_enabled = case["entropy"], case["entropy"] > 0
        trainer.epsilon_low, trainer.epsilon_high = case["clip_low"], case["clip_high"]
        inputs = dict(batch)
        if case["whole"]:
            inputs["completion_mask"] = torch.ones_like(inputs["completion_mask"])
        inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
        trainer.model.train()
        trainer.model.zero_grad()
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        gradients = {name: p.grad.numpy() for name, p in trainer.model.named_parameters() if p.grad is not None}
        np.savez(folder / f"trl_{name}.npz", loss=np.array(loss.item(), dtype=np.float64), **gradients)


def main() -> None:
    """What the arguments say; the last line of the standard output is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "parity"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    work = json.loads((asked.folder / "work.json").read_text())
    found: Any = parity(asked.folder, work) if asked.what == "parity" else steps(asked.folder, work, asked.batch)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"steps": found, "versions": versions}), file=REPLIES, flush=True)


if __name__ == "__main__":
    main()
