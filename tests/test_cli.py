"""The command line: errors are one line with an exit status, and Ctrl-C says how to go on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "unbraid.cli"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nope"], "no recipe 'nope'"),
        (["train", "calls", "learn.stepz=3"], "did you mean steps?"),
        (["report", "nowhere"], "is not a run folder"),
        (["train", "rows", "model.path=nowhere/at/all", "tasks.train=absent.jsonl"], "model.path"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str, tmp_path: Path):
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_interrupting_says_how_to_go_on(tmp_path: Path):
    command = [*COMMAND, "train", "calls", "recommended", "warmup=null", "learn.steps=500", "--out", "run"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "--resume" in output
    assert "Traceback" not in output
