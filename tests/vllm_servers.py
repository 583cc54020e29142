"""Real vLLM servers for tests, few of them and small; what is known of them; and the trainer's own log-probs.

`UNBRAID_VLLM_PYTHON` names the interpreter that has vLLM.
"""

import asyncio
import atexit
import contextlib
import functools
import json
import os
import re
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_vllm import session
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from unbraid.chat.format import ChatFormat
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.lab.search_base import search_base_path
from unbraid.learn.importance import sequence_logprobs
from unbraid.policy import ModelConfig, Policy, routed_lora
from unbraid.policy.policy import add_adapter
from unbraid.recipe import Recipe, load_recipe
from unbraid.rollout import Trajectory
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.fleet import Fleet, Member
from unbraid.tokens import Role
from unbraid.vllm.client import Client, open_session
from unbraid.vllm.flags import Sampled, sampling_flags
from unbraid.vllm.installation import Installation, find_vllm
from unbraid.vllm.server import Server, start_server

FLAGS = ("--enforce-eager",)
"""Nothing is compiled: that takes longer than these tests."""
POSITIONS = 640
FAMILIES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
"""The third family that these tests meet is that of the search world's base, a Llama."""


def installation() -> Installation:
    """Where vLLM is."""
    named = os.environ.get("UNBRAID_VLLM_PYTHON", "")
    assert named, "UNBRAID_VLLM_PYTHON names no interpreter: make test-vllm sets it"
    return find_vllm(named)


def sampler_config(**settings: Any) -> SamplerConfig:
    """`sampler` of a recipe, for servers as small as these."""
    python = os.environ.get("UNBRAID_VLLM_PYTHON", "")
    return SamplerConfig(engine="vllm", python=python, memory=1, **{"flags": FLAGS, **settings})


