"""Tiny chat models for TRL's trainers, and trainers of a few steps on a CPU."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import CHATML, tiny_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from unbraid.chat import PRESETS
from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.template import wrap

CHAT = ChatConfig(preset="think-block", call_format="hermes")
QUESTIONS = ("What is the weather in Paris?", "Add 1 and 2.5", "Tomorrow?", "You may call one or more functions")
OFF: dict[str, Any] = {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1}


def chat_tokenizer(modes: bool = False) -> PreTrainedTokenizerFast:
    """ChatML with tools. modes: its template takes `mode` and `enable_thinking`, as that of an exported tokenizer."""
    tokenizer = tiny_tokenizer()
    if modes:
        tokenizer.chat_template = wrap(CHATML, PRESETS["think-block"])
    return tokenizer


def chat_model(seed: int = 0, sharp: float = 0.1, head: int = 16) -> Any:
    """A random Qwen3 over that tokenizer's ids."""
    tokenizer: Any = chat_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=head, initializer_range=sharp, tie_word_embeddings=False,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def chat_format() -> ChatFormat:
    return ChatFormat.build(chat_tokenizer(), CHAT)


def prompts(count: int = 4) -> Dataset:
    """Conversations that a user began."""
    rows = [{"prompt": [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}]} for i in range(count)]
    return Dataset.from_list(rows)


def conversations(count: int = 4) -> Dataset:
    """A question each, answered with a thought and a call."""
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2.5}}\n</tool_call>'
    answer = f"<think>\nSo I should look it up.\n</think>\n\n{call}"
    rows = [
        {
            "prompt": [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def grpo_config(folder: Path, **settings: Any) -> GRPOConfig:
    """Four completions of at most eight tokens a step."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 8, "max_steps": 2,
        "learning_rate": 1e-2, "loss_type": "grpo", "use_bias_correction_kl": False, "gradient_checkpointing": False,
        "save_strategy": "no", "lr_scheduler_type": "constant",
    }  # fmt: skip
    return GRPOConfig(output_dir=str(folder), **OFF, **{**defaults, **settings})


def sft_config(folder: Path, **settings: Any) -> SFTConfig:
    """Two conversations a step."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no",
        "lr_scheduler_type": "constant", "dataset_num_proc": None, "max_length": 256,
    }  # fmt: skip
    return SFTConfig(output_dir=str(folder), **OFF, **{**defaults, **settings})


def lengths(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs between completions of any policy."""
    return [float(sum(ids) % 7) for ids in completion_ids]
