"""Routed LoRA in vLLM: exactness, and tokens per second against one plain adapter.

    python benchmarks/routed_serving.py --python .venv-vllm/bin/python

A random model with two random adapters answers `requests` requests at once. Its delimiters are likely, so that routes
change as often as in a real agent's turns. Four ways take turns, round after round, on three servers of this machine:

    routed        both adapters, each token through its own
    plain         the first adapter alone, on the same server: the same flags, the same slots
    stock         the first adapter alone, on a server with vLLM's own defaults, async scheduling among them
    transformers  the first adapter alone, with transformers' layers, eager: what the paper's code needs

All draw the same number of tokens. Ratios are medians over rounds of the ratio within one round, rounds are short and
many, and neighbours in a round: what else the machine does disturbs both. `_best` is the ratio of the fastest rounds,
those that were disturbed least. `vllm_tokens_per_cpu_s_ratio`, routed against plain, is by CPU seconds, which nothing
disturbs (`routed_cpu_time.py`). Exactness is that of `sequences` further requests, of all lengths and provenances,
against the trainer's own model. The last line is a JSON object; figures for GPUs are "not measured" where there are
none.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from unbraid.policy import AdapterConfig
from unbraid.policy.policy import add_adapter
from unbraid.policy.routed_lora import routed
from unbraid.policy.routing import RoutingConfig
from unbraid.tokens import Delimiter, Role, RoleAutomaton, written_spans
from unbraid.vllm.client import Client, Generated, open_session
from unbraid.vllm.flags import Sampled, sampling_flags
from unbraid.vllm.installation import Installation, clean_environment, find_vllm
from unbraid.vllm.server import ServerSpec, start_servers, stop_servers

SHAPES: dict[str, dict[str, int]] = {
    "30M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
}
VOCABULARY, RANK = 4096, 8
OPEN, CLOSE = 10, 11
LIKELY = 40
"""A delimiter is drawn about once in so many tokens."""


@dataclass(frozen=True)
class Way:
    """Something that is timed: which server, which name is asked for there."""

    url: str
    model: str


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="", help="interpreter that has vLLM")
    parser.add_argument("--shape", choices=SHAPES, default="30M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of a response")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=128, help="that exactness is measured on")
    parser.add_argument("--threads", type=int, default=1, help="of a server on a CPU; more wait for each other")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked, Path(folder))
    print_table(found)
    print(json.dumps(found))
    return 0


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is reported."""
    installation = find_vllm(asked.python, need_plugin=True)
    trained = make_policy(asked.shape, folder)
    requests = make_requests(asked.requests, asked.prompt, seed=0)
    long = make_requests(asked.sequences, asked.prompt, seed=1)
    patterns = [(ids[: 1 + i % len(ids)], written[: 1 + i % len(ids)]) for i, (ids, written) in enumerate(long)]
    with servers(installation, asked, folder) as ways:
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(asked.rounds + 1):
            # Routed and plain stay neighbours, in either order.
            order = list(ways) if number % 2 else [*list(ways)[1::-1], *list(ways)[2:]]
            for name in order:
                started = time.perf_counter()
                asyncio.run(ask(ways[name], requests, asked.tokens, f"{name}-{number}"))
                rates[name].append(len(requests) * asked.tokens / (time.perf_counter() - started))
            sys.stderr.write(f"round {number}: " + ", ".join(f"{n} {r[-1]:.0f}" for n, r in rates.items()) + " tok/s\n")
        drawn = asyncio.run(ask(ways["routed"], patterns, asked.tokens, "patterns"))
    timed = {name: all_of_it[1:] for name, all_of_it in rates.items()}  # the first round warms up
    seconds = cpu_seconds(installation, asked, folder) if installation.backend == "cpu" else []
    return summary(asked, installation, timed, seconds, gap(trained, patterns, drawn))


