"""The server that is asked: one at an address, or `unbraid serve RUN` for as long as it takes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbraid.errors import ServerError
from unbraid.serve.chat_clients import HttpClient
from unbraid.serve.retriever import listen

START = 900.0
"""Seconds that a server may take to come up: vLLM loads and compiles."""
STOP = 30.0


@dataclass(frozen=True)
class Server:
    """Where a model answers: url up to /v1, its name there, who serves it (`unbraid`, `vllm`, …), the key if any."""

    url: str
    model: str
    by: str
    key: str = ""


def at_url(url: str, key: str = "") -> Server:
    """The server at `http://host:port/v1[#MODEL]`.

    Raises:
        ServerError: it does not answer, or has no such model.
    """
    client = HttpClient(url, key)
    cards = client.models()
    by = next((card.get("owned_by") for card in cards if card.get("id") == client.name), None)
    if by is None:
        raise ServerError(f"{client.url} has no model '{client.name}': name one of its own, as in {client.url}#MODEL")
    return Server(client.url, client.name, str(by), key)


@contextmanager
def of_run(run: Path, local: bool = False, python: str = "", flags: tuple[str, ...] = ()) -> Iterator[Server]:
    """`unbraid serve RUN` in a process of its own; it ends with the block. Its log is `serve/bench.log` in the run.

    Args:
        local: without vLLM. python: interpreter that has vLLM. flags: of vLLM.

    Raises:
        ServerError: it did not come up; with the last line that it said.
    """
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "unbraid.cli", "serve", str(run), "--port", str(port)]
    command += ["--local"] * local + ["--python", python] * bool(python) + [f"--flag={flag}" for flag in flags]
    log = run / "serve" / "bench.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"}
        ) as process,
    ):
        try:
            yield _when_up(process, f"http://127.0.0.1:{port}/v1", log)
        finally:
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()


def _when_up(process: "subprocess.Popen[Any]", url: str, log: Path) -> Server:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1][:300]
            raise ServerError(f"`unbraid serve` ended, it said: {last}; all of it: {log}")
        with suppress(ServerError):
            return at_url(url)
        time.sleep(0.3)
    raise ServerError(f"`unbraid serve` did not answer in {START:.0f} s: see {log}")
