"""Chat completions on the wire, the server's side: requests as what is asked, answers as OpenAI's JSON.

The names are those of vLLM 0.32, so that a client need not know which of the two answers; `reasoning_content`, its
older name of `reasoning`, is given besides.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unbraid.chat.calls import load_json
from unbraid.chat.types import Call, Mode

MAX_CHOICES = 128
"""Most answers of one request (`n`)."""
SEEDS = 2**63
"""Seeds lie between minus this and this."""
TEMPERATURES = (0.01, 100.0)
"""From where to where; besides 0, which is greedy."""

# What would change the drawing and is not done here, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "stop": ("", []),
    "stop_token_ids": ([],),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (True,),
    "reasoning_effort": (),
    "thinking_token_budget": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}
_ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRequestError(ValueError):
    """What a client asked cannot be answered; the message says why."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True)
class Asked:
    """A request, checked.

    messages: as chat templates take them, arguments of calls as objects; `reasoning` of earlier answers is kept.
    tools: empty also where `tool_choice` is none. max_tokens: most tokens to draw; None where the request says nothing.
    usage: whether a stream ends with the tokens used.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    mode: Mode = Mode.AUTO
    temperature: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    n: int = 1
    stream: bool = False
    usage: bool = False


@dataclass(frozen=True)
class Choice:
    """One answer. call_ids: one per call. tokens: how many were drawn, the stop token included."""

    thought: str
    content: str
    calls: tuple[Call, ...]
    call_ids: tuple[str, ...]
    finish: Literal["stop", "length", "tool_calls"]
    tokens: int


@dataclass(frozen=True)
class Completion:
    """The answers to a request. prompt_tokens: of the prompt, a forced mode's prefix included, as servers count it."""

    prompt_tokens: int
    choices: tuple[Choice, ...]


