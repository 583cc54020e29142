"""Second thoughts for a finished run: what is chosen, what the command shows and writes, and what is written of it."""

import json
import shutil
from pathlib import Path

import pytest

from unbraid.cli.main import app
from unbraid.errors import CheckpointError, DataError, RecipeError
from unbraid.evaluate.second_thoughts import (
    DOUBTS,
    Curve,
    Point,
    best_affordable,
    cheapest,
    cheapest_of,
    most_careful,
)
from unbraid.prepare import load_tasks, roll_of
from unbraid.recipe import load_recipe
from unbraid.run import policy_of, train
from unbraid.run.second_thoughts import second_thoughts


def test_choosing():
    found = [Point(0.1, 0.96, 40, 0.5, 0.5), Point(0.3, 0.97, 30, 0.3, 0.3), Point(1.0, 0.90, 20, 0.1, 0.1)]
    assert most_careful(found, 35).doubt == 0.3 and most_careful(found, 40).doubt == 0.1
    assert cheapest(found, 0.95).doubt == 0.3 and cheapest(found, 0.9).doubt == 1.0
    with pytest.raises(DataError, match=r"the cheapest takes 20\.0"):
        most_careful(found, 19)
    with pytest.raises(DataError, match=r"the best is on 97\.0%"):
        cheapest(found, 0.98)


def test_choosing_among_curves():
    drafts = Curve(1.0, [Point(0.1, 0.96, 40, 0.5, 0.5), Point(1.0, 0.80, 20, 0.1, 0.1)])
    both = Curve(0.7, [Point(0.1, 0.97, 45, 0.3, 0.6), Point(1.0, 0.90, 30, 0.1, 0.4)])
    found = [drafts, both]
    assert best_affordable(found, 50) == (both, both.points[0])
    assert best_affordable(found, 42) == (drafts, drafts.points[0])
    assert best_affordable(found, 35) == (both, both.points[1])
    assert best_affordable(found, 25) == (drafts, drafts.points[1])
    with pytest.raises(DataError, match=r"the cheapest takes 20\.0"):
        best_affordable(found[::-1], 19)
    assert cheapest_of(found, 0.9) == (both, both.points[1]) and cheapest_of(found, 0.96) == (drafts, drafts.points[0])
    with pytest.raises(DataError, match=r"the cheapest takes 20\.0"):
        best_affordable(found, 19)
    with pytest.raises(DataError, match=r"the best is on 97\.0%"):
        cheapest_of(found, 0.98)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; its warm-up is long enough for both modes to be readable."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    held = "unbraid.lab.calls_world:held_out?world=0"
    overrides = [
        "tasks.train=unbraid.lab.calls_world:train_set?world=0&known_share=0.66&count=600",
        f"tasks.validation={held}&split=dev&per_level=4",
        f"tasks.test={held}&split=test&per_level=4",
        "warmup.steps=15", "rollout.prompts=2", "rollout.samples=2", "learn.steps=1",
        "evaluate.modes=[auto]", "evaluate.temperatures=[0.0]",
    ]  # fmt: skip
    train(load_recipe(["calls", "recommended"], overrides), folder)
    return folder


def test_the_command_chooses_on_validation_and_shows_the_test(run, capsys):
    assert app(["second-thoughts", str(run), "--keep", "0.9"], standalone_mode=False) in (None, 0)
    shown = capsys.readouterr().out
    assert "second thoughts" in shown and "always thinking" in shown
    found = json.loads((run / "second_thoughts.json").read_text())
    assert found["validation"]["tasks"] == 24 and len(found["validation"]["points"]) == len(DOUBTS)
    chosen = next(p for p in found["validation"]["points"] if p["doubt"] == found["doubt"])
    assert chosen["accuracy"] >= 0.9 * found["validation"]["thinking"]
    cheaper = [p for p in found["validation"]["points"] if p["tokens"] < chosen["tokens"]]
    assert all(p["accuracy"] < 0.9 * found["validation"]["thinking"] for p in cheaper)
    itself, always, seconds = found["test"]
    assert itself["tokens"]["value"] <= seconds["tokens"]["value"] <= always["tokens"]["value"] + 12
    assert seconds["accuracy"]["value"] >= itself["accuracy"]["value"]
    page = (run / "second_thoughts.html").read_text()
    assert "<svg" in page and "unbraid second-thoughts" in page


