"""The client of `unbraid chat` and servers of all manners: what is asked of them, and no failure without a reason."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conversing import call, converse

from unbraid.chat.types import Mode
from unbraid.errors import ServerError
from unbraid.serve.chat_clients import HttpClient


@pytest.fixture
def scripted():
    """A function from (content type, body) to a client of a server that says so; what it was asked is in `.seen`."""
    servers = []

    def start(kind: str, body: bytes, status: int = 200) -> HttpClient:
        seen: list[dict] = []
        keys: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                keys.append(self.headers["Authorization"])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if status == 307:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        client: Any = HttpClient(f"http://127.0.0.1:{server.server_port}/v1#m", key="k")
        client.seen, client.keys = seen, keys
        return client

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def events(*chunks: Any, done: bool = True) -> bytes:
    lines = [": ping", "event: x", *(f"data: {json.dumps(chunk)}" for chunk in chunks), *["data: [DONE]"] * done]
    return "\r\n\r\n".join([*lines, ""]).encode()


def said(content: Any, finish: Any = None) -> dict:
    return {"choices": [{"delta": {"content": content}, "finish_reason": finish}]}


def test_a_stream_and_what_was_asked_for_it(scripted):
    client = scripted("text/event-stream; charset=utf-8", events(said("He"), said("llo", "length")))
    well, out = converse(client, "a", "b", mode=Mode.NO_THINK)
    assert well and out == "Hello\nno_think · ? s · cut off: no tokens were left\n" * 2
    assert client.keys == ["Bearer k"] * 2
    assert client.seen[0] == {
        "model": "m", "messages": [{"role": "user", "content": "a"}], "stream": True,
        "stream_options": {"include_usage": True}, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip


def test_earlier_thinking_is_not_sent_to_servers(scripted):
    thinking = {"choices": [{"delta": {"reasoning_content": "Hm", "content": "x"}, "finish_reason": "stop"}]}
    client = scripted("text/event-stream", events(thinking))
    assert converse(client, "a", "b")[1] == "Hm\n\nx\nthink, its own choice · ? s\n" * 2
    assert client.seen[1]["messages"][1] == {"role": "assistant", "content": "x"}


def test_a_server_that_does_not_stream(scripted):
    message = {"role": "assistant", "content": None, "reasoning": "Hm", "tool_calls": [call("f", "{}")]}
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": {"completion_tokens": 4}}
    client = scripted("application/json", json.dumps(answer).encode())
    assert converse(client, "a") == (True, "Hm\n→ f {}\n4 tokens · think, its own choice · ? s\n")


@pytest.mark.parametrize(
    ("kind", "body", "status", "told"),
    [
        ("text/event-stream", events(said("He"), done=False), 200, "He\nerror: .*: the answer broke off"),
        ("text/event-stream", b"data: {\n", 200, "error: .*: its answer is not JSON"),
        ("text/event-stream", b"data: 3\n", 200, "error: .*: its answer is no chat completion"),
        ("text/event-stream", events({"error": {"message": "no\nmemory"}}), 200, "error: .*: no memory"),
        ("application/json", b"<html>", 200, "error: .*: its answer is not JSON"),
        ("application/json", b'{"error": "closed"}', 200, "error: .*: closed"),
        ("application/json", b'{"error": {"message": "too long"}}', 400, "error: .*: status 400: too long"),
        ("text/plain", b"no\nway", 503, "error: .*: status 503: no way"),
        ("text/plain", b"", 307, "error: .*: status 307: no reason"),
    ],
)
def test_servers_that_give_no_answer(scripted, kind, body, status, told):
    well, out = converse(scripted(kind, body, status), "a")
    assert not well and re.fullmatch(told, out.strip()), out


@pytest.mark.parametrize(
    "chunk",
    [{"choices": 3}, {"choices": [3]}, {"choices": [{"delta": 3}]}, {"choices": [{"delta": {"tool_calls": [3]}}]},
     {"choices": [{"delta": {"content": 3, "tool_calls": {}}}], "usage": 3}, {}, said({"a": 1}, 3)],
)  # fmt: skip
def test_chunks_of_odd_shape_are_passed_over(scripted, chunk):
    client = scripted("text/event-stream", events(chunk, said("x", "stop")))
    assert converse(client, "a") == (True, "x\nno_think, its own choice · ? s\n")


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://me:secret@x/v1#m"])
def test_addresses_that_are_none(url):
    with pytest.raises(ServerError) as caught:
        HttpClient(url)
    assert "secret" not in str(caught.value)


def test_nobody_there(scripted):
    with pytest.raises(ServerError, match="refused"):
        HttpClient("http://127.0.0.1:1")
    well, out = converse(HttpClient("http://127.0.0.1:1#m"), "a", "b")
    assert not well and out.count("does not answer") == 2
