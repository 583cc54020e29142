"""The validation of all measures: which cells, tuned how, and what they say together."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from unbraid.interference.attribution import VARIANTS
from unbraid.interference.diagnosis import PUBLISHED_SAMPLES, Diagnosis, Targets, diagnose
from unbraid.interference.sharing import ENOUGH_STARTS, Ruling, Start
from unbraid.lab.dart.methods import Learner, World
from unbraid.lab.dart.run import build_base_once, has_base
from unbraid.lab.interference.cells import (
    ARMS,
    GRPO_RATE,
    OFF_ROLE_KL,
    RANK,
    RATES,
    TUNING_BASE,
    Cell,
    Result,
    Series,
    Sharing,
    Tuning,
    read,
    read_result,
    run_cell,
    run_tuning,
)
from unbraid.lab.interference.search import (
    SearchCell,
    SearchResult,
    diagnose_search,
    read_search,
    run_search_cell,
)
from unbraid.lab.sweep import Work, run_within

TIGHT, LOOSE = Series(Sharing.TIGHT), Series(Sharing.LOOSE)
HELD = Series(Sharing.TIGHT, off_role_kl=OFF_ROLE_KL)
REINFORCED = Series(Sharing.TIGHT, Learner.GRPO)
ENDS, MIDDLE, BETWEEN = (1.0, 0.0), (0.5,), (0.75, 0.25)
PLAN: dict[Series, tuple[float, ...]] = {
    TIGHT: (*ENDS, *MIDDLE, *BETWEEN),
    LOOSE: (*ENDS, *MIDDLE, *BETWEEN),
    HELD: (*ENDS, *MIDDLE),
    REINFORCED: (*ENDS, *MIDDLE),
}
"""Doses in the order of running: a run that ends early has both ends."""
SEARCH = "search"
PARTS_OF_PLAN = (*(series.name for series in PLAN), SEARCH)
"""What `--part` chooses from."""
SECONDS = {TIGHT: 20.0, LOOSE: 25.0, HELD: 15.0, REINFORCED: 90.0}
TUNING_SECONDS, BASE_SECONDS, SEARCH_SECONDS = 10.0, 30.0, 300.0
"""First guesses on one busy core; measured ones replace them."""


@dataclass
class Validation:
    """What a run has.

    diagnoses: (series, rho) → all measures over bases, where enough bases were run. search: the same of the search
    world. seconds: of what, a cell of the conflict world on average.
    """

    diagnoses: dict[tuple[Series, float], Diagnosis] = field(default_factory=dict)
    search: Diagnosis | None = None
    rates: dict[Series, dict[str, float]] = field(default_factory=dict)
    planned: int = 0
    done: int = 0
    searched: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def doses(self, series: Series) -> list[float]:
        """Those that were diagnosed, rising."""
        return sorted(rho for s, rho in self.diagnoses if s == series)

    @property
    def series(self) -> list[Series]:
        """Those of which something was diagnosed, in the order of the plan."""
        return [series for series in PLAN if self.doses(series)]


def validate(
    out: Path, bases: int, jobs: int, minutes: float | None, console: Console, rank: int = RANK,
    parts: Sequence[str] = PARTS_OF_PLAN,
) -> Validation:  # fmt: skip
    """Run what is missing, part after part; learning rates of a way of sharing before its first cell.

    Args:
        bases: the training starts; of the conflict world numbers 1 and on, as base 0 is for tuning, of the search world
            0 and on.
        minutes: nothing is started that would not end by then; 0 = only read what is there. None = no limit.
        rank: of the conflict world's adapters.
        parts: where anything is run; what is there of the others is read all the same.
    """
    began, found = time.monotonic(), Validation()

    def do(part: str, work: Sequence[Work]) -> None:
        left = None if minutes is None else max(0.0, minutes - (time.monotonic() - began) / 60)
        found.failed |= run_within(_with_bases(work), jobs, left if part in parts else 0.0, console).failed

    results: dict[Cell, Result] = {}
    for series in PLAN:
        if rates := _rates(series, rank, out, do):
            found.rates[series] = rates
            cells = cells_of(series, rates, bases, rank)
            ready = [c for c in cells if not read(out, c.key) and (c.unheld == c or c.unheld in results)]
            do(series.name, [Work(c.key, run_cell, (c, out), (), series.name, SECONDS[series]) for c in ready])
            results |= {cell: result for cell in cells if (result := read_result(out, cell)) is not None}
    searches = [SearchCell(base) for base in range(bases)]
    left = [c for c in searches if not read(out, c.key)]
    do(SEARCH, [Work(c.key, run_search_cell, (c, out), (), SEARCH, SEARCH_SECONDS) for c in left])
    searched = [result for cell in searches if (result := read_search(out, cell)) is not None]
    _say(found, results, searched)
    found.planned = bases * (1 + sum(map(len, PLAN.values())))
    return found


def cells_of(series: Series, rates: Mapping[str, float], bases: int, rank: int = RANK) -> list[Cell]:
    """The cells of a series in the order of running: all bases at one dose after the other.

    Where the plan has three doses only, base after base: a run that ends early has them all of fewer bases.
    """
    numbers = range(TUNING_BASE + 1, TUNING_BASE + 1 + bases)
    if not set(BETWEEN) & set(PLAN[series]):
        return [Cell(series, base, rho, rates, rank) for base in numbers for rho in PLAN[series]]
    return [Cell(series, base, rho, rates, rank) for rho in PLAN[series] for base in numbers]


def _rates(series: Series, rank: int, out: Path, do: Callable[[str, Sequence[Work]], None]) -> dict[str, float]:
    """Arm → learning rate, tuned first if it is to be; empty while that is not done."""
    if series.learner is Learner.GRPO:
        return dict.fromkeys(ARMS, GRPO_RATE)
    tunings = [Tuning(series.sharing, arm, rate, rho, rank) for arm in ARMS for rate in RATES for rho in ENDS]
    left = [t for t in tunings if not read(out, t.key)]
    do(series.name, [Work(t.key, run_tuning, (t, out), (), "tuning", TUNING_SECONDS) for t in left])
    return best_rates({t: value for t in tunings if (value := read(out, t.key)) is not None})


def _say(found: Validation, results: Mapping[Cell, Result], searched: Sequence[SearchResult]) -> None:
    """Fill in what follows from the cells that are there."""
    found.done, found.searched = len(results) + len(searched), len(searched)
    for series, doses in PLAN.items():
        for rho in doses:
            of_dose = {c: r for c, r in results.items() if (c.series, c.rho) == (series, rho)}
            if len(of_dose) >= ENOUGH_STARTS:
                found.diagnoses[series, rho] = diagnose_dose(of_dose)
    if len(searched) >= ENOUGH_STARTS:
        found.search = diagnose_search(searched)
    for name in ("training", "success", "geometry"):
        found.seconds[name] = float(np.mean([r.seconds[name] for r in results.values()])) if results else float("nan")


def best_rates(tuned: Mapping[Tuning, float]) -> dict[str, float]:
    """Arm → the rate with the best mean log-probability over both ends; empty until all were tried."""
    if len(tuned) < len(ARMS) * len(RATES) * len(ENDS):
        return {}
    means = {
        arm: {rate: np.mean([v for t, v in tuned.items() if (t.arm, t.rate) == (arm, rate)]) for rate in RATES}
        for arm in ARMS
    }
    return {arm: max(of_rates, key=lambda rate, m=of_rates: float(m[rate])) for arm, of_rates in means.items()}


def diagnose_dose(results: Mapping[Cell, Result]) -> Diagnosis:
    """All measures of one dose. Rates are exact; for what is published samples are drawn from them."""
    starts = [Start({name: np.array(v) for name, v in result.rates.items()}) for result in results.values()]
    successes = []
    for cell, start in zip(results, starts, strict=True):
        rng = np.random.default_rng((cell.base, int(100 * cell.rho), cell.sharing is Sharing.LOOSE))
        successes.append({name: rng.binomial(PUBLISHED_SAMPLES, start.rates[name]) for name in VARIANTS})
    return diagnose(starts, successes, PUBLISHED_SAMPLES, [result.geometry for result in results.values()])


def _with_bases(work: Sequence[Work]) -> list[Work]:
    """The work, and before it the bases that are not in the cache yet."""
    needed = [_base_of(w.arguments[0]) for w in work]
    missing = [world for world in dict.fromkeys(needed) if not has_base(*world)]
    seconds = {World.CONFLICT: BASE_SECONDS, World.SEARCH: SEARCH_SECONDS}
    built = {
        world: Work(f"{world[0]} base {world[1]}", build_base_once, world, (), f"{world[0]} base", seconds[world[0]])
        for world in missing
    }
    after = [(built[world].name,) if world in built else () for world in needed]
    return [*built.values(), *(replace(w, after=names) for w, names in zip(work, after, strict=True))]


def _base_of(what: Cell | Tuning | SearchCell) -> tuple[World, int]:
    if isinstance(what, SearchCell):
        return World.SEARCH, what.base
    return World.CONFLICT, TUNING_BASE if isinstance(what, Tuning) else what.base


def trends(found: Validation, series: Series) -> dict[str, Any]:
    """How every measure follows the dose: its means by rho, and Spearman's correlation of those with rho."""
    doses = found.doses(series)
    of = [found.diagnoses[series, rho] for rho in doses]
    measures = {
        "effect of sharing, log p": [d.decisive.estimate.value for d in of],
        "less R∘T, log p": [d.proxy.estimate.value for d in of],
        "specific cosine": [d.cosine.value if d.cosine else float("nan") for d in of],
        "pooled cosine": [_mean([g.pooled.cosine for g in d.geometries]) for d in of],
        "transfer": [_mean([(g.specific or g.pooled).transfer[0] for g in d.geometries]) for d in of],
        "λ23, logit (published)": [d.attribution["logit"]["23"].value for d in of],
        "λ23 < 0, share (published)": [d.published_share for d in of],
        "angle between roles, degrees (published)": [_mean([g.paper["between"] for g in d.geometries]) for d in of],
    }
    return {
        name: {
            "by_rho": dict(zip(map(str, doses), (_rounded(v) for v in values), strict=True)),
            "spearman": _spearman(doses, values),
        }
        for name, values in measures.items()
    }