def test_the_base_can_draft(run, capsys):
    assert app(["second-thoughts", str(run), "--keep", "0.9", "--drafts", "base"], standalone_mode=False) in (None, 0)
    found = json.loads((run / "second_thoughts.json").read_text())
    assert found["drafts"] == "base" and found["validation"]["points"][-1]["think"] == 0, "told not to think"
    page = (run / "second_thoughts.html").read_text()
    assert "--drafts base" in page and "97% of always" not in page and "90% of always thinking" in page
    assert not found["follows_tokens"] and found["doubt_at_the_end"] == found["doubt"] and 0 <= found["sure"] <= 1
    with pytest.raises(CheckpointError, match="there is no folder"):
        app(["second-thoughts", str(run), "--drafts", "nobody"], standalone_mode=False)


def test_a_number_of_tokens_is_kept_to(run, capsys):
    # From one hop to six: in this order what the first tasks leave would be spent on the next ones.
    more = "tasks.test=unbraid.lab.calls_world:held_out?world=0&split=test&per_level=40"
    command = ["second-thoughts", str(run), more, "--tokens", "26", "--drafts", "base"]
    assert app(command, standalone_mode=False) in (None, 0)
    shown = " ".join(capsys.readouterr().out.split())
    assert "for 26 tokens per task; it followed what was spent and ended at" in shown
    found = json.loads((run / "second_thoughts.json").read_text())
    chosen = next(p for p in found["validation"]["points"] if p["doubt"] == found["doubt"])
    assert (
        found["follows_tokens"]
        and found["test"][2]["tasks"] == 240
        and found["test"][2]["tokens"]["value"] == pytest.approx(26, abs=3)
    )
    assert chosen["tokens"] <= 26 and found["doubt_at_the_end"] in [p["doubt"] for p in found["validation"]["points"]]


def test_what_cannot_be_had_is_said_in_one_line(run, tmp_path):
    recipe = load_recipe([run / "recipe.yaml"], [])
    policy = policy_of(run)
    tasks, roll = load_tasks(recipe, policy), roll_of(recipe, policy)
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    with pytest.raises(DataError, match="on 24 validation tasks no threshold comes to 1 tokens"):
        second_thoughts(recipe, policy, tasks, folder, roll, tokens=1)
    with pytest.raises(RecipeError, match="give one of them"):
        second_thoughts(recipe, policy, tasks, folder, roll, tokens=30, keep=0.9)
    acting = load_recipe(["search-world"], [])
    with pytest.raises(RecipeError, match="single responses"):
        second_thoughts(acting, policy, tasks, folder, roll)


def test_the_page_has_the_numbers_of_the_benchmark():
    root = Path(__file__).parent.parent
    found = json.loads((root / "benchmarks/results/second_thoughts.json").read_text())
    page = (root / "docs/second-thoughts.md").read_text()
    assert found["bases"] == 6
    for start, ways in (
        ("none", ("base anew", "base", "base, allowance")),
        ("gentle", ("free", "own anew", "own", "base", "base, allowance", "base, choice first")),
    ):
        for share, numbers in found[start].items():
            cells = [
                f"{100 * numbers[way]['kept'][0]:.1f} / {100 * numbers[way]['saved'][0]:.0f} ({numbers[way]['met']})"
                for way in ways
            ]
            assert f"| {share.removeprefix('0')} | {' | '.join(cells)} |" in page
    claims = json.loads((root / "benchmarks/results/autotool.json").read_text())
    rows = {(row["share"], row["method"]): row for row in claims["shares"]}
    for (share, method), row in rows.items():
        if method == "second_thoughts":
            cells = [
                f"{100 * row[name]['value']:.1f} ({100 * row[name]['low']:.1f} … {100 * row[name]['high']:.1f})"
                for name in ("saved", "accuracy_kept")
            ]
            itself = rows[share, "recommended"]
            cells += [f"{row['goal_met_on']} of 6"]
            cells += [f"{100 * itself[name]['value']:.1f}" for name in ("saved", "accuracy_kept")]
            assert f"| {f'{share:g}'.removeprefix('0')} | {' | '.join(cells)} |" in page
