"""The claims run in numbers: one table of methods, and the plain data of its last line and of the committed result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unbraid.evaluate.statistics import Estimate
from unbraid.lab.autotool.cells import Cell, CellResult, Part
from unbraid.lab.autotool.goal import Reached, all_reached, oracle
from unbraid.lab.autotool.methods import CLAIM_SHARE, CLAIM_START, METHODS, SERVED, SWEPT, predicted_collapse
from unbraid.lab.autotool.paired import SETTINGS, Coverage, Unit, coverage, units
from unbraid.lab.autotool.verdicts import judge_all
from unbraid.lab.claims import ENOUGH_BASES, Verdict, by_base, estimate
from unbraid.lab.starts import Start

HEADLINE = ("distilled", "plain", "autotool_published", "recommended", "second_thoughts")


@dataclass(frozen=True)
class Row:
    """One method at one start and the share of the claims; estimates over bases, on the test set as it is.

    against_distilled: paired difference in accuracy. sampled: mean tokens drawn in RL, and before it to choose prompts.
    """

    method: str
    start: Start
    accuracy: Estimate
    tokens: Estimate
    think_rate: Estimate
    end_think_rate: Estimate | None
    against_distilled: Estimate | None
    sampled: float
    prompts_known: float | None

    @property
    def begins_as(self) -> str:
        """What the method starts from, in a word."""
        method = METHODS[self.method]
        return "base" if method.base else (method.start or self.start).value


@dataclass(frozen=True)
class Claims:
    """Everything that the page and the last line show."""

    cells: Sequence[Cell]
    results: Sequence[CellResult]
    failed: Mapping[str, str]
    rows: Sequence[Row]
    verdicts: Sequence[Verdict]
    goal: Sequence[Reached]
    coverages: Sequence[Coverage]
    responses: int

    @property
    def bases(self) -> list[int]:
        """Bases with a result of every method of the full list, for some seed."""
        found = units(self.results, CLAIM_START, CLAIM_SHARE)
        return sorted({base for (base, _), unit in found.items() if METHODS.keys() <= unit.keys()})

    @property
    def ran(self) -> int:
        """Cells of the plan with a result."""
        return len(self.cells) - len(self.missing)

    @property
    def missing(self) -> list[Cell]:
        """Cells of the plan without a result."""
        there = {result.cell for result in self.results}
        return [cell for cell in self.cells if cell not in there]

    @property
    def state(self) -> str:
        """How much of the plan there is, in words."""
        done, wanted = len(self.bases), len({cell.base for cell in self.cells})
        if not self.missing and done >= ENOUGH_BASES:
            return f"complete: {done} bases, {len(self.cells)} cells"
        if not self.missing:
            return f"all {len(self.cells)} cells of a smaller plan: {done} bases, where the claims need {ENOUGH_BASES}"
        return f"partial: full list on {done} of {wanted} bases, {self.ran} of {len(self.cells)} cells"


def claims_of(
    cells: Sequence[Cell], results: Sequence[CellResult], failed: Mapping[str, str], responses: int
) -> Claims:
    """Tables and verdicts from whatever results there are."""
    seeds = max((cell.seed for cell in cells), default=0) + 1
    bases = max(len({cell.base for cell in cells}), 2)
    return Claims(
        cells,
        results,
        failed,
        [row for start in (CLAIM_START, Start.CLEAR) for row in _rows(results, start)],
        judge_all(results),
        all_reached(results, (*SERVED.values(), *SERVED, *(m for m in SWEPT if m not in SERVED))),
        [coverage(setting, bases, seeds) for setting in SETTINGS],
        responses,
    )


def _rows(results: Sequence[CellResult], start: Start) -> list[Row]:
    found, fixed = units(results, start, CLAIM_SHARE), units(results, CLAIM_START, CLAIM_SHARE)
    with_distilled = {
        place: {**unit, **({"distilled": fixed[place]["distilled"]} if "distilled" in fixed.get(place, {}) else {})}
        for place, unit in found.items()
    }
    return [_row(name, start, with_distilled) for name in METHODS if any(name in unit for unit in found.values())]


def _row(name: str, start: Start, found: Mapping[tuple[int, int], Unit]) -> Row:
    def end_rate(unit: Unit) -> float:
        rate = unit[name].end_think_rate
        if rate is None:
            raise KeyError(name)
        return rate

    def over_bases(field: str) -> Estimate:
        number = estimate(by_base(found, lambda unit: getattr(unit[name].test(), field)))
        assert number is not None  # the caller saw a result
        return number

    here = [unit[name] for unit in found.values() if name in unit]
    shares = [result.prompts_known for result in here if result.prompts_known is not None]
    return Row(
        name,
        start,
        over_bases("accuracy"),
        over_bases("tokens"),
        over_bases("think_rate"),
        estimate(by_base(found, end_rate)),
        estimate(by_base(found, lambda unit: unit[name].test().accuracy - unit["distilled"].test().accuracy)),
        float(np.mean([result.sampled_tokens + result.spent_before for result in here])),
        float(np.mean(shares)) if shares else None,
    )


def last_line(claims: Claims) -> dict[str, Any]:
    """The result in plain JSON types. Means over the bases that have all of the headline; null where there is none."""
    found = units(claims.results, CLAIM_START, CLAIM_SHARE)
    whole = {place: unit for place, unit in found.items() if {*HEADLINE, "direct"} <= unit.keys()}
    out: dict[str, Any] = {
        name: _mean([unit[name].test() for unit in whole.values()]) for name in HEADLINE
    }  # fmt: skip
    out["oracle"] = _mean([oracle(unit) for unit in whole.values()])
    return out | {
        "bases": len({base for base, _ in whole}),
        "seeds": len({seed for _, seed in whole}),
        "cells": claims.ran,
        "missing": len(claims.missing),
        "state": claims.state,
    }


def as_json(claims: Claims) -> dict[str, Any]:
    """The last line with all tables: what is committed."""
    return last_line(claims) | {
        "share": CLAIM_SHARE,
        "responses_per_method": claims.responses,
        "failed": dict(claims.failed),
        "methods": [
            {
                "method": row.method,
                "start": row.begins_as,
                "label": METHODS[row.method].label,
                "whose": METHODS[row.method].whose.value,
                "accuracy": _numbers(row.accuracy),
                "tokens": _numbers(row.tokens),
                "think_rate": _numbers(row.think_rate),
                "end_think_rate": _numbers(row.end_think_rate),
                "accuracy_against_distilled": _numbers(row.against_distilled),
                "tokens_sampled": round(row.sampled),
                "prompts_known": _rounded(row.prompts_known),
            }
            for row in claims.rows
        ],
        "verdicts": [
            {
                "claim": v.claim.name,
                "measure": v.claim.says,
                "paper": v.claim.number,
                "verdict": v.ruling.value,
                "number": _numbers(v.estimate),
                "by_base": {str(base): round(value, 4) for base, value in v.values.items()},
            }
            for v in claims.verdicts
        ],
        "shares": [
            {
                "share": r.share,
                "method": r.method,
                "collapse_predicted": predicted_collapse(r.method, r.share),
                "collapsed": r.has_collapsed,
                "oracle_saving": _numbers(r.oracle_saving),
                "saved": _numbers(r.saved),
                "accuracy_kept": _numbers(r.kept),
                "think_rate": _numbers(r.think_rate),
                "goal_met": r.is_met,
                "goal_met_on": r.met_on,
                "collapsed_on": r.stopped_on,
            }
            for r in claims.goal
        ],
        "coverage": [
            {
                "setting": c.setting.name,
                "accuracies": [c.setting.first, c.setting.second],
                "bases": c.bases,
                "seeds": c.seeds,
                "simulations": c.simulations,
                "held": round(c.held, 4),
                "below": round(c.below, 4),
                "above": round(c.above, 4),
                "pointlike": round(c.pointlike, 4),
            }
            for c in claims.coverages
        ],
    }


def _mean(parts: Sequence[Part]) -> dict[str, float] | None:
    if not parts:
        return None
    accuracy, tokens = (np.mean([getattr(part, name) for part in parts]) for name in ("accuracy", "tokens"))
    return {"accuracy": round(float(accuracy), 4), "tokens": round(float(tokens), 2)}


def _numbers(e: Estimate | None) -> dict[str, float | int | None] | None:
    if e is None:
        return None
    return {"value": _rounded(e.value), "low": _rounded(e.low), "high": _rounded(e.high), "bases": e.n}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
