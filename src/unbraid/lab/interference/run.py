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
from unbraid.lab.conflict_base import conflict_base_path
from unbraid.lab.conflict_world import CONFLICT_WORLD_VERSION
from unbraid.lab.interference.cells import (
    ARMS,
    RANK,
    RATES,
    TUNING_BASE,
    Cell,
    Result,
    Sharing,
    Tuning,
    read,
    read_result,
    run_cell,
    run_tuning,
)
from unbraid.lab.sweep import Work, run_within
from unbraid.tasks.cache import cache_folder

TIGHT, LOOSE = Sharing.TIGHT, Sharing.LOOSE
ENDS = (1.0, 0.0)
DOSES = ((TIGHT, (1.0, 0.0, 0.5, 0.75, 0.25)), (LOOSE, (1.0, 0.0, 0.5, 0.75, 0.25)))
"""In the order of running: a run that ends early has both ends."""
CELL_SECONDS, TUNING_SECONDS, BASE_SECONDS = 45.0, 10.0, 30.0
"""First guesses on one busy core; measured ones replace them."""


@dataclass
class Validation:
    """What a run has. diagnoses: (sharing, rho) → all measures over bases, where enough bases were run."""

    diagnoses: dict[tuple[Sharing, float], Diagnosis] = field(default_factory=dict)
    rates: dict[Sharing, dict[str, float]] = field(default_factory=dict)
    planned: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def validate(out: Path, bases: int, jobs: int, minutes: float | None, console: Console, rank: int = RANK) -> Validation:
    """Run what is missing: dose after dose, learning rates of a way of sharing before its first one.

    Args:
        bases: of the conflict world, numbers 1 and on; base 0 is for tuning. Bases are the training starts.
        minutes: nothing is started that would not end by then; 0 = only read what is there. None = no limit.
    """
    began, found = time.monotonic(), Validation()

    def left() -> float | None:
        return None if minutes is None else max(0.0, minutes - (time.monotonic() - began) / 60)

    def do(work: Sequence[Work]) -> None:
        found.failed |= run_within(_with_bases(work), jobs, left(), console).failed

    cells: list[Cell] = []
    for sharing, doses in DOSES:
        tunings = [Tuning(sharing, arm, rate, rho, rank) for arm in ARMS for rate in RATES for rho in ENDS]
        do([Work(t.key, run_tuning, (t, out), (), "tuning", TUNING_SECONDS) for t in tunings if not read(out, t.key)])
        rates = best_rates({t: value for t in tunings if (value := read(out, t.key)) is not None})
        if not rates:
            continue
        found.rates[sharing] = rates
        own = [Cell(sharing, TUNING_BASE + 1 + i, rho, rates, rank) for rho in doses for i in range(bases)]
        do([Work(c.name, run_cell, (c, out), (), sharing, CELL_SECONDS) for c in own if not read(out, c.key)])
        cells += own
    results = {cell: result for cell in cells if (result := read_result(out, cell)) is not None}
    found.planned, found.done = bases * sum(len(doses) for _, doses in DOSES), len(results)
    for sharing, doses in DOSES:
        for rho in doses:
            of_dose = {c: r for c, r in results.items() if (c.sharing, c.rho) == (sharing, rho)}
            if len(of_dose) >= ENOUGH_STARTS:
                found.diagnoses[sharing, rho] = diagnose_dose(of_dose)
    for name in ("training", "success", "geometry"):
        found.seconds[name] = float(np.mean([r.seconds[name] for r in results.values()])) if results else float("nan")
    return found


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
        rng = np.random.default_rng((cell.base, int(100 * cell.rho), cell.sharing == LOOSE))
        successes.append({name: rng.binomial(PUBLISHED_SAMPLES, start.rates[name]) for name in VARIANTS})
    return diagnose(starts, successes, PUBLISHED_SAMPLES, [result.geometry for result in results.values()])


def _with_bases(work: Sequence[Work]) -> list[Work]:
    """The work, and before it the bases that are not in the cache yet."""
    needed = [_base_of(w.arguments[0]) for w in work]
    missing = [b for b in sorted(set(needed)) if not _cached(b).is_dir()]
    built = {b: Work(f"conflict base {b}", _build, (b,), (), "base", BASE_SECONDS) for b in missing}
    after = [(built[b].name,) if b in built else () for b in needed]
    return [*built.values(), *(replace(w, after=names) for w, names in zip(work, after, strict=True))]


def _base_of(what: Cell | Tuning) -> int:
    return TUNING_BASE if isinstance(what, Tuning) else what.base


def _cached(base: int) -> Path:
    return cache_folder() / f"conflict-v{CONFLICT_WORLD_VERSION}-{base}"


def _build(base: int, tell: Callable[..., None]) -> float:
    began = time.perf_counter()
    conflict_base_path(base)
    return time.perf_counter() - began


def trends(found: Validation, sharing: Sharing) -> dict[str, Any]:
    """How every measure follows the dose: its means by rho, and Spearman's correlation of those with rho."""
    doses = sorted(rho for s, rho in found.diagnoses if s == sharing)
    of = [found.diagnoses[sharing, rho] for rho in doses]
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
    """What scripts read: the ends under tight sharing, and how the measures followed the dose."""
    line: dict[str, Any] = {"cells": found.done, "planned": found.planned, "failed": len(found.failed)}
    for name, rho in (("aligned", 1.0), ("conflict", 0.0)):
        d = found.diagnoses.get((TIGHT, rho))
        line[name] = verdict_of(d) if d else {"verdict": Ruling.TOO_FEW.value}
    for sharing in (TIGHT, LOOSE):
        doses = sorted(rho for s, rho in found.diagnoses if s == sharing)
        line[sharing.value] = {
            "verdicts": {str(rho): verdict_of(found.diagnoses[sharing, rho])["verdict"] for rho in doses},
            "trusted_monotone": monotone(found, sharing) if len(doses) > 2 else None,
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


def monotone(found: Validation, sharing: Sharing) -> bool:
    """Both trusted measures rise with rho from each dose to the next."""
    doses = sorted(rho for s, rho in found.diagnoses if s == sharing)
    of = [found.diagnoses[sharing, rho] for rho in doses]
    effects = [d.decisive.estimate.value for d in of]
    cosines = [d.cosine.value if d.cosine and d.targets is not Targets.UNMEASURED else np.nan for d in of]
    return bool(np.all(np.diff(effects) > 0) and np.all(np.diff(cosines) > 0))


def as_json(found: Validation) -> dict[str, Any]:
    """All tables."""
    return {
        "cells": found.done,
        "planned": found.planned,
        "failed": found.failed,
        "rates": {sharing.value: rates for sharing, rates in found.rates.items()},
        "seconds_per_cell": {name: _rounded(s) for name, s in found.seconds.items()},
        "doses": {f"{s}, rho {rho:g}": d.as_json() for (s, rho), d in sorted(found.diagnoses.items())},
        "trends": {s.value: trends(found, s) for s in (TIGHT, LOOSE) if any(t == s for t, _ in found.diagnoses)},
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
