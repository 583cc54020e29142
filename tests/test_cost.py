"""What a run takes, told from its recipe: counts against real models and published sizes, and what follows."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from policies import tiny_policy
from transformers import Qwen2Config
from typer.testing import CliRunner

from unbraid.cli.main import app
from unbraid.cost.architectures import KNOWN, architecture, shape_of
from unbraid.cost.estimate import Assumed, estimate, step_tokens
from unbraid.cost.launch import Launch
from unbraid.cost.machines import CPU, GPUS, machine, machine_of
from unbraid.cost.measure import Measured, Small, fitted, make_small
from unbraid.cost.work import StepTokens, adapter_weights, learning_work, matrices, sampling_work
from unbraid.errors import ModelError, RecipeError, UnbraidError
from unbraid.policy import AdapterConfig, ModelConfig
from unbraid.policy.memory import model_shape
from unbraid.recipe import load_recipe

BILLIONS = {
    "Qwen2.5-0.5B": 0.49, "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09, "Qwen2.5-7B": 7.62, "Qwen2.5-14B": 14.8,
    "Qwen2.5-32B": 32.8, "Qwen3-0.6B": 0.60, "Qwen3-1.7B": 1.72, "Qwen3-4B": 4.02, "Qwen3-8B": 8.19,
    "Llama-3.1-8B": 8.03,
}  # fmt: skip
"""Source: the models' cards (Qwen3-0.6B and 1.7B: tied tables counted once)."""
RESULTS = Path(__file__).parents[1] / "benchmarks"
STEP = StepTokens(prompts=2, samples=4, prompt=100, drawn=20, longest=20)
COMPOSED = ["rows", "autotool_published", "sizes/qwen2.5-7b", "hardware/one-80gb"]


def seven(*overrides: str, layers: list[str] = COMPOSED):
    return load_recipe(layers, ["tasks.train=rows.jsonl", *overrides])


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_have_the_sizes_of_their_cards(name):
    shape = shape_of(ModelConfig(path=f"somebody/{name}-Instruct", dtype="bfloat16"), True)
    assert shape.weights / 2e9 == pytest.approx(BILLIONS[name], rel=0.01)


def test_layers_are_counted_from_two():
    config = ModelConfig(path="Qwen/Qwen2.5-0.5B", adapter=AdapterConfig(rank=4))
    assert shape_of(config, True) == model_shape(architecture(config), config, True)


def test_a_folder_and_a_base_with_delimiters_are_read(tmp_path):
    Qwen2Config(hidden_size=32, num_attention_heads=4, num_hidden_layers=3).save_pretrained(tmp_path / "Qwen2.5-7B")
    assert architecture(ModelConfig(path=str(tmp_path / "Qwen2.5-7B"))).hidden_size == 32
    made = "unbraid.policy.new_tokens:with_delimiters?model=Qwen/Qwen2.5-7B-Instruct"
    assert architecture(ModelConfig(path=made)).hidden_size == 3584
    with pytest.raises(ModelError, match=r"Qwen2\.5-7B"):
        architecture(ModelConfig(path=str(tmp_path / "absent")))


def test_matrices_are_those_of_the_model():
    policy, config = make_small(Small(rank=3))
    shape = model_shape(policy.model, config)
    named = {n: p.numel() for n, p in policy.model.named_parameters() if p.ndim == 2}
    assert matrices(shape) == sum(c for n, c in named.items() if "base_layer" in n)
    assert adapter_weights(shape) == sum(c for n, c in named.items() if "lora" in n)


