"""What routing costs a training step: two adapters of rank 8 against one of rank 16, and strict isolation.

    OMP_NUM_THREADS=1 python benchmarks/routing.py

A random Llama (12 M parameters unless you say otherwise), made-up responses with spans of both roles, whole optimiser
steps of `learn.grpo.update` without entropy or KL terms. Rounds alternate between the methods, and a ratio is that of
one round. The last line is a JSON object: medians of `train_step_ratio` (routed / shared) and `train_step_ratio_strict`
(strict / shared), the ratio for two LoRA agents, and `max_abs_dlogp_local`: largest distance between what both local
samplers record of tokens drawn through random adapters of large norm, and what the trainer computes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.lab.search_chat import CHAT, search_tokenizer
from unbraid.lab.search_world import held_out
from unbraid.learn.batch import collate
from unbraid.learn.config import LearnConfig
from unbraid.learn.grpo import make_optimiser, update
from unbraid.learn.objective import score_tokens
from unbraid.policy import AdapterConfig, Policy
from unbraid.policy.policy import add_adapter
from unbraid.policy.routing import RoutingConfig, make_router
from unbraid.policy.two_agents import TwoAgents
from unbraid.rollout import LocalSampler, Request, Trajectory
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.slots import SlotSampler
from unbraid.rollout.trajectory import Finish
from unbraid.tokens import Provenance

METHODS = ("shared, rank 16", "routed, 2 x rank 8", "routed, strict", "two LoRA agents, rank 8")


def bare(hidden: int, layers: int, vocabulary: int) -> Policy:
    """A random model over the search world's words, and ids that nothing stands for."""
    tokenizer = search_tokenizer()
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    return Policy(LlamaForCausalLM(config), tokenizer, ChatFormat.build(tokenizer, CHAT), torch.device("cpu"))


def policies(base: Policy) -> dict[str, Policy]:
    """The same base under every method, at equal scale (alpha / rank = 2)."""

    def adapted(rank: int, routing: RoutingConfig | None = None) -> Any:
        config = AdapterConfig(rank=rank, alpha=2 * rank, routing=routing)
        return add_adapter(deepcopy(base.model), config, base.format.automaton)

    agents = TwoAgents.of(adapted(8), make_router(RoutingConfig(), base.format.automaton))
    models = [adapted(16), adapted(8, RoutingConfig()), adapted(8, RoutingConfig(isolation="strict")), agents]
    return {name: replace(base, model=m, has_adapter=True) for name, m in zip(METHODS, models, strict=True)}


def made_up(
    base: Policy, prompts: int, samples: int, prompt: int, response: int
) -> tuple[list[Trajectory], np.ndarray]:
    """Groups of responses that think, search, read a result and answer."""
    rng, call = np.random.default_rng(0), base.format.automaton.delimiters[1]
    found: list[Trajectory] = []
    for _ in range(prompts):
        asked = rng.integers(30, 60, prompt)
        for sample in range(samples):
            ids = np.concatenate([asked, rng.integers(30, 60, response)])
            quarter = response // 4
            ids[prompt + quarter], ids[prompt + 2 * quarter] = call.open, call.close
            provenance = np.full(len(ids), Provenance.MODEL)
            provenance[:prompt] = Provenance.PROMPT
            provenance[prompt + 2 * quarter + 1 : prompt + 3 * quarter] = Provenance.OBSERVATION
            sampled = provenance == Provenance.MODEL
            found.append(
                Trajectory(
                    task_id="",
                    sample=sample,
                    ids=ids,
                    prompt_length=prompt,
                    roles=base.format.automaton.label(ids, provenance),
                    sampled=sampled,
                    logprobs=np.where(sampled, -4.0, 0.0).astype(np.float32),
                    entropies=np.full(len(ids), np.nan, dtype=np.float32),
                    choice_probs=(float("nan"), float("nan")),
                    mode=Mode.NONE,
                    forced=Mode.AUTO,
                    finish=Finish.STOP,
                    reward=float(rng.normal()),
                )
            )
    return found, np.repeat(np.arange(prompts), samples)


def step_of(policy: Policy, trajectories: list[Trajectory], groups: np.ndarray) -> Callable[[], float]:
    """One optimiser step, in seconds."""
    config = LearnConfig(steps=10**6, learning_rate=1e-5)
    optimiser = make_optimiser(policy, config)

    def once() -> float:
        began = time.perf_counter()
        update(policy, trajectories, groups, optimiser, [], config, step=0, temperature=1.0)
        return time.perf_counter() - began

    return once


def largest_difference(base: Policy, temperature: float = 1.0) -> float:
    """Between both local samplers and the trainer, in nats, through adapters that change much."""
    policy = policies(base)["routed, 2 x rank 8"]
    torch.manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2)
    requests = [
        Request(task, tuple(policy.format.prompt_ids(task.messages, task.tools)), sample)
        for task in held_out(0, "dev", 4)
        for sample in range(8)
    ]
    drawn = LocalSampler(policy).sample(requests, temperature=temperature, max_new_tokens=48)
    with SingleSampler(policy.format, lambda t: SlotSampler(policy, 16, t)) as slots:
        drawn += slots.sample(requests, temperature=temperature, max_new_tokens=48)
    batch = collate(drawn, np.zeros(len(drawn)), policy.format.modes.position, router=policy.router)
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, temperature, policy.format.modes.choice_ids)
    return float((scores.logprobs - batch.old_logprobs)[batch.sampled].abs().max())


def main() -> int:
    """Time every method and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens, a result among them")
    asked = parser.parse_args()
    base = bare(asked.hidden, asked.layers, asked.vocabulary)
    work = made_up(base, asked.prompts, asked.samples, asked.prompt, asked.response)
    steps = {name: step_of(policy, *work) for name, policy in policies(base).items()}
    for once in steps.values():
        once()  # the first step of each also checks the fast path
    rounds = {name: [] for name in METHODS}
    for _ in range(asked.rounds):
        for name, once in steps.items():
            rounds[name].append(once())
    shared = np.array(rounds[METHODS[0]])
    table = Table("method", "seconds a step", "ratio to shared (all rounds)")
    ratios = {name: np.array(rounds[name]) / shared for name in METHODS}
    for name, ratio in ratios.items():
        table.add_row(
            name, f"{median(rounds[name]):.3f}", f"{median(ratio):.3f} ({ratio.min():.2f} to {ratio.max():.2f})"
        )
    Console().print(table)
    print(
        json.dumps(
            {
                "train_step_ratio": round(median(ratios[METHODS[1]]), 3),
                "train_step_ratio_strict": round(median(ratios[METHODS[2]]), 3),
                "train_step_ratio_two_agents": round(median(ratios[METHODS[3]]), 3),
                "max_abs_dlogp_local": largest_difference(base),
                "parameters": base.parameter_count(),
                "rounds": asked.rounds,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
