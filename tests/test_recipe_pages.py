"""Recipes for real models: compositions load and fit as their pages say, and tiny models of their kinds take a step."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from tiny import CHATML, SEARCH_TAGS, tiny_tokenizer

from unbraid.learn import grpo
from unbraid.learn.log import read_metrics
from unbraid.recipe import load_recipe, shipped_recipes
from unbraid.run import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import recipe_pages  # noqa: E402
from recipe_pages import COMPOSITIONS, HARDWARE, PAGES, SIZES  # noqa: E402

BY_NAME = {one.name: one for one in COMPOSITIONS}
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
def bases(tmp_path_factory) -> dict[str, Path]:
    """A tiny model of each family, with every delimiter."""
    found = {}
    for kind in ("qwen2", "llama"):
        tokenizer, folder = tiny_tokenizer(CHATML, SEARCH_TAGS), tmp_path_factory.mktemp(kind)
        config = transformers.AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192,
        )  # fmt: skip
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[kind] = folder
    return found


def small_data(folder: Path) -> dict[str, list[str]]:
    """Overrides that give every kind of task a few lines of data."""
    tools = [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}]
    call = [{"name": "add", "arguments": {"a": 1}}]
    rows = [{"id": n, "query": f"Add {n}.", "tools": json.dumps(tools), "answers": json.dumps(call)} for n in range(8)]
    questions = [{"id": f"train_{n}", "question": f"Who is {n}?", "golden_answers": ["Ada"]} for n in range(8)]
    for name, lines in (("rows", rows), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "corpus").mkdir()
    (folder / "corpus" / "ada.md").write_text("# Ada\n\nAda is the first of them.\n")
    source = f"unbraid.tasks.search:hotpotqa?path={folder}/questions.jsonl&calls=tools"
    shop = "unbraid.tasks.sql:shop_tasks?split"
    return {
        "rows": [f"tasks.train={folder}/rows.jsonl", "warmup.steps=1", "warmup.batch_examples=2"],
        "search-qa": [f"tasks.train={source}", f"environment.name=search?corpus={folder}/corpus"],
        "nl2sql": [f"tasks.train={shop}=train&count=4", f"tasks.validation={shop}=dev&count=2", "tasks.test=null"],
    }


SMALL = [
    "model.device=cpu", "sampler=local", "data.validation=2", "rollout.prompts=1", "rollout.samples=2",
    "rollout.max_new_tokens=6", "learn.steps=1", "learn.micro_batch=2", "learn.interference_every=0",
    "evaluate.modes=[auto]", "evaluate.every=0", "evaluate.limit=1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in QUICK else [pytest.mark.slow])
        for name in BY_NAME
        for kind in ("qwen2", "llama")
    ],
)
def test_a_tiny_model_of_the_kind_takes_a_step(name, kind, bases, tmp_path, monkeypatch):
    # A random model earns the same reward everywhere, which would leave nothing to learn from.
    monkeypatch.setattr(grpo, "group_advantages", lambda rewards, groups, scale: np.arange(len(rewards)) - 0.5)
    one, size = BY_NAME[name], "llama-3.1-8b" if kind == "llama" else "qwen2.5-7b"
    data = [*small_data(tmp_path)[one.layers[0]], *SMALL, f"model.path={bases[kind]}"]
    if one.layers[0] != "rows":
        data += ["environment.turns=2"]
    layers = [*one.layers, f"sizes/{size}", "hardware/one-80gb"]
    recipe = load_recipe(layers, [*one.overrides(size), *data])
    train(recipe, tmp_path / "run")
    (step,) = [line for line in read_metrics(tmp_path / "run") if "grad_norm" in line]
    assert step["grad_norm"] > 0
    routed = recipe.model.adapter is not None and recipe.model.adapter.routing is not None
    folders = {path.parent.name for path in (tmp_path / "run" / "final").rglob("adapter_config.json")}
    assert ({"reasoning", "action"} <= folders) == routed
