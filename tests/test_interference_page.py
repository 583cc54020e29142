"""docs/interference.md says what benchmarks/results/interference.json and interference_measures.json hold."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import interference_tables as tables


def test_the_page_is_made_of_the_committed_results():
    text = tables.PAGE.read_text()
    results, measures = json.loads(tables.RESULTS.read_text()), json.loads(tables.MEASURES.read_text())
    assert tables.page(text, results, measures) == text
    for name in (*tables.SERIES, "search", "coverage"):
        assert f"<!-- {name} -->" in text and f"<!-- {name} end -->" in text
    changed = json.loads(json.dumps(results))
    changed["doses"]["tight, rho 0"]["effect_nats"][0] += 0.01
    assert tables.page(text, changed, measures) != text


def test_what_was_not_run_is_said():
    results = json.loads(tables.RESULTS.read_text())
    results["doses"] = {k: d for k, d in results["doses"].items() if not k.startswith("loose")}
    results["search"] = None
    assert "not run" in tables.dose(results, "loose")
    assert "Not run" in tables.search(results)


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, "not measurable"),
        ([-0.004, None, None], "0.00"),
        ([-0.126, -0.2, 0.001], "−0.13 (−0.20 … 0.00)"),
    ],
)
def test_numbers(found, shown):
    assert tables.interval(found) == shown
