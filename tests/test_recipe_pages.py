"""Recipes for real models: compositions load and fit as their pages say, and narrow models of their kinds run."""

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from unbraid.policy.new_tokens import WANTED
from unbraid.recipe import shipped_recipes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import recipe_pages  # noqa: E402
import shape_runs  # noqa: E402
from recipe_pages import COMPOSITIONS, HARDWARE, PAGES, SIZES  # noqa: E402

BY_NAME = {one.name: one for one in COMPOSITIONS}
FAMILIES = {"qwen2": "qwen2.5-7b", "llama": "llama-3.1-8b"}
QUICK = {("rows-both", "llama"), ("search-dart", "qwen2"), ("nl2sql-both", "qwen2")}
"""In the default suite; all others are slow ones."""


@pytest.mark.parametrize("name", BY_NAME)
def test_the_page_is_what_recipes_and_calculator_say(name):
    said = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert said == recipe_pages.page(BY_NAME[name]), "run: python benchmarks/recipe_pages.py"


def test_pages_use_every_size_and_hardware():
    layers = set(shipped_recipes())
    assert {f"sizes/{size}" for size in SIZES} == {name for name in layers if name.startswith("sizes/")}
    assert {f"hardware/{name}" for name in HARDWARE} == {name for name in layers if name.startswith("hardware/")}
    assert {path.stem for path in PAGES.glob("*.md")} == set(BY_NAME)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits_somewhere_and_nothing_that_fits_says_otherwise(size):
    fits = {hardware: [recipe_pages.cost(one, size, hardware).fits for one in COMPOSITIONS] for hardware in HARDWARE}
    assert all(fits["four-80gb"]) and (size == "qwen2.5-32b") != all(fits["one-80gb"])
    assert all(len(set(found)) == 1 for found in fits.values())  # what fits hangs on the size, not on the method


def test_comments_of_a_layer_reach_its_settings():
    said = {key: comment for key, _, comment in recipe_pages.commented("autotool_published")}
    assert said["constraints.0.target.think"].startswith("published") and "constraints.0.gate" in said
    assert said["constraints.0.coefficient.think.min"].startswith("ours")
    said = {key: comment for key, _, comment in recipe_pages.commented("dart_published")}
    assert said["model.adapter.routing.owners.action"].startswith("Published") and said["learn.kl"] == "published"
    assert {key for key, _, _ in recipe_pages.commented("batch/dart")} >= {"rollout.prompts", "learn.minibatches"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(tasks of every layer, base of each family): few layers, which the committed shape-runs have all of."""
    folder = tmp_path_factory.mktemp("shapes")
    tasks = shape_runs.write_tasks(folder / "tasks")
    texts = shape_runs.texts_of(tasks)
    return tasks, {kind: shape_runs.make_base(folder / kind, size, texts, layers=2) for kind, size in FAMILIES.items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in QUICK else [pytest.mark.slow])
        for name in BY_NAME
        for kind in FAMILIES
    ],
)
def test_a_narrow_model_of_the_kind_takes_two_steps(name, kind, world, tmp_path, monkeypatch):
    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path / "cache"))
    (tasks, bases), one = world, BY_NAME[name]
    recipe = shape_runs.recipe_of(one, FAMILIES[kind], bases[kind], tasks[one.layers[0]])
    ran = shape_runs.shape_run(recipe, tmp_path / "run")
    routed = recipe.model.adapter is not None and recipe.model.adapter.routing is not None
    assert (ran["adapters"] == ["action", "reasoning"]) == routed and ran["adapted"] == 2 * 7
    assert (ran["family"], ran["base"], ran["episodes"]) == (kind, "bfloat16", 8)
    # The base is the one that the recipe made: with a row for every delimiter that it lacked.
    made = AutoConfig.from_pretrained(bases[kind]).vocab_size
    assert ran["vocabulary"] == made + len(WANTED.split(",")) - (2 if kind == "qwen2" else 0)


def test_a_shape_run_is_of_the_published_shape():
    found = json.loads(recipe_pages.RUNS.read_text())
    assert found.keys() <= BY_NAME.keys()
    for size, ran in ((size, ran) for runs in found.values() for size, ran in runs.items()):
        _, whole = shape_runs.published(size)
        assert (ran["family"], ran["layers"], ran["tied"]) == (
            whole.model_type, whole.num_hidden_layers, whole.tie_word_embeddings,
        )  # fmt: skip
        assert ran["heads"] == [whole.num_attention_heads, whole.num_key_value_heads]
        assert ran["adapted"] == 7 * whole.num_hidden_layers and ran["said"] == shape_runs.said(size, ran)
