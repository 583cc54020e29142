"""The tool loop of TRL's GRPOTrainer as a process that `rollout.py` drives; needs requirements-trl.txt, not unbraid.

Reads a kind of latencies per line, rolls out one batch, and writes one JSON line: the seconds that
`GRPOTrainer._generate` took (rendering, generation, parsing, tools) and the ids of every episode. Scoring and training
are not run: the trainer is interrupted as soon as `_generate` returns.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from trl_process import REPLIES, trl


class Generated(Exception):
    """Raised where `_generate` has returned; carries seconds and ids."""


class Look:
    """The environment of one episode; tools sleep. The n-th to be reset on a task is its n-th sample."""

    work: dict[str, Any]
    kind: str
    played: Counter[int]

    def reset(self, task: int, **_: Any) -> None:
        self.task, self.sample, self.call = task, self.played[task], 0
        self.played[task] += 1

    def look(self) -> str:
        """Look at what is next.

        Returns:
            A text.
        """
        time.sleep(self.work["latencies"][self.kind][self.task][self.sample][self.call])
        self.call += 1
        return self.work["observations"][self.task][self.sample][self.call - 1]

    def get_reward(self) -> float:
        return 0.0


def make_trainer(folder: Path, rows: list[dict[str, Any]], samples: int, continuous: bool) -> Any:
    config = trl.GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(rows),
        num_generations=samples,
        max_completion_length=2048,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        use_transformers_continuous_batching=continuous,
        report_to="none",
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    trainer = trl.GRPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=Look,
    )
    generate = trainer._generate

    def timed(prompts: list[Any]) -> None:
        began = time.perf_counter()
        prompt_ids, completion_ids, *_ = generate(prompts)
        seconds = time.perf_counter() - began
        raise Generated(seconds, [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)])

    trainer._generate = timed
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--continuous", action="store_true", help="generate_batch instead of generate")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Look.work = json.loads((asked.folder / "work.json").read_text())
    samples = len(Look.work["observations"][0])
    rows = [
        {"prompt": [{"role": "user", "content": text}], "task": task}
        for task, text in enumerate(Look.work["prompts"])
        for _ in range(samples)
    ]
    trainer = make_trainer(asked.folder, rows, samples, asked.continuous)
    trainer.model.train()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps(versions), file=REPLIES, flush=True)
    for line in sys.stdin:
        Look.kind, Look.played = line.strip(), Counter()
        try:
            trainer._generate_and_score_completions(rows)
        except Generated as done:
            seconds, ids = done.args
            print(json.dumps({"seconds": seconds, "ids": ids}), file=REPLIES, flush=True)


if __name__ == "__main__":
    main()
