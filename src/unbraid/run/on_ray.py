"""A run on a Ray cluster: Ray places the ranks and starts them again when one is lost; checkpoints are our own.

Ray Train's own checkpoints and reports are not used: a run goes on from its folder, as with `--resume`, so that the
folder must be on storage which every node sees under one path.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from unbraid import errors, ranks
from unbraid.errors import DataError, MissingExtraError, RanksError, UnbraidError
from unbraid.evaluate.metrics import Score
from unbraid.learn.log import read_metrics
from unbraid.recipe import Recipe
from unbraid.run.folder import read_scores, refuse_other_runs
from unbraid.run.training import Progress, silent, train

SECONDS = 2.0
"""Between two looks at how far the run is."""
FAILURES = 5
"""Choice: how often a run is started again. One that always fails at the same place must end some time."""


def train_on_ray(
    recipe: Recipe,
    run_dir: str | Path,
    resume: bool = False,
    workers: int = 0,
    progress: Progress = silent,
) -> list[Score]:
    """`train` by the workers of a Ray cluster: the one that `RAY_ADDRESS` names or that runs here, else a local one.

    Args:
        workers: ranks, each with one GPU where the cluster has any; 0 = one for each GPU, or one.
        progress: is told of the steps of RL; what workers print stays in Ray's own logs.

    Raises:
        MissingExtraError: without ray. RanksError: the cluster is too small, or workers were lost too often.
        UnbraidError: whatever `train` refuses.
    """
    run_dir = Path(run_dir).resolve()
    refuse_other_runs(run_dir, recipe, resume)
    ray = _ray()
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    if not ray.is_initialized():
        # Ray Train says once a second that it misses Ray's dashboard, and nothing can be done about it.
        ray.init(log_to_driver=False)
    there = ray.cluster_resources()
    gpus = 0 if recipe.model.device == "cpu" else int(there.get("GPU", 0))
    workers = workers or gpus or 1
    kind, count = ("GPU", gpus) if gpus else ("CPU", int(there.get("CPU", 0)))
    if workers > count:
        raise RanksError(f"{workers} workers need a {kind} each and the Ray cluster has {count}: lower --workers")
    # Ray asks for a place of its own; what it writes there is about the workers, not about the run.
    storage = str(run_dir.parent / ".ray")
    trainer = TorchTrainer(
        _work,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "run_dir": str(run_dir)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus)),
        run_config=RunConfig(
            name=f"{run_dir.name}-{time.time_ns()}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=FAILURES),
        ),
        torch_config=TorchConfig(timeout_s=int(ranks.PATIENCE.total_seconds())),
    )
    try:
        with _watched(run_dir, recipe.learn.steps, progress):
            refusal = trainer.fit().return_value
    except (TrainingFailedError, ray.exceptions.RayError) as problem:
        reason = str(problem).strip().splitlines()[-1]
        raise RanksError(
            f"Ray gave up, after at most {FAILURES} new starts, over: {reason}: see its logs of the workers, and go on "
            "with --resume"
        ) from problem
    if refusal:
        raise getattr(errors, refusal[0], UnbraidError)(refusal[1])
    return read_scores(run_dir)


def _work(given: dict[str, Any]) -> tuple[str, str] | None:
    """One worker: a rank whose process group Ray has made. Returns what the run was refused for, if it was."""
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    try:
        # The first start was allowed to take the folder; every other one goes on with what is in it.
        train(Recipe.model_validate(given["recipe"]), given["run_dir"], resume=True)
    except RanksError:  # a worker is lost: Ray starts all of them again
        raise
    except UnbraidError as problem:  # it would be the same again
        return type(problem).__name__, str(problem)
    return None


@contextmanager
def _watched(run_dir: Path, total: int, progress: Progress) -> Iterator[None]:
    """Within, the run's log says how far it is."""
    ended = threading.Event()

    def watch() -> None:
        shown = 0
        while not ended.wait(SECONDS):
            with suppress(DataError, IndexError):
                if (last := read_metrics(run_dir)[-1])["step"] != shown:
                    shown = last["step"]
                    progress("train", shown, total, last)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _ray() -> Any:
    # Nothing about a run leaves the machines that it is given.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.train.torch
    except ImportError as problem:
        raise MissingExtraError("--on ray needs Ray Train: pip install 'unbraid[ray]'") from problem
    return ray
