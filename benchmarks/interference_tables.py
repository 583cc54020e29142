"""Writes the tables of docs/interference.md from benchmarks/results/interference.json and interference_measures.json.

    python benchmarks/interference_tables.py       # `tests/test_interference_page.py` fails while the page says else

The first comes from `unbraid lab interference … --json`, the second from `benchmarks/interference.py`; nothing is
computed here. The last line is a JSON object.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from page_tables import fill, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "interference.json"
MEASURES = ROOT / "benchmarks" / "results" / "interference_measures.json"
PAGE = ROOT / "docs" / "interference.md"
SERIES = {
    "tight": "Tight sharing",
    "loose": "Loose sharing",
    "tight-held": "Tight sharing, the other role held at the start",
    "tight-grpo": "Tight sharing, GRPO",
}
SHOWN = ("base", "reasoning", "tool", "unified", "unified_wide", "two_agents", "composed")
"""Models whose success is shown, in this order."""
PLANTED = {
    "no effect, near the ceiling": "no effect, near the ceiling",
    "no effect, hard questions": "no effect, hard questions",
    "interference, near the ceiling": "interference near the ceiling (−.20 nats)",
    "interference, hard questions": "interference, hard questions (−.75)",
    "synergy": "synergy (+.30)",
}


def number(value: float) -> str:
    """Two digits, with a proper minus; what rounds to nothing has no sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def interval(found: Sequence[float | None] | None) -> str:
    """[value, low, high] as a number with its interval."""
    value, low, high = found or (None, None, None)
    if value is None:
        return "not measurable"
    return number(value) + (f" ({number(low)} … {number(high)})" if low is not None and high is not None else "")


def column(d: Mapping[str, Any]) -> dict[str, str]:
    """What the tables say of one diagnosis: measure → its words."""
    published, angles = d["published"], d["angles_published_degrees"]
    proxy = d["proxy"]["effect_nats"]
    return {
        "effect of sharing: wide less the pair, nats": interval(d["effect_nats"]),
        "the same on success": interval(d["effect_success"]),
        "proxy: unified less R∘T, nats": interval(proxy),
        "specific cosine at the start": interval(d["cosine"]),
        "**do they fight?**": f"**{d['verdict']}**",
        "targets": d["targets"],
        "success, %: base / reasoning / tool": " / ".join(f"{100 * d['rates'][m]:.0f}" for m in SHOWN[:3]),
        "success, %: unified / wide / pair / R∘T": " / ".join(f"{100 * d['rates'][m]:.0f}" for m in SHOWN[3:]),
        "published: λ23 < 0, share of questions": number(published["negative_share"]),
        "the same, had sharing cost nothing": " … ".join(
            number(x) for x in published["negative_share_if_sharing_cost_nothing"]
        ),
        "published: mean λ23, logits": interval(published["lambda23_logit"]),
        "published: verdict": published["verdict"],
        "published: angle between roles, degrees": f"{angles['between']:.0f}",
        "published: one role with itself, degrees": f"{angles['reasoning']:.0f}, {angles['action']:.0f}",
    }


def side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of diagnoses side by side: heading → diagnosis."""
    shown = {head: column(d) for head, d in columns.items()}
    rows = [[name, *(words[name] for words in shown.values())] for name in next(iter(shown.values()))]
    return markdown(["measure", *shown], rows)


def dose(results: Mapping[str, Any], series: str) -> str:
    """A series by dose, from aligned to opposed."""
    found = {
        key.rpartition(", rho ")[2]: d for key, d in results["doses"].items() if key.rpartition(", rho ")[0] == series
    }
    if not found:
        return f"**{SERIES[series]}**: not run with three bases yet."
    order = sorted(found, key=float, reverse=True)
    starts = sorted({found[rho]["starts"] for rho in order})
    bases = f"{starts[0]}" if len(starts) == 1 else f"{starts[0]} to {starts[-1]}"
    return f"**{SERIES[series]}** ({bases} bases)\n\n" + side_by_side({f"rho {rho}": found[rho] for rho in order})


def search(results: Mapping[str, Any]) -> str:
    """The search world."""
    d = results["search"]
    return side_by_side({f"{d['starts']} bases": d}) if d else "Not run with three bases yet."


def state(results: Mapping[str, Any]) -> str:
    """How much of the plan was run."""
    return f"State of this page: **{results['cells']} of {results['planned']} cells**, {len(results['failed'])} failed."


def coverage(measures: Mapping[str, Any]) -> str:
    """How often intervals over starts hold a planted effect."""
    head = ["planted", "exact rates: the interval holds the truth in", "64 samples"]
    rows = [
        [words, *(f"{100 * measures['coverage'][f'{name}, {how}']:.1f} %" for how in ("exact", "64 samples"))]
        for name, words in PLANTED.items()
    ]
    return markdown(head, rows)


def page(text: str, results: Mapping[str, Any], measures: Mapping[str, Any]) -> str:
    """The page with its tables made anew."""
    tables = {name: dose(results, name) for name in SERIES}
    tables |= {"search": search(results), "coverage": coverage(measures), "state": state(results)}
    return fill(text, tables)


def main() -> int:
    """Write the page."""
    results, measures = (json.loads(path.read_text()) for path in (RESULTS, MEASURES))
    PAGE.write_text(page(PAGE.read_text(), results, measures))
    print(json.dumps({"page": PAGE.name, "cells": results["cells"], "planned": results["planned"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
