"""A small ChatML model for real rows: byte-level BPE trained on the rows' own texts, a Qwen3 of random weights.

It has what the calls world has not: schemas of hundreds of tokens, any unicode, conversations of many turns. It
stands in for a downloaded Qwen where none can be downloaded; nothing in it is read by anything but transformers.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from unbraid.tasks.task import Task

STOP, PAD = "<|im_end|>", "<|endoftext|>"
# PAD and the ChatML tags are control tokens; the other four are written and read as text, each one id.
CONTROL = (PAD, "<|im_start|>", STOP)
DELIMITERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

# Words with one leading space, single digits, punctuation, runs of newlines: what GPT-style tokenizers split into.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{%- set head = messages[0].content if messages and messages[0].role == 'system' else 'You are a helpful assistant.' -%}
{{- '<|im_start|>system\\n' + head -}}
{%- if tools -%}
{{- '\\n\\nThese functions can be called:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nWrite each call as one JSON object with its name and arguments between call tags.' -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": ' + (function.name | tojson) + ', "arguments": ' -}}
{{- function.arguments if function.arguments is string else (function.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role != 'system' or not loop.first -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def chatml_tokenizer(
    texts: Iterable[str], vocab_size: int = 4096, delimiters: Sequence[str] = DELIMITERS
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with the ChatML template above and one id for each delimiter.

    All 256 bytes are in the vocabulary, so any text round-trips. A blank line is one token that is not two newlines:
    the `think-block` preset tells its modes apart there.
    """
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(delimiters),
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # However few blank lines the texts have, theirs must be among the first merges.
    core.train_from_iterator(chain(texts, repeat("\n\n", 100_000)), trainer)
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in delimiters])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=STOP,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_chatml_model(
    out: Path | str, texts: Iterable[str], vocab_size: int = 4096, hidden: int = 128, layers: int = 2, seed: int = 0
) -> Path:
    """Make a tokenizer and a randomly initialised Qwen3 model, and save both as a Hugging Face folder.

    The vocabulary is padded to a multiple of 64, as real models have it. Choice: Qwen3, not Qwen2; `AutoTokenizer`
    takes the tokenizer of a `qwen2` folder for Qwen's own and composes unicode (NFC): not all of it would round-trip.

    Args:
        texts: what the tokenizer is trained on; `task_texts` gives those of tasks.
        hidden: width, a multiple of 32 (heads are 32 wide).
        seed: of the weights.
    """
    transformers.utils.logging.disable_progress_bar()
    out = Path(out)
    tokenizer = chatml_tokenizer(texts, vocab_size)
    heads = hidden // 32
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_id(tokenizer, STOP),
        pad_token_id=_id(tokenizer, PAD),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return tokenizer.get_vocab()[token]


def task_texts(tasks: Iterable[Task]) -> Iterable[str]:
    """The texts of tasks as a tokenizer should see them: what is said, the tools, the answers."""
    for task in tasks:
        yield from (str(message.get("content") or "") for message in task.messages)
        yield from map(_json, task.tools)
        for answer in task.answers:
            yield answer.thought
            yield answer.content
            yield from (_json({"name": c.name, "arguments": c.arguments}) for c in answer.calls)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
