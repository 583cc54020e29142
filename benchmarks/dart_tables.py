"""Writes the tables of docs/claims-dart.md from benchmarks/results/dart.json.

    python benchmarks/dart_tables.py            # `tests/test_dart_page.py` fails while the page says something else

The JSON comes from `unbraid lab dart … --json`; nothing is computed here. The last line is a JSON object.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from page_tables import fill, markdown

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "dart.json", ROOT / "docs" / "claims-dart.md"
PLACES = (
    *(("conflict", "supervised", sharing) for sharing in ("tight", "middle", "loose")),
    ("conflict", "grpo", "middle"),
    ("search", "grpo", "loose"),
)
"""World, learner and sharing, in the order of the table of methods."""
ENOUGH = 6
"""Bases from which an interval is shown."""


def number(found: Mapping[str, Any] | None) -> str:
    """An estimate in points, with its interval, or with how few bases it is of."""
    if found is None:
        return "not run"
    points = f"{100 * found['value']:.1f}"
    if found["bases"] < ENOUGH:
        points += f", {found['bases']} base{'s' * (found['bases'] > 1)}"
    elif found["low"] is not None:
        points += f" ({100 * found['low']:.1f} … {100 * found['high']:.1f})"
    return points.replace("-", "−")


def methods(results: Mapping[str, Any]) -> str:
    """Every trained method at both ends of the dose, in the order in which methods are listed."""
    order = list(results["methods"])
    rows = []
    for place in PLACES:
        here = [r for r in results["rows"] if (r["world"], r["learner"], r["sharing"]) == place]
        searched = place[0] == "search"
        for r in sorted(here, key=lambda r: (order.index(r["method"]), -r["rho"])):
            if searched or (r["method"] != "base" and r["rho"] in (0, 1)):
                alone = r["alone"]
                rows.append(
                    [
                        "search world" if searched else f"{r['learner']}, {r['sharing']}",
                        f"`{r['method']}`",
                        "–" if searched else f"{r['rho']:g}",
                        number(r["final"]),
                        number(r["auc"]),
                        f"{100 * r['action']['value']:.1f}",
                        f"{100 * alone['action']['value']:.1f}" if alone else "–",
                        f"{100 * r['reasoning']['value']:.1f}",
                        f"{100 * alone['reasoning']['value']:.1f}" if alone else "–",
                        "–" if r["information"] is None else f"{r['information']:.2f}",
                    ]
                )
    head = ["where", "method", "rho", "final", "area", "action", "alone", "reasoning", "alone", "bits"]
    return markdown(head, rows)


def dose(results: Mapping[str, Any]) -> str:
    """What routing gains at every dose."""
    gains = {tuple(c["claim"].removeprefix("rho = ").split(", ")): c for c in results["dose"]}
    rhos = list(dict.fromkeys(rho for rho, _ in gains))
    rows = [
        [rho, *(number(gains[rho, place]["number"]) for place in ("tight", "middle")), gains[rho, "tight"]["expected"]]
        for rho in rhos
    ]
    return markdown(["rho", "tight", "middle", "predicted"], rows)


def verdicts(claims: Sequence[Mapping[str, Any]], what: str, expected: str) -> str:
    """Claims with their numbers and verdicts."""
    rows = [[c["claim"], number(c["number"]), c["expected"], c["verdict"]] for c in claims]
    return markdown([what, "here, points", expected, "verdict"], rows)


def page(text: str, results: Mapping[str, Any]) -> str:
    """The page with its tables, and the line that says what was run, made anew."""
    tables = {
        "dose": dose(results),
        "methods": methods(results),
        "claims": verdicts(results["claims"], "claim", "the paper"),
        "predictions": verdicts(results["predictions"], "prediction", "predicted"),
    }
    return re.sub(r"State: \*\*.*?\*\*", f"State: **{results['state']}.**", fill(text, tables))


def main() -> int:
    """Write the page."""
    results = json.loads(RESULTS.read_text())
    PAGE.write_text(page(PAGE.read_text(), results))
    print(json.dumps({"page": PAGE.name, "state": results["state"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
