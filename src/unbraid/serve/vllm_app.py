"""Runs inside vLLM, as its `--middleware`: requests reach the adapter that is served, never its base unawares.

vLLM serves a base beside every adapter: it lists the base first, and answers with it where a request names no model.
Clients that take the first model of the list, or leave the name out, would measure a policy that was never trained.

This file is copied to where vLLM imports it, so it imports nothing of unbraid and nothing that Python does not bring.
"""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MAX_BODY = 64_000_000
"""Bytes of one request."""


class OnlyAdapter:
    """ASGI middleware: requests for another model than UNBRAID_SERVED_MODEL are refused, and it alone is listed."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], name: str | None = None):
        self.app = app
        self.name = os.environ["UNBRAID_SERVED_MODEL"] if name is None else name

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            await self._post(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].rstrip("/") == "/v1/models":
            await self.app(scope, receive, _Filter(send, self._only))
        elif scope["type"] in ("http", "lifespan"):
            await self.app(scope, receive, send)
        # What is left are web sockets, which name their model where nobody sees it: they stay unanswered.

    async def _post(self, scope: Message, receive: Receive, send: Send) -> None:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                return await _refuse(send, 413, f"more than {MAX_BODY} bytes: send less")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            asked = None
        model = asked.get("model") if isinstance(asked, dict) else None
        if model != self.name:
            return await _refuse(send, 404, f'this server has one model: ask for "model": {json.dumps(self.name)}')
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, again, send)

    def _only(self, body: bytes) -> bytes:
        """The list of models without the base."""
        try:
            listed = json.loads(body)
            listed["data"] = [one for one in listed["data"] if one["id"] == self.name]
        except (ValueError, KeyError, TypeError):
            return body  # an error of vLLM's own
        return json.dumps(listed).encode()


class _Filter:
    """A `send` that lets a response through `change` once it is whole."""

    def __init__(self, send: Send, change: Callable[[bytes], bytes]):
        self.send, self.change = send, change
        self.start: Message = {}
        self.body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                body = self.change(bytes(self.body))
                kept = [(key, value) for key, value in self.start["headers"] if key.lower() != b"content-length"]
                self.start["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
                await self.send(self.start)
                await self.send({"type": "http.response.body", "body": body})
        else:
            await self.send(message)


async def _refuse(send: Send, status: int, reason: str) -> None:
    error = {"message": reason, "type": "NotFoundError" if status == 404 else "BadRequestError", "code": status}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