def read_request(body: bytes, name: str) -> Asked:
    """What a body asks of the model `name`.

    Raises:
        BadRequestError: it is no request, asks for another model, or for something that is not done here.
    """
    try:
        asked = load_json(body.decode())[0]
    except ValueError as problem:
        raise BadRequestError(f"the body is not JSON ({problem})") from problem
    if not isinstance(asked, dict):
        raise BadRequestError("the body is a JSON object with messages")
    if asked.get("model") not in (None, "", name):
        raise BadRequestError(
            f"the model {_shown(asked['model'])} does not exist: this server has '{name}'",
            "model", "model_not_found", 404,
        )  # fmt: skip
    for key, neutral in _NEUTRAL.items():
        if asked.get(key) is not None and asked[key] not in neutral:
            raise BadRequestError(
                f"{key} {_shown(asked[key])} is not done here: answers are drawn from the model's own distribution, at "
                "one temperature, until its stop token; leave it out",
                key,
            )
    tools = read_tools(asked.get("tools") or [])
    choice = asked.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise BadRequestError(
            f"tool_choice {_shown(choice)} cannot be kept: the model draws freely; use auto or none", "tool_choice"
        )
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options is an object", "stream_options")
    most = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
    return Asked(
        messages=_messages(asked.get("messages")),
        tools=() if choice == "none" else tools,
        mode=_mode(asked.get("chat_template_kwargs")),
        temperature=_temperature(asked.get("temperature")),
        max_tokens=_whole(asked, most, 1, SEEDS),
        seed=_whole(asked, "seed", -SEEDS, SEEDS),
        n=_whole(asked, "n", 1, MAX_CHOICES) or 1,
        stream=_truth(asked, "stream"),
        usage=_truth(options, "include_usage"),
    )


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Tool schemas of a request, as they are.

    Raises:
        BadRequestError: they are none.
    """
    named = isinstance(value, list) and all(
        isinstance(one, dict)
        and one.get("type", "function") == "function"
        and isinstance(one.get("function"), dict)
        and isinstance(one["function"].get("name"), str)
        for one in value
    )
    if not named:
        raise BadRequestError('tools is a list of {"type": "function", "function": {"name": …}}', "tools")
    return tuple(value)


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise BadRequestError("give messages, a list of at least one", "messages")
    names: dict[str, str] = {}
    return tuple(_message(one, f"messages[{place}]", names) for place, one in enumerate(value))


def _message(value: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    """One message; `names` knows the tool of every call id so far."""
    role = value.get("role") if isinstance(value, dict) else None
    if role not in _ROLES:
        raise BadRequestError(f"{where} is an object whose role is one of {', '.join(_ROLES)}", where)
    content = _text(value.get("content"), where)
    if content is None and role != "assistant":
        raise BadRequestError(f"{where} has no content", where)
    # Choice: templates know system; developer is OpenAI's later name for it.
    message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content or ""}
    if role == "assistant":
        reasoning = value.get("reasoning") or value.get("reasoning_content")
        message |= {"reasoning": reasoning} if isinstance(reasoning, str) else {}
        calls = value.get("tool_calls") or []
        if not isinstance(calls, list):
            raise BadRequestError(f"{where}.tool_calls is a list", where)
        if calls:
            message["tool_calls"] = [_call(one, f"{where}.tool_calls[{i}]", names) for i, one in enumerate(calls)]
    elif role == "tool":
        call_id = value.get("tool_call_id")
        name = value.get("name") or (names.get(call_id) if isinstance(call_id, str) else None)
        message |= {"tool_call_id": call_id} if isinstance(call_id, str) else {}
        message |= {"name": name} if isinstance(name, str) else {}
    return message


def _text(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [one.get("text") for one in content if isinstance(one, dict) and one.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise BadRequestError(f"{where}.content is a text, or a list of parts of the type text", where)


def _call(value: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRequestError(f"{where} has no function with a name", where)
    name, arguments = function["name"], function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments)[0] if arguments.strip() else {}
        except ValueError as problem:
            raise BadRequestError(f"{where}: its arguments are not JSON ({problem})", where) from problem
    if not isinstance(arguments, dict):
        raise BadRequestError(f"{where}: its arguments are not a JSON object", where)
    call_id = value.get("id")
    if isinstance(call_id, str):
        names[call_id] = name
    found = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call_id, **found} if isinstance(call_id, str) else found


def _mode(options: Any) -> Mode:
    """As our saved chat templates take it: `mode` goes first, then `enable_thinking`."""
    where = "chat_template_kwargs"
    if not isinstance(options, dict | None):
        raise BadRequestError(f"{where} is an object", where)
    known = {key: value for key, value in (options or {}).items() if value is not None}
    if others := sorted(known.keys() - {"mode", "enable_thinking"}):
        raise BadRequestError(f"{where} takes mode and enable_thinking, not {_shown(others[0])}", where)
    if "mode" in known:
        if known["mode"] not in ("auto", "think", "no_think"):
            raise BadRequestError(f"{where}.mode is auto, think or no_think", where)
        return Mode(known["mode"])
    if "enable_thinking" not in known:
        return Mode.AUTO
    return Mode.THINK if _truth(known, "enable_thinking") else Mode.NO_THINK


def _temperature(value: Any) -> float:
    value = 1.0 if value is None else value
    low, high = TEMPERATURES
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value == 0 or low <= value <= high):
        raise BadRequestError(f"temperature is 0 (greedy), or from {low} to {high:g}", "temperature")
    return float(value)


def _whole(asked: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    value = asked.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadRequestError(f"{key} is a whole number from {low} to {high}", key)
    return value


def _truth(asked: Mapping[str, Any], key: str) -> bool:
    value = asked.get(key)
    if not isinstance(value, bool | None):
        raise BadRequestError(f"{key} is true or false", key)
    return bool(value)


def _shown(value: Any, most: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": param, "code": code}}


def completion_body(found: Completion, name: str, number: str, created: int) -> dict[str, Any]:
    """The answers as a `chat.completion`.

    Args:
        number: of the request, for its id. created: seconds since 1970.
    """
    choices = [
        {"index": index, "message": _answer(choice), "logprobs": None, "finish_reason": choice.finish}
        for index, choice in enumerate(found.choices)
    ]
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": created, "model": name}
    return {**head, "choices": choices, "usage": _usage(found)}


def completion_chunks(found: Completion, name: str, number: str, created: int, usage: bool) -> Iterator[dict[str, Any]]:
    """The same as `chat.completion.chunk`s: for every answer its role, reasoning, content, calls, finish."""
    head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": created, "model": name}
    tail: dict[str, Any] = {"usage": None} if usage else {}
    for index, choice in enumerate(found.choices):
        for delta in _deltas(choice):
            one = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield {**head, "choices": [one], **tail}
        one = {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.finish}
        yield {**head, "choices": [one], **tail}
    if usage:
        yield {**head, "choices": [], "usage": _usage(found)}


def event_stream(chunks: Iterator[Mapping[str, Any]]) -> str:
    """Chunks as server-sent events, `[DONE]` last."""
    return "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _answer(choice: Choice) -> dict[str, Any]:
    content = None if choice.calls and not choice.content else choice.content
    thought = choice.thought or None
    message = {"role": "assistant", "content": content, "reasoning": thought, "reasoning_content": thought}
    return message | ({"tool_calls": _tool_calls(choice)} if choice.calls else {})


def _deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    if choice.thought:
        yield {"reasoning": choice.thought, "reasoning_content": choice.thought}
    if choice.content:
        yield {"content": choice.content}
    if choice.calls:
        yield {"tool_calls": [{"index": place, **call} for place, call in enumerate(_tool_calls(choice))]}


def _tool_calls(choice: Choice) -> list[dict[str, Any]]:
    return [
        {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
        for call, call_id in zip(choice.calls, choice.call_ids, strict=True)
    ]


def _arguments(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def _usage(found: Completion) -> dict[str, int]:
    drawn = sum(choice.tokens for choice in found.choices)
    total = found.prompt_tokens + drawn
    return {"prompt_tokens": found.prompt_tokens, "completion_tokens": drawn, "total_tokens": total}
