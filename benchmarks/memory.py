"""Memory of a learning step: what `unbraid.policy.memory` expects against what real steps took.

    OMP_NUM_THREADS=1 python benchmarks/memory.py

Every shape is a random model in its own process, which makes two whole updates (`learn.grpo.update`) of two
micro-batches each on made-up trajectories: rows of unequal length, the longest as long as the estimate was told.

resident: growth of the peak resident set (`ru_maxrss`) over what was resident before the model was built; the estimate
is without its constant for that. mapped: the same where the C library is told to give every freed block above 1 MB back
(MALLOC_MMAP_THRESHOLD_, glibc); the estimate is without any overhead. live: bytes of all tensors alive at one time,
operation by operation; the estimate is without any overhead. GPU: `torch.cuda.max_memory_allocated`, likewise; where
there is no GPU, the line says "not measured". The last line is a JSON object.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.policy import ModelConfig, Policy
from unbraid.policy.batch_shape import batch_shape
from unbraid.policy.memory import model_shape, training_memory
from unbraid.policy.policy import AdapterConfig, add_adapter
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tokens import Role

WIDE = {"vocab_size": 32000, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2}
TIED = WIDE | {"tie_word_embeddings": True}
DEEP = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}
LARGE = {"vocab_size": 8000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "many logits": {"config": WIDE, "rows": 8, "prompt": 64, "new": 96},
    "many logits, tied, KL": {"config": TIED, "rows": 4, "prompt": 64, "new": 96, "kl": 1e-3},
    "many logits, fast": {"config": WIDE, "rows": 8, "prompt": 64, "new": 96, "fast": True},
    "deep": {"config": DEEP, "rows": 8, "prompt": 128, "new": 64},
    "deep, checkpointing": {"config": DEEP, "rows": 16, "prompt": 128, "new": 64, "checkpointing": True},
    "deep, bfloat16": {"config": DEEP, "rows": 8, "prompt": 128, "new": 64, "dtype": "bfloat16"},
    "deep, adapter": {"config": DEEP, "rows": 8, "prompt": 128, "new": 64, "rank": 16},
    "deep, bfloat16, adapter": {"config": DEEP, "rows": 8, "prompt": 128, "new": 64, "rank": 16, "dtype": "bfloat16"},
    "long rows": {"config": DEEP, "rows": 2, "prompt": 512, "new": 512},
    "mostly weights": {"config": LARGE, "rows": 1, "prompt": 32, "new": 16},
}  # fmt: skip

TITLES = {"resident": "resident", "mapped": "mapped", "live": "live", "cuda": "GPU, allocated"}


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations return, and takes them off when they die. `peak` in bytes."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.watch(leaf)
        return result

    def watch(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def measure(name: str, how: str) -> dict[str, float]:
    """Two updates of one shape in this process; bytes measured and expected."""
    shape = SHAPES[name]
    device = "cuda" if how == "cuda" else "cpu"
    config = ModelConfig(
        path="random",
        dtype=shape.get("dtype", "float32"),
        adapter=AdapterConfig(rank=shape["rank"]) if "rank" in shape else None,
        gradient_checkpointing=shape.get("checkpointing", False),
    )
    kl, rows = shape.get("kl", 0.0), shape["rows"]
    expected = training_memory(
        model_shape(_model_config(shape), config, shape.get("fast", False)),
        batch_shape(rows, shape["new"], shape["prompt"], shape["prompt"] // 2),
        kl=kl > 0,
        device=device,
    )
    _learn(SHAPES["mostly weights"] | {"config": WIDE | {"vocab_size": 200}}, config, 1, 0.0, device)  # libraries load
    before = _resident()
    live = LiveBytes()
    if how == "live":
        with live:
            _learn(shape, config, rows, kl, device, live)
        return {"measured": live.peak, "estimate": expected.total - expected.slack - expected.overhead}
    if how == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _learn(shape, config, rows, kl, device)
    if how == "cuda":
        return {
            "measured": torch.cuda.max_memory_allocated(),
            "estimate": expected.total - expected.slack - expected.overhead,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    beside = expected.overhead + (expected.slack if how == "mapped" else 0)
    return {"measured": peak - before, "estimate": expected.total - beside, "before": before}


def _learn(
    shape: dict[str, Any], config: ModelConfig, rows: int, kl: float, device: str, live: LiveBytes | None = None
) -> None:
    """Build the policy and make two updates."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    model: Any = transformers.AutoModelForCausalLM.from_config(_model_config(shape), dtype=getattr(torch, config.dtype))
    if config.adapter:
        model = add_adapter(model, config.adapter)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model = model.to(device)
    if live:  # what went into building it is not a step's
        live.peak = live.now
        for parameter in model.parameters():
            live.watch(parameter)
    tokenizer = calls_tokenizer()
    policy = Policy(
        model, tokenizer, ChatFormat.build(tokenizer, CHAT), torch.device(device), config.adapter is not None
    )
    learn = LearnConfig(micro_batch=rows, kl=kl, fast=shape.get("fast", False))
    if kl:
        policy.freeze_reference()
    optimiser = make_optimiser(policy, learn)
    trajectories = _trajectories(shape, 2 * rows, policy)
    for step in range(2):
        update(policy, trajectories, np.arange(2 * rows) // 2, optimiser, [], learn, step=step, temperature=1.0)


def _model_config(shape: dict[str, Any]) -> Any:
    from transformers import Qwen3Config

    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": False}
    return Qwen3Config(**(heads | shape["config"]))


def _trajectories(shape: dict[str, Any], count: int, policy: Policy) -> list[Trajectory]:
    """Made-up responses of full length to prompts between half and all of the longest; both modes, both rewards."""
    rng, made = np.random.default_rng(0), []
    for index in range(count):
        prompt = shape["prompt"] if index % 2 == 0 else int(rng.integers(shape["prompt"] // 2, shape["prompt"]))
        mode = (Mode.THINK, Mode.NO_THINK)[index % 2]
        opening = policy.format.modes.of(mode)
        ids = rng.integers(5, 90, prompt + shape["new"])
        ids[prompt : prompt + len(opening)] = opening
        sampled = np.arange(len(ids)) >= prompt
        made.append(
            Trajectory(
                task_id=str(index // 2),
                sample=index % 2,
                ids=ids,
                prompt_length=prompt,
                roles=np.where(sampled, Role.ACTION, Role.PROMPT).astype(np.uint8),
                sampled=sampled,
                logprobs=np.where(sampled, -3.0, 0.0).astype(np.float32),
                entropies=np.full(len(ids), np.nan, dtype=np.float32),
                choice_probs=(0.5, 0.5),
                mode=mode,
                forced=Mode.AUTO,
                finish=Finish.STOP,
                reward=float(index % 2),
            )
        )
    return made


def _resident() -> int:
    """Bytes resident in this process now; where the system does not say, the most so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_process(name: str, how: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--how", how]
    setting = {"MALLOC_MMAP_THRESHOLD_": "1000000"} if how == "mapped" else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | setting)
    if done.returncode:
        sys.exit(f"{name} ({how}) failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure every shape; print a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--one", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="resident", choices=TITLES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.how)))
        return
    hows = [how for how in TITLES if how != "cuda" or torch.cuda.is_available()]
    console, found = Console(), {}
    table = Table("shape", *(f"{TITLES[how]}: measured, estimate, ratio" for how in hows))
    for name in args.shapes:
        found[name] = {how: in_process(name, how) for how in hows}
        cells = [(found[name][how]["measured"], found[name][how]["estimate"]) for how in hows]
        table.add_row(name, *(f"{m / 1e6:.0f} MB, {e / 1e6:.0f} MB, {e / m:.2f}" for m, e in cells))
    console.print(table)
    if "cuda" not in hows:
        console.print("GPU: not measured (there is none here)")
    ratios = {how: [r[how]["estimate"] / r[how]["measured"] for r in found.values()] for how in hows}
    result: dict[str, Any] = {
        f"estimate_over_measured_{how}": {"min": round(min(r), 3), "max": round(max(r), 3)} for how, r in ratios.items()
    }
    result["process_bytes_before_model"] = max(int(r["resident"]["before"]) for r in found.values())
    result["cuda"] = "measured" if "cuda" in hows else "not measured"
    print(json.dumps(result | {"shapes": found}))


if __name__ == "__main__":
    main()
