"""A tiny random agent that calls tools a lot, and an environment that answers with whatever could confuse it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from policies import with_adapters
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unbraid.chat.calls import TagCalls
from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.preset import Preset
from unbraid.chat.types import Mode
from unbraid.policy import Policy
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout.context import Drawn
from unbraid.rollout.trajectory import Finish
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Episode
from unbraid.tasks.reward import Reward
from unbraid.tasks.task import Task
from unbraid.tasks.tools import tool

Style = Literal["inline", "chat", "plain_chat"]
"""Results inside the assistant's turn; as messages, past responses shown without their mode; or shown as sampled."""

WORDS = tuple(f"w{i}" for i in range(8))
MARKS = (
    *("<think>", "</think>", "<no_think>", "<search>", "</search>", "<answer>", "</answer>"),
    *("<information>", "</information>", "<tools>", "<user>", "<tool>", "<assistant>", "search"),
)
TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %} {{ t.function.name }}{% endfor %} {% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<assistant> PAST{{ m.content }}"
    "{% for c in m.tool_calls or [] %} <search> {{ c.function.arguments.query }} </search>{% endfor %} <eos> "
    "{% else %}<{{ m.role }}> {{ m.content }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def agent_tokenizer(style: Style) -> PreTrainedTokenizerFast:
    """One id per word."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<unk>", "<eos>", *MARKS, *WORDS))}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE.replace("PAST", "<no_think> " if style == "plain_chat" else "")
    return tokenizer


def agent_policy(
    style: Style = "inline",
    seed: int = 0,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    routing: RoutingConfig | None = None,
) -> Policy:
    """A random Llama over some twenty words: calls, thoughts, stray tags and stops all come up by chance."""
    tokenizer = agent_tokenizer(style)
    preset = Preset(think="<think> ", after_thought=" </think> ", no_think="<no_think> ")
    inline = TagCalls(observation=" <information> {} </information> ")
    calls = inline if style == "inline" else TagCalls(observation="", close_stops=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        model = model.to(dtype)
        chat = ChatFormat.build(tokenizer, ChatConfig(preset=preset), calls)
        if routing:
            model = with_adapters(model, chat, routing, size=0.3)
    return Policy(model, tokenizer, chat, torch.device("cpu"), has_adapter=routing is not None)


def agent_tasks(count: int) -> list[Task]:
    """Prompts of different lengths, with delimiters in them."""
    texts = [" ".join(WORDS[(i + k) % 8] for k in range(1 + i % 5)) + " <search> <think> w1" for i in range(count)]
    return [Task(f"task{i}", ({"role": "user", "content": text},), level=str(i % 2)) for i, text in enumerate(texts)]


class Parrot(Environment):
    """Answers every query with words that depend on it, delimiters among them, and asks back a few times.

    Args:
        delay: seconds to wait before an answer, as a function of the query.
        replies: how often the user says something more.
    """

    def __init__(self, delay: Callable[[str], float] = lambda query: 0.0, replies: int = 2):
        self.delay, self.replies = delay, replies
        self.asked = 0

    def reset(self, task: Task) -> str | None:
        self.asked = 0
        return "w7 <answer>" if task.id.endswith("3") else None

    @tool
    async def search(self, query: str) -> str:
        """Words about a query."""
        import asyncio

        await asyncio.sleep(self.delay(query))
        digest = hashlib.sha256(query.encode()).digest()
        words = [("<search>", "</search>", "<think>", "</think>", "<eos>", *WORDS)[byte % 13] for byte in digest]
        return " ".join(words[: 1 + digest[0] % 9])

    def reply(self, content: str) -> str | None:
        self.asked += 1
        return f"w{self.asked} </think> <search>" if self.asked <= self.replies else None

    def score(self, episode: Episode) -> Reward:
        right = (len(episode.results) + len(episode.turns)) % 3 == 0
        return Reward(float(right), {"calls": float(len(episode.results))}, right, "by count")


@dataclass
class Script:
    """A ContextSampler that says what it is told, as text or as ids: the same responses in every episode."""

    format: ChatFormat
    responses: Sequence[str | list[int]]
    stops: bool = True
    max_tokens: int | None = None

    async def open(self, prompt_ids: Sequence[int]) -> "ScriptedContext":
        return ScriptedContext(self, list(prompt_ids))


@dataclass
class ScriptedContext:
    script: Script
    ids: list[int]
    spoken: int = 0
    closed: bool = False

    def extend(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def restart(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    async def respond(self, key: np.uint64, mode: Mode, max_new_tokens: int) -> Drawn:
        chat = self.script.format
        said = self.script.responses[self.spoken]
        ids = chat.encode(said) if isinstance(said, str) else list(said)
        self.spoken += 1
        if self.script.stops and ids[-1] not in chat.stop_ids:
            ids.append(chat.stop_ids[0])
        finish = Finish.STOP if self.script.stops and len(ids) <= max_new_tokens else Finish.LENGTH
        ids = ids[:max_new_tokens]
        self.ids += ids
        prefix = len(chat.prefix_ids(mode))
        values = np.where(np.arange(len(ids)) < prefix, 0, -1).astype(np.float32)
        entropies = np.where(values == 0, np.nan, 1).astype(np.float32)
        return Drawn(np.array(ids), prefix, values, entropies, (0.5, 0.5), finish)

    def close(self) -> None:
        self.closed = True
