"""Tiny random policies and hand-made trajectories that several test files need."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.lab.calls_world import CallsWorld, Split
from unbraid.policy import AdapterConfig, Policy
from unbraid.policy.policy import add_adapter
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import LocalSampler, Request, Trajectory
from unbraid.tasks.task import Task


def tiny_policy(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    sharp: float = 0.3,
    adapter: bool = False,
    routing: RoutingConfig | None = None,
) -> Policy:
    """A random Qwen2 over the calls vocabulary. A larger `sharp` makes its distributions more uneven."""
    tokenizer = calls_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=sharp,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen2ForCausalLM(config)
        model = model.to(dtype)
        chat = ChatFormat.build(tokenizer, CHAT)
        if adapter or routing:
            model = with_adapters(model, chat, routing)
    return Policy(model, tokenizer, chat, torch.device("cpu"), has_adapter=adapter or routing is not None)


def with_adapters(model: Any, chat: ChatFormat, routing: RoutingConfig | None, size: float = 0.1) -> Any:
    """The model with LoRA of rank 4 that changes something; a larger `size` makes it change more."""
    model = add_adapter(model, AdapterConfig(rank=4, alpha=8, routing=routing), chat.automaton)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * size
    return model


def calls_tasks(count: int = 6, seed: int = 0) -> list[Task]:
    """Tasks of every level: their prompts differ in length."""
    tasks = CallsWorld(seed).evaluation_tasks(Split.DEV, per_level=max(1, count // 6 + 1))
    return tasks[:: max(1, len(tasks) // count)][:count]


def requests_for(policy: Policy, tasks: Sequence[Task], modes: Sequence[Mode]) -> list[Request]:
    """One request per task and mode, in task order."""
    return [
        Request(task, tuple(policy.format.prompt_ids(task.messages, task.tools)), sample, mode)
        for task in tasks
        for sample, mode in enumerate(modes)
    ]


def sampled_batch(
    policy: Policy, prompts: int = 4, samples: int = 4, temperature: float = 1.0, seed: int = 0, budget: int = 16
) -> tuple[list[Trajectory], np.ndarray]:
    """Trajectories with made-up rewards, and their groups. Modes are set by hand so that every group has both."""
    tasks = calls_tasks(prompts)
    trajectories = LocalSampler(policy).sample(
        requests_for(policy, tasks, [Mode.AUTO] * samples), temperature=temperature, max_new_tokens=budget, seed=seed
    )
    rng = np.random.default_rng(seed)
    for trajectory in trajectories:
        trajectory.reward = float(rng.choice([-1.0, -0.5, 0.5, 1.0]))
        trajectory.mode = [Mode.THINK, Mode.NO_THINK, Mode.NONE][rng.choice(3, p=[0.45, 0.45, 0.1])]
    return trajectories, np.repeat(np.arange(prompts), samples)
