"""Recipes: layers, overrides, errors that name the key, and what a fingerprint covers."""

import re
from pathlib import Path

import pytest
import yaml

from unbraid.errors import RecipeError
from unbraid.learn.constraint import Adaptive, Constraint
from unbraid.policy import ModelConfig
from unbraid.recipe import Recipe, field_count, load_recipe, recipe_groups, shipped_recipes

BASE = {"model": {"path": "somewhere"}, "tasks": {"train": "rows.jsonl"}}
GIVEN = ("model.path=m", "tasks.train=t")
NEEDS = {
    "rows": GIVEN,
    "search-qa": GIVEN,
    "tools": (*GIVEN, "environment.name=functions?module=shop.py"),
    "services": GIVEN[:1],
    "nl2sql": GIVEN[:1],
}
OVERLAYS = (
    *("plain", "recommended", "autotool_published", "fixed_entropy", "global_adaptive", "mode_entropy"),
    *("dart_published", "routed", "all_weights"),
)


def write(folder: Path, name: str, **content: object) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def base(tmp_path) -> str:
    return write(tmp_path, "base", **BASE)


def refused(layers: list[str], *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(layers, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_layers_win_and_mappings_merge(tmp_path, base):
    over = write(tmp_path, "over", learn={"steps": 7}, rollout={"samples": 4})
    last = write(tmp_path, "last", learn={"learning_rate": 0.5}, constraints=[{"name": "a"}])
    recipe = load_recipe([base, over, last])
    assert (recipe.learn.steps, recipe.learn.learning_rate, recipe.rollout.samples) == (7, 0.5, 4)
    # Anything that is not a mapping is replaced whole.
    replaced = load_recipe([base, last, write(tmp_path, "none", constraints=[])])
    assert len(recipe.constraints) == 1 and replaced.constraints == ()


def test_extends_comes_before_its_own_layer(tmp_path):
    write(tmp_path, "base", **BASE)
    write(tmp_path, "mine", extends="base.yaml", learn={"steps": 7}, seed=3)
    several = write(tmp_path, "several", extends=["mine.yaml", "recommended"], seed=4)
    recipe = load_recipe([several])
    assert (recipe.learn.steps, recipe.seed, recipe.learn.advantage_scale) == (7, 4, "batch")
    assert [c.name for c in recipe.constraints] == ["think_rate"]


def test_layers_that_extend_each_other(tmp_path):
    first = write(tmp_path, "first", extends="second.yaml")
    write(tmp_path, "second", extends=["first.yaml"])
    assert "first.yaml → second.yaml → first.yaml" in refused([first])
    assert "itself" in refused([write(tmp_path, "self", extends="self.yaml")])
    # The same layer twice is no circle.
    write(tmp_path, "base", **BASE)
    left, right = (write(tmp_path, n, extends="base.yaml") for n in ("left", "right"))
    assert load_recipe([write(tmp_path, "both", extends=[left, right])]).model.path == "somewhere"


def test_overrides(base, tmp_path):
    recipe = load_recipe(
        [base, "recommended"],
        ["learn.steps=12", "constraints.0.target=0.3", "constraints.0.coefficient.max=2", "model.adapter.rank=4",
         "evaluate.modes=[auto]", "warmup=null", "label=a:b", "tasks.train=w:f?a=1&b=2"],
    )  # fmt: skip
    assert recipe.learn.steps == 12 and recipe.tasks.train == "w:f?a=1&b=2" and recipe.label == "a:b"
    (constraint,) = recipe.constraints
    assert constraint.target == 0.3 and isinstance(constraint.coefficient, Adaptive)
    assert (constraint.coefficient.max, constraint.coefficient.start) == (2.0, 0.05)
    assert recipe.model.adapter and recipe.model.adapter.rank == 4 and recipe.warmup is None
    assert load_recipe([base], ["warmup.steps=3"]).warmup


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learn.steps", "key=value"),
        ("=3", "key=value"),
        ("learn.steps.more=3", "12, which has no keys"),
        ("constraints.1.target=3", "not the number of one of 1 items"),
        ("constraints.first.target=3", "not the number"),
        ("constraints.3=3", "not the number"),
        ("learn.steps=[1", "not valid YAML"),
    ],
)
def test_overrides_that_cannot_be(base, override, said):
    assert said in refused([base, "recommended"], "learn.steps=12", override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lern.steps=3", "lern: unknown key; did you mean learn?"),
        ("learn.step=3", "learn.step: unknown key; did you mean steps?"),
        ("model.adapter.rnk=3", "did you mean rank?"),
        ("constraints.0.tarket=1", "did you mean target?"),
        ("checkpoint.zzz=1", "known here: every, keep"),
        ("learn.steps=many", "learn.steps: "),
        ("learn.steps=0", "greater than or equal to 1"),
        ("rollout.samples=1", "greater than or equal to 2"),
        ("learn.importance=often", "'auto', 'always' or 'never'"),
        ("learn.importance_cap=0.5", "greater than or equal to 1"),
        ("learn.advantage_scale=row", "'group', 'batch' or 'none'"),
        ("evaluate.modes=[none]", "can be found but not asked for"),
        ("rollout.top_p=0.9", "top_p is refused in RL"),
        ("rollout.top_k=5", "lower rollout.temperature instead"),
        ("constraints.0.target={thin: 1}", "names ['thin']"),
    ],
)
def test_wrong_values_name_the_key(base, override, said):
    assert said in refused([base, "recommended"], override)


