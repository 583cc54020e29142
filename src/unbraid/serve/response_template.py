"""A chat format as a `response_template`: data in a tokenizer's configuration that says how its answers are read.

Transformers reads responses with it (`tokenizer.parse_response`), and so does vLLM (`--reasoning-parser hf
--tool-call-parser hf`), which makes every preset and call format readable by stock servers, not only Qwen3's. It also
sees the prompt, so that a mode forced there is read right however it was asked for.

A template divides a text into regions, each with a pattern that opens it and one that closes it. While a text streams
in, a pattern that could still match holds it back; a region that may open anywhere is held back only by the others'.
"""

import re
from typing import Any

from unbraid.chat.calls import CallFormat, JsonCalls
from unbraid.chat.format import PROBE, ChatFormat
from unbraid.chat.preset import Preset

_NEXT = r"\{\s*\"name\"\s*:"
"""How a further call of the same span begins. Inside a JSON text a quote is escaped: it cannot look like this."""


def response_template(chat: ChatFormat) -> dict[str, Any]:
    """The `response_template` of a chat format, without calls where `reads_calls` is False.

    It says what `ChatFormat.read` says of a well-formed response. Others are read as far as they go; a call that is no
    JSON is left out.
    """
    calls = chat.calls if isinstance(chat.calls, JsonCalls) and reads_calls(chat.calls) else None
    fields = {"thinking": _thinking(chat.preset), "content": _content(chat.preset, calls)}
    if calls is not None:
        fields["tool_calls"] = _calls(calls)
    return {"version": 1, "start_anchor": _anchor(chat), "fields": fields}


def reads_calls(calls: CallFormat) -> bool:
    """Whether a `response_template` can say how `calls` are read: JSON whose results come as messages of their own."""
    return isinstance(calls, JsonCalls) and not calls.observation


def _anchor(chat: ChatFormat) -> str:
    """What the template writes last before a response begins."""
    said = [{"role": "user", "content": PROBE}]
    before, after = chat.render(said, add_generation_prompt=False), chat.render(said)
    added = after.removeprefix(before).strip() if after.startswith(before) else ""
    return added or after.rpartition(PROBE)[2].strip() or PROBE


def _thinking(preset: Preset) -> dict[str, str]:
    """Regions of thinking. A prefix that skips thinking is an empty one: it is no content either."""
    opened, closed = f"(?:{_text(preset.think)}|{_text(preset.open)})\\s*", f"\\s*{_text(preset.close)}\\s*"
    if _is_block(preset):
        return {"open_pattern": opened, "close_pattern": closed}
    skip = _text(preset.no_think)
    return {"open_pattern": rf"{opened}|(?<=\A\s*){skip}", "close_pattern": rf"{closed}|(?<=\A\s*{skip})\s*"}


def _content(preset: Preset, calls: JsonCalls | None) -> dict[str, str]:
    """Regions of content: whatever is left, white space around it and tags aside."""
    before, after = calls.content_tags if calls else ("", "")
    ends = [preset.open, *([calls.open] if calls else [])]
    closed = r"\s*(?=" + "|".join(map(re.escape, ends)) + r")|\s+\Z"
    if not before:
        return {"open_pattern": r"(?=\S)", "close_pattern": closed}
    # Only where something may begin: or the second character of a tag would be content before the tag is whole.
    ends_before = (preset.close, preset.no_think.rstrip(), calls.close if calls else "")
    last = re.escape("".join(dict.fromkeys(text[-1] for text in ends_before if text)))
    start = rf"(?<=\A|[\s{last}])(?!(?:{_beginnings(before)})\Z)(?=\S)"
    return {"open_pattern": rf"{re.escape(before)}\s*|{start}", "close_pattern": rf"\s*{re.escape(after)}\s*|{closed}"}


def _calls(calls: JsonCalls) -> dict[str, Any]:
    opening, closing = re.escape(calls.open), re.escape(calls.close)
    opened, closed = rf"{opening}\s*", rf"\s*{closing}\s*"
    if not calls.is_list and not calls.one_per_span:
        separator = rf"\s*{re.escape(calls.between.strip())}\s*" if calls.between.strip() else r"\s+"
        closed += rf"|(?<=\}})(?={separator}{_NEXT})"
        opened += rf"|(?<={opening}(?:(?!{closing}).)*\}}){separator}(?={_NEXT})"
    whole = "" if calls.is_list else "content."
    function = {"name": f"{{{whole}name}}", "arguments": f"{{{whole}{calls.key}}}"}
    return {
        "open_pattern": opened,
        "close_pattern": closed,
        "content": "json",
        "transform": {"type": "function", "function": function},
        "transform_each" if calls.is_list else "repeats": True,
    }


def _is_block(preset: Preset) -> bool:
    """Whether thinking is skipped by an empty thought, as Qwen3 does it."""
    return preset.no_think.split() == [preset.open, preset.close]


def _text(text: str) -> str:
    """A pattern of `text`, any white space within it."""
    return r"\s*".join(re.escape(word) for word in text.split())


def _beginnings(text: str) -> str:
    return "|".join(re.escape(text[:end]) for end in range(len(text) - 1, 0, -1))
