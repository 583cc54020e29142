"""`python -m unbraid.lab.interference --out DIR`: what `unbraid lab interference` does."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unbraid.lab.interference import search
from unbraid.lab.interference.cells import (
    EXAMPLES,
    GRPO_RATE,
    GRPO_STEPS,
    OFF_ROLE_KL,
    RANK,
    RATES,
    STEPS,
    TUNING_BASE,
    Series,
)
from unbraid.lab.interference.run import (
    PARTS_OF_PLAN,
    SEARCH,
    Validation,
    as_json,
    last_line,
    trends,
    validate,
    verdict_of,
)
from unbraid.report.interference import Picture, Section, dose_picture, write_interference

TITLE = "Measures of interference, where the answer is known"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and as last line one JSON object; exit status 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/interference"), help="folder of cells and page")
    parser.add_argument("--bases", type=int, default=6, help="base models, the unit of all intervals")
    parser.add_argument("--rank", type=int, default=RANK, help="of the conflict world's adapters; the wide one has two")
    parser.add_argument("--part", choices=PARTS_OF_PLAN, action="append", help="run this only; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; 0 = one per core")
    parser.add_argument("--budget", type=float, help="minutes; nothing is started that would not end by then")
    parser.add_argument("--json", type=Path, help="also write all tables to this file")
    asked = parser.parse_args(arguments)
    parts = asked.part or PARTS_OF_PLAN
    found = validate(
        asked.out.resolve(), asked.bases, asked.jobs, asked.budget, Console(stderr=True), asked.rank, parts
    )
    command = (
        f"unbraid lab interference --out {asked.out} --bases {asked.bases} --rank {asked.rank} --jobs {asked.jobs}"
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    write_page(asked.out / "interference.html", found, command, asked.rank)
    console = Console(width=150)
    for series in found.series:
        console.print(dose_table(found, series))
    for line in summary(found):
        console.print(line, highlight=False)
    if asked.json:
        tables = {"command": command, **as_json(found)}
        asked.json.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(last_line(found)))
    return 1 if found.failed else 0


def dose_table(found: Validation, series: Series) -> Table:
    """Every measure by dose."""
    table = Table(title=series.label, box=None, padding=(0, 2, 0, 0), title_justify="left")
    rows, doses = trends(found, series), found.doses(series)
    for name in ("measure", *(f"rho {rho}" for rho in doses), "Spearman with rho"):
        table.add_column(name)
    for name, row in rows.items():
        values = [*row["by_rho"].values(), row["spearman"]]
        table.add_row(name, *("–" if value is None else f"{value:.2f}" for value in values))
    verdicts = [found.diagnoses[series, rho].as_json() for rho in doses]
    table.add_row("verdict: do they fight?", *(v["verdict"] for v in verdicts), "")
    table.add_row("verdict: targets", *(v["targets"] for v in verdicts), "")
    table.add_row("published verdict", *(v["published"]["verdict"] for v in verdicts), "")
    return table


def write_page(path: Path, found: Validation, command: str, rank: int) -> None:
    """The page of all doses that enough bases were run of, and of the search world."""
    sections = [
        Section(f"{series.name}-{100 * rho:.0f}", f"{series.label}, rho = {rho:g}", found.diagnoses[series, rho], False)
        for series in found.series
        for rho in reversed(found.doses(series))
    ]
    if found.search:
        sections.append(Section(SEARCH, "Search world", found.search, strata=False))
    write_interference(
        path,
        TITLE,
        summary(found),
        sections,
        [picture for series in found.series for picture in pictures(found, series)],
        command,
        {
            "cells": f"{found.done} of {found.planned}, {len(found.failed)} failed",
            "supervised": f"{STEPS} steps of {EXAMPLES} examples, rank {rank}; learning rates out of "
            f"{', '.join(f'{rate:g}' for rate in RATES)}, chosen on dev questions of base {TUNING_BASE}; other role "
            f"held: KL with weight {OFF_ROLE_KL:g}",
            "GRPO": f"{GRPO_STEPS} steps of 16 questions with 8 samples each, rank {rank}, learning rate {GRPO_RATE:g}",
            "search world": f"{search.STEPS} GRPO steps of 16 questions with 8 samples each, rank {search.RANK}, "
            f"learning rate {search.RATE:g}",
        },
    )


def summary(found: Validation) -> list[str]:
    """What was run and how it fell."""
    lines = [
        f"{found.done} of {found.planned} cells. rho is the share of the conflict world's fields on which both skills "
        "agree."
    ]

    def told(verdict: dict[str, Any]) -> str:
        return f"{verdict['verdict']}, targets {verdict['targets']}, published {verdict['published_verdict']}"

    for series in found.series:
        doses = reversed(found.doses(series))
        of_doses = "; ".join(f"rho {rho:g}: {told(verdict_of(found.diagnoses[series, rho]))}" for rho in doses)
        lines.append(f"{series.label.capitalize()}. {of_doses}.")
    if found.search:
        lines.append(f"Search world, {found.search.starts} bases: {told(verdict_of(found.search))}.")
    return lines


def pictures(found: Validation, series: Series) -> list[Picture]:
    """Trusted measures, and the published ones, against the dose."""
    rows = trends(found, series)

    def lines(**names: str) -> dict[str, dict[float, float]]:
        return {
            label: {float(rho): value for rho, value in rows[name]["by_rho"].items() if value is not None}
            for label, name in names.items()
        }

    return [
        dose_picture(
            f"Trusted measures, {series.label}",
            lines(
                effect="effect of sharing, log p",
                proxy="less R∘T, log p",
                cosine="specific cosine",
                transfer="transfer",
            ),
            f"trusted-{series.name}",
            "nats, or cosine",
        ),
        dose_picture(
            f"Published measures, {series.label}",
            lines(λ23="λ23, logit (published)", negative="λ23 < 0, share (published)", pooled="pooled cosine"),
            f"published-{series.name}",
            "logits, or share",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
