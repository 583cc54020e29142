"""Real vLLM servers: they start, tell why they do not, and leave no process behind."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fake_vllm import all_gone, session

import unbraid
from unbraid.errors import ServerError
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import start_server

pytestmark = pytest.mark.vllm

MODEL = Path(unbraid.__file__).parent / "lab" / "bases" / "calls-0"
FLAGS = [f"--model={MODEL}", "--dtype=float32", "--enforce-eager", "--max-model-len=256"]
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # read by the build for CPUs only


@pytest.fixture(scope="module")
def found():
    named = os.environ.get("UNBRAID_VLLM_PYTHON", "")
    assert named, "UNBRAID_VLLM_PYTHON names no interpreter: make test-vllm sets it"
    return find_vllm(named)


def test_start_answer_and_stop(found, tmp_path):
    lines = []
    with start_server(found, FLAGS, log=tmp_path / "log", environment=ENVIRONMENT, announce=lines.append) as running:
        with urllib.request.urlopen(f"{running.url}/version") as answer:
            assert json.load(answer)["version"].partition("+")[0] == found.version.partition("+")[0]
        processes = session(running.pid)
        assert len(processes) > 1 and running.pid in processes
        assert running.alive() and running.died() is None
    assert all_gone(processes, 0) and running.died() == f"vLLM at {running.url} was stopped"
    assert lines and all(line.startswith("waiting for vLLM (") for line in lines)


def test_why_it_does_not_start(found, tmp_path):
    too_long = [*FLAGS[:-1], "--max-model-len=9999"]
    with pytest.raises(ServerError, match=r"status 1\): ValidationError: .*max_model_len \(9999\) is greater"):
        start_server(found, too_long, log=tmp_path / "log", environment=ENVIRONMENT)


TRAINER = """
import json, sys, time
from pathlib import Path
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import start_server
python, log, flags, environment = json.loads(sys.argv[1])
print(start_server(find_vllm(python), flags, log=Path(log), environment=environment).pid, flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_trainer_that_is_killed(found, tmp_path):
    told = json.dumps([str(found.python), str(tmp_path / "log"), FLAGS, ENVIRONMENT])
    with subprocess.Popen([sys.executable, "-c", TRAINER, told], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout
        processes = session(int(trainer.stdout.readline()))
        trainer.send_signal(signal.SIGKILL)
    assert len(processes) > 1 and all_gone(processes, 15)


def test_an_engine_that_is_killed_ends_the_server(found, tmp_path):
    with start_server(found, FLAGS, log=tmp_path / "log", environment=ENVIRONMENT) as running:
        processes = session(running.pid)
        engines = [pid for pid in processes if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(engines[0], signal.SIGKILL)
        assert all_gone(processes, 30)
        running._keeper.wait(5)
        assert "vLLM at" in (running.died() or "") and "was stopped" not in (running.died() or "")
        print(running.died())
