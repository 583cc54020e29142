"""Whole runs of two processes by stock launchers: torchrun, accelerate, Ray, which one of them loses a worker of."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lost_workers import RUN
from ranked import as_rank, free_port
from test_run import BUDGET, recipe

from unbraid.errors import MissingExtraError, RanksError, RecipeError, UnbraidError
from unbraid.learn.log import read_metrics, read_rollouts, without_wall_clock
from unbraid.run import on_ray as ray_runs
from unbraid.run import read_scores, train
from unbraid.run.training import refuse_ranks

BIN = Path(sys.executable).parent
BUSY = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}
CHANGES = ("learn.steps=3", "reward.function=lost_workers:deadly")


def command(folder: Path, *more: str) -> list[str]:
    return ["train", "calls", "recommended", *BUDGET, *CHANGES, *more, "--out", str(folder)]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]], env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks by torchrun."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    done = launch("torchrun", *options, "-m", "unbraid.cli", *command(folder))
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists() and done.stdout.count("page") == 1  # the first rank alone talks
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [without_wall_clock(row) for row in read_metrics(folder)]


def assert_close(folder: Path, other: Path) -> None:
    """The same run up to rounding in float32: every token drawn, every score; numbers nearly."""
    for step in (1, 2, 3):
        pair = [read_rollouts(f / "rollouts" / f"step_{step:06d}.parquet") for f in (folder, other)]
        for a, b in zip(*pair, strict=True):
            assert a.task_id == b.task_id and a.ids.tolist() == b.ids.tolist()
    for one, theirs in zip(rows(folder), rows(other), strict=True):
        for key in ("loss", "grad_norm", "kl", "entropy", "constraint/think_rate/all/coefficient", "reward"):
            np.testing.assert_allclose(one[key], theirs[key], rtol=2e-3, atol=1e-5, err_msg=key)
    assert [s.to_json() | {"weights": ""} for s in read_scores(folder)] == [
        s.to_json() | {"weights": ""} for s in read_scores(other)
    ]


@pytest.mark.slow
def test_torchrun_gives_the_run_of_one_process(two: Path, tmp_path: Path):
    train(recipe(*CHANGES), tmp_path / "run")
    assert_close(two, tmp_path / "run")


@pytest.mark.slow
def test_accelerate_shards_as_it_is_told(two: Path, tmp_path: Path):
    options = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    done = launch("accelerate", "launch", *options, "-m", "unbraid", *command(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert_close(two, tmp_path / "run")


@pytest.mark.slow
def test_a_run_on_ray_whose_worker_is_killed_in_mid_step_ends_as_the_unbroken_one(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import ray

    folder = tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv(RUN, str(folder))
    # A busy machine is not a failure: Ray may take its time, and kills nobody for the memory that others take.
    for name, value in BUSY.items():
        monkeypatch.setenv(name, value)
    seen: list[int] = []
    ray.init(num_cpus=2, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        with pytest.raises(RanksError, match="3 workers need a CPU each and the Ray cluster has 2"):
            ray_runs.train_on_ray(recipe(*CHANGES), folder, workers=3)
        scores = ray_runs.train_on_ray(
            recipe(*CHANGES), folder, workers=2, progress=lambda stage, done, total, metrics: seen.append(done)
        )
    finally:
        ray.shutdown()
    assert (folder / "killed").exists() and seen and set(seen) <= {1, 2, 3}
    # Bit for bit: two ranks, one thread each.
    assert (folder / "final" / "model.safetensors").read_bytes() == (two / "final" / "model.safetensors").read_bytes()
    assert rows(folder) == rows(two)
    for file in (two / "rollouts").iterdir():
        assert (folder / "rollouts" / file.name).read_bytes() == file.read_bytes()
    assert [s.accuracy for s in scores] == [s.accuracy for s in read_scores(two)]


def test_ray_is_asked_for_only_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"unbraid\[ray\]"):
        ray_runs.train_on_ray(recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "environment", "says"),
    [
        ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision is bf16"),
        (["tasks.train=absent.jsonl"], {}, "absent.jsonl"),
    ],
)
def test_what_ranks_cannot_do_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], environment: dict[str, str], says: str
):
    for name, value in (as_rank(0, 1, 1) | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnbraidError) as caught:
        train(recipe("warmup=null", *changes), tmp_path / "run")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_several_ranks_cannot_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unbraid.ranks.world", lambda: 2)
    for changes, says in (
        (["model.device=cuda:1"], "set auto"),
        (["sampler=vllm", "sampler.ahead=true"], "use one rank"),
    ):
        with pytest.raises(RecipeError, match=says):
            refuse_ranks(recipe(*changes))
    refuse_ranks(recipe("sampler=vllm"))
