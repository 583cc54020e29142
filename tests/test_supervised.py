"""Supervised training: packing is exact, the loss is one mean over the batch, a resumed run is the same run."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from policies import calls_tasks, tiny_policy
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from unbraid.errors import ModelError
from unbraid.learn.head import score_hidden
from unbraid.learn.isolation import backward
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import (
    SupervisedExample,
    SupervisedTrainer,
    WarmupConfig,
    pack,
    response_example,
    weighted_loss_sum,
    weighted_losses,
)
from unbraid.policy.memory import HEAD_LOGITS
from unbraid.policy.routing import RoutingConfig

VOCABULARY = 40
CONFIG = WarmupConfig(steps=6, batch_examples=8, learning_rate=3e-3, ramp_steps=2, micro_batch_tokens=64)


def tiny_model(lora: bool = False, attention: str = "sdpa"):
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).double()
    model.set_attn_implementation(attention)
    if not lora:
        return model
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    return model.double()


def some_examples(count: int, seed: int = 0) -> list[SupervisedExample]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        prompt, response = rng.integers(1, 9), rng.integers(1, 14)
        examples.append(
            SupervisedExample(
                tuple(rng.integers(VOCABULARY, size=prompt).tolist()),
                tuple(rng.integers(VOCABULARY, size=response).tolist()),
                tuple(rng.choice([0.0, 1.0, 10.0], size=response, p=[0.2, 0.6, 0.2]).tolist()),
            )
        )
    return examples


def reference_loss(model, example: SupervisedExample) -> torch.Tensor:
    """Weighted negative log-likelihood of one example on its own, by a plain forward pass."""
    ids = torch.tensor([example.prompt_ids + example.response_ids])
    logp = functional.log_softmax(model(input_ids=ids).logits[0, :-1], dim=-1)
    nll = -logp[torch.arange(len(ids[0]) - 1), ids[0, 1:]]
    return (nll[len(example.prompt_ids) - 1 :] * torch.tensor(example.weights, dtype=nll.dtype)).sum()


def gradients(model) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("row_tokens", [None, 50])
# Eager attention computes its softmax in float32 whatever the model's type.
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-5)])
def test_packed_loss_and_gradients_equal_unpacked(lora, row_tokens, attention, tolerance):
    model, examples = tiny_model(lora, attention), some_examples(9)
    rows = pack(examples, row_tokens)
    assert len(rows.ids) < len(examples)  # something was packed
    packed = weighted_loss_sum(model, rows)
    packed.backward()
    packed_gradients = gradients(model)
    plain = sum(reference_loss(model, e) for e in examples)
    assert isinstance(plain, torch.Tensor)
    plain.backward()
    plain_gradients = gradients(model)
    torch.testing.assert_close(packed, plain, rtol=0, atol=tolerance)
    assert len(packed_gradients) == len(plain_gradients) > 0
    for a, b in zip(packed_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["full", "lora", "routed", "strict"])
def test_logits_made_a_few_at_a_time_give_the_same_loss_and_gradients(kind, monkeypatch):
    monkeypatch.setattr("unbraid.learn.supervised.WORTH_CHUNKS", 0)
    monkeypatch.setitem(HEAD_LOGITS, "cpu", 3 * VOCABULARY)  # three positions at a time
    if kind in ("full", "lora"):
        model, examples, router = tiny_model(kind == "lora"), some_examples(9), None
    else:
        routing = RoutingConfig(isolation="strict" if kind == "strict" else "positional")
        policy = tiny_policy(dtype=torch.float64, layers=1, routing=routing)
        model, router = policy.model.double(), policy.router
        tasks = calls_tasks(4)
        examples = [response_example(task, answer, policy.format, 2.0) for task in tasks for answer in task.answers]
    model.train()
    rows, found = pack(examples, router=router), []
    assert router is None or len(rows.owners.unique()) > 2
    for fast in (True, False):
        nll, weights, owners = weighted_losses(model, rows, fast)
        backward(model, (nll * weights).sum(), [nll], owners)
        found.append(((nll * weights).sum(), len(nll), gradients(model)))
    (loss, count, ours), (plain_loss, plain_count, plain) = found
    assert count == int((rows.weights > 0).sum()) < plain_count  # and no logits where there is no weight
    torch.testing.assert_close(loss, plain_loss, rtol=0, atol=1e-9)
    assert len(ours) == len(plain) > 0
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_few_logits_are_made_at_once_and_a_head_that_is_something_else_is_found_out(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "unbraid.learn.supervised.score_hidden", lambda *given: taken.append(given) or score_hidden(*given)
    )
    model, rows = tiny_model(), pack(some_examples(9))
    weighted_losses(model, rows)
    assert not taken
    monkeypatch.setattr("unbraid.learn.supervised.WORTH_CHUNKS", 0)
    weighted_losses(model, rows, fast=False)
    assert not taken
    weighted_losses(model, rows)
    assert len(taken) == 1
    other, forward = tiny_model(), Qwen2ForCausalLM.forward

    def bent(self, *args, **kwargs):
        out: Any = forward(self, *args, **kwargs)
        out.logits = out.logits.tanh()
        return out

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", bent)
    with pytest.warns(UserWarning, match=r"learn.fast: with this model the head differs"):
        weighted_losses(other, rows)
    assert len(taken) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=12), st.integers(0, 10))
def test_packing_keeps_every_example_whole(lengths, spare):
    examples = [
        SupervisedExample(
            tuple(range(p)), tuple(range(100 + 20 * i, 100 + 20 * i + r)), tuple(float(j % 2) for j in range(r))
        )
        for i, (p, r) in enumerate(lengths)
    ]
    rows = pack(examples, max(p + r for p, r in lengths) + spare)
    for i, example in enumerate(examples):
        row, column = (rows.segments == i).nonzero(as_tuple=True)
        assert row.unique().numel() == 1
        assert column.tolist() == list(range(int(column[0]), int(column[0]) + len(example)))
        assert rows.ids[row, column].tolist() == list(example.prompt_ids + example.response_ids)
        assert rows.positions[row, column].tolist() == list(range(len(example)))
        assert rows.weights[row, column].tolist() == [0.0] * len(example.prompt_ids) + list(example.weights)
    assert rows.weights.sum() == sum(sum(e.weights) for e in examples)
    allowed = rows.mask[:, 0]
    for b in range(len(rows.ids)):
        for q in range(rows.ids.shape[1]):
            for k in range(rows.ids.shape[1]):
                assert bool(allowed[b, q, k]) == (k <= q and bool(rows.segments[b, q] == rows.segments[b, k]))


def test_any_micro_batch_split_gives_the_same_step():
    states = []
    for tokens in (1, 40, 100, 10_000):
        config = CONFIG.model_copy(update={"micro_batch_tokens": tokens})
        trainer = SupervisedTrainer(tiny_model(), config, epochs(some_examples(20), 8, seed=1))
        metrics = trainer.train_step()
        states.append((metrics, trainer.model.state_dict()))
    (first, weights), *others = states
    for metrics, other in others:
        assert metrics["loss"] == pytest.approx(first["loss"], abs=1e-12)
        assert metrics["grad_norm"] == pytest.approx(first["grad_norm"], abs=1e-12)
        for name in weights:
            torch.testing.assert_close(weights[name], other[name], rtol=0, atol=1e-9)


def test_loss_is_the_weighted_mean_over_the_batch():
    model, examples = tiny_model(), some_examples(5)
    total = sum(float(reference_loss(model, e).detach()) for e in examples)
    expected = total / sum(sum(e.weights) for e in examples)
    trainer = SupervisedTrainer(model, CONFIG, lambda step: examples)
    assert trainer.train_step()["loss"] == pytest.approx(expected, abs=1e-12)


def test_prompt_and_unweighted_tokens_do_not_train():
    model = tiny_model()
    examples = [SupervisedExample(e.prompt_ids, e.response_ids, (0.0,) * len(e.weights)) for e in some_examples(4)]
    before = copy.deepcopy(model.state_dict())
    metrics = SupervisedTrainer(model, CONFIG, lambda step: examples).train_step()
    assert metrics["loss"] == 0
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_resumed_run_equals_the_unbroken_one_bit_for_bit(tmp_path):
    batches = epochs(some_examples(21), CONFIG.batch_examples, seed=3)
    unbroken = SupervisedTrainer(tiny_model(), CONFIG, batches)
    losses = []
    unbroken.run(lambda step, metrics: losses.append(metrics["loss"]))

    broken = SupervisedTrainer(tiny_model(), CONFIG, batches)
    for _ in range(3):
        broken.train_step()
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed = SupervisedTrainer(tiny_model(), CONFIG, batches)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    later = []
    resumed.run(lambda step, metrics: later.append(metrics["loss"]))
    assert later == losses[3:]
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for a, b in zip(
        unbroken.optimizer.state_dict()["state"].values(), resumed.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_training_learns_a_response():
    example = SupervisedExample((1, 2, 3), (7, 8, 9), (1.0, 1.0, 1.0))
    config = WarmupConfig(steps=60, batch_examples=1, learning_rate=1e-2)
    trainer = SupervisedTrainer(tiny_model().float(), config, lambda step: [example])
    losses = []
    trainer.run(lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[0] > 2
    assert losses[-1] < 0.05


def test_epochs_see_every_example_once_per_epoch_in_a_keyed_order():
    examples = some_examples(10)
    batches = epochs(examples, 4, seed=5)
    seen = [e for step in range(5) for e in batches(step)]
    for epoch in range(2):
        part = seen[epoch * 10 : (epoch + 1) * 10]
        assert sorted(map(id, part)) == sorted(map(id, examples))
    assert seen[:10] != seen[10:]
    assert batches(3) == epochs(examples, 4, seed=5)(3)
    assert [e for s in range(5) for e in epochs(examples, 4, seed=6)(s)] != seen


def test_attention_without_masks_is_refused():
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="use sdpa"):
        SupervisedTrainer(model, CONFIG, lambda step: some_examples(2))


def test_impossible_examples_are_refused():
    with pytest.raises(ValueError, match="one per token"):
        SupervisedExample((1,), (2, 3), (1.0,))
    with pytest.raises(ValueError, match="prompt token"):
        SupervisedExample((), (2,), (1.0,))
    with pytest.raises(ValueError, match="row"):
        pack(some_examples(3), row_tokens=2)
