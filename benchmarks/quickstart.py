"""Seconds of every stage of `unbraid quickstart`, from a cold start.

    python benchmarks/quickstart.py

Last line: one JSON object with `seconds` per stage (`all` is the wall clock), `cpu_seconds` of all processes, which
other work on the machine disturbs little, `cores`, and each method's result. The script runs on older commits, too:
with their `src` as PYTHONPATH.
"""

import argparse
import json
import os
import resource
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unbraid.lab.quickstart import quickstart
from unbraid.report.terminal import score_table


def main() -> None:
    """Run the quickstart in a fresh folder and print where the time went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the runs; default: a temporary one")
    parser.add_argument("overrides", nargs="*", help="for all three runs, e.g. learn.steps=10")
    asked = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        report = quickstart(asked.out or scratch, asked.seed, overrides=asked.overrides)
    console.print(score_table(report))
    table = Table("stage", "seconds", box=None)
    table.columns[1].justify = "right"
    for stage, seconds in report.colophon.seconds.items():
        table.add_row(stage, f"{seconds:.1f}")
    console.print(table)
    results = {
        score.labels.method: {"accuracy": round(score.accuracy.value, 4), "tokens": round(score.tokens.value, 2)}
        for score in report.headline
    }
    seconds = {stage: round(value, 1) for stage, value in report.colophon.seconds.items()}
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = round(sum(one.ru_utime + one.ru_stime for one in used), 1)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "cores": os.cpu_count(), "results": results}))


if __name__ == "__main__":
    main()