def make_policy(shape: str, folder: Path) -> Any:
    """A random model on disk, and its adapters beside it, routed and alone; returns the trainer's model."""
    settings: dict[str, Any] = {**SHAPES[shape], "num_key_value_heads": SHAPES[shape]["num_attention_heads"] // 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=0,
        **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # one feature is the same everywhere, and the delimiters' logits grow with it
        constant = 4.0
        model.model.embed_tokens.weight.mul_(50)
        model.model.embed_tokens.weight[:, 0] = constant
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[[OPEN, CLOSE], 0] = float(np.log(VOCABULARY / LIKELY)) / constant
    model.save_pretrained(folder / "model")
    automaton = RoleAutomaton([Delimiter("call", OPEN, CLOSE, Role.ACTION)])
    base: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    trained = add_adapter(base, AdapterConfig(rank=RANK, alpha=2 * RANK, routing=RoutingConfig()), automaton)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 0.15)  # as large as what it is added to
    trained.save_pretrained(folder / "routed")
    trained.routing.router.save(folder / "routed")
    return trained.eval()


def make_requests(count: int, length: int, seed: int) -> list[tuple[list[int], NDArray[np.bool_]]]:
    """Prompts of random ids with stretches that the model wrote; some of them end inside a call."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(count):
        ids = rng.integers(3, VOCABULARY, size=length)
        likely = rng.random(length) < 2 / LIKELY
        ids[likely] = rng.choice([OPEN, CLOSE], size=length)[likely]
        written = np.repeat(rng.random(length) < 0.5, rng.integers(1, 17))[:length]
        requests.append((ids.tolist(), written))
    return requests


@contextlib.contextmanager
def servers(installation: Installation, asked: argparse.Namespace, folder: Path) -> Iterator[dict[str, Way]]:
    """Three servers of the model, and the four ways to ask them."""

    def spec(name: str, routed_adapters: int, *further: str) -> ServerSpec:
        what = Sampled(
            model=str(folder / "model"), dtype=asked.dtype, max_tokens=asked.prompt + asked.tokens + 1, rank=RANK,
            memory=1.0 if installation.backend == "cpu" else 0.25, sleep=False, devices="",
            cpu=installation.backend == "cpu", routed=routed_adapters,
        )  # fmt: skip
        flags, environment = sampling_flags(what, ["--skip-tokenizer-init", *further])
        return ServerSpec(flags, folder / f"{name}.log", {**environment, "OMP_NUM_THREADS": str(asked.threads)})

    specs = [
        spec("routed", 2),
        spec("stock", 0),
        spec("transformers", 0, "--model-impl=transformers", "--enforce-eager"),
    ]
    running = start_servers(installation, specs, announce=lambda line: None)
    try:
        one, stock, transformers = (server.url for server in running)
        alone, both = folder / "routed" / "reasoning", folder / "routed"
        ways = {
            "routed": Way(one, "both"),
            "plain": Way(one, "alone"),
            "stock": Way(stock, "alone"),
            "transformers": Way(transformers, "alone"),
        }
        for way in ways.values():
            asyncio.run(load(way, both if way.model == "both" else alone))
        yield ways
    finally:
        stop_servers(running)


async def load(way: Way, adapter: Path) -> None:
    """Make an adapter known under the name that is asked for."""
    async with open_session() as session:
        await Client(way.url, session).load_adapter(way.model, str(adapter))


async def ask(way: Way, requests: Sequence[Any], tokens: int, salt: str) -> list[Generated]:
    """All requests at once."""
    async with open_session() as session:
        client = Client(way.url, session)

        def one(ids: list[int], written: NDArray[np.bool_]) -> Any:
            told = written_spans(written) if way.model == "both" else None
            return client.generate(
                ids,
                model=way.model,
                temperature=1.0,
                max_tokens=tokens,
                seed=None,
                stop_ids=(),
                salt=salt,
                written=told,
            )

        return await asyncio.gather(*(one(*request) for request in requests))


@torch.no_grad()
def gap(trained: Any, requests: Sequence[Any], drawn: Sequence[Generated]) -> dict[str, float]:
    """|Δ log-prob| of every drawn token against the trainer's routed model, and how often routes changed."""
    router, largest, changes, tokens = trained.routing.router, 0.0, 0, 0
    for (ids, written), answer in zip(requests, drawn, strict=True):
        row = np.array([[*ids, *answer.ids]])
        routes = router.route(row, np.concatenate([written, np.ones(len(answer.ids), dtype=bool)])[None])
        with routed(trained, routes):
            logits = trained(input_ids=torch.from_numpy(row), use_cache=False).logits[0, len(ids) - 1 : -1].float()
        own = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer.ids)[:, None])[:, 0].double().numpy()
        largest = max(largest, float(np.abs(own - answer.logprobs).max()))
        changes += int((np.diff(routes[0, len(ids) - 1 : -1]) != 0).sum())
        tokens += len(answer.ids)
    return {"largest": largest, "changes": changes / tokens}


