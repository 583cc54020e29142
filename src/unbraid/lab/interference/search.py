"""The search world: real searches, an answer that nobody knows beforehand. What `unbraid interference` does, per base.

    OUT/search/KEY/            the five training runs of a base, gone when its cell is there
    OUT/cells/KEY.json

Plan, fixed before any cell was run: bases 0 and on, one start each; adapters of rank 8 (the wide one 16) everywhere,
30 GRPO steps of 16 questions (by then a joint model has learned most of what 90 teach it), every model at the rate that
the recipe names for adapters: a grid of rates would take hours.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from unbraid.interference.diagnosis import Diagnosis, diagnose
from unbraid.interference.geometry import Geometry
from unbraid.interference.sharing import Start
from unbraid.lab import search_base
from unbraid.lab.interference.cells import keep, read
from unbraid.lab.search import search_recipe
from unbraid.lab.search_world import SEARCH_WORLD_VERSION
from unbraid.recipe import Recipe
from unbraid.run.interference import one_start, plain_recipe

RANK, RATE, STEPS = 8, 2e-3, 30
QUESTIONS, SAMPLES = 48, 20


@dataclass(frozen=True)
class SearchCell:
    """One training start: a world of facts with its base model. `seed` is that of adapters, order and sampling."""

    base: int
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """What its joint model is trained by; the others' recipes follow from it."""
        return plain_recipe(
            search_recipe(
                self.seed,
                self.base,
                [
                    f"model.adapter={{rank: {RANK}, alpha: {2 * RANK}}}",
                    f"learn.learning_rate={RATE}",
                    f"learn.steps={STEPS}",
                    "learn.interference_every=0",
                    "rollout.max_batch=512",  # of evaluations: a step has 128 episodes
                ],
            )
        )

    @property
    def key(self) -> str:
        """The cell's name with what else decides its result."""
        # What is at its default says nothing: a setting that is new to recipes does not make old cells wrong.
        kept = self.recipe.model_dump(mode="json", exclude={"label", "checkpoint", "sampler"}, exclude_defaults=True)
        parts = [kept, SEARCH_WORLD_VERSION, search_base.PRETRAINING.model_dump(), QUESTIONS, SAMPLES]
        digest = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
        return f"search-base-{self.base}-seed-{self.seed}-{digest}"


@dataclass(frozen=True)
class SearchResult:
    """successes: model → how often it solved each of `QUESTIONS` questions, in `SAMPLES` tries. seconds: in all."""

    successes: dict[str, list[int]]
    geometry: Geometry
    seconds: float


def run_search_cell(cell: SearchCell, out: Path, tell: Callable[..., None]) -> float:
    """Train and measure all models of a base, or go on with it; returns seconds."""
    began, work = time.perf_counter(), out / "search" / cell.key
    counts, found = one_start(cell.recipe, work, QUESTIONS, SAMPLES, tell)
    seconds = time.perf_counter() - began
    successes = {name: values.tolist() for name, values in counts.items()}
    keep(out, cell.key, asdict(SearchResult(successes, found, seconds)))
    shutil.rmtree(work)
    return seconds


def read_search(out: Path, cell: SearchCell) -> SearchResult | None:
    """The result of a cell; None if it was not run."""
    found: Any = read(out, cell.key)
    return TypeAdapter(SearchResult).validate_python(found) if found is not None else None


def diagnose_search(results: Sequence[SearchResult]) -> Diagnosis:
    """All measures over bases."""
    counts = [{name: np.array(values) for name, values in result.successes.items()} for result in results]
    starts = [Start.sampled(found, SAMPLES) for found in counts]
    return diagnose(starts, counts, SAMPLES, [result.geometry for result in results])
