"""`python -m unbraid.lab.interference --out DIR`: what `unbraid lab interference` does."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unbraid.lab.interference.cells import EXAMPLES, RANK, RATES, STEPS, TUNING_BASE, Sharing
from unbraid.lab.interference.run import Validation, as_json, last_line, trends, validate
from unbraid.report.interference import Picture, Section, dose_picture, write_interference

TITLE = "Measures of interference, where the answer is known"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and as last line one JSON object; exit status 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/interference"), help="folder of cells and page")
    parser.add_argument("--bases", type=int, default=6, help="base models, the unit of all intervals")
    parser.add_argument("--rank", type=int, default=RANK, help="of adapters; the wide one has twice as much")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; 0 = one per core")
    parser.add_argument("--budget", type=float, help="minutes; nothing is started that would not end by then")
    parser.add_argument("--json", type=Path, help="also write all tables to this file")
    asked = parser.parse_args(arguments)
    found = validate(asked.out.resolve(), asked.bases, asked.jobs, asked.budget, Console(stderr=True), asked.rank)
    command = (
        f"unbraid lab interference --out {asked.out} --bases {asked.bases} --rank {asked.rank} --jobs {asked.jobs}"
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    write_page(asked.out / "interference.html", found, command, asked.rank)
    console = Console(width=150)
    for sharing in Sharing:
        if any(s == sharing for s, _ in found.diagnoses):
            console.print(dose_table(found, sharing))
    if asked.json:
        tables = {"command": command, **as_json(found)}
        asked.json.write_text(json.dumps(tables, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(last_line(found)))
    return 1 if found.failed else 0


def dose_table(found: Validation, sharing: Sharing) -> Table:
    """Every measure by dose."""
    table = Table(title=f"{sharing} sharing", box=None, padding=(0, 2, 0, 0), title_justify="left")
    rows = trends(found, sharing)
    doses = list(next(iter(rows.values()))["by_rho"])
    for name in ("measure", *(f"rho {rho}" for rho in doses), "Spearman with rho"):
        table.add_column(name)
    for name, row in rows.items():
        values = [*row["by_rho"].values(), row["spearman"]]
        table.add_row(name, *("–" if value is None else f"{value:.2f}" for value in values))
    verdicts = [found.diagnoses[sharing, float(rho)].as_json() for rho in doses]
    table.add_row("verdict: do they fight?", *(v["verdict"] for v in verdicts), "")
    table.add_row("verdict: targets", *(v["targets"] for v in verdicts), "")
    table.add_row("published verdict", *(v["published"]["verdict"] for v in verdicts), "")
    return table


def write_page(path: Path, found: Validation, command: str, rank: int) -> None:
    """The page of all doses that enough bases were run of."""
    sections = [
        Section(f"{sharing}-{100 * rho:.0f}", f"{sharing} sharing, rho = {rho:g}", d, strata=False)
        for (sharing, rho), d in sorted(found.diagnoses.items(), key=lambda item: (item[0][0] != "tight", -item[0][1]))
    ]
    write_interference(
        path,
        TITLE,
        summary(found),
        sections,
        [p for sharing in Sharing if any(s == sharing for s, _ in found.diagnoses) for p in pictures(found, sharing)],
        command,
        {
            "cells": f"{found.done} of {found.planned}, {len(found.failed)} failed",
            "training": f"{STEPS} supervised steps of {EXAMPLES} examples, rank {rank}; learning rates out of "
            f"{', '.join(f'{rate:g}' for rate in RATES)}, chosen on dev questions of base {TUNING_BASE}",
        },
    )


def summary(found: Validation) -> list[str]:
    """What was run and how it fell."""
    lines = [
        f"Conflict world: {found.done} of {found.planned} cells. rho is the share of fields on which both skills agree."
    ]
    for sharing in Sharing:
        doses = sorted((rho for s, rho in found.diagnoses if s == sharing), reverse=True)
        told = "; ".join(
            f"rho {rho:g}: {v['verdict']}, targets {v['targets']}, published {v['published']['verdict']}"
            for rho in doses
            for v in [found.diagnoses[sharing, rho].as_json()]
        )
        if told:
            lines.append(f"{sharing.capitalize()} sharing. {told}.")
    return lines


def pictures(found: Validation, sharing: Sharing) -> list[Picture]:
    """Trusted measures, and the published ones, against the dose."""
    rows = trends(found, sharing)

    def lines(**names: str) -> dict[str, dict[float, float]]:
        return {
            label: {float(rho): value for rho, value in rows[name]["by_rho"].items() if value is not None}
            for label, name in names.items()
        }

    return [
        dose_picture(
            f"Trusted measures, {sharing} sharing",
            lines(
                effect="effect of sharing, log p",
                proxy="less R∘T, log p",
                cosine="specific cosine",
                transfer="transfer",
            ),
            f"trusted-{sharing}",
            "nats, or cosine",
        ),
        dose_picture(
            f"Published measures, {sharing} sharing",
            lines(λ23="λ23, logit (published)", negative="λ23 < 0, share (published)", pooled="pooled cosine"),
            f"published-{sharing}",
            "logits, or share",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
