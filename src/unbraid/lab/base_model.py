"""Pre-trains the lab's base models: small Qwen2 models that know one calls world.

Half of what they are is what they are not: there is no loss on the mode token, so that a base has no
opinion on when to think; and direct answers occur only for known chains.
"""

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from unbraid.chat.types import Answer
from unbraid.lab.calls_chat import PAD, STOP, calls_tokenizer, prompt_words, response_words
from unbraid.lab.calls_world import LEVELS, CallsWorld, Query, keyed_rng
from unbraid.learn.supervised import Batches, SupervisedExample, SupervisedTrainer, WarmupConfig

THINK_SHARE = 0.35
"""Share of pre-training examples that think."""


def pretraining_config(steps: int = 1000) -> WarmupConfig:
    return WarmupConfig(steps=steps, batch_examples=128, learning_rate=3e-3, ramp_steps=50, mode_weight=0.0)


def new_model(seed: int, vocabulary: dict[str, int]) -> Qwen2ForCausalLM:
    """An untrained model of 0.34 M parameters; its weights are drawn from the world's seed."""
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary[STOP],
        pad_token_id=vocabulary[PAD],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def pretraining_batches(world: CallsWorld, vocabulary: dict[str, int], size: int) -> Batches:
    """Fresh examples for every step: thoughts over free chains of every length, direct answers of known chains."""
    known = world.known_chains

    def example(query: Query, answer: Answer) -> SupervisedExample:
        response = tuple(vocabulary[w] for w in response_words(answer))
        prompt = tuple(vocabulary[w] for w in prompt_words(query))
        return SupervisedExample(prompt, response, (0.0, *[1.0] * (len(response) - 1)))

    def batch(step: int) -> list[SupervisedExample]:
        rng = keyed_rng(world.seed, "pretraining", step)
        examples = []
        for i in range(size):
            if i < THINK_SHARE * size:
                query = world.query(world.free_chain(i % LEVELS, rng), rng)
                examples.append(example(query, query.long))
            else:
                query = world.query(known[rng.integers(len(known))], rng)
                examples.append(example(query, query.short))
        return examples

    return batch
