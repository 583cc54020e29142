"""Several ranks in tests: processes that meet over gloo, forked from one that has imported everything already."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from unbraid import ranks

PRELOADED = ["accelerate", "unbraid.run", "unbraid.lab.calls_world", "unbraid.interference.monitor"]
SECONDS = 600
"""How long a test waits for its ranks: much longer than they need, on a busy machine too."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_rank(rank: int, world: int, port: int) -> dict[str, str]:
    """The environment that a launcher gives to one rank of a node."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def on_ranks(work: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns on each of `world` ranks; an exception is returned as its text."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    started = [
        context.Process(target=_one, args=(as_rank(rank, world, port), folder, work, arguments))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    hanging = [process.pid for process in started if process.is_alive()]
    for process in started:
        process.kill()
    assert not hanging, f"{len(hanging)} of {world} ranks hang"
    files = [folder / f"rank-{rank}.pt" for rank in range(world)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _one(environment: dict[str, str], folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with ranks.joined("cpu"):
            found = work(*arguments)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"rank-{environment['RANK']}.pt")
