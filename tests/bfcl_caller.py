"""A tiny model that has learnt by heart to make one call, and to think before it where it is told to: a run to serve.

On prompts as long as BFCL's it does so now and then: its answers are of every kind, which is what tests want.
"""

import random
import re
from pathlib import Path
from typing import Any

import torch
from tiny import CORPUS, tiny_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.types import Answer, Call, Mode
from unbraid.learn.supervised import SupervisedExample, SupervisedTrainer, WarmupConfig
from unbraid.policy import ModelConfig, Policy
from unbraid.recipe import Recipe, TasksConfig
from unbraid.rollout.config import RolloutConfig

CHAT = ChatConfig(preset="think-block")
CALL = Call("add", {"a": 1, "b": 2})
THOUGHT = "I look it up."
WORDS = re.findall("[a-z]{2,}", CORPUS)


def fresh_policy(positions: int = 32768) -> Policy:
    """Untrained, without position embeddings that would tell a long prompt from a short one."""
    tokenizer: Any = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=positions, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
    return Policy(model, tokenizer, ChatFormat.build(tokenizer, CHAT), torch.device("cpu"))


def calling_run(folder: Path, steps: int = 120) -> Policy:
    """Train the model and save it as a run: by itself it does not think; in both forced modes it calls as well."""
    policy = fresh_policy()
    config = WarmupConfig(steps=steps, learning_rate=1e-2, decay="cosine", ramp_steps=5)
    SupervisedTrainer(policy.model, config, lambda step: _examples(policy.format, step)).run()
    policy.save(folder / "final")
    # A whole model's weights are all in `final`; the base is loaded first all the same.
    policy.model.save_pretrained(str(folder / "base"))
    policy.tokenizer.save_pretrained(str(folder / "base"))
    recipe = Recipe(
        name="caller", model=ModelConfig(path=str(folder / "base")), chat=CHAT, tasks=TasksConfig(train="nowhere"),
        rollout=RolloutConfig(max_new_tokens=100),
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return policy


def _examples(chat: ChatFormat, step: int) -> list[SupervisedExample]:
    """Fresh prompts at every step, so that none is learnt: some words, some tools."""
    draw = random.Random(step)
    found = []
    for mode in (Mode.AUTO, Mode.THINK, Mode.NO_THINK):
        tools = [_tool(draw) for _ in range(draw.randint(1, 3))]
        messages = [{"role": "user", "content": " ".join(draw.choices(WORDS, k=draw.randint(2, 60)))}]
        thinks = mode is Mode.THINK
        ids = chat.response_ids(Answer(Mode.THINK if thinks else Mode.NO_THINK, THOUGHT if thinks else "", (CALL,)))
        forced = chat.prefix_ids(mode)
        prompt = (*chat.prompt_ids(messages, tools), *forced)
        rest = tuple(ids[len(forced) :])
        found.append(SupervisedExample(prompt, rest, (1.0,) * len(rest)))
    return found


def _tool(draw: random.Random) -> dict[str, Any]:
    properties = {name: {"type": "string", "description": " ".join(draw.choices(WORDS, k=5))} for name in WORDS[:3]}
    function = {
        "name": draw.choice(WORDS),
        "description": "",
        "parameters": {"type": "object", "properties": properties},
    }
    return {"type": "function", "function": function}