def test_operations_are_those_that_torch_counts():
    """A forward and a backward pass of the plain way, without attention's products, which torch counts otherwise."""
    from torch.utils.flop_counter import FlopCounterMode

    for rank in (0, 3):
        policy, config = make_small(Small(vocabulary=200, hidden=64, inner=96, layers=2, rank=rank))
        shape = model_shape(policy.model, config)
        ids = torch.zeros((2, 30), dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            policy.model(ids).logits.sum().backward()
        parts = counter.get_flop_counts()["Global"]
        counted = sum(count for op, count in parts.items() if "mm" in str(op) and "attention" not in str(op))
        step = StepTokens(prompts=1, samples=2, prompt=0, drawn=30)
        told = learning_work(shape, step, 2)["forward and backward"].products
        assert told == pytest.approx(counted, rel=0.05)


def test_work_grows_as_it_should():
    shape = shape_of(ModelConfig(path="Qwen2.5-7B", dtype="bfloat16", adapter=AdapterConfig()), True)
    total = lambda shape, step, **more: sum(w.products for w in learning_work(shape, step, 8, **more).values())  # noqa: E731
    plain = total(shape, STEP)
    assert total(shape, replace(STEP, samples=8)) < 2 * plain  # the prompt is shared
    assert total(replace(shape, fast=False), STEP) > 1.8 * plain
    assert plain < total(shape, STEP, kl=True) < 1.6 * plain
    assert total(replace(shape, checkpointing=True), STEP) == pytest.approx(1.5 * plain, rel=0.1)
    assert total(replace(shape, ranks=0), STEP) == pytest.approx(1.5 * plain, rel=0.1)
    # All matrices are adapted: a call takes half as long again forward, a tenth backward, which counts as two.
    bare = replace(shape, adapted=0)
    calls = [learning_work(one, STEP, 8)["forward and backward"].calls for one in (shape, bare)]
    assert calls[0] / calls[1] == pytest.approx((1.5 + 2 * 1.1) / 3)
    calls = [sampling_work(one, STEP)[part].calls for part in ("prompts", "drawing") for one in (shape, bare)]
    assert [calls[0] / calls[1], calls[2] / calls[3]] == pytest.approx([1.5, 1.5])
    drawing = [sampling_work(shape, replace(STEP, drawn=n, longest=n))["drawing"] for n in (20, 40)]
    assert drawing[1].weights == 2 * drawing[0].weights and drawing[1].calls == 2 * drawing[0].calls


def test_tokens_of_a_step():
    rows = step_tokens(seven(), Assumed())
    assert (rows.prompt, rows.drawn, rows.longest, rows.turns) == (1024, 512, 1024, 1)
    assert step_tokens(seven(), Assumed(prompt=300, response=70)).context == 370
    agent = step_tokens(load_recipe(["nl2sql"], ["model.path=x"]), Assumed())
    assert agent.context <= 8192 / 2 + 1 and agent.observed > 0 and agent.longest == 5120


def test_seven_billion_weights_fit_80_gb_with_an_adapter_and_not_without():
    gpu = machine("a100-80", itemsize=2)
    found = estimate(seven(), gpu)
    assert found.fits and found.step_seconds > 0 and found.run_seconds > 200 * found.step_seconds
    whole = estimate(seven("model.adapter=null", "model.dtype=float32"), machine("a100-80", itemsize=4))
    assert not whole.fits and "lacks" in whole.memory.problems[0]
    assert not estimate(seven(), machine("4090")).fits


def test_faster_machines_take_less_and_assumptions_count():
    slow, fast = (estimate(seven(), machine(name)).step_seconds for name in ("a100-80", "h100"))
    assert fast < slow
    assert estimate(seven(), machine("h100", mfu=0.2)).step_seconds > fast
    assert estimate(seven(), machine("h100", bandwidth=0.3)).step_seconds > fast
    assert estimate(seven(), machine("h100"), Assumed(response=64)).step_seconds < fast
    servers = seven(layers=[*COMPOSED[:3], "hardware/four-80gb"])
    assert estimate(servers, machine("h100")).step["drawing"] < estimate(seven(), machine("h100")).step["drawing"]


WHOLE = [*COMPOSED[:3], "all_weights", COMPOSED[3]]


def test_ranks_share_what_each_does_by_itself():
    gpu = machine("a100-80")
    one, eight = (estimate(seven(), gpu, launch=Launch(ranks)) for ranks in (1, 8))
    assert eight.step["forward and backward"] == pytest.approx(one.step["forward and backward"] / 8, rel=0.05)
    same = ("drawing", "reading prompts", "optimiser", "hand-over to servers")
    assert all(eight.step[stage] == one.step[stage] for stage in same)  # servers draw for all, and each rank steps
    assert eight.memory.rows == one.memory.rows
    # An adapter's gradients, out and in over seven eighths of a ring.
    assert eight.step["between ranks"] == pytest.approx(2 * 7 / 8 * one.shape.trained / 180e9)
    assert "between ranks" not in one.step and eight.run["warm-up"] < one.run["warm-up"] / 7
    local = [estimate(seven("sampler=local"), gpu, launch=Launch(ranks)) for ranks in (1, 4)]
    assert local[1].step["reading prompts"] == pytest.approx(local[0].step["reading prompts"] / 4, rel=0.2)
    drawn = [row.bytes for one in local for row in one.memory.rows if row.what == "keys and values"]
    assert drawn[1] == drawn[0] // 4


def test_sharded_weights_fit_where_whole_ones_do_not():
    gpu, recipe = machine("a100-80", itemsize=2), seven(layers=WHOLE)
    assert not estimate(recipe, gpu).fits
    told = {ranks: estimate(recipe, gpu, launch=Launch(ranks, sharded=True)) for ranks in (2, 4, 8)}
    assert told[8].fits and told[4].fits and not told[2].fits
    rows = {row.what: row.bytes for row in told[8].memory.rows if row.who == "trainer"}
    weights = told[8].shape.weights
    assert rows["gradients"] == weights // 8 and rows["moments of AdamW"] == 2 * (weights // 8)
    assert rows["weights"] > weights // 8 + 2 * 152064 * 3584 * 2  # both tables are together for the whole pass
    replicated = estimate(recipe, gpu, launch=Launch(8))
    assert told[8].step["between ranks"] > replicated.step["between ranks"]
    assert told[8].step["optimiser"] == pytest.approx(replicated.step["optimiser"] / 8)
    small = seven("sampler=local", layers=["rows", "sizes/qwen2.5-1.5b", "all_weights", "hardware/one-80gb"])
    found = estimate(small, gpu, launch=Launch(2, sharded=True))
    drawing = {row.what: row.bytes for row in found.memory.rows if row.phase == "sampling"}
    assert drawing["weights, whole"] == found.shape.weights // 2


def test_launches_that_a_run_would_refuse():
    for launch, overrides, reason in (
        (Launch(2), ["model.device=cuda:0"], "every rank"),
        (Launch(2), ["sampler.ahead=true", "sampler.sleep=false", "sampler.devices=['1']"], "ahead"),
        (Launch(1, sharded=True), ["model.adapter=null", "model.dtype=float32"], "--ranks"),
        (Launch(8, sharded=True), [], "all_weights"),
    ):
        with pytest.raises(RecipeError, match=reason):
            estimate(seven(*overrides), machine("h100"), launch=launch)


def test_the_local_sampler_needs_its_own_memory():
    found = estimate(seven("sampler=local"), machine("a100-80"))
    drawn = {row.what: row.bytes for row in found.memory.rows if row.phase == "sampling"}
    assert drawn["keys and values"] == 2 * 28 * 4 * 128 * 2 * 3072 * 256 * 5 // 4
    assert not estimate(seven("sampler=local", "rollout.max_batch=512", "rollout.prompts=512"), machine("4090")).fits


def test_speeds_are_fitted_to_one_measurement():
    small = Small()
    shape = model_shape(tiny_policy().model, ModelConfig(path="none"))
    told = Measured(0.0, 0.0, STEP, shape)
    sampling, learning = told.expected(small)
    twice = replace(told, sampling=2 * sampling, learning=2 * learning)
    assert twice.expected(small, fitted(small, twice)) == pytest.approx((2 * sampling, 2 * learning))
    assert told.expected(small, fitted(small, replace(told, sampling=sampling, learning=learning))) == pytest.approx(
        (sampling, learning)
    )


def test_the_machine_that_is_meant(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_of("cpu") is CPU and machine_of("auto") is CPU
    assert machine_of("cuda", "l4").memory == GPUS["l4"].memory << 20
    with pytest.raises(UnbraidError, match="--gpu"):
        machine_of("cuda:0")
    with pytest.raises(UnbraidError, match="known are"):
        machine("abacus")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 40 << 30))
    assert (machine_of("cuda").name, machine_of("cuda").memory) == ("a100-40", 40 << 30)


