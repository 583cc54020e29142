"""What look-ahead does to learning: the calls world's `recommended` with batches one update old, and without.

    python benchmarks/ahead.py --seeds 0 1 2 --out runs/ahead

The runs of the quickstart from its fuzzy start; both ways of a seed begin with the same weights and the same prompts.
The local sampler draws the next batch before it learns from this one: what servers draw at the same time. Finished runs
in `--out` are taken as they are. The last line is a JSON object: every run, and differences within seeds, ahead minus
on policy, with 95 % intervals (Student's t).
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unbraid.evaluate.statistics import mean_over_runs
from unbraid.lab.quickstart import make, method_recipe
from unbraid.learn.log import read_metrics, read_notes
from unbraid.run import train

WAYS = {"on policy": "sampler.ahead=false", "ahead": "sampler.ahead=true"}
MEASURES = ("accuracy", "tokens", "think_rate")


def run(out: Path, seed: int, way: str, overrides: list[str]) -> dict[str, Any]:
    """One run: greedy results, and what its steps said of the distance between sampler and trainer."""
    make("fuzzy", out, seed, 0, lambda *_: None)
    fewer = ["evaluate.temperatures=[0.0]", "evaluate.modes=[auto]"]
    recipe = method_recipe("recommended", out, seed, 0, [*fewer, WAYS[way], *overrides])
    folder = out / way.replace(" ", "-")
    (score,) = train(recipe, folder, resume=True)
    rows = read_metrics(folder)
    found: dict[str, Any] = {
        "accuracy": score.accuracy.value,
        "tokens": score.tokens.value,
        "think_rate": score.think_rate.value if score.think_rate else float("nan"),
        "sampler_gap": mean(row["sampler_gap/mean"] for row in rows[1:]),
        "clip_share": mean(row["clip_share"] for row in rows[1:]),
    }
    if way == "ahead":
        found |= {name: mean(row[f"importance/{name}"] for row in rows[1:]) for name in ("mean", "truncated")}
    warned = sum("collapse ahead" in note["message"] for note in read_notes(folder))
    return {name: float(f"{value:.4g}") for name, value in found.items()} | {"warned": warned}


def main() -> None:
    """Run all seeds both ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/ahead"))
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. learn.steps=10")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in asked.seeds:
        ways = {way: run(asked.out / f"seed-{seed}", seed, way, asked.overrides) for way in WAYS}
        runs.append({"seed": seed, **ways})
        print(json.dumps(runs[-1]), flush=True)
    table = Table("seed", "way", *MEASURES, "|Δ log p|", "clipped", "weight", "truncated", box=None)
    for row in runs:
        for way in WAYS:
            m = row[way]
            weights = [f"{m[name]:.3g}" if name in m else "-" for name in ("mean", "truncated")]
            values = [f"{m[name]:.3g}" for name in (*MEASURES, "sampler_gap", "clip_share")]
            table.add_row(str(row["seed"]), way, *values, *weights)
    differences: dict[str, Any] = {}
    for name in MEASURES:
        e = mean_over_runs([row["ahead"][name] - row["on policy"][name] for row in runs])
        differences[name] = [round(x, 4) for x in (e.value, e.low, e.high) if x is not None]
    table.add_row("", "difference", *(str(differences[name]) for name in MEASURES), "", "", "", "")
    Console(width=140).print(table)
    print(json.dumps({"runs": runs, "ahead_minus_on_policy": differences}))


if __name__ == "__main__":
    main()