def cpu_seconds(installation: Installation, asked: argparse.Namespace, folder: Path) -> list[tuple[float, float]]:
    """(routed, plain) of each round, by vLLM's own interpreter."""
    script = Path(__file__).with_name("routed_cpu_time.py")
    sizes = [str(one) for one in (asked.requests, asked.prompt, asked.tokens, asked.rounds)]
    done = subprocess.run(
        [str(installation.python), str(script), str(folder), *sizes], capture_output=True, text=True, check=True,
        env=clean_environment(installation.python),
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def summary(
    asked: argparse.Namespace,
    installation: Installation,
    rates: dict[str, list[float]],
    seconds: list[tuple[float, float]],
    found: dict[str, float],
) -> dict[str, Any]:
    """The JSON object."""

    def ratio(of: str, to: str) -> list[float]:
        return [a / b for a, b in zip(rates[of], rates[to], strict=True)]

    def named(name: str, *ways: str) -> dict[str, Any]:
        of, to = (max(rates[way]) for way in ways)
        return {**with_interval(name, ratio(*ways)), f"{name}_best": round(of / to, 3)}

    place = "" if installation.backend == "cpu" else "gpu_"
    undisturbed = [plain / both for both, plain in seconds]
    speed = {
        **named(f"{place}vllm_tokens_per_s_ratio", "routed", "plain"),
        **named(f"{place}vllm_tokens_per_s_ratio_vs_stock_defaults", "routed", "stock"),
        **named(f"{place}vllm_tokens_per_s_ratio_vs_transformers_eager", "routed", "transformers"),
    }
    unmeasured = (
        {} if place else {f"gpu_{name}": "not measured" for name in speed if not name.endswith(("_95", "_best"))}
    )
    return {
        "shape": asked.shape,
        "dtype": asked.dtype,
        "vllm": installation.version,
        "backend": installation.backend,
        "requests": asked.requests,
        "tokens": asked.tokens,
        "rounds": asked.rounds,
        "sequences": asked.sequences,
        "route_changes_per_token": round(found["changes"], 4),
        "tokens_per_s": {name: round(median(of), 1) for name, of in rates.items()},
        "max_abs_dlogp_vllm": found["largest"],
        **speed,
        **(with_interval("vllm_tokens_per_cpu_s_ratio", undisturbed) if undisturbed else {}),
        **unmeasured,
    }


def with_interval(name: str, ratios: Sequence[float]) -> dict[str, Any]:
    """The median over rounds, and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(np.array(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {name: round(median(ratios), 3), f"{name}_95": [round(float(low), 3), round(float(high), 3)]}


def print_table(found: dict[str, Any]) -> None:
    """For people."""
    table = Table("way", "tokens/s", "routed against it", title=f"vLLM {found['vllm']} ({found['backend']})")
    place = "" if found["backend"] == "cpu" else "gpu_"
    names = {"plain": "", "stock": "_vs_stock_defaults", "transformers": "_vs_transformers_eager"}
    for way, rate in found["tokens_per_s"].items():
        ratio = found.get(f"{place}vllm_tokens_per_s_ratio{names.get(way, '')}") if way in names else ""
        table.add_row(way, f"{rate:.0f}", str(ratio))
    Console(width=100).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
