"""Multi-turn steps of TRL's GRPOTrainer as a process that `train_turns.py` drives; needs requirements-trl.txt only.

    train_turns_trl.py FOLDER

Takes steps on FOLDER/work.json with the model there. Then it writes the loss, the advantages and the gradients of the
last batch under the weights in FOLDER/other to FOLDER/trl.npz, and what that batch is to FOLDER/written.json.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from rollout_trl import Look
from rollout_work import digest
from trl_process import answer, make_config, save_gradients, steps, trl


class Judged(Look):
    """Every second sample of a task is right."""

    def get_reward(self) -> float:
        return float(self.sample % 2)


def make_trainer(folder: Path, work: dict[str, Any], batch: int) -> Any:
    """A trainer whose completions are episodes."""
    rows = [{"prompt": [{"role": "user", "content": text}], "task": i} for i, text in enumerate(work["prompts"])]
    return trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        args=make_config(folder, work, batch, max_completion_length=2048),
        train_dataset=Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        environment_factory=Judged,
    )


def written(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The ids of every episode, padding left out."""
    prompts, completions = (
        [row[mask > 0].tolist() for row, mask in zip(batch[f"{what}_ids"], batch[f"{what}_mask"], strict=True)]
        for what in ("prompt", "completion")
    )
    return [[*p, *c] for p, c in zip(prompts, completions, strict=True)]


def gradients(trainer: Any, batch: dict[str, torch.Tensor], folder: Path, old: float) -> None:
    """Of a batch under the weights in FOLDER/other, where every token had the same old log-prob."""
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "other")
    trainer.model.load_state_dict(other.state_dict())
    batch["old_per_token_logps"] = torch.full(batch["completion_ids"].shape, old)
    batch["num_items_in_batch"] = (batch["completion_mask"] * batch["tool_mask"]).sum()
    save_gradients(trainer, batch, folder / "trl.npz", advantages=batch["advantages"].numpy())
    (folder / "written.json").write_text(json.dumps(written(batch)))


def run(asked: argparse.Namespace, work: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps; then loss and gradients."""
    Look.work, Look.kind, Look.played = work, "equal", Counter()
    trainer, last = make_trainer(asked.folder, work, asked.batch), {}

    def drawn(batch: dict[str, Any]) -> dict[str, Any]:
        last.update({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
        trained = int((batch["completion_mask"] * batch["tool_mask"]).sum())
        return {"trained": trained, "digest": digest(written(batch))}

    found = steps(trainer, drawn)
    gradients(trainer, last, asked.folder, work["old"])
    return found


if __name__ == "__main__":
    answer(__doc__, run)