def tiny_model(folder: Path, family: str) -> Path:
    """A random model over the calls vocabulary with heads of 32, keys and values shared by two, tied embeddings."""
    make_config, make_model = FAMILIES[family]
    tokenizer = calls_tokenizer()
    config = make_config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, initializer_range=0.15, tie_word_embeddings=True,
        max_position_embeddings=POSITIONS, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, family)))
        model: Any = make_model(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_policy_of(model: ModelConfig, size: float = 0.5, seed: int = 0) -> Policy:
    """The policy of such a model; its adapter, if it has one, moves every log-prob by about `size` nats."""
    tokenizer = calls_tokenizer()  # transformers would take another for these families
    found: Any = AutoModelForCausalLM.from_pretrained(model.path)
    if model.adapter:
        found = add_adapter(found, model.adapter)
    cpu, chat = torch.device("cpu"), ChatFormat.build(tokenizer, CHAT)
    policy = Policy(found, tokenizer, chat, cpu, has_adapter=model.adapter is not None)
    if model.adapter:
        enlarge(policy, size, seed)
    return policy


def search_recipe_of(*overrides: str) -> Recipe:
    """The search world, sampled by vLLM."""
    return load_recipe(["search-world"], ["sampler.engine=vllm", *overrides])


@torch.no_grad()
def enlarge(policy: Policy, size: float, seed: int = 0) -> None:
    """Give the adapter weights as after long training: the B of a fresh one is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in policy.trainable():
        if "lora_B" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * size)


@torch.no_grad()
def change(policy: Policy, size: float, seed: int) -> None:
    """A step of learning, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    for _, weight in policy.trainable():
        weight.add_(torch.randn(weight.shape, generator=generator) * size)


@contextlib.contextmanager
def serving(
    model: str | Path,
    folder: Path,
    *,
    tokens: int,
    rank: int = 0,
    dtype: str = "float32",
    flags: Sequence[str] = (),
    routed: int = 0,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server as a run starts it, to be used by several fleets. variables: further ones of its environment."""
    found = installation()
    what = Sampled(
        model=str(model), dtype=dtype, max_tokens=tokens, rank=rank, memory=1, sleep=False, devices="",
        cpu=found.backend == "cpu", routed=routed,
    )  # fmt: skip
    arguments, environment = sampling_flags(what, [*FLAGS, *flags])
    with start_server(
        found, arguments, log=folder / "server.log", environment={**environment, **(variables or {})}
    ) as server:
        yield server


def fleet_on(
    servers: Sequence[Server], folder: Path, tokens: int, prompts: Sequence[tuple[int, ...]] = (), **settings: Any
) -> Fleet:
    """A float32 trainer's fleet on servers that run already and are not its own."""
    members = [Member(server.url) for server in servers]
    dtype, temperature = settings.pop("dtype", "float32"), settings.pop("temperature", 1.0)
    return Fleet(members, sampler_config(**settings), folder, dtype, tokens, prompts, temperature)


@dataclass(frozen=True)
class Counters:
    """What a server says of itself: totals since it started."""

    hits: int
    """Tokens that were found in what it remembers of beginnings."""
    preemptions: int

    @classmethod
    def of(cls, server: Server) -> "Counters":
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            text = answer.read().decode()

        def total(name: str) -> int:
            return int(sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))

        return cls(total("vllm:prefix_cache_hits_total"), total("vllm:num_preemptions_total"))


def chunk_of(server: Server) -> int:
    """Most tokens that a step of its engine takes: longer prompts arrive in chunks. From its log: nothing counts it."""
    found = re.search(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)", server.output())
    assert found, "prompts are not chunked"
    return int(found[1])


def served_models(server: Server) -> list[str]:
    """What GET /v1/models lists."""
    with urllib.request.urlopen(f"{server.url}/v1/models") as answer:
        return [one["id"] for one in json.load(answer)["data"]]


def ask(server: Server, work: Any) -> Any:
    """The result of `work(client)`, a coroutine."""

    async def run() -> Any:
        async with open_session() as session:
            return await work(Client(server.url, session))

    return asyncio.run(run())


def differences(policy: Policy, trajectories: Sequence[Trajectory], temperature: float) -> NDArray[np.float64]:
    """Log-probs of every drawn token, trainer's minus sampler's, (N,): as the trainer computes them, in batches."""
    pieces = [piece for trajectory in trajectories for piece in trajectory.split()]
    own = sequence_logprobs(policy, pieces, 32, temperature or 1.0)
    found = [(mine - piece.logprobs)[piece.sampled] for mine, piece in zip(own, pieces, strict=True)]
    return np.concatenate(found).astype(np.float64)


@torch.no_grad()
def next_logits(policy: Policy, ids: Sequence[int], roles: Sequence[int], start: int) -> torch.Tensor:
    """The trainer's logits at which `ids[start:]` were drawn, (len(ids) − start, V)."""
    row = torch.tensor([list(ids)])
    with routed_lora.routed(policy.model, policy.routes([list(ids)], [list(roles)])):
        return policy.model(input_ids=row, use_cache=False).logits[0, start - 1 : len(ids) - 1].float()


def check_choices(policy: Policy, trajectories: Sequence[Trajectory], temperature: float) -> int:
    """Hold every response's `choice_probs` against the policy's own; returns how many there were."""
    modes, known, checked = policy.format.modes, {}, 0
    for trajectory in trajectories:
        for piece in trajectory.split():
            for response in piece.responses:
                if not np.isfinite(response.choice_probs).all():
                    continue
                place = (*piece.ids[: response.start].tolist(), *modes.shared)
                if place not in known:
                    # All that follows what was there is the model's, what it is forced to write included.
                    roles = [*piece.roles[: response.start].tolist(), *[Role.REASONING] * (len(modes.shared) + 1)]
                    logits = next_logits(policy, [*place, 0], roles, len(place))[0] / (temperature or 1.0)
                    known[place] = torch.softmax(logits, -1)[list(modes.choice_ids)].numpy()
                np.testing.assert_allclose(response.choice_probs, known[place], atol=1e-4)
                checked += 1
    return checked


def check_greedy(policy: Policy, trajectories: Sequence[Trajectory], tie: float = 1e-4) -> None:
    """Every token of a greedy response is the trainer's most likely one, or within `tie` nats of it."""
    for trajectory in trajectories:
        for piece in trajectory.split():
            for response in piece.responses:
                ids = piece.ids[: response.end].tolist()
                logits = next_logits(policy, ids, piece.roles[: response.end].tolist(), response.start)
                drawn = logits.gather(-1, torch.tensor(ids[response.start :])[:, None])[:, 0]
                behind = (logits.max(-1).values - drawn).numpy()[piece.sampled[response.start : response.end]]
                assert behind.max(initial=0) <= tie


@functools.cache
def search_server() -> Server:
    """The one server of adapters up to rank 16 on the search world's base: all test files share it; it ends with us."""
    folder = tempfile.TemporaryDirectory()
    running = contextlib.ExitStack()
    atexit.register(running.close)
    running.enter_context(folder)
    return running.enter_context(serving(search_base_path(0), Path(folder.name), tokens=256, rank=16))


def engine_of(server: Server) -> int:
    """Process id of the server's engine."""
    return next(pid for pid in session(server.pid) if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())
