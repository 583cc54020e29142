"""A step of the supervised warm-up: logits a few at a time and only where something is learned, against all at once.

    OMP_NUM_THREADS=1 python benchmarks/warmup.py

A random Qwen3 of width 256 and 4 layers, by vocabulary; 16 examples with prompts of 64 to 320 tokens and answers of 32
to 96, at most 4,096 tokens a forward pass, all weights trained. Each way runs in a process of its own, in turn: CPU
seconds of a step, and the peak of the process above what model and optimiser take. Then the losses and gradients of
both are compared. The last line is a JSON object by vocabulary; ratios are fast over plain, medians over rounds.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from step_memory import peak_bytes, start_peak

from unbraid.learn.supervised import SupervisedExample, SupervisedTrainer, WarmupConfig, pack, weighted_loss_sum

PROMPT, ANSWER, EXAMPLES = (64, 320), (32, 96), 16
"""Tokens, from and to; and how many."""


def make_model(vocabulary: int) -> Any:
    """The same random one every time."""
    torch.manual_seed(0)
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def examples(step: int, vocabulary: int) -> list[SupervisedExample]:
    """The batch of a step: random words."""
    rng = np.random.default_rng(step)

    def words(between: tuple[int, int]) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=rng.integers(*between)).tolist())

    made = [(words(PROMPT), words(ANSWER)) for _ in range(EXAMPLES)]
    return [SupervisedExample(prompt, answer, (1.0,) * len(answer)) for prompt, answer in made]


def measure(vocabulary: int, fast: bool, steps: int) -> dict[str, float]:
    """Seconds and peak bytes of steps; the first is not counted."""
    config = WarmupConfig(steps=steps + 1, batch_examples=EXAMPLES, learning_rate=1e-5)
    trainer = SupervisedTrainer(make_model(vocabulary), config, lambda step: examples(step, vocabulary), fast=fast)
    trainer.model.train()
    trainer.train_step()
    base, took = start_peak(), []
    for _ in range(steps):
        began = time.process_time()
        trainer.train_step()
        took.append(time.process_time() - began)
    return {"seconds": median(took), "peak": peak_bytes() - base}


def parity(vocabulary: int) -> float:
    """Largest difference of the loss per token, or of an element of a gradient over the largest one, of both ways."""
    model, rows, found = make_model(vocabulary).train(), pack(examples(0, vocabulary)), []
    for fast in (True, False):
        model.zero_grad()
        loss = weighted_loss_sum(model, rows, fast) / float(rows.weights.sum())
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    (a, ours), (b, theirs) = found
    return max(abs(a - b), *(float((x - y).abs().max() / y.abs().max()) for x, y in zip(ours, theirs, strict=True)))


def main() -> None:
    """Compare both ways by vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", choices=["fast", "plain"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        print(json.dumps(measure(asked.vocabulary[0], asked.one == "fast", asked.steps)))
        return
    table = Table("vocabulary", "way", "CPU seconds of a step", "peak above model and optimiser")
    told: dict[str, Any] = {}
    for vocabulary in asked.vocabulary:
        ways: dict[str, list[dict[str, float]]] = {"fast": [], "plain": []}
        for _ in range(asked.rounds):
            for way, found in ways.items():
                command = [sys.executable, __file__, "--one", way, "--vocabulary", str(vocabulary)]
                said = subprocess.run([*command, "--steps", str(asked.steps)], stdout=subprocess.PIPE, check=True)
                found.append(json.loads(said.stdout))
        for way, found in ways.items():
            seconds, peak = (median(one[key] for one in found) for key in ("seconds", "peak"))
            table.add_row(f"{vocabulary:,}", way, f"{seconds:.1f}", f"{peak / 1e6:.0f} MB")
        ratios = {
            key: [a[key] / b[key] for a, b in zip(ways["fast"], ways["plain"], strict=True)]
            for key in ("seconds", "peak")
        }
        told[str(vocabulary)] = {
            "time_ratio": round(median(ratios["seconds"]), 3),
            "memory_ratio": round(median(ratios["peak"]), 3),
            "parity": float(f"{parity(vocabulary):.2g}"),
        }
    Console().print(table)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
