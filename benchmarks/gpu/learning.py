"""What a GPU makes of learning: random models of the shapes of Qwen2.5, with prompts that a group shares.

    python benchmarks/gpu/learning.py --seconds 480

For every shape and recipe (all weights; LoRA; LoRA with gradient checkpointing) ten real updates of `learn.grpo`, then
two the plain way (`learn.fast: false`): seconds, tokens per second, peak bytes per stage, MFU; before them the local
sampler's tokens per second, with ordinary steps and with those of fixed shapes (`rollout.fixed`). It starts nothing
that does not fit into what time is left, and what does not fit into memory is told and left out: the last line, a
JSON object, always comes. `--shape tiny` tries it all on a CPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from train_step import entropy_bonus, made_up

from unbraid.chat.format import ChatFormat
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Constraint
from unbraid.learn.grpo import make_optimiser, update
from unbraid.policy import AdapterConfig, Policy
from unbraid.policy.policy import add_adapter
from unbraid.rollout import LocalSampler, Request
from unbraid.tasks.task import Task

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
"""Those of the configurations that Qwen2.5 comes with."""
RECIPES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "LoRA": {"adapter": True},
    "LoRA, checkpointing": {"adapter": True, "checkpointing": True},
}


def make_policy(shape: str, recipe: dict[str, Any], device: str, dtype: torch.dtype) -> Policy:
    """A random model on the device."""
    import transformers

    config = transformers.Qwen2Config(**SHAPES[shape], max_position_embeddings=32768)
    with torch.device(device):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    if recipe.get("adapter"):
        model = add_adapter(model, AdapterConfig(rank=16, alpha=32))
    if recipe.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    tokenizer = calls_tokenizer()
    has_adapter = bool(recipe.get("adapter"))
    return Policy(model.to(device), tokenizer, ChatFormat.build(tokenizer, CHAT), torch.device(device), has_adapter)


def steps(policy: Policy, work: dict[str, int], count: int, fast: bool, until: float) -> list[dict[str, float]]:
    """What updates cost, the first one (which checks the fast way) left out; fewer where time runs out."""
    config = LearnConfig(learning_rate=1e-6, micro_batch=work["group"], fast=fast)
    optimiser, constraints = make_optimiser(policy, config), [Constraint(entropy_bonus(0.01))]
    found: list[dict[str, float]] = []
    for step in range(count + 1):
        rng = np.random.default_rng(step)
        trajectories = []
        for number in range(work["prompts"] * work["group"]):
            prompt = np.random.default_rng((step, number // work["group"])).integers(100, 500, work["prompt"])
            new = rng.integers(100, 500, rng.integers(work["new"] // 4, work["new"] + 1))
            trajectories.append(made_up(prompt, new, np.full(len(new), -6.0)))
            trajectories[-1].reward = float(number % 2)
        groups = np.repeat(np.arange(work["prompts"]), work["group"])
        began = time.perf_counter()
        costs = update(
            policy, trajectories, groups, optimiser, constraints, config, step=step, temperature=1.0
        ).costs  # fmt: skip
        took = time.perf_counter() - began
        found.append(costs | {"seconds/update": took})
        if time.perf_counter() + took > until:
            break
    return found[1:] or found


def drawing(policy: Policy, work: dict[str, int], until: float) -> dict[str, Any]:
    """Tokens per second of the second batch that a local sampler draws, by kind of step; whether it kept to it."""
    requests = [
        Request(Task(str(task), ()), tuple(np.random.default_rng(task).integers(100, 500, work["prompt"]).tolist()), i)
        for task in range(work["prompts"])
        for i in range(work["group"])
    ]
    found: dict[str, Any] = {}
    for name, fixed in (("ordinary", False), ("fixed", True)):
        sampler, rate = LocalSampler(policy, fixed=fixed), 0.0
        for seed in range(2):
            if time.perf_counter() > until:
                return found
            began = time.perf_counter()
            drawn = sampler.sample(requests, temperature=1.0, max_new_tokens=work["new"], seed=seed)
            rate = sum(t.response_tokens for t in drawn) / (time.perf_counter() - began)
        found[name] = float(f"{rate:.4g}")
        if sampler.fixed:
            found["kept"] = sampler.fixed.usable
    return found


def measure(shape: str, recipe: str, work: dict[str, int], device: str, until: float) -> dict[str, Any]:
    """Medians over the steps, fast and plain; a line that says so where it does not fit."""
    on_gpu, result = device != "cpu", {}
    try:
        policy = make_policy(shape, RECIPES[recipe], device, torch.bfloat16 if on_gpu else torch.float32)
    except torch.OutOfMemoryError:
        return {"left out": "the model does not fit"}
    if not RECIPES[recipe].get("checkpointing"):
        try:
            result["tokens_per_s/drawing"] = drawing(policy, work, until)
        except torch.OutOfMemoryError:
            result["tokens_per_s/drawing"] = {"left out": "does not fit"}
    for name, fast, count in (("fast", True, 10), ("plain", False, 2)):
        try:
            found = steps(policy, work, count, fast, until)
        except torch.OutOfMemoryError:
            result[name] = {"left out": "does not fit"}
            policy.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        keys = sorted(set.intersection(*(set(costs) for costs in found)))
        result[name] = {key: float(f"{median(costs[key] for costs in found):.4g}") for key in keys}
        result[name]["steps"] = len(found)
    return result


def main() -> None:
    """Measure the shapes, small ones first, while there is time; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", default=["0.5B", "1.5B", "7B"], choices=SHAPES)
    parser.add_argument("--seconds", type=float, default=480, help="no step is started after so many")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=256, help="most tokens of a completion")
    asked = parser.parse_args()
    began, device = time.perf_counter(), "cuda" if torch.cuda.is_available() else "cpu"
    work = {name: getattr(asked, name) for name in ("prompts", "group", "prompt", "new")}
    todo = [(shape, recipe) for shape in asked.shape for recipe in RECIPES]
    told: dict[str, Any] = {"device": torch.cuda.get_device_name() if device == "cuda" else "CPU", "work": work}
    for number, (shape, recipe) in enumerate(todo):
        left = began + asked.seconds - time.perf_counter()
        if left < 10:
            told[f"{shape}, {recipe}"] = {"left out": "no time"}
            continue
        until = time.perf_counter() + 1.5 * left / (len(todo) - number)
        told[f"{shape}, {recipe}"] = measure(shape, recipe, work, device, min(until, began + asked.seconds))
        print(f"{shape}, {recipe}: {told[f'{shape}, {recipe}']}", flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