def last_line(found: Validation) -> dict[str, Any]:
    """What scripts read: the ends under tight sharing, the search world, and how the measures followed the dose."""
    few = {"verdict": Ruling.TOO_FEW.value}
    line: dict[str, Any] = {"cells": found.done, "planned": found.planned, "failed": len(found.failed)}
    for name, rho in (("aligned", 1.0), ("conflict", 0.0)):
        d = found.diagnoses.get((TIGHT, rho))
        line[name] = verdict_of(d) if d else few
    line[SEARCH] = verdict_of(found.search) if found.search else few
    for series in PLAN:
        doses = found.doses(series)
        line[series.name] = {
            "verdicts": {str(rho): verdict_of(found.diagnoses[series, rho])["verdict"] for rho in doses},
            "trusted_monotone": monotone(found, series) if len(doses) > 2 else None,
        }
    return line


def verdict_of(d: Diagnosis) -> dict[str, Any]:
    """A diagnosis in a few fields."""
    whole = d.as_json()
    kept = ("verdict", "sharing", "targets", "effect_nats", "cosine", "starts")
    return {name: whole[name] for name in kept} | {
        "published_verdict": whole["published"]["verdict"],
        "published_negative_share": whole["published"]["negative_share"],
    }


def monotone(found: Validation, series: Series) -> bool:
    """Both trusted measures rise with rho from each dose to the next."""
    of = [found.diagnoses[series, rho] for rho in found.doses(series)]
    effects = [d.decisive.estimate.value for d in of]
    cosines = [d.cosine.value if d.cosine and d.targets is not Targets.UNMEASURED else np.nan for d in of]
    return bool(np.all(np.diff(effects) > 0) and np.all(np.diff(cosines) > 0))


def as_json(found: Validation) -> dict[str, Any]:
    """All tables."""
    order = [(series, rho) for series in PLAN for rho in found.doses(series)]
    return {
        "cells": found.done,
        "planned": found.planned,
        "failed": found.failed,
        "rates": {series.name: rates for series, rates in found.rates.items()},
        "seconds_per_cell": {name: _rounded(s) for name, s in found.seconds.items()},
        "doses": {f"{series.name}, rho {rho:g}": found.diagnoses[series, rho].as_json() for series, rho in order},
        SEARCH: found.search.as_json() if found.search else None,
        "trends": {series.name: trends(found, series) for series in found.series},
        "summary": last_line(found),
    }


def _spearman(doses: Sequence[float], values: Sequence[float]) -> float | None:
    """None where there is no order to compare with: two doses, or one value at all of them."""
    if len(doses) < 3 or np.ptp(values) == 0 or not np.isfinite(values).all():
        return None
    return _rounded(float(np.asarray(stats.spearmanr(doses, values))[0]))


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if len(known) > len(values) / 2 else float("nan")


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
