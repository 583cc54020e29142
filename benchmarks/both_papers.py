"""Both ideas in one run: adapters routed by role, under constraints on entropy, in the calls world.

    python benchmarks/both_papers.py --out runs/both             # about ten minutes on one core

The thought is written through the reasoning adapter and the call through the action adapter, while a constraint keeps
both modes in use. `published` is both papers as published, `ours` our constraints with their adapters, and `shared` the
same with one adapter of as many weights. Finished runs in `--out` are taken as they are. Last line: one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unbraid.chat.types import Mode
from unbraid.errors import CheckpointError
from unbraid.learn.log import read_metrics
from unbraid.recipe import load_recipe
from unbraid.run import read_scores, silent, train

RATES = ("warmup.learning_rate=5e-3", "learn.learning_rate=2e-3")
"""Of adapters of a tiny model. Choice: not tuned."""
RUNS = {
    "published": (["calls", "autotool_published", "routed"], RATES),
    "ours": (["calls", "recommended", "routed"], RATES),
    "shared": (["calls", "recommended"], ("model.adapter={rank: 16, alpha: 32}", *RATES)),
}


def run(name: str, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, unless it is done, and read off what came out."""
    layers, own = RUNS[name]
    recipe, folder = load_recipe(layers, [f"name={name}", *own, *overrides]), out / name
    try:
        train(recipe, folder, resume=True, progress=silent)
    except CheckpointError as problem:
        raise SystemExit(f"{folder}: {problem}") from problem
    rows = read_metrics(folder)
    score = next(s for s in read_scores(folder) if s.mode is Mode.AUTO and not s.temperature)
    ends, beginnings = rows[-5:], rows[:5]

    def mean(key: str, part: Sequence[dict[str, Any]]) -> float | None:
        values = [row[key] for row in part if row.get(key) is not None]
        return round(sum(values) / len(values), 4) if values else None

    return {
        "accuracy": round(score.accuracy.value, 4),
        "tokens": round(score.tokens.value, 2),
        "think_rate": round(score.think_rate.value, 4) if score.think_rate else None,
        "think_rate_by_hops": {k: round(e.value, 3) for k, e in score.think_rate_by_level.items()},
        "accuracy_by_hops": {k: round(e.value, 3) for k, e in score.accuracy_by_level.items()},
        "think_rate_first_steps": mean("think_rate", beginnings),
        "think_rate_last_steps": mean("think_rate", ends),
        "reward_first_steps": mean("reward", beginnings),
        "reward_last_steps": mean("reward", ends),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per run, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/both"))
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    for name in asked.runs:
        found[name] = run(name, asked.out, asked.overrides)
        print(name, found[name], flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
