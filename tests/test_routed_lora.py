"""Routed LoRA as arithmetic: against a second implementation, in pieces, recomputed, saved, and refused."""

import peft
import pytest
import torch
from policies import tiny_policy
from routing_reference import base_of, by_hand, weights_of
from torch import Tensor
from transformers import DynamicCache

from unbraid.errors import ModelError
from unbraid.policy.control_routers import ControlRouter
from unbraid.policy.policy import AdapterConfig, add_adapter
from unbraid.policy.routed_lora import RoutedVariant, adapter_parameters, checkpoint_contexts, route_adapters, routed
from unbraid.policy.routing import RoutingConfig
from unbraid.tokens import Router

PAPER = RoutingConfig()
THREE = RoutingConfig(owners={"think": "thinks", "reasoning": "says", "action": "calls"}, context=None)


def random_rows(rows: int, length: int, adapters: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(ids, routes), none among the routes."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 90, (rows, length), generator=rng), torch.randint(
        -1, adapters, (rows, length), generator=rng
    )


@pytest.mark.parametrize("routing", [PAPER, THREE], ids=["two", "three"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_token_runs_through_its_own_adapter(routing: RoutingConfig, layers: int):
    policy = tiny_policy(dtype=torch.float64, layers=layers, routing=routing)
    assert policy.router
    ids, routes = random_rows(5, 40, len(policy.router.adapters))
    with torch.no_grad(), routed(policy.model, routes):
        found = policy.model(input_ids=ids).logits
    base, weights = base_of(policy), weights_of(policy)
    with torch.no_grad(), by_hand(base, weights, policy.router.adapters, routes, scale=2.0):
        expected = base(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)
    with torch.no_grad(), by_hand(base, weights, policy.router.adapters, routes.roll(1, -1), scale=2.0):
        assert (base(input_ids=ids).logits - found).abs().max() > 0.1  # one position off is another policy


@pytest.mark.parametrize("sizes", [[1] * 30, [7, 1, 1, 13, 8], [29, 1]], ids=["tokens", "chunks", "prefill"])
def test_in_pieces_with_a_cache_as_at_once(sizes: list[int]):
    policy = tiny_policy(dtype=torch.float64, routing=PAPER)
    ids, routes = random_rows(4, 30, 2)
    with torch.no_grad(), routed(policy.model, routes):
        whole = policy.model(input_ids=ids).logits
    cache, pieces, at = DynamicCache(), [], 0
    for size in sizes:
        part = slice(at, at + size)
        with torch.no_grad(), routed(policy.model, routes[:, part]):
            pieces.append(policy.model(input_ids=ids[:, part], past_key_values=cache, use_cache=True).logits)
        at += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


def loss_of(policy, ids: Tensor, routes: Tensor) -> Tensor:
    with routed(policy.model, routes):
        logits = policy.model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits, -1).gather(-1, ids[..., None]).mean()


def test_a_recomputed_layer_has_the_routes_of_its_own_forward_pass():
    """Two micro-batches in flight: both forward passes are over before either backward pass recomputes."""
    policy = tiny_policy(dtype=torch.float64, layers=3, routing=PAPER)
    batches = [random_rows(2, 12, 2, seed) for seed in (1, 2)]
    parameters = [p for _, p in policy.trainable()]
    plain = torch.autograd.grad(sum(loss_of(policy, *batch) for batch in batches), parameters)  # type: ignore[arg-type]
    policy.model.train()
    options = {"use_reentrant": False, "context_fn": lambda: checkpoint_contexts(policy.model)}
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    policy.model.enable_input_require_grads()
    calls = count_calls(policy.model.model.model.layers[1].mlp.up_proj)
    first, second = (loss_of(policy, *batch) for batch in batches)
    assert len(calls) == 2
    again = torch.autograd.grad(second, parameters)
    found = [a + b for a, b in zip(torch.autograd.grad(first, parameters), again, strict=True)]
    assert len(calls) == 4  # it was recomputed
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_without_entering_the_routes_again_recomputing_fails_rather_than_lies():
    policy = tiny_policy(layers=2, routing=PAPER).model.train()
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.enable_input_require_grads()
    ids, routes = random_rows(2, 12, 2)
    with routed(policy, routes):
        loss = policy(input_ids=ids, use_cache=False).logits.square().mean()
    with pytest.raises(ModelError, match="without routes"):
        loss.backward()


def count_calls(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


def test_half_precision_keeps_the_adapters_in_float32():
    policy = tiny_policy(dtype=torch.bfloat16, routing=PAPER)
    ids, routes = random_rows(3, 20, 2)
    assert {p.dtype for _, p in policy.trainable()} == {torch.float32}
    with routed(policy.model, routes):
        logits = policy.model(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16
    base, weights = base_of(policy), weights_of(policy)

    def off(other: Tensor) -> float:
        with torch.no_grad(), by_hand(base, weights, ("reasoning", "action"), other, scale=2.0):
            return float((logits - base(input_ids=ids).logits).abs().float().mean())

    assert off(routes) < 0.03 and off(1 - routes) > 0.3
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in policy.trainable())


def test_all_on_is_the_sum_and_none_is_the_base():
    policy = tiny_policy(dtype=torch.float64, layers=1, routing=PAPER)
    ids, routes = random_rows(3, 15, 2)
    base = base_of(policy)
    with routed(policy.model, torch.full_like(routes, -1)):
        torch.testing.assert_close(policy.model(input_ids=ids).logits, base(input_ids=ids).logits, atol=0, rtol=0)
    with routed(policy.model, torch.full_like(routes, 2)):
        both = policy.model(input_ids=ids).logits
    weights = weights_of(policy)
    everywhere = torch.zeros_like(routes)
    one = by_hand(base, weights, ("reasoning",), everywhere, scale=2.0)
    with one, by_hand(base, weights, ("action",), everywhere, scale=2.0):
        torch.testing.assert_close(both, base(input_ids=ids).logits, atol=1e-11, rtol=0)


@pytest.mark.parametrize("routing", [PAPER, THREE], ids=["two", "three"])
def test_saved_adapters_are_stock_ones_and_come_back(routing: RoutingConfig, tmp_path):
    policy = tiny_policy(routing=routing)
    policy.save(tmp_path)
    assert isinstance(policy.router, Router)
    adapters = policy.router.adapters
    assert Router.load(tmp_path).to_json() == policy.router.to_json()
    ids, _ = random_rows(2, 10, 1)
    for number, adapter in enumerate(adapters):  # stock PEFT loads each alone: it then acts on every token
        alone = peft.PeftModel.from_pretrained(base_of(policy), str(tmp_path / adapter)).eval()
        with torch.no_grad(), routed(policy.model, torch.full((2, 10), number)):
            torch.testing.assert_close(alone(input_ids=ids).logits, policy.model(input_ids=ids).logits)
    other = tiny_policy(seed=1, routing=routing)
    other.load_weights(tmp_path)
    for (name, ours), (_, theirs) in zip(other.trainable(), policy.trainable(), strict=True):
        assert torch.equal(ours, theirs), name


def test_adapters_that_are_routed_otherwise_are_not_taken_over(tmp_path):
    tiny_policy(routing=PAPER).save(tmp_path)
    with pytest.raises(ModelError, match=r"routed otherwise \(boundary\)"):
        tiny_policy(routing=RoutingConfig(boundary="shifted")).load_weights(tmp_path)


def test_a_control_is_saved_without_a_routing_file(tmp_path):
    policy = tiny_policy(routing=RoutingConfig(assign="random"))
    assert isinstance(policy.router, ControlRouter)
    policy.save(tmp_path)
    assert not (tmp_path / "routing.json").exists() and (tmp_path / "action").is_dir()
    policy.load_weights(tmp_path)


def test_merging_is_refused_with_a_reason():
    model = tiny_policy(routing=PAPER).model
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ModelError, match="cannot be merged"):
            merge()


def test_what_cannot_be_routed_is_refused():
    policy = tiny_policy(routing=PAPER)
    ids, routes = random_rows(2, 8, 2)
    with pytest.raises(ModelError, match="called without routes"):
        policy.model(input_ids=ids)
    with pytest.raises(ModelError, match="one route per token"), routed(policy.model, routes[:, :-1]):
        policy.model(input_ids=ids)
    bare = tiny_policy()
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    embedded = peft.get_peft_model(bare.model, config, adapter_name="reasoning")
    embedded.add_adapter("action", config)
    router = Router(bare.format.automaton, ("reasoning", "action"), "reasoning", ("reasoning", "action"), None)
    with pytest.raises(ModelError, match=r"embed_tokens.*Embedding takes no routing"):
        route_adapters(embedded, router)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    alone = peft.get_peft_model(tiny_policy().model, config, adapter_name="reasoning")
    with pytest.raises(ModelError, match="has no adapter action"):
        route_adapters(alone, router)


@pytest.mark.parametrize(
    ("routing", "complaint"),
    [
        (RoutingConfig(owners={"reasoning": "a", "search": "b"}), "no role or span 'search'.*action, call"),
        (RoutingConfig(owners={"reasoning": "a"}), "nobody owns action"),
        (RoutingConfig(owners={"reasoning": "a", "action": "b"}), "no adapter 'reasoning'"),
        (RoutingConfig(owners={"reasoning": "a.b", "action": "b"}, context=None), "plain word"),
    ],
)
def test_a_recipe_that_routes_to_nowhere_is_refused(routing: RoutingConfig, complaint: str):
    policy = tiny_policy()
    with pytest.raises(ModelError, match=complaint):
        add_adapter(policy.model, AdapterConfig(routing=routing), policy.format.automaton)


def test_one_adapter_may_own_everything_and_is_then_an_ordinary_one():
    shared = tiny_policy(
        dtype=torch.float64, routing=RoutingConfig(owners={"reasoning": "one", "action": "one"}, context="one")
    )
    ids, _ = random_rows(2, 9, 1)
    with torch.no_grad(), routed(shared.model, torch.zeros(2, 9)):
        found = shared.model(input_ids=ids).logits
    for layer in shared.model.modules():
        if getattr(layer, "lora_variant", None):
            assert isinstance(layer.lora_variant.pop("one"), RoutedVariant)
    torch.testing.assert_close(found, shared.model(input_ids=ids).logits.detach(), atol=1e-12, rtol=0)


def test_parameters_of_an_adapter_are_its_own():
    model = tiny_policy(routing=THREE).model
    own = [adapter_parameters(model, name) for name in ("thinks", "says", "calls")]
    assert len({id(p) for one in own for p in one}) == len([p for p in model.parameters() if p.requires_grad])
    assert len(own[0]) == len(own[1]) == len(own[2]) == 28
