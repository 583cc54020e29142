"""What the processes that run TRL's GRPOTrainer have in common; needs requirements-trl.txt, not unbraid.

Such a process is driven by a script of ours, which reads the last line of its standard output as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from step_memory import peak_bytes, start_peak

trl: Any = import_module("trl")
"""In an environment of its own, so no checker knows it."""

REPLIES = sys.stdout
sys.stdout = sys.stderr  # what libraries print must not be taken for a reply


def make_config(folder: Path, work: dict[str, Any], batch: int, **settings: Any) -> Any:
    """TRL's defaults, but for what the step is: sizes, float32 on a CPU. `batch`: completions per forward pass."""
    completions = work["samples"] * work["prompts_a_step"]
    return trl.GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=completions // batch,
        num_generations=work["samples"],
        temperature=1.0,
        beta=0.0,
        use_bias_correction_kl=False,  # a KL term of another kind than ours
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
        **settings,
    )


def steps(trainer: Any, drawn: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the trainer; seconds of every step, of them generating and scoring, and its peak above what was there.

    Args:
        drawn: what else is to be told of a step, from the batch that was generated and scored.
    """
    found: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        began = time.process_time()
        outputs = generate(inputs)
        found[-1]["generate"] = time.process_time() - began
        found[-1].update(drawn(outputs))
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


def save_gradients(trainer: Any, batch: dict[str, torch.Tensor], path: Path, **more: Any) -> None:
    """Write the loss of a batch, the gradient of every parameter by name, and `more`."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad.numpy() for name, p in trainer.model.named_parameters() if p.grad is not None}
    np.savez(path, loss=np.array(loss.item(), dtype=np.float64), **found, **more)


def answer(says: str | None, run: Callable[[argparse.Namespace, dict[str, Any]], Any]) -> None:
    """What the arguments ask `run` for, which is given FOLDER/work.json; the reply, with versions."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="completions per forward pass")
    parser.add_argument("--parity", action="store_true", help="losses and gradients only")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = run(asked, json.loads((asked.folder / "work.json").read_text()))
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"steps": found, "versions": versions}), file=REPLIES, flush=True)
