"""The tokenizer of an exported folder, and the proof that stock transformers makes the ids that were trained on.

What a mode puts first is text in the template (`mode=` auto, think, no_think; `enable_thinking=`). A template is
rendered as one text and tokenised as one, while in training the prompt's ids and the prefix's are made apart. Where
the tokenizer joins the two at the seam, the template cannot say the mode: it is exported without modes, openly.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbraid.chat.format import ChatFormat
from unbraid.chat.template import unwrap
from unbraid.chat.types import Mode
from unbraid.errors import ChatError
from unbraid.serve.response_template import response_template

MODES = (Mode.AUTO, Mode.THINK, Mode.NO_THINK)
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, as <tool_call> or in words.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# The tilde is a character of its own: a tokenizer that composes unicode makes other ids of it.
_ASKED = {"role": "user", "content": "Weather in Sa\u0303o Paulo, 東京? 🎉\n\n [think] <think>"}
_CALL = {"type": "function", "id": "call00000", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
_PLAIN: tuple[tuple[Mapping[str, Any], ...], ...] = (
    (_ASKED,),
    ({"role": "system", "content": "Be brief."}, _ASKED),
    (_ASKED, {"role": "assistant", "content": "Sunny."}, {"role": "user", "content": "And\ttomorrow "}),
)
_WITH_TOOLS: tuple[tuple[Mapping[str, Any], ...], ...] = (
    (_ASKED,),
    (
        _ASKED,
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call00000", "name": "get_weather", "content": '{"sky": "</tool_call>"}'},
    ),
)
PROBES = (*((messages, ()) for messages in _PLAIN), *((messages, (_TOOL,)) for messages in _WITH_TOOLS))
"""Conversations, with tools or without, that both sides render."""


@dataclass(frozen=True)
class Rendered:
    """What was compared: `modes` that the template says as they were trained, and how many prompts said so."""

    modes: tuple[Mode, ...]
    prompts: int


def save_tokenizer(chat: ChatFormat, out: Path) -> Rendered:
    """Write the tokenizer, its template with modes, and how its answers are read; compare it with what was trained.

    Raises:
        ChatError: stock transformers makes other ids of a conversation, or none can be rendered.
    """
    chat.save(out)
    _add_response_template(chat, out)
    found = compare(chat, out)
    if Mode.AUTO not in found.modes:
        raise ChatError(
            f"stock transformers makes other ids of a conversation than were trained on: the model's own tokenizer is "
            f"a {type(chat.tokenizer).__name__}, which AutoTokenizer does not load from a folder; save it as another"
        )
    if len(found.modes) < len(MODES):
        _save_without_modes(chat, out)
    return found


def compare(chat: ChatFormat, folder: Path) -> Rendered:
    """Hold the ids of a folder's template, in every mode, against the prompt and the forced prefix of training.

    Raises:
        ChatError: no conversation can be rendered at all.
    """
    import transformers

    stock = transformers.AutoTokenizer.from_pretrained(str(folder))
    wrong: set[Mode] = set()
    prompts = 0
    for messages, tools in PROBES:
        try:
            trained = chat.prompt_ids(messages, tools)
        except ChatError:  # a template without tools, or without such roles
            continue
        prompts += 1
        for mode in MODES:
            if stock_ids(stock, chat, messages, tools, mode) != [*trained, *chat.prefix_ids(mode)]:
                wrong.add(mode)
    if not prompts:
        raise ChatError("the chat template renders no conversation that begins with a user's message: correct it")
    return Rendered(tuple(mode for mode in MODES if mode not in wrong), prompts)


def stock_ids(
    tokenizer: Any,
    chat: ChatFormat,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    mode: Mode,
) -> list[int]:
    """What a user of stock transformers feeds the model. Tools that are called by tags are told in the prompt."""
    shown = [dict(tool) for tool in tools] if tools and not chat.calls.observation else None
    return list(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=shown, add_generation_prompt=True, mode=mode.value, return_dict=False,
        )
    )  # fmt: skip


def _add_response_template(chat: ChatFormat, out: Path) -> None:
    """`tokenizer.parse_response`, and vLLM's `hf` parsers, then read answers as `ChatFormat.read` does."""
    path = out / "tokenizer_config.json"
    settings = {**json.loads(path.read_text(encoding="utf-8")), "response_template": response_template(chat)}
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _save_without_modes(chat: ChatFormat, out: Path) -> None:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(out))
    template = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: unwrap(text) for name, text in template.items()} if isinstance(template, dict) else unwrap(template)
    )
    tokenizer.save_pretrained(str(out))
    _add_response_template(chat, out)