def test_the_command_says_whether_it_fits():
    asked = ["cost", *COMPOSED, "tasks.train=rows.jsonl", "--gpu"]
    fits, not_ = (CliRunner().invoke(app, [*asked, name]) for name in ("a100-80", "4090"))
    ranks = CliRunner().invoke(app, ["cost", *WHOLE, *asked[-2:], "a100-80", "--ranks", "8", "--sharded"])
    assert ranks.exit_code == 0 and "between ranks" in ranks.stdout and "8 ranks on one machine" in ranks.stdout
    assert fits.exit_code == 0 and "it fits" in fits.stdout and "--mfu" in fits.stdout
    assert not_.exit_code == 1 and "it does not fit" in not_.stdout


def test_what_was_measured_is_within_a_fifth_and_is_what_the_page_shows():
    sys.path.insert(0, str(RESULTS))
    import cost as benchmark

    told = json.loads((RESULTS / "results" / "cost.json").read_text())
    ratios = {name: one["expected_over_measured"] for name, one in told["configurations"].items()}
    predicted = [found for name, found in ratios.items() if name != told["calibrated_on"]]
    near = [all(abs(found[part] - 1) <= 0.2 for part in ("step", "memory")) for found in predicted]
    assert len(near) >= 6 and sum(near) >= 6
    assert benchmark.page_table(told) in benchmark.PAGE.read_text(encoding="utf-8")
