"""`python -m unbraid.lab.dart --out DIR`: what `unbraid lab dart` does."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from unbraid.lab.dart.methods import World
from unbraid.lab.dart.page import summary, write_claims
from unbraid.lab.dart.run import run_plan
from unbraid.lab.dart.table import as_json, claims_of, last_line
from unbraid.lab.dart.terminal import tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and as last line one JSON object; exit status 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every recipe, e.g. learn.steps=10")
    parser.add_argument("--out", type=Path, default=Path("runs/dart"), help="folder of cells and page")
    parser.add_argument("--bases", type=int, default=6, help="base models of each world; most are built first")
    parser.add_argument("--world", choices=list(World), action="append", help="where to run anything; default: both")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; 0 = one per core")
    parser.add_argument("--budget", type=float, help="minutes; nothing is started that would not end by then")
    parser.add_argument("--json", type=Path, help="also write all tables to this file")
    asked = parser.parse_args(arguments)
    worlds = [World(name) for name in asked.world or World]
    ran = run_plan(
        asked.out.resolve(), asked.bases, worlds, asked.jobs, asked.budget, asked.overrides, Console(stderr=True)
    )
    claims, command = claims_of(ran), command_of(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_claims(asked.out / "claims.html", claims, command)
    console = Console(width=170)
    for table in tables(claims):
        console.print(table)
    for line in summary(claims):
        console.print(line, highlight=False)
    if asked.json:
        found = {"command": command, **as_json(claims)}
        asked.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(last_line(claims)))
    return 1 if ran.failed else 0


def command_of(asked: argparse.Namespace) -> str:
    """The command line of a run."""
    worlds = "".join(f" --world {world}" for world in asked.world or ())
    budget = "" if asked.budget is None else f" --budget {asked.budget:g}"
    settings = f"--out {asked.out} --bases {asked.bases}{worlds} --jobs {asked.jobs}{budget}"
    return " ".join(["unbraid lab dart", settings, *asked.overrides])


if __name__ == "__main__":
    sys.exit(main())
