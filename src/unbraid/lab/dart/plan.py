"""Which cells there are, and in which order: learning rates first, then headline comparisons base by base."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from unbraid.lab.dart.cells import TUNING_BASE, Cell, CellResult
from unbraid.lab.dart.methods import (
    DOSED,
    DOSED_AT,
    FIRST,
    GRPO_RATE,
    METHODS,
    OTHERS,
    REINFORCED,
    RHOS,
    SEARCHED,
    Learner,
    Method,
    Sharing,
    World,
)

ENDS = (1.0, 0.0)
Arm = tuple[Learner, Sharing, str]
"""What a learning rate is chosen for: how it learns, where the adapters sit, the method."""


def arm_of(cell: Cell) -> Arm:
    """The arm that a cell of the conflict world belongs to."""
    return cell.learner, cell.sharing, cell.method


@dataclass(frozen=True)
class Stage:
    """Arms that are tuned together, and the doses at which they are run then."""

    arms: tuple[Arm, ...]
    rhos: tuple[float, ...]


def stages() -> list[Stage]:
    """The conflict world in the order of running: the dose, controls, GRPO, the other methods, adapters everywhere."""
    supervised, tight = Learner.SUPERVISED, Sharing.TIGHT
    return [
        *(Stage(tuple((supervised, sharing, name) for name in DOSED), RHOS) for sharing in DOSED_AT),
        *(Stage(tuple((supervised, sharing, name) for name in FIRST), ENDS) for sharing in DOSED_AT),
        Stage(tuple((Learner.GRPO, Sharing.MIDDLE, name) for name in REINFORCED), ENDS),
        Stage(tuple((supervised, tight, name) for name in OTHERS), ENDS),
        Stage(tuple((supervised, Sharing.LOOSE, name) for name in DOSED), ENDS),
    ]


def tuning(arm: Arm) -> list[Cell]:
    """The cells that decide an arm's learning rate: every rate at both ends of the dose. None for GRPO."""
    learner, sharing, name = arm
    if learner is Learner.GRPO:
        return []
    return [
        Cell(World.CONFLICT, sharing, TUNING_BASE, rho, learner, name, rate)
        for rate in METHODS[name].rates
        for rho in ENDS
    ]


def chosen_rates(results: Iterable[CellResult]) -> dict[Arm, float]:
    """The learning rate of each arm whose tuning is done, or needs none: the best mean area over both ends, on dev."""
    areas: dict[Arm, dict[float, list[float]]] = {}
    for result in results:
        cell = result.cell
        if cell.world is World.CONFLICT and cell.base == TUNING_BASE:
            areas.setdefault(arm_of(cell), {}).setdefault(cell.rate, []).append(result.auc)
    given: dict[Arm, float] = {(Learner.GRPO, Sharing.MIDDLE, name): GRPO_RATE for name in REINFORCED}
    return given | {
        arm: max(found, key=lambda rate: float(np.mean(found[rate])))
        for arm, found in areas.items()
        if sum(map(len, found.values())) == len(tuning(arm))
    }


def result_cells(stage: Stage, bases: int, rates: Mapping[Arm, float]) -> list[Cell]:
    """The cells of a stage over bases 1 … `bases`, dose by dose, each dose base by base.

    Arms without a learning rate are left out: they were not tuned yet.
    """
    return [
        Cell(World.CONFLICT, arm[1], base, rho, arm[0], arm[2], rates[arm])
        for rho in stage.rhos
        for base in range(TUNING_BASE + 1, TUNING_BASE + 1 + bases)
        for arm in stage.arms
        if arm in rates
    ]


def untrained_cells(bases: int) -> list[Cell]:
    """The conflict world's bases as they are. At every dose: what is right differs."""
    return [
        Cell(World.CONFLICT, Sharing.TIGHT, TUNING_BASE + 1 + i, rho, Learner.SUPERVISED, "base", 0.0)
        for i in range(bases)
        for rho in RHOS
    ]


def search_plan(bases: int) -> list[Cell]:
    """The search world, base by base, first what the paper compares; base 0 is shipped."""
    return [
        Cell(World.SEARCH, Sharing.LOOSE, base, 1.0, Learner.GRPO, name, _search_rate(METHODS[name]))
        for names in (SEARCHED[:3], SEARCHED[3:])
        for base in range(bases)
        for name in names
    ]


def _search_rate(method: Method) -> float:
    return method.search_rate if method.trained else 0.0
