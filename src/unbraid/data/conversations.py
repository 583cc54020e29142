"""Conversations: ShareGPT rows (`conversations`) and OpenAI-style rows (`messages`), plain or with typed content.

Every assistant turn becomes one example with the turns before it as context.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unbraid.chat.types import Call
from unbraid.data.row import Example, Message, RowError, assistant_message, field, read_calls, split_thought
from unbraid.data.schema import read_tools

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot"),
    "call": ("function_call", "tool_call"),
    "tool": ("tool", "observation", "function", "tool_response", "ipython"),
}
_ROLE = {name: role for role, names in _ROLES.items() for name in names}


@dataclass(frozen=True)
class Turn:
    """One assistant turn, while a conversation is being read."""

    thought: str = ""
    calls: tuple[Call, ...] = ()
    content: str = ""

    def __add__(self, other: "Turn") -> "Turn":
        """Two assistant messages in a row are one turn (ShareGPT writes parallel calls as several)."""

        def join(a: str, b: str) -> str:
            return f"{a}\n{b}" if a and b else a or b

        return Turn(join(self.thought, other.thought), self.calls + other.calls, join(self.content, other.content))


def sharegpt(row: Mapping[str, Any]) -> Iterator[Example]:
    """`{"conversations": [{"from", "value"}], "tools": JSON text, "system"?}` (Glaive, LLaMA-Factory)."""
    tools = read_tools(row.get("tools"))
    head = [("system", row["system"])] if isinstance(row.get("system"), str) and row["system"].strip() else []

    def turns() -> Iterator[tuple[int, Message | Turn]]:
        yield from ((-1, {"role": role, "content": text}) for role, text in head)
        for index, message in enumerate(field(row, "conversations", list)):
            role = _role(message, "from", index)
            yield index, _sharegpt_turn(role, field(message, "value", str))

    yield from _examples(turns(), tools)


def _sharegpt_turn(role: str, value: str) -> Message | Turn:
    if role in ("assistant", "call"):
        thought, rest = split_thought(value)
        return Turn(thought, read_calls(rest)) if role == "call" else Turn(thought, (), rest)
    return {"role": role, "content": value}


def messages(row: Mapping[str, Any]) -> Iterator[Example]:
    """`{"messages": [{"role", "content", "tool_calls"?, "reasoning_content"?}], "tools": list or JSON text}`.

    `content` is a text, or a list of typed parts `{"type": "text" | "reasoning" | "tool_call", "value"}`.
    """
    tools = read_tools(row.get("tools"))

    def turns() -> Iterator[tuple[int, Message | Turn]]:
        for index, message in enumerate(field(row, "messages", list)):
            yield index, _message_turn(_role(message, "role", index), message)

    yield from _examples(turns(), tools)


def _message_turn(role: str, message: Mapping[str, Any]) -> Message | Turn:
    turn = _content(message.get("content"))
    if role == "call":
        return Turn(turn.thought, turn.calls or read_calls(turn.content))
    if role == "assistant":
        thought, content = split_thought(turn.content)
        reasoning = message.get("reasoning_content") or ""
        turn = replace(turn, thought=turn.thought or thought or str(reasoning).strip(), content=content)
        return turn + Turn(calls=read_calls(message["tool_calls"])) if message.get("tool_calls") else turn
    if turn.thought or turn.calls:
        raise RowError(f"a {role} message has reasoning or calls in it")
    names = {k: message[k] for k in ("name", "tool_call_id") if role == "tool" and isinstance(message.get(k), str)}
    return {"role": role, "content": turn.content, **names}


def _content(content: Any) -> Turn:
    """The content of a message: nothing, a text, or typed parts."""
    if content is None:
        return Turn()
    if isinstance(content, str):
        return Turn(content=content)
    if not isinstance(content, list):
        raise RowError(f"content is a {type(content).__name__}, not a text or a list of parts")
    turn = Turn()
    for part in content:
        if not isinstance(part, Mapping):
            raise RowError(f"a part of a message is a {type(part).__name__}, not an object")
        kind = part.get("type")
        value = next((part[k] for k in ("value", "text", "reasoning") if k in part), None)
        if kind == "tool_call":
            turn += Turn(calls=read_calls(value))
        elif kind in ("text", "reasoning") and isinstance(value, str):
            turn += Turn(content=value.strip()) if kind == "text" else Turn(thought=value.strip())
        else:
            raise RowError("a part of a message is not a text, reasoning or tool_call with a value")
    return turn


def _role(message: Any, key: str, index: int) -> str:
    if not isinstance(message, Mapping):
        raise RowError(f"message {index} is a {type(message).__name__}, not an object")
    name = field(message, key, str)
    if name not in _ROLE:
        raise RowError(f"unknown role in {key!r}: known are {', '.join(_ROLE)}")
    return _ROLE[name]


def _examples(turns: Iterator[tuple[int, Message | Turn]], tools: tuple[Message, ...]) -> Iterator[Example]:
    """One example per assistant turn. A turn that cannot be read ends the row; what came before it is kept."""
    context: list[Message] = []
    open_turn: tuple[int, Turn] | None = None
    for index, turn in turns:
        if isinstance(turn, Turn):
            open_turn = (open_turn[0], open_turn[1] + turn) if open_turn else (index, turn)
            continue
        if open_turn:
            yield _example(*open_turn, context, tools)
            context.append(assistant_message(open_turn[1].calls, open_turn[1].content))
            open_turn = None
        context.append(turn)
    if open_turn:
        yield _example(*open_turn, context, tools)


def _example(index: int, turn: Turn, context: list[Message], tools: tuple[Message, ...]) -> Example:
    return Example(index, tuple(context), tools, turn.thought, turn.calls, turn.content)
