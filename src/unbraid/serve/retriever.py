"""`unbraid serve-retriever`: an index as a server that speaks Search-R1's `/retrieve`."""

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from unbraid.errors import DataError, MissingExtraError
from unbraid.tasks.search.corpus import Document
from unbraid.tasks.search.index import Retriever, open_index

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY = 4_000_000
"""Bytes of one request."""
MAX_QUERIES = 1024
"""Queries in one request."""
MAX_TOPK = 1000


def retriever_app(retriever: Retriever, topk: int = 3) -> "Starlette":
    """The web application, for any ASGI server.

    `POST /retrieve` takes `{"queries": [...], "topk": 3, "return_scores": true}`, the last two of them optional, and
    answers `{"result": [[{"document": {"contents": ...}, "score": ...}, ...], ...]}`, one list a query; without scores
    the documents stand there alone. `GET /health` answers `{"status": "ok"}`. Whatever cannot be answered gets a status
    of 4xx (5xx where the retriever itself fails) and `{"error": ...}`.

    Args:
        retriever: asked from threads. topk: documents where the request does not say.

    Raises:
        MissingExtraError: without starlette.
    """
    need_extra()
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def retrieve(request: "Request") -> "Response":
        try:
            queries, wanted, scores = _read(await _body(request), topk)
            return JSONResponse({"result": await run_in_threadpool(_answer, retriever, queries, wanted, scores)})
        except _BadRequestError as problem:
            return JSONResponse({"error": str(problem)}, 400)
        except ClientDisconnect:
            return JSONResponse({"error": "the request ended early"}, 400)
        except Exception as problem:
            return JSONResponse({"error": f"the retriever failed: {type(problem).__name__}: {problem}"}, 502)

    async def health(request: "Request") -> "Response":
        return JSONResponse({"status": "ok"})

    async def refused(request: "Request", problem: Exception) -> "Response":
        status = problem.status_code if isinstance(problem, HTTPException) else 500
        return JSONResponse({"error": "this server knows POST /retrieve and GET /health"}, status)

    routes = [Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, exception_handlers={HTTPException: refused})


def serve_retriever(
    corpus: str | Path, host: str = "127.0.0.1", port: int = 8000, topk: int = 3, console: Console | None = None
) -> None:
    """Serve the index of a corpus until interrupted.

    Args:
        corpus: folder or file, as `open_index` takes it. port: 0 picks a free one. console: where the address is told;
            standard error by default.

    Raises:
        DataError: if the corpus cannot be read or the address cannot be had. MissingExtraError: without starlette,
            uvicorn or bm25s.
    """
    need_extra()
    import uvicorn

    console = console or Console(stderr=True)
    with listen(host, port) as listening:  # before the index, which may take long
        index = open_index(corpus, console=console)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/retrieve"
        console.print(f"serving {len(index.documents)} documents on {address}; Ctrl-C stops", highlight=False)
        config = uvicorn.Config(retriever_app(index, topk), log_level="warning", access_log=False)
        with suppress(KeyboardInterrupt):  # how one ends a server
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections send small answers at once.

    Raises:
        DataError: if the address cannot be had.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as problem:
        raise DataError(f"cannot serve on {host}:{port} ({problem}): choose another host or port") from problem
    # asyncio does this only for sockets that say their protocol; without it every answer takes 40 ms longer.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def need_extra() -> None:
    """Raises MissingExtraError without what serves."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as problem:
        raise MissingExtraError("serving needs starlette and uvicorn: pip install 'unbraid[serve]'") from problem


class _BadRequestError(ValueError):
    """What a client asked cannot be answered; the message says why."""


async def _body(request: "Request") -> bytes:
    """The body, as long as it is not too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise _BadRequestError(f"more than {MAX_BODY} bytes: send fewer queries at a time")
    return bytes(body)


def _read(body: bytes, default: int) -> tuple[list[str], int, bool]:
    """(queries, topk, return_scores) of a request."""
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise _BadRequestError("the body is not JSON") from problem
    queries = asked.get("queries") if isinstance(asked, dict) else None
    if not isinstance(queries, list) or not all(isinstance(one, str) for one in queries):
        raise _BadRequestError("give queries, a list of texts")
    if len(queries) > MAX_QUERIES:
        raise _BadRequestError(f"{len(queries)} queries: {MAX_QUERIES} at a time")
    topk = asked.get("topk")
    topk = default if topk is None else topk
    if not isinstance(topk, int) or isinstance(topk, bool) or not 1 <= topk <= MAX_TOPK:
        raise _BadRequestError(f"topk is a number from 1 to {MAX_TOPK}")
    scores = asked.get("return_scores", False)
    if not isinstance(scores, bool):
        raise _BadRequestError("return_scores is true or false")
    return queries, topk, scores


def _answer(retriever: Retriever, queries: list[str], topk: int, scores: bool) -> list[list[dict[str, Any]]]:
    result = []
    for query in queries:
        hits = [
            ({"contents": Document(hit.title, hit.text).contents}, hit.score) for hit in retriever.search(query, topk)
        ]
        result.append([{"document": document, "score": score} if scores else document for document, score in hits])
    return result
