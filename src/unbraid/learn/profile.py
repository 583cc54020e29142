"""Where the seconds and bytes of an update go, and which tokens were computed for it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unbraid.learn.batch import TokenBatch
from unbraid.learn.forest import Forest
from unbraid.learn.reduce import sum_counts

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations a second by what the name of a GPU contains; of others no MFU is logged.
Source: NVIDIA's data sheets."""


class Profile:
    """Seconds, bytes and tokens of one update.

    Stages: `reference` and `before` (log-probs under other weights), `forward` (of micro-batches, loss included),
    `backward`, `optimiser`. Seconds of a GPU are those until it is done.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self.computed = self.needed = self.prompts = 0
        self.pairs, self.plain = 0.0, False

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.synchronize(self.device)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            taken = torch.cuda.max_memory_allocated(self.device) if on_gpu else _resident()
            self.bytes[stage] = max(self.bytes.get(stage, 0), taken)

    def count(self, batch: TokenBatch, forest: Forest | None, plain: bool) -> None:
        """Note that a batch was scored, padded or as a forest.

        Args:
            plain: the plain way although the fast one was asked for.
        """
        lengths, sampled = batch.attention.sum(1), batch.sampled.any(1)
        # Prompt tokens are those before the first sampled one.
        prompts = torch.where(sampled, batch.sampled.long().argmax(1) + 1, lengths)
        rows, longest = batch.ids.shape
        self.computed += forest.tokens if forest else rows * longest
        self.pairs += forest.pairs if forest else rows * longest * longest / 2
        self.needed += int(lengths.sum())
        self.prompts += int(prompts.sum())
        self.plain |= plain

    def metrics(self, model: Any) -> dict[str, float]:
        """What to log; tokens are those of all ranks, seconds and bytes one's own.

        `seconds/learn/<stage>`. `memory/learn/<stage>`, bytes: the most that torch held on a GPU, those resident at the
        end of the stage on a CPU. `tokens_per_s/trained`: of all sequences, prompts and shared ones counted each time,
        by the second of forward and backward passes.
        `learn/padding`: share of the computed tokens that is padding. `learn/shared`: share of the prompt tokens that
        was not computed again. `learn/plain`: 1 where the fast way was asked for and not to be had.
        `mfu/learn`: operations on computed tokens, in parts of what the GPU can do; those that gradient checkpointing
        repeats do not count. Only where the GPU is a known one.
        """
        computed, needed, prompts = sum_counts([self.computed, self.needed, self.prompts])
        if not computed:
            return {}
        seconds = self.seconds.get("forward", 0.0) + self.seconds.get("backward", 0.0)
        found: dict[str, float] = {f"seconds/learn/{stage}": value for stage, value in self.seconds.items()}
        found |= {f"memory/learn/{stage}": float(value) for stage, value in self.bytes.items()}
        found["tokens_per_s/trained"] = needed / max(seconds, 1e-9)
        found["learn/padding"] = max(0.0, computed - needed) / computed
        found["learn/shared"] = min(1.0, max(0.0, needed - computed) / max(1.0, prompts))
        found["learn/plain"] = float(self.plain)
        if peak := peak_flops(self.device):
            found["mfu/learn"] = training_flops(model, self.computed, self.pairs) / max(seconds, 1e-9) / peak
        return found


def training_flops(model: Any, tokens: float, pairs: float) -> float:
    """Operations of a forward and a backward pass: 6 for each weight of a matrix and token, 4 for a frozen one.

    The output layer, which sees only what trains, is left out.

    Args:
        pairs: of tokens, the second not before the first: attention takes 12 · width for each and layer.
    """
    config = model.config.get_text_config()
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not _is_table(name)]
    weights = sum(p.numel() * (6 if p.requires_grad else 4) for p in matrices)
    return weights * tokens + 12 * width * config.num_hidden_layers * pairs


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 operations a second of a GPU; None if it is not known, or no GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def _is_table(name: str) -> bool:
    return "embed" in name or "lm_head" in name


def _resident() -> int:
    """Bytes resident in this process now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
