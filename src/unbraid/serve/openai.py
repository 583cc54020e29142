"""`unbraid serve`, the local part: a small policy behind OpenAI's chat completions, without vLLM."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console

from unbraid.policy import Policy
from unbraid.serve.chat_completions import LocalModel
from unbraid.serve.completion_wire import (
    BadRequestError,
    Completion,
    completion_body,
    completion_chunks,
    error_body,
    event_stream,
    read_request,
)
from unbraid.serve.retriever import listen, need_extra

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY = 4_000_000
"""Bytes of one request."""
GRACE = 3
"""Seconds that answers under way have left once the server is told to stop."""
GONE = 499
"""Status of a request whose client left, for logs: nobody reads it."""


def openai_app(policy: Policy, name: str, slots: int = 16) -> "Starlette":
    """The web application, for any ASGI server that runs its lifespan.

    `POST /v1/chat/completions` takes messages, tools, tool_choice (auto, none), temperature (1 by default), max_tokens
    or max_completion_tokens (more than fits means as many as fit), seed, n and stream with its usage option.
    `chat_template_kwargs` chooses the mode: `{"enable_thinking": true}` or `{"mode": "think"}`; without it the model
    picks. Settings that would change the drawing otherwise (top_p, stop, …) are refused, others ignored. The answer has
    the form of vLLM's: `reasoning` (also as `reasoning_content`), `content` and `tool_calls`.

    The sampler gives whole responses. So a stream comes once the answer is drawn, in pieces by role: role, reasoning,
    content, tool_calls, finish, usage, `[DONE]`. A client that leaves ends the drawing.

    `GET /v1/models` and `GET /health` answer what they do elsewhere; errors are `{"error": {"message", "type", "param",
    "code"}}` with a status of 4xx, or 5xx where the model itself fails.

    Args:
        policy: sampled as it is; nothing else may use it meanwhile. name: of the model.
        slots: most answers drawn at a time; further ones wait.

    Raises:
        MissingExtraError: without starlette. ModelError: this model cannot be decoded in slots.
    """
    need_extra()
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    model, started = LocalModel(policy, name, slots), int(time.time())

    @asynccontextmanager
    async def lifespan(app: "Starlette") -> AsyncIterator[None]:
        with model:
            yield

    def error(message: str, status: int, param: str | None = None, code: str | None = None) -> "Response":
        return JSONResponse(error_body(message, status, param, code), status)

    async def complete(request: "Request") -> "Response":
        try:
            asked = read_request(await _body(request), name)
            found = await _unless_gone(request, model.submit(asked))
        except BadRequestError as problem:
            return error(str(problem), problem.status, problem.param, problem.code)
        except ClientDisconnect:
            return error("the request ended early", GONE)
        except Exception as problem:
            return error(f"the model failed: {type(problem).__name__}: {problem}", 500)
        number, now = uuid.uuid4().hex, int(time.time())
        if asked.stream:
            chunks = completion_chunks(found, name, number, now, asked.usage)
            return Response(event_stream(chunks), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return JSONResponse(completion_body(found, name, number, now))

    async def models(request: "Request") -> "Response":
        card = {"id": name, "object": "model", "created": started, "owned_by": "unbraid"}
        return JSONResponse({"object": "list", "data": [{**card, "max_model_len": model.max_tokens}]})

    async def health(request: "Request") -> "Response":
        return JSONResponse({"status": "ok"})

    async def refused(request: "Request", problem: Exception) -> "Response":
        status = problem.status_code if isinstance(problem, HTTPException) else 500
        return error("this server knows POST /v1/chat/completions, GET /v1/models and GET /health", status)

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused}, lifespan=lifespan)


def serve_local(
    policy: Policy,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    slots: int = 16,
    console: Console | None = None,
) -> None:
    """Serve a policy until interrupted, as `openai_app` says.

    Args:
        port: 0 picks a free one. console: where the address is told; standard error by default.

    Raises:
        DataError: if the address cannot be had. MissingExtraError: without starlette or uvicorn. ModelError: this model
            cannot be decoded in slots.
    """
    need_extra()
    import uvicorn

    console = console or Console(stderr=True)
    app = openai_app(policy, name, slots)
    with listen(host, port) as listening:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/v1"
        console.print(f"serving {name} on {address}; Ctrl-C stops", highlight=False, markup=False, soft_wrap=True)
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=GRACE)
        with suppress(KeyboardInterrupt):  # how one ends a server
            uvicorn.Server(config).run(sockets=[listening])


async def _body(request: "Request") -> bytes:
    """The body, as long as it is not too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise BadRequestError(f"more than {MAX_BODY} bytes: send a shorter conversation", status=413)
    return bytes(body)


async def _unless_gone(request: "Request", answer: "Future[Completion]") -> Completion:
    """What is drawn; where the client leaves before, the drawing ends.

    Raises:
        ClientDisconnect: it left.
    """
    from starlette.requests import ClientDisconnect

    drawing = asyncio.wrap_future(answer)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({drawing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            raise ClientDisconnect
        return drawing.result()
    finally:
        drawing.cancel()
        leaving.cancel()


async def _left(request: "Request") -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
