"""vLLM beside the trainer against sampling in the trainer's own process: tokens per second, sync, and the gap.

    python benchmarks/served.py --python .venv-vllm/bin/python
    python benchmarks/served.py --bytes                             only what a sync hands over; no servers

A random model of the given shape, trained with an adapter, draws `samples` responses to each of `prompts` prompts:
from a vLLM server, with the local sampler, and with `generate` of transformers. Rounds alternate, and before each the
adapter changes, so that every round of vLLM pays for its sync and probe. Nothing stops early: all draw the same number
of tokens. The last line is a JSON object; ratios are medians over rounds of the ratio within one round.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.lab.calls_world import CallsWorld
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy
from unbraid.rollout import LocalSampler, Request, Trajectory
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.probe import Gap, own_logprobs
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.start_fleet import run_fleet

SHAPES: dict[str, dict[str, int]] = {
    "20M": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8},
    "100M": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
VOCABULARY = 32768


@dataclass(frozen=True)
class Work:
    """The same requests for everybody."""

    requests: list[Request]
    budget: int

    @property
    def tokens(self) -> int:
        return len(self.requests) * self.budget


def main() -> int:
    """Time the three and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="interpreter that has vLLM")
    parser.add_argument("--shape", choices=SHAPES, default="20M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=float, default=1.0, help="sampler.memory: GiB on a CPU, a share of a GPU")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="of every response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-generate", action="store_true")
    parser.add_argument("--bytes", action="store_true", help="what a sync hands over: an adapter, and all weights")
    parser.add_argument("--flag", action="append", default=[], help="further flag of vLLM, as --flag=--enforce-eager")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = handed_over(asked, Path(folder)) if asked.bytes else measure(asked, Path(folder))
    if not asked.bytes:
        print_table(found)
    print(json.dumps(found))
    return 0


def model_config(asked: argparse.Namespace, folder: Path) -> ModelConfig:
    """A random model with an adapter."""
    return ModelConfig(
        path=str(random_model(asked.shape, folder / "model")),
        dtype=asked.dtype,
        device=asked.device,
        adapter=AdapterConfig(rank=16, alpha=32),
    )


def handed_over(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Bytes of the files that servers read after a step, by what is trained."""
    config = model_config(asked, folder)
    found: dict[str, Any] = {"shape": asked.shape, "dtype": asked.dtype}
    for name, model in (("adapter", config), ("all_weights", config.model_copy(update={"adapter": None}))):
        load_policy(model, CHAT).save_weights(folder / name)
        found[f"{name}_bytes"] = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
    return found | {"ratio": float(f"{found['adapter_bytes'] / found['all_weights_bytes']:.2g}")}


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is reported."""
    model = model_config(asked, folder)
    policy = load_policy(model, CHAT)
    work = work_for(policy, asked)
    config = SamplerConfig(engine="vllm", python=asked.python, memory=asked.memory, flags=tuple(asked.flag))
    prompts = [request.prompt_ids for request in work.requests]
    rates: dict[str, list[float]] = {"vllm": [], "local": [], "generate": []}
    sync: list[dict[str, float]] = []
    longest = max(map(len, prompts)) + asked.tokens
    with run_fleet(policy, model, config, folder / "servers", max_tokens=longest, prompts=prompts) as fleet:
        draw = SingleSampler(endless(policy), lambda t: ServedSampler(fleet, endless_policy(policy), 512, t))
        trajectories = sample(draw, work, 0)  # the first requests of a server compile and warm up
        for number in range(1, asked.rounds + 1):
            change(policy, number)
            rates["vllm"].append(rate(work, lambda n=number: sample(draw, work, n)))
            sync.append(fleet.metrics())
            local = LocalSampler(endless_policy(policy))
            rates["local"].append(rate(work, lambda n=number, s=local: sample(s, work, n)))
            if not asked.without_generate:
                rates["generate"].append(rate(work, lambda: generate(policy, work)))
        trajectories = sample(draw, work, 0)
        draw.close()
        gap = measured_gap(policy, trajectories[: asked.samples])
        return summary(asked, policy, rates, sync, gap, fleet)


def random_model(shape: str, folder: Path) -> Path:
    """A folder with a random Qwen3 of this shape and the lab's tokenizer."""
    heads, hidden = SHAPES[shape]["num_attention_heads"], SHAPES[shape]["hidden_size"]
    settings: dict[str, Any] = {**SHAPES[shape], "num_key_value_heads": heads // 2, "head_dim": hidden // heads}
    config = Qwen3Config(vocab_size=VOCABULARY, max_position_embeddings=4096, tie_word_embeddings=True, **settings)
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16 if shape in ("1.7B", "8B") else torch.float32).save_pretrained(folder)
    tokenizer = calls_tokenizer()
    ChatFormat.build(tokenizer, CHAT).save(folder)
    return folder


def endless(policy: Policy) -> ChatFormat:
    """The chat format with a stop id that the benchmark's model practically never draws."""
    found = ChatFormat.build(policy.tokenizer, CHAT)
    found.stop_ids = (VOCABULARY - 1,)
    return found


def endless_policy(policy: Policy) -> Policy:
    """The same weights with that format."""
    return Policy(policy.model, policy.tokenizer, endless(policy), policy.device, policy.has_adapter)


def work_for(policy: Policy, asked: argparse.Namespace) -> Work:
    tasks = CallsWorld(0).training_tasks(asked.prompts, known_share=0.5, seed=1)
    return Work(
        [
            Request(task, tuple(policy.format.prompt_ids(task.messages, task.tools)), i, Mode.AUTO)
            for task in tasks
            for i in range(asked.samples)
        ],
        asked.tokens,
    )


def change(policy: Policy, seed: int) -> None:
    """What an optimiser step does to the adapter, as far as servers are concerned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_((torch.randn(p.shape, generator=generator) * 1e-3).to(p))


def sample(sampler: Any, work: Work, seed: int) -> list[Trajectory]:
    return sampler.sample(work.requests, temperature=1.0, max_new_tokens=work.budget, seed=seed)


@torch.inference_mode()
def generate(policy: Policy, work: Work) -> None:
    """The same number of tokens with `generate`, a KV cache and no early end."""
    longest = max(len(request.prompt_ids) for request in work.requests)
    ids = torch.tensor([[0] * (longest - len(r.prompt_ids)) + list(r.prompt_ids) for r in work.requests])
    mask = torch.tensor([[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in work.requests])
    policy.model.generate(
        input_ids=ids.to(policy.device), attention_mask=mask.to(policy.device), do_sample=True, temperature=1.0,
        top_k=0, top_p=1.0, max_new_tokens=work.budget, min_new_tokens=work.budget, pad_token_id=0, use_cache=True,
    )  # fmt: skip


def rate(work: Work, draw: Callable[[], object]) -> float:
    """Tokens per second of one call."""
    began = time.perf_counter()
    draw()
    return work.tokens / (time.perf_counter() - began)


def measured_gap(policy: Policy, trajectories: list[Trajectory]) -> Gap:
    """Server against trainer on what was drawn."""
    return Gap.of(
        np.concatenate(
            [
                own_logprobs(policy, t.ids.tolist(), t.prompt_length, 1.0) - t.logprobs[t.prompt_length :]
                for t in trajectories
            ]
        )
    )


def summary(
    asked: argparse.Namespace, policy: Policy, rates: dict[str, list[float]], sync: list[dict[str, float]], gap: Gap,
    fleet: Fleet,
) -> dict[str, Any]:  # fmt: skip
    def ratio(other: str) -> float | None:
        pairs = zip(rates["vllm"], rates[other], strict=False)
        return median(a / b for a, b in pairs) if rates[other] else None

    gpu = policy.device.type == "cuda"
    return {
        "shape": asked.shape, "dtype": asked.dtype, "responses": asked.prompts * asked.samples, "tokens": asked.tokens,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "tokens_per_s": {name: median(found) for name, found in rates.items() if found},
        "vllm_ratio_vs_local": ratio("local"), "vllm_ratio_vs_generate": ratio("generate"),
        "sync_bytes": sync[-1]["sync/bytes"],
        "all_weights_bytes": float(sum(p.numel() * p.element_size() for p in policy.model.parameters())),
        "sync_s": median(one["seconds/sync"] for one in sync),
        "probe_s": median(one["seconds/sync_probe"] for one in sync),
        "gap_mean": gap.mean, "gap_max": gap.largest, "servers": len(fleet.members),
    }  # fmt: skip


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    table = Table("sampler", "tokens/s (sync included)", "vLLM is so many times as fast")
    for name, speed in found["tokens_per_s"].items():
        ratio = found.get(f"vllm_ratio_vs_{name}")
        table.add_row(name, f"{speed:.0f}", f"{ratio:.2f}" if ratio else "")
    console = Console()
    console.print(
        f"{found['shape']}, {found['dtype']}, {found['device']}: {found['responses']} responses of {found['tokens']}"
    )
    console.print(table)
    console.print(
        f"sync {found['sync_s']:.3f} s, {found['sync_bytes'] / 1e6:.1f} MB (all weights: "
        f"{found['all_weights_bytes'] / 1e6:.1f}) + probe {found['probe_s']:.3f} s; |Δ log-prob| mean "
        f"{found['gap_mean']:.1e}, largest {found['gap_max']:.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
