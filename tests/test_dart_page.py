"""docs/claims-dart.md says what benchmarks/results/dart.json holds."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import dart_tables as tables


def test_the_page_is_made_of_the_committed_results():
    text, results = tables.PAGE.read_text(), json.loads(tables.RESULTS.read_text())
    assert tables.page(text, results) == text
    for row in results["rows"]:
        row["final"]["value"] += 0.01
    assert tables.page(text, results) != text


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, "not run"),
        ({"value": -0.004, "low": -0.1, "high": 0.1, "bases": 1}, "−0.4, 1 base"),
        ({"value": 0.5, "low": None, "high": None, "bases": 3}, "50.0, 3 bases"),
        ({"value": 0.1539, "low": -0.07261, "high": 0.2352, "bases": 6}, "15.4 (−7.3 … 23.5)"),
    ],
)
def test_numbers(found, shown):
    assert tables.number(found) == shown
