"""What `rollout.py` plays: a model that counts, the episodes, and how long their tools take.

The model is a stock Qwen3 of random layers whose embeddings make it count. After the word `c37` it says `c36`, `c35`,
and so on to `c1`, and then calls the tool (after `f1` it stops). Prompts and observations end with such a word: it
decides how long the response will be, in every system that samples from the model, at any temperature up to 1.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

LATENCIES = Path(__file__).parent / "latencies.json"
KINDS = {"equal": "", "heavy_tailed": "heavy_tail_"}
"""Kinds of latencies, and what the names of their ratios start with."""
VOCABULARY, LONGEST, CALLS = 8192, 96, 5
"""Words; tokens of the longest response; calls of the longest episode."""
SIZES = {"tiny": (128, 2), "small": (256, 4), "medium": (384, 6)}
"""(width, layers): about the lab's own model, and more: 2.5, 7 and 17 million parameters."""
CALL = '{"name":"look","arguments":{}}'
MARKS = ("<pad>", "<unk>", "<eos>", "<tools>", "<user>", "<tool>", "<assistant>", "<tool_call>", "</tool_call>", CALL)
MODES = ("<think>", "</think>", "<no_think>")
TEMPLATE = (
    "<tools>{% for tool in tools or [] %} {{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %} {{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    ' <tool_call> {"name":"{{ call.function.name }}","arguments":{{ call.function.arguments | tojson }}} </tool_call>'
    "{% endfor %} <eos>"
    "{% else %} <{{ message.role }}> {{ message.content }}{% endif %}"
    "{% endfor %}"
)
"""No header before a response: the next token depends on the last one only, which must be the counting word."""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": r" [cf]\d+",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<eos>\s*", "content": "text"},
    },
}
"""How transformers reads responses: as those of Qwen3, with our words; one starts after the counting word."""


@dataclass(frozen=True)
class Work:
    """What is played, the same for every system.

    prompts: one text per task. observations[task][sample]: one text per call. latencies[kind][task][sample]: seconds
    per call.
    """

    prompts: list[str]
    observations: list[list[list[str]]]
    latencies: dict[str, list[list[list[float]]]]

    @property
    def tasks(self) -> int:
        return len(self.prompts)

    @property
    def samples(self) -> int:
        return len(self.observations[0])


def digest(sequences: Sequence[Sequence[int]]) -> str:
    """Of whole episodes as ids, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(map(list, sequences))).encode()).hexdigest()


def make_work(tasks: int, samples: int, seed: int = 0) -> Work:
    """Prompts of 300 to 500 words, 4 to 6 responses of 8 to 96 tokens (lognormal), observations of 50 to 150 words."""
    rng = np.random.default_rng(seed)

    def text(words: int, last: bool) -> str:
        tokens = int(np.clip(rng.lognormal(np.log(24), 0.8), 8, LONGEST))
        counting = f"f{tokens}" if last else f"c{tokens - 3}"  # the call itself takes four tokens, its stop included
        return " ".join([*(f"w{i}" for i in rng.integers(1000, size=words - 1)), counting])

    prompts = [text(int(rng.integers(300, 501)), last=False) for _ in range(tasks)]
    observations = [
        [
            [text(int(rng.integers(50, 151)), last=call + 1 == calls) for call in range(calls)]
            for calls in rng.integers(3, CALLS + 1, size=samples)
        ]
        for _ in range(tasks)
    ]
    committed = json.loads(LATENCIES.read_text())
    seconds = {kind: np.resize(committed[kind], (tasks, samples, CALLS)).tolist() for kind in KINDS}
    return Work(prompts, observations, seconds)


def make_model(folder: Path, width: int, layers: int, seed: int = 0) -> None:
    """Write the counting model and its tokenizer.

    The residual stream starts as a long random embedding and the layers add little to it, so that the head can be a
    table: the row of a word is the sum of the embeddings of those it follows.
    """
    counting = [f"{kind}{n}" for kind in "cf" for n in range(1, LONGEST + 1)]
    words = [*MARKS, *MODES, *counting]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    index = {word: i for i, word in enumerate(words)}
    core = Tokenizer(WordLevel(index, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>", padding_side="left"
    )
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    tokenizer.save_pretrained(folder)
    follower = {f"{kind}{n}": f"{kind}{n - 1}" for kind in "cf" for n in range(2, LONGEST + 1)}
    follower |= {"c1": "<tool_call>", "<tool_call>": CALL, CALL: "</tool_call>", "</tool_call>": "<eos>", "f1": "<eos>"}
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=index["<eos>"],
        pad_token_id=index["<pad>"],
    )
    model: Any = Qwen3ForCausalLM(config)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight.normal_(std=3.0)
        head = model.get_output_embeddings().weight.normal_(std=0.02)
        for word, after in follower.items():
            head[index[after]] += 40 * torch.nn.functional.normalize(embeddings[index[word]], dim=0) / width**0.5
    model.save_pretrained(folder)
