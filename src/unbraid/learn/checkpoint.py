"""Exact checkpoints: a run stopped at any point and resumed equals the unbroken run bit for bit (CPU, same threads).

A checkpoint is a folder that stock transformers or PEFT loads, with more files: `trainer.pt` (optimiser, constraints
with their optimisers, random states, watches), `state.json` (step, threads, recipe fingerprint) and, with look-ahead,
`drawn.parquet`. It is written under another name, flushed, and renamed, and leaves in the opposite order: `step-*`
folders are always whole.
"""

import json
import os
import pickle
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError

from unbraid import ranks
from unbraid.errors import CheckpointError
from unbraid.learn.log import read_rollouts, write_rollouts
from unbraid.policy import Policy
from unbraid.rollout.trajectory import Trajectory


class CheckpointConfig(BaseModel):
    """When checkpoints are written and how many stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=20, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    keep: int = Field(default=2, ge=1)
    """Most recent ones kept; the best by validation stays besides."""


DRAWN = "drawn.parquet"
"""What look-ahead had drawn for the next step."""
WRITING, DROPPING = ".writing-", ".dropping-"
"""Prefixes of folders that are not checkpoints yet, or no longer. What a killed process left is cleared away."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk. `step` is the number of iterations done."""

    path: Path
    step: int


UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError)
"""What torch, transformers, safetensors and json raise for files that are cut short, changed or gone."""


class CheckpointStore:
    """The checkpoints of one run, under `directory`.

    Args:
        fingerprint: identifies what the run is made of; a checkpoint with another one is refused.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, fingerprint: str):
        self.directory = directory
        self.config = config
        self.fingerprint = fingerprint

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        found = [Checkpoint(p, int(p.name.removeprefix("step-"))) for p in self.directory.glob("step-*")]
        return sorted(found, key=lambda c: c.step)

    def latest(self) -> Checkpoint | None:
        return (self.all() or [None])[-1]

    def save(
        self,
        step: int,
        policy: Policy,
        state: dict[str, Any],
        best_step: int | None,
        drawn: Sequence[Trajectory] = (),
    ) -> Checkpoint:
        """Write the checkpoint after `step` iterations, then drop those that are no longer kept.

        Args:
            drawn: of the next step already, by look-ahead.
        """
        self._clear_leftovers()
        target = self.directory / f"step-{step:06d}"
        partial = self.directory / f"{WRITING}{step:06d}"
        partial.mkdir(parents=True)
        policy.save(partial)
        torch.save({**state, "random": random_state()}, partial / "trainer.pt")
        if drawn:
            write_rollouts(partial / DRAWN, drawn)
        info = {"step": step, "threads": torch.get_num_threads(), "fingerprint": self.fingerprint}
        (partial / "state.json").write_text(json.dumps(info))
        _flush(partial)
        partial.rename(target)
        _flush(self.directory)
        self._drop_old(best_step)
        return Checkpoint(target, step)

    def restore(self, checkpoint: Checkpoint, policy: Policy) -> dict[str, Any]:
        """Load weights, random states and the thread count; returns what `save` was given as `state`, and as `drawn`.

        Raises:
            CheckpointError: the checkpoint belongs to another recipe, or cannot be read.
        """
        self._clear_leftovers()
        try:
            info = json.loads((checkpoint.path / "state.json").read_text())
            if info["fingerprint"] != self.fingerprint:
                raise CheckpointError(
                    f"{checkpoint.path} was written with another recipe: resume with the recipe.yaml of that run, or "
                    "choose another run directory"
                )
            policy.load_weights(checkpoint.path)
            state = torch.load(checkpoint.path / "trainer.pt", weights_only=True)
            threads, random_states = info["threads"], state.pop("random")
            drawn = checkpoint.path / DRAWN
            state["drawn"] = read_rollouts(drawn) if drawn.exists() else []
        except CheckpointError:
            raise
        except UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(
                f"{checkpoint.path} cannot be read ({reason}): delete this folder and resume again from the one before"
            ) from error
        torch.set_num_threads(threads)
        restore_random_state(random_states)
        return state

    def _drop_old(self, best_step: int | None) -> None:
        kept = {c.step for c in self.all()[-self.config.keep :]} | {best_step}
        for checkpoint in self.all():
            if checkpoint.step not in kept:
                leaving = self.directory / f"{DROPPING}{checkpoint.step:06d}"
                checkpoint.path.rename(leaving)
                shutil.rmtree(leaving)

    def _clear_leftovers(self) -> None:
        if not ranks.is_first():  # it alone writes here
            return
        for prefix in (WRITING, DROPPING):
            for leftover in self.directory.glob(f"{prefix}*"):
                shutil.rmtree(leftover)


def random_state() -> dict[str, Any]:
    """States of the global generators. Sampling and data order do not use them; user code may."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    name, key, *rest = np.random.get_state()
    # A plain list: checkpoints are read without unpickling arbitrary objects.
    numpy = (name, np.asarray(key).tolist(), *rest)
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the global generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _flush(folder: Path) -> None:
    """Make a folder and the files in it durable before anything refers to them."""
    for path in [*folder.iterdir(), folder]:
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
