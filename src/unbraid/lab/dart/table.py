"""The claims run in numbers: rows of results, and the plain data of its last line and of the committed file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbraid.evaluate.statistics import Estimate
from unbraid.lab.claims import ENOUGH_BASES, Verdict, by_base, estimate
from unbraid.lab.dart.cells import Cell, CellResult
from unbraid.lab.dart.methods import METHODS, RHOS, Learner, Sharing, World
from unbraid.lab.dart.plan import Arm
from unbraid.lab.dart.run import Ran
from unbraid.lab.dart.verdicts import DOSE, PAPER, PREDICTED, Unit, is_monotone, judge_all, units


@dataclass(frozen=True)
class Row:
    """One method at one dose, over bases.

    against: paired difference of its area under the curve to that of `shared_r16` at the same place.
    rates: learning rate. alone: role → its skill with its own adapter on alone.
    """

    world: World
    learner: Learner
    sharing: Sharing
    rho: float
    method: str
    rate: float
    final: Estimate
    auc: Estimate
    action: Estimate
    reasoning: Estimate
    against: Estimate | None
    alone: dict[str, Estimate]
    information: float | None


@dataclass(frozen=True)
class Claims:
    """Everything that page and last line show."""

    ran: Ran
    rows: Sequence[Row]
    paper: Sequence[Verdict]
    predicted: Sequence[Verdict]
    dose: Mapping[Sharing, Sequence[Verdict]]

    @property
    def results(self) -> list[CellResult]:
        return self.ran.results

    @property
    def missing(self) -> list[Cell]:
        """Cells of the plan without a result."""
        there = {result.cell for result in self.results}
        return [cell for cell in self.ran.cells if cell not in there]

    @property
    def monotone(self) -> dict[Sharing, bool | None]:
        """Whether DART's verdict is monotone in the dose, wherever the adapters sit."""
        return {sharing: is_monotone(verdicts) for sharing, verdicts in self.dose.items()}

    @property
    def state(self) -> str:
        """How much of the plan there is, in words."""
        ran, planned = len(self.results), len(self.ran.cells)
        if not self.missing:
            bases = len({cell.base for cell in self.ran.cells if cell.world is World.CONFLICT})
            enough = "" if bases >= ENOUGH_BASES else f"; {bases} bases, where the claims need {ENOUGH_BASES}"
            return f"complete: {ran} cells{enough}"
        parts = []
        for world in World:
            there = sum(r.cell.world is world for r in self.results)
            parts.append(f"{world} world {there} of {sum(cell.world is world for cell in self.ran.cells)} cells")
        return f"partial: {ran} of {planned} cells ({', '.join(parts)})"


def claims_of(ran: Ran) -> Claims:
    """Tables and verdicts from whatever results there are."""
    results = ran.results
    dose = {sharing: judge_all(claims, results) for sharing, claims in DOSE.items()}
    return Claims(ran, _rows(results), judge_all(PAPER, results), judge_all(PREDICTED, results), dose)


def _rows(results: Sequence[CellResult]) -> list[Row]:
    found = units(results)
    keys = {key for unit in found.values() for key in unit}
    names, doses = list(METHODS), sorted(RHOS, reverse=True)
    order = [
        (world, learner, sharing, rho, name)
        for world in World
        for learner in Learner
        for sharing in Sharing
        for name in names
        for rho in doses
    ]
    return [_row(key, found) for key in order if key in keys]


def _row(key: tuple[World, Learner, Sharing, float, str], found: dict[tuple[int, int], Any]) -> Row:
    world, learner, sharing, rho, name = key
    shared = (world, learner, sharing, rho, "shared_r16")
    here = [unit[key] for unit in found.values() if key in unit]

    def over_bases(field: str) -> Estimate:
        number = estimate(by_base(found, lambda unit: getattr(unit[key], field)))
        assert number is not None  # the caller saw a result
        return number

    def against(unit: Unit) -> float:
        return unit[key].auc - unit[shared].auc

    alone = {
        role: estimate(by_base(found, lambda unit, role=role: unit[key].only[role][role == "reasoning"]))
        for role in ("action", "reasoning")
    }
    information = [result.information for result in here if result.information is not None]
    return Row(
        world,
        learner,
        sharing,
        rho,
        name,
        here[0].cell.rate,
        over_bases("final"),
        over_bases("auc"),
        over_bases("action"),
        over_bases("reasoning"),
        estimate(by_base(found, against)) if name != "shared_r16" else None,
        {role: number for role, number in alone.items() if number is not None},
        float(np.mean(information)) if information else None,
    )


def last_line(claims: Claims) -> dict[str, Any]:
    """The result in plain JSON types."""
    return {
        "gain_by_rho": {
            sharing.value: {v.claim.name.split(",")[0].removeprefix("rho = "): _numbers(v.estimate) for v in verdicts}
            for sharing, verdicts in claims.dose.items()
        },
        "monotone": {sharing.value: monotone for sharing, monotone in claims.monotone.items()},
        "verdicts": {v.claim.name: v.ruling.value for v in (*claims.paper, *claims.predicted)},
        "cells": len(claims.results),
        "missing": len(claims.missing),
        "state": claims.state,
    }


def as_json(claims: Claims) -> dict[str, Any]:
    """The last line with all tables: what is committed."""
    return last_line(claims) | {
        "failed": dict(claims.ran.failed),
        "learning_rates": [
            {"learner": arm[0].value, "sharing": arm[1].value, "method": arm[2], "rate": rate}
            for arm, rate in sorted(claims.ran.rates.items(), key=_arm_order)
        ],
        "methods": {m.name: {"label": m.label, "whose": m.whose.value} for m in METHODS.values()},
        "rows": [
            {
                "world": r.world.value,
                "learner": r.learner.value,
                "sharing": r.sharing.value,
                "rho": r.rho,
                "method": r.method,
                "rate": r.rate,
                "final": _numbers(r.final),
                "auc": _numbers(r.auc),
                "action": _numbers(r.action),
                "reasoning": _numbers(r.reasoning),
                "auc_against_shared_r16": _numbers(r.against),
                "alone": {role: _numbers(e) for role, e in r.alone.items()},
                "information": None if r.information is None else round(r.information, 4),
            }
            for r in claims.rows
        ],
        "claims": [_verdict(v) for v in claims.paper],
        "predictions": [_verdict(v) for v in claims.predicted],
        "dose": [_verdict(v) for verdicts in claims.dose.values() for v in verdicts],
    }


def _verdict(v: Verdict) -> dict[str, Any]:
    return {
        "claim": v.claim.name,
        "measure": v.claim.says,
        "expected": v.claim.number,
        "verdict": v.ruling.value,
        "number": _numbers(v.estimate),
        "by_base": {str(base): round(value, 4) for base, value in v.values.items()},
    }


def _arm_order(item: tuple[Arm, float]) -> tuple[str, str, str]:
    learner, sharing, name = item[0]
    return learner.value, sharing.value, name


def _numbers(e: Estimate | None) -> dict[str, float | int | None] | None:
    if e is None:
        return None
    low, high = (None if end is None else round(end, 4) for end in (e.low, e.high))
    return {"value": round(e.value, 4), "low": low, "high": high, "bases": e.n}
