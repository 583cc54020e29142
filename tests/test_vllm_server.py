"""Servers as processes, with one that only looks like vLLM's (`fake_vllm.py`): how they start and how they end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from fake_vllm import all_gone, is_gone, make_environment, session

from unbraid.errors import ServerError
from unbraid.vllm import server
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import ServerSpec, start_server, start_servers, stop_servers
from unbraid.vllm.server_log import last_phase, telling_line


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(server, "EVERY", 0.03)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return find_vllm(str(make_environment(tmp_path_factory.mktemp("env"), vllm="0.32.0")))


@pytest.fixture
def notes(tmp_path):
    """What the servers of a test wrote about themselves, read by calling it."""
    path = tmp_path / "notes"
    path.touch()

    def read():
        return [json.loads(line) for line in path.read_text().splitlines()]

    yield read
    left = [note[key] for note in read() for key in ("pid", "engine") if not is_gone(note[key])]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a test left processes behind"


def flags(tmp_path, behave="well", *more):
    return [f"--behave={behave}", f"--notes={tmp_path / 'notes'}", *more]


def about(url):
    with urllib.request.urlopen(f"{url}/about") as answer:
        return json.load(answer)


def test_start_and_stop(found, notes, tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    monkeypatch.chdir(tmp_path)  # where `python -m vllm` would find an empty package
    monkeypatch.setenv("VLLM_PLUGINS", "")
    log = tmp_path / "logs" / "vllm.log"
    with start_server(found, flags(tmp_path), log=log, environment={"FAKE": "1"}) as running:
        (note,) = notes()
        assert running.alive() and running.died() is None
        assert running.url == f"http://127.0.0.1:{note['port']}" and running.pid == note["pid"]
        told = about(running.url)
        assert told["environment"]["FAKE"] == "1" and "VLLM_PLUGINS" not in told["environment"]
        assert str(tmp_path) not in told["path"] and "" not in told["path"]
        assert {note["pid"], note["engine"]} == set(session(note["pid"]))
    assert not running.alive() and running.died() == f"vLLM at {running.url} was stopped"
    assert is_gone(note["pid"]) and is_gone(note["engine"])
    running.stop()
    assert "Loading the weights" in log.read_text()


def test_several_at_once(found, notes, tmp_path):
    specs = [ServerSpec(flags(tmp_path, "well", "--seconds=1.5"), tmp_path / f"{i}.log") for i in range(2)]
    servers = start_servers(found, specs)
    one, other = notes()
    assert abs(one["at"] - other["at"]) < 1.5, "none waits for another"
    assert len({one.url for one in servers}) == 2 and all(one.alive() for one in servers)
    stop_servers(servers)
    assert not any(one.alive() for one in servers)


def test_one_that_dies_takes_the_others_with_it(found, notes, tmp_path):
    specs = [ServerSpec(flags(tmp_path, behave), tmp_path / f"{behave}.log") for behave in ("well", "badly")]
    with pytest.raises(ServerError, match=r"ended \(status 1\): ValueError: too little memory") as caught:
        start_servers(found, specs)
    message = str(caught.value)
    assert message.endswith(f"ValueError: too little memory: give more (log: {tmp_path / 'badly.log'})")
    assert "\n" not in message and len(notes()) == 2


def test_refused_flags_and_signals_are_told(found, notes, tmp_path):
    with pytest.raises(ServerError, match=r"status 2\): api_server.py: error: unrecognized arguments: --no-such"):
        start_server(found, [*flags(tmp_path), "--no-such"], log=tmp_path / "log")
    with pytest.raises(ServerError, match="was killed by SIGKILL, as when memory runs out: Loading the weights"):
        start_server(found, flags(tmp_path, "killed"), log=tmp_path / "log")


def test_only_this_starts_part_of_the_log_is_told(found, notes, tmp_path):
    (tmp_path / "log").write_text("OSError: of another day\n")
    with pytest.raises(ServerError, match="too little memory"):
        start_server(found, flags(tmp_path, "badly"), log=tmp_path / "log")
    with start_server(found, flags(tmp_path), log=tmp_path / "log") as running:
        assert "Error" not in running.output()


def test_time_limit(found, notes, tmp_path):
    with pytest.raises(ServerError, match=r"did not answer within 2 s; it was at: Loading the weights \(log: .*log\)"):
        start_server(found, flags(tmp_path, "well", "--seconds=60"), log=tmp_path / "log", seconds=2)


def test_progress(found, notes, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "ANNOUNCE_EVERY", 0.3)
    lines = []
    specs = [ServerSpec(flags(tmp_path, "well", f"--seconds={s}"), tmp_path / f"{s}") for s in (2, 0)]
    stop_servers(start_servers(found, specs, announce=lines.append))
    assert all(re.match(r"waiting for vLLM \(\d+ s, [01] of 2 ready\): ", line) for line in lines), lines
    assert lines[-1].endswith(" 1 of 2 ready): Loading the weights")


def test_a_port_that_is_taken_meanwhile(found, notes, tmp_path):
    start_server(found, flags(tmp_path, "taken once"), log=tmp_path / "log").stop()
    assert len(notes()) == 2
    with pytest.raises(ServerError, match="Address already in use"):
        start_server(found, flags(tmp_path, "taken"), log=tmp_path / "log")
    assert len(notes()) == 2 + server.ATTEMPTS


def test_a_port_that_is_asked_for(found, notes, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port} .*in use.*choose another port"):
            start_server(found, flags(tmp_path), log=tmp_path / "log", port=port)
    assert not notes(), "nothing is started"
    with start_server(found, flags(tmp_path), log=tmp_path / "log", port=port) as running:
        assert running.url.endswith(f":{port}")


def test_a_kept_port_goes_to_nobody_else():
    kept = server._keep_port("127.0.0.1", 0)
    with kept, socket.socket() as own, socket.socket() as stranger:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(kept.getsockname())
        own.bind(kept.getsockname())
        own.listen()


def test_who_does_not_hear_is_killed(found, notes, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "GRACE", 0.5)
    running = start_server(found, flags(tmp_path, "deaf"), log=tmp_path / "log")
    start = time.monotonic()
    running.stop()
    assert 0.5 <= time.monotonic() - start < 4


def test_a_server_that_dies_later(found, notes, tmp_path):
    with start_server(found, flags(tmp_path), log=tmp_path / "log") as running:
        os.kill(running.pid, signal.SIGKILL)
        assert all_gone([notes()[0]["engine"]], 5), "its engine goes with it"
        while running.alive():
            time.sleep(0.02)
        assert re.search(r"was killed by SIGKILL, as when memory runs out: it said nothing", running.died() or "")


def test_a_keeper_that_is_killed(found, notes, tmp_path):
    running = start_server(found, flags(tmp_path), log=tmp_path / "log")
    running._keeper.kill()
    running._keeper.wait()
    assert not running.alive() and "SIGKILL" in (running.died() or "")
    running.stop()
    assert all_gone([running.pid, notes()[0]["engine"]], 5)


def test_a_thread_that_ends_takes_nothing_with_it(found, notes, tmp_path):
    held = []
    thread = threading.Thread(target=lambda: held.append(start_server(found, flags(tmp_path), log=tmp_path / "log")))
    thread.start()
    thread.join()
    time.sleep(0.5)
    with held[0] as running:
        assert running.alive() and about(running.url)


TRAINER = """
import sys, time
from pathlib import Path
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import start_server
folder = Path(sys.argv[2])
start_server(find_vllm(sys.argv[1]), ["--notes", str(folder / "notes")], log=folder / "log")
print("ready", flush=True)
"""


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "itself"])
def test_nothing_outlives_the_trainer(found, notes, tmp_path, end):
    code = TRAINER + ("" if end == "itself" else "time.sleep(60)")
    command = [sys.executable, "-c", code, str(found.python), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout and trainer.stdout.readline() == b"ready\n"
        if end != "itself":
            trainer.send_signal(getattr(signal, end))
    (note,) = notes()
    assert all_gone([note["pid"], note["engine"]], 0 if end == "itself" else 5)


# -- what a log says ----------------------------------------------------------------------------------------------

PYDANTIC = """Traceback (most recent call last):
  File "engine/arg_utils.py", line 1955, in create_model_config
    return ModelConfig(
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (9999) is greater
    For further information visit https://errors.example/v/value_error
"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""),
        ("(APIServer pid=1) INFO 11-21 12:39:27 [a.py:1] one\n\n", "one"),
        ("usage: x\nserver.py: error: argument --a: bad\n", "server.py: error: argument --a: bad"),
        (PYDANTIC, "ValidationError: Value error, User-specified max_model_len (9999) is greater"),
        ("KeyError: 1\nRuntimeError: Engine core initialization failed. See root cause above.", "KeyError: 1"),
        ("RuntimeError: Engine core initialization failed.\nbye", "RuntimeError: Engine core initialization failed."),
        ("(Worker pid=3) (EngineCore pid=2) ERROR 11-21 12:39:27 [w.py:7] torch.OutOfMemoryError: CUDA out of memory.\n"
         "x.py:3: DeprecationWarning: old\n  warnings.warn('x')", "torch.OutOfMemoryError: CUDA out of memory."),
        ("ValueError", "ValueError"),
        ("OSError: a\n  raise ValueError: no last line of a traceback", "OSError: a"),
    ],
)  # fmt: skip
def test_the_telling_line(log, line):
    assert telling_line(log) == line


def test_the_last_phase():
    time = "INFO 11-21 12:39:27"
    log = f"(APIServer pid=1) {time} [a.py:1] Loading\n\x1b[36m(A pid=1)\x1b[0m {time} [l.py:195] Route: /x\n"
    assert last_phase(log) == "Loading"
    assert last_phase("Shards: 0%\rShards: 50%\r") == "Shards: 50%"
    assert len(last_phase("x" * 5000)) == 300
