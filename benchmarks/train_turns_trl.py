"""Multi-turn steps of TRL's GRPOTrainer as a process that `train_turns.py` drives; needs requirements-trl.txt only.

    train_turns_trl.py FOLDER

Takes steps on FOLDER/work.json with the model there. Then it writes the loss and the gradients of the last batch under
the weights in FOLDER/other to FOLDER/trl.npz, and what that batch is to FOLDER/written.json.

The last line of the standard output is JSON: seconds, of them generating, peak bytes, and what was written, by step.
"""

import argparse
import json
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from rollout_trl import REPLIES, Look
from step_memory import peak_bytes, start_peak

trl: Any = import_module("trl")
"""In an environment of its own, so no checker knows it."""


class Judged(Look):
    """Tools answer at once; every second sample of a task is right."""

    def look(self) -> str:
        """Look at what is next.

        Returns:
            A text.
        """
        self.call += 1
        return self.work["observations"][self.task][self.sample][self.call - 1]

    def get_reward(self) -> float:
        return float(self.sample % 2)


def make_trainer(folder: Path, work: dict[str, Any], batch: int) -> Any:
    """At its defaults, but for what the step is: sizes, float32 on a CPU. `batch`: completions per forward pass."""
    samples, a_step = len(work["observations"][0]), work["prompts_a_step"]
    config = trl.GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=samples * a_step // batch,
        num_generations=samples,
        max_completion_length=2048,
        temperature=1.0,
        beta=0.0,
        entropy_coef=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        max_grad_norm=1.0,
        max_steps=len(work["prompts"]) // a_step,
        shuffle_dataset=False,
        lr_scheduler_type="constant",
        logging_steps=1000,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
    )
    rows = [{"prompt": [{"role": "user", "content": text}], "task": i} for i, text in enumerate(work["prompts"])]
    return trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        environment_factory=Judged,
    )


def steps(trainer: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Run the trainer; what each step cost and wrote, and the tensors of the last batch."""
    found: list[dict[str, Any]] = []
    kept: dict[str, torch.Tensor] = {}
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        began = time.process_time()
        outputs = generate(inputs)
        found[-1]["generate"] = time.process_time() - began
        kept.update({name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)})
        prompts, completions = (
            [row[mask > 0].tolist() for row, mask in zip(outputs[f"{what}_ids"], outputs[f"{what}_mask"], strict=True)]
            for what in ("prompt", "completion")
        )
        found[-1]["ids"] = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        found[-1]["trained"] = int((outputs["completion_mask"] * outputs["tool_mask"]).sum())
        return outputs

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            Look.played = Counter()
            found.append({"base": start_peak()})
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found[-1]["seconds"] = time.process_time() - self.began
            found[-1]["peak"] = peak_bytes() - found[-1].pop("base")

    trainer._generate_and_score_completions = timed
    trainer.add_callback(Clock())
    trainer.train()
    return found, kept


def gradients(trainer: Any, folder: Path, batch: dict[str, torch.Tensor], old: float) -> None:
    """Write FOLDER/trl.npz: loss, advantages and gradients of a batch under the weights in FOLDER/other."""
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "other")
    trainer.model.load_state_dict(other.state_dict())
    trainer.current_gradient_accumulation_steps = 1
    batch["old_per_token_logps"] = torch.full(batch["completion_ids"].shape, old)
    batch["num_items_in_batch"] = (batch["completion_mask"] * batch["tool_mask"]).sum()
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad.numpy() for name, p in trainer.model.named_parameters() if p.grad is not None}
    np.savez(folder / "trl.npz", loss=np.array(loss.item()), advantages=batch["advantages"].numpy(), **found)


def main() -> None:
    """Steps, then loss and gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Look.work = work = json.loads((asked.folder / "work.json").read_text())
    Look.kind, Look.played = "", Counter()
    trainer = make_trainer(asked.folder, work, asked.batch)
    found, batch = steps(trainer)
    (asked.folder / "written.json").write_text(json.dumps(found[-1]["ids"]))
    gradients(trainer, asked.folder, batch, work["old"])
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"steps": found, "versions": versions}), file=REPLIES, flush=True)


if __name__ == "__main__":
    main()
