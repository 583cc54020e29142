"""Run an evaluation: every mode under every decoding, through a sampler that the caller brings."""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from unbraid.chat.types import Mode
from unbraid.evaluate.metrics import Labels, Score, score
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.task import Task

Sample = Callable[[Sequence[Task], Mode, float, int], list[Trajectory]]
"""(tasks, mode asked for, temperature, samples per task) -> graded trajectories. Temperature 0 is greedy."""


class EvaluateConfig(BaseModel):
    """What to evaluate, and how often while training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modes: tuple[Mode, ...] = (Mode.AUTO, Mode.THINK, Mode.NO_THINK)
    """Modes to ask for. Source: arXiv 2603.13348 evaluates auto and both forced modes."""
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 1.0)
    """Sampling temperatures; 0 = greedy. Choice: greedy is what users run, 1 is what RL optimises."""
    samples: int = Field(default=4, ge=1)
    """Samples per task at temperatures above 0; greedy takes 1. Choice: tasks, not samples, set the precision."""
    every: int = Field(default=0, ge=0)
    """Validate every so many steps, and after the last; 0 = never (the final evaluation comes in any case)."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many tasks, spread evenly over the file; null = all."""

    @field_validator("modes")
    @classmethod
    def _can_be_asked_for(cls, modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
        if not modes or Mode.NONE in modes:
            raise ValueError("mode 'none' can be found but not asked for: list one or more of auto, think, no_think")
        return modes


def evaluate(
    sample: Sample,
    tasks: Sequence[Task],
    config: EvaluateConfig,
    labels: Labels,
    keep: Callable[[Score, list[Trajectory]], None] | None = None,
) -> list[Score]:
    """Score `tasks` in every mode and at every temperature of `config`, modes outermost.

    Args:
        sample: makes and grades the responses; called once per (mode, temperature).
        keep: called with each score and its trajectories, for paired comparisons and transcripts.

    Raises:
        DataError: if there are no tasks, or `sample` returned uneven groups.
    """
    chosen, scores = spread(tasks, config.limit), []
    for mode in config.modes:
        for temperature in config.temperatures:
            trajectories = sample(chosen, mode, temperature, config.samples if temperature else 1)
            scores.append(score(trajectories, labels, mode, temperature))
            if keep:
                keep(scores[-1], trajectories)
    return scores


def spread(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    """`limit` tasks evenly spaced over the whole sequence: files are often sorted by level or source."""
    if limit is None or limit >= len(tasks):
        return list(tasks)
    return [tasks[i] for i in np.linspace(0, len(tasks) - 1, limit).round().astype(int)]
