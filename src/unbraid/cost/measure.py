"""A short measurement of the machine at hand: one step of a small random model, and how much slower it is than told."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unbraid.chat.format import ChatFormat
from unbraid.cost.machines import CPU, Machine, scaled
from unbraid.cost.work import StepTokens, Work, learning_work, sampling_work
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.learn.config import LearnConfig
from unbraid.learn.grpo import make_optimiser, update
from unbraid.policy import AdapterConfig, ModelConfig, Policy
from unbraid.policy.memory import ModelShape, model_shape
from unbraid.policy.policy import add_adapter
from unbraid.rollout import LocalSampler, Request
from unbraid.tasks.task import Task


@dataclass(frozen=True)
class Small:
    """A step of a random Qwen2. Sizes: vocabulary, hidden, inner, layers; heads are 8, two of keys.

    rank: of an adapter; 0 trains every weight.
    """

    vocabulary: int = 8192
    hidden: int = 384
    inner: int = 1024
    layers: int = 6
    prompts: int = 2
    samples: int = 4
    prompt: int = 160
    new: int = 32
    rank: int = 0
    checkpointing: bool = False
    fast: bool = True
    kl: float = 0.0


@dataclass(frozen=True)
class Measured:
    """CPU seconds of the best of several steps, and what was done in them."""

    sampling: float
    learning: float
    tokens: StepTokens
    shape: ModelShape

    def work(self, small: Small) -> tuple[dict[str, Work], Work]:
        """What sampling did, by stage, and all that learning did."""
        learned = learning_work(self.shape, self.tokens, small.samples, small.kl > 0)
        # All rows are drawn together, and some go on to the last token.
        return sampling_work(self.shape, self.tokens, self.tokens.longest), sum(learned.values(), Work())

    def expected(self, small: Small, machine: Machine = CPU) -> tuple[float, float]:
        """(sampling, learning) seconds that the machine would take."""
        drawn, learned = self.work(small)
        sampling = machine.passes.seconds(drawn["prompts"]) + machine.drawing.seconds(drawn["drawing"])
        return sampling, machine.passes.seconds(learned)


def make_small(small: Small) -> tuple[Policy, ModelConfig]:
    """The policy of a measurement, of random weights."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=small.vocabulary,
        hidden_size=small.hidden,
        intermediate_size=small.inner,
        num_hidden_layers=small.layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    wanted = ModelConfig(
        path="random",
        device="cpu",
        adapter=AdapterConfig(rank=small.rank) if small.rank else None,
        gradient_checkpointing=small.checkpointing,
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if wanted.adapter:
        model = add_adapter(model, wanted.adapter)
    if small.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    tokenizer = calls_tokenizer()
    chat = ChatFormat.build(tokenizer, CHAT)
    return Policy(model, tokenizer, chat, torch.device("cpu"), wanted.adapter is not None), wanted


def measure(small: Small, steps: int = 2) -> Measured:
    """Sample and learn: once unmeasured, then so often. Seconds are CPU seconds of the best step."""
    policy, config = make_small(small)
    learn = LearnConfig(fast=small.fast, kl=small.kl, micro_batch=small.samples, skip_dead=False)
    if small.kl:
        policy.freeze_reference()
    optimiser, rng = make_optimiser(policy, learn), np.random.default_rng(0)
    groups = np.repeat(np.arange(small.prompts), small.samples)
    sampling, learning, drawn = float("inf"), float("inf"), 0.0
    for step in range(steps + 1):
        prompts = [tuple(rng.integers(20, small.vocabulary, small.prompt).tolist()) for _ in range(small.prompts)]
        requests = [
            Request(Task(str(number), ()), prompt, sample)
            for number, prompt in enumerate(prompts)
            for sample in range(small.samples)
        ]
        began = time.process_time()
        drawing = LocalSampler(policy).sample(requests, temperature=1.0, max_new_tokens=small.new, seed=step)
        between = time.process_time()
        for number, trajectory in enumerate(drawing):
            trajectory.reward = float(number % 2)
        update(policy, drawing, groups, optimiser, [], learn, step=step, temperature=1.0)
        ended = time.process_time()
        if step:
            sampling, learning = min(sampling, between - began), min(learning, ended - between)
            drawn += sum(t.response_tokens for t in drawing) / len(drawing) / steps
    tokens = StepTokens(small.prompts, small.samples, small.prompt, drawn, longest=small.new)
    return Measured(sampling, learning, tokens, model_shape(policy.model, config, small.fast))


def calibrate(small: Small | None = None, steps: int = 2) -> Machine:
    """This machine: `CPU` scaled by what one measured step took of what it was expected to take."""
    small = small or Small()
    return fitted(small, measure(small, steps))


def fitted(small: Small, found: Measured) -> Machine:
    """`CPU`, scaled so that it explains one measurement: first passes by learning, then drawing by the rest."""
    learned = found.learning / found.expected(small)[1]
    prompts = CPU.passes.times(learned).seconds(found.work(small)[0]["prompts"])
    drawn = max(found.sampling - prompts, 0.1 * found.sampling)
    return scaled(CPU, learned, drawn / CPU.drawing.seconds(found.work(small)[0]["drawing"]))
