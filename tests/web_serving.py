"""Web applications behind a real server, for several test files."""

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import uvicorn

from unbraid.serve.retriever import listen


@contextmanager
def running(app):
    """The address of `app` behind uvicorn, on a free port of this machine."""
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()


def post(url, body):
    """(status, decoded answer)."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body)) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as problem:
        return problem.code, json.load(problem)
