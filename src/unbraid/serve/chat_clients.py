"""Who answers in `unbraid chat`: an OpenAI-compatible server, or a policy of this process. Both give chunks."""

import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from unbraid.errors import ServerError
from unbraid.serve.chat_completions import LocalModel
from unbraid.serve.completion_wire import BadRequestError, completion_chunks, read_request

MOST_BYTES = 16 << 20
"""Longest event, or answer in one piece."""
Chunks = Generator[dict[str, Any], None, None]


class Client(Protocol):
    """Answers a conversation."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    def chunks(self, asked: Mapping[str, Any]) -> Chunks:
        """The answer to a request (without `model` and `stream`), as `chat.completion.chunk`s, as they come.

        Closing the generator, or an exception thrown into it, ends the drawing.

        Raises:
            ServerError: there is no answer, or it broke off; one line that says why.
        """
        ...


class LocalClient:
    """Asks a policy of this process, through what `unbraid serve` does with a request, without a connection.

    Args:
        model: running, within its `with`.
    """

    def __init__(self, model: LocalModel):
        self._model, self.name = model, model.name

    def chunks(self, asked: Mapping[str, Any]) -> Chunks:
        """The answer, in pieces by role once it is drawn."""
        try:
            answer = self._model.submit(read_request(json.dumps(asked).encode(), self.name))
            try:
                found = answer.result()
            finally:
                answer.cancel()
        except BadRequestError as problem:
            raise ServerError(str(problem)) from problem
        except Exception as problem:
            raise ServerError(f"the model failed: {type(problem).__name__}: {_first_line(problem)}") from problem
        yield from completion_chunks(found, self.name, uuid.uuid4().hex, int(time.time()), usage=True)


class HttpClient:
    """Asks a server at an OpenAI-compatible address.

    Args:
        url: `http://host:port/v1`, or `…#MODEL`; without a path, `/v1` is added.
        key: sent as a bearer token, unless it is empty. seconds: longest wait for the next piece of an answer.

    Raises:
        ServerError: the address is none; no model is named and the server cannot be asked for its first.
    """

    def __init__(self, url: str, key: str = "", seconds: float = 600.0):
        base, _, self.name = url.partition("#")
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url} is no address of a server: write http://host:port/v1")
        if parts.username or parts.password:
            raise ServerError(f"the address of {parts.hostname} holds a password: put the key elsewhere")
        base = base.rstrip("/").removesuffix("/chat/completions")
        self.url = base if parts.path.strip("/") else f"{base}/v1"
        self._seconds = seconds
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._opener = urllib.request.build_opener(_NoRedirect)
        self.name = self.name or self._first_model()

    def chunks(self, asked: Mapping[str, Any]) -> Chunks:
        """The answer, as the server streams it; one that does not stream comes in one piece."""
        # Earlier thinking stays here: models of ours were not shown it, and strict servers refuse unknown keys.
        messages = [{k: v for k, v in message.items() if k != "reasoning"} for message in asked["messages"]]
        body = {**asked, "messages": messages, "model": self.name, "stream": True}
        ended = False
        with self._open("/chat/completions", {**body, "stream_options": {"include_usage": True}}) as response:
            if "json" in response.headers.get_content_type():
                yield _as_chunk(self._decoded(self._read(response, whole=True)))
                return
            while line := self._read(response):
                name, _, data = line.strip().partition(b":")
                if name != b"data":  # comments, other fields, the empty line between events
                    continue
                if data.strip() == b"[DONE]":
                    return
                chunk = self._decoded(data)
                ended = ended or any(one.get("finish_reason") for one in _choices(chunk))
                yield chunk
        if not ended:
            raise ServerError(f"{self.url}: the answer broke off")

    def models(self) -> list[dict[str, Any]]:
        """What the server says of its models."""
        with self._open("/models") as response:
            cards = self._decoded(self._read(response, whole=True)).get("data")
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    def _first_model(self) -> str:
        name = next(iter(self.models()), {}).get("id")
        if not isinstance(name, str):
            raise ServerError(f"{self.url}/models names no model: name one, as in {self.url}#MODEL")
        return name

    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, self._headers)
            return self._opener.open(request, timeout=self._seconds)
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise ServerError(f"{self.url}: status {refusal.code}: {_refusal(refusal)}") from refusal
        except (OSError, HTTPException, ValueError) as problem:
            reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
            raise ServerError(f"{self.url} does not answer: {_first_line(reason)}") from problem

    def _read(self, response: Any, whole: bool = False) -> bytes:
        """The next line, or all there is."""
        try:
            found = response.read(MOST_BYTES + 1) if whole else response.readline(MOST_BYTES + 1)
        except (OSError, HTTPException, ValueError) as problem:
            raise ServerError(f"{self.url}: the answer broke off ({_first_line(problem)})") from problem
        if len(found) > MOST_BYTES:
            raise ServerError(f"{self.url}: more than {MOST_BYTES} bytes at a time")
        return found

    def _decoded(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as problem:
            raise ServerError(f"{self.url}: its answer is not JSON") from problem
        if not isinstance(found, dict):
            raise ServerError(f"{self.url}: its answer is no chat completion")
        if found.get("error"):
            raise ServerError(f"{self.url}: {_said(found)}")
        return found


@dataclass
class Heard:
    """An answer, put together from its chunks. tokens: as the server counts them; None where it does not."""

    reasoning: str = ""
    content: str = ""
    finish: str = ""
    tokens: int | None = None
    _calls: dict[int, dict[str, str]] = field(default_factory=dict)

    def take(self, chunk: Mapping[str, Any]) -> list[tuple[Literal["reasoning", "content"], str]]:
        """Add a chunk; returns the text in it."""
        usage = chunk.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        self.tokens = tokens if isinstance(tokens, int) else self.tokens
        first = next(iter(_choices(chunk)), {})
        self.finish = _text(first.get("finish_reason")) or self.finish
        delta = first.get("delta")
        if not isinstance(delta, dict):
            return []
        calls = delta.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else []):
            self._take_call(call, place)
        reasoning = _text(delta.get("reasoning")) or _text(delta.get("reasoning_content"))
        content = _text(delta.get("content"))
        self.reasoning += reasoning
        self.content += content
        return [*([("reasoning", reasoning)] if reasoning else []), *([("content", content)] if content else [])]

    def calls(self) -> list[dict[str, Any]]:
        """The calls, as messages have them."""
        return [
            {
                "id": call["id"] or f"call{place:05d}",
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"] or "{}"},
            }
            for place, call in sorted(self._calls.items())
        ]

    def message(self) -> dict[str, Any]:
        """The answer as a message."""
        said: dict[str, Any] = {"role": "assistant", "content": self.content.strip()}
        said |= {"reasoning": self.reasoning.strip()} if self.reasoning.strip() else {}
        return said | ({"tool_calls": self.calls()} if self._calls else {})

    def _take_call(self, piece: Any, place: int) -> None:
        """A piece of a call: the name comes once, the arguments in parts."""
        if not isinstance(piece, dict):
            return
        index, function = piece.get("index"), piece.get("function")
        call = self._calls.setdefault(
            index if isinstance(index, int) else place, {"id": "", "name": "", "arguments": ""}
        )
        call["id"] = call["id"] or _text(piece.get("id"))
        if isinstance(function, dict):
            call["name"] += _text(function.get("name"))
            call["arguments"] += _text(function.get("arguments"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key is for the host that was named, and a POST does not survive one."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


def _choices(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []


def _as_chunk(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer as one chunk."""
    choices = []
    for one in _choices(answer):
        delta = one.get("message")
        if isinstance(delta, dict) and isinstance(delta.get("tool_calls"), list):
            calls = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"]) if isinstance(call, dict)]
            delta = {**delta, "tool_calls": calls}
        choices.append({**one, "delta": delta})
    return {"choices": choices, "usage": answer.get("usage")}


def _refusal(response: Any) -> str:
    try:
        text = response.read(100_000).decode(errors="replace")
    except (OSError, HTTPException):
        return "no reason"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    text = _said(found) if isinstance(found, dict) else text
    return " ".join(text.split())[:300] or "no reason"


def _said(found: Mapping[str, Any]) -> str:
    """The message of an error, in any of the shapes that servers give it."""
    error = found.get("error", found)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error)


def _first_line(problem: object) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