def test_a_wrong_key_in_an_alternative_is_said_once(base):
    message = refused([base, "recommended"], "constraints.0.coefficient.lr=3")
    assert message.count("constraints.0.coefficient") == 1 and "lr: unknown key; known here: start, rule" in message
    # Without an unknown key every alternative has its say.
    assert refused([base, "recommended"], "constraints.0.coefficient=[1]").count("constraints.0.coefficient: ") > 1


def test_what_is_missing_is_named(tmp_path):
    message = refused([write(tmp_path, "empty", seed=1)])
    assert "model: Field required" in message and "tasks: Field required" in message


def test_files_that_are_no_recipes(tmp_path, base):
    broken = tmp_path / "broken.yaml"
    broken.write_text("seed: 1\nlearn: {steps: 3\nname: x\n")
    assert "broken.yaml, line 3: not valid YAML" in refused([str(broken)])
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "holds list, not a mapping" in refused([str(tmp_path / "list.yaml")])
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    assert "cannot be read as text" in refused([str(tmp_path / "bytes.yaml")])
    assert "extends is 3" in refused([write(tmp_path, "number", extends=3)])
    assert load_recipe([write(tmp_path, "nothing", extends=None, **BASE)]).name == "run"
    assert "did you mean recommended?" in refused(["recomended"])
    assert "no recipe 'absent.yaml'" in refused([write(tmp_path, "lost", extends="absent.yaml")])


def load_shipped(name: str) -> Recipe:
    needs = next((given for start, given in NEEDS.items() if name.startswith(start)), ())
    return load_recipe(["calls", name] if name in OVERLAYS or "/" in name else [name], needs)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads(name):
    recipe = load_shipped(name)
    assert recipe.name == ("calls" if "/" in name else name) and recipe.label
    assert all(Constraint(c) for c in recipe.constraints)
    if name in OVERLAYS:
        assert re.search(r"model(\.path)?: Field required", refused([name]))


def test_groups_say_what_a_recipe_brings():
    groups = {title.partition(":")[0]: set(found) for title, found in recipe_groups().items()}
    assert set.union(*groups.values()) == set(shipped_recipes())
    assert groups["Ready to run"] >= {"calls", "search-world", "conflict-world"}
    assert groups["Tasks"] >= {"rows", "search-qa", "nl2sql", "services", "tools"}
    assert groups["Methods"] == set(OVERLAYS)
    assert {"Sizes", "Hardware", "Batch"} < groups.keys()


def test_shipped_recipes_are_described():
    found = shipped_recipes()
    assert set(OVERLAYS) < found.keys() and "calls" in found
    assert all(20 < len(text) <= 120 for text in found.values())


@pytest.mark.parametrize("name", shipped_recipes())
def test_yaml_round_trip(name, tmp_path):
    recipe = load_shipped(name)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_recipe([tmp_path / "again.yaml"])
    assert again == recipe and again.fingerprint() == recipe.fingerprint()


def test_the_recipe_stays_small():
    assert field_count() <= 120


def test_field_count_counts_leaves():
    # path, dtype, device, two_agents, gradient_checkpointing, attention, four of the adapter, and five of its routing
    assert field_count(ModelConfig) == 15


@pytest.mark.parametrize("override", ["label=other", "checkpoint.every=3", "checkpoint.keep=9", "evaluate.samples=9"])
def test_fingerprint_ignores_what_no_checkpoint_depends_on(base, override):
    assert load_recipe([base]).fingerprint() == load_recipe([base], [override]).fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "model.path=other", "model.dtype=float64", "tasks.train=other", "data.strict=true", "warmup.steps=3",
        "reward.format=0.3", "rollout.temperature=0.9", "learn.learning_rate=0.1", "evaluate.every=7",
        "constraints=[{name: a}]", "chat.call_format=llama",
    ],
)  # fmt: skip
def test_fingerprint_covers_what_a_checkpoint_depends_on(base, override):
    assert load_recipe([base]).fingerprint() != load_recipe([base], [override]).fingerprint()


def test_a_section_may_be_given_by_its_first_key(tmp_path):
    (tmp_path / "one.yaml").write_text("extends: calls\nsampler: vllm\n")
    (tmp_path / "two.yaml").write_text("sampler: {memory: 2}\n")
    layers = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    both = load_recipe(layers, ["sampler.retries=5", "sampler=vllm", "sampler.seconds=9"]).sampler
    assert (both.engine, both.memory, both.retries, both.seconds) == ("vllm", 2, 5, 9)
    assert load_recipe(layers, ["sampler=local"]).sampler.engine == "local"
    assert load_recipe(layers, ["sampler={engine: local}"]).sampler.memory == 0.4
    with pytest.raises(RecipeError, match="sampler"):
        load_recipe(["calls"], ["sampler=sglang"])
