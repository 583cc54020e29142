"""Two models that take turns: each token is drawn from its owner, who has read everything, and teaches nobody else."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from agents import agent_policy, agent_tasks
from policies import calls_tasks, requests_for, tiny_policy
from test_episodes_exact import roller, trainer_logprobs

from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.lab.calls_chat import CHAT
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy
from unbraid.policy.policy import add_adapter
from unbraid.policy.routed_lora import adapter_parameters, routed
from unbraid.policy.routing import RoutingConfig, make_router
from unbraid.policy.two_agents import TwoAgents
from unbraid.rollout import LocalSampler
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.slots import SlotSampler


def two(policy: Policy, adapter: bool = False) -> Policy:
    """Two agents that differ, from one policy."""
    model = policy.model
    if adapter:
        model = add_adapter(model, AdapterConfig(rank=4, alpha=8))
    agents = TwoAgents.of(model, make_router(RoutingConfig(), policy.format.automaton))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for parameter in adapter_parameters(agents, "reasoning") + adapter_parameters(agents, "action"):
            parameter.data += torch.randn_like(parameter) * 0.1
    return replace(policy, model=agents, has_adapter=adapter)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_position_has_the_logits_of_the_agent_that_owns_it(adapter: bool):
    policy = two(tiny_policy(dtype=torch.float64), adapter)
    ids, routes = torch.randint(0, 90, (3, 20)), torch.randint(0, 2, (3, 20))
    with torch.no_grad(), routed(policy.model, routes):
        found = policy.model(input_ids=ids).logits
        last = policy.model(input_ids=ids, logits_to_keep=7).logits
        some = policy.model(input_ids=ids, logits_to_keep=torch.tensor([2, 11])).logits
    alone = [deepcopy(agent) for agent in policy.model.agents.values()]
    with torch.no_grad():
        logits = [agent(input_ids=ids, use_cache=False).logits for agent in alone]
        expected = torch.where(routes[..., None] == 0, *logits)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(last, expected[:, -7:], atol=1e-12, rtol=0)
    torch.testing.assert_close(some, expected[:, [2, 11]], atol=1e-12, rtol=0)
    with pytest.raises(ModelError, match="without a route"):
        policy.model(input_ids=ids)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("style", "history"), [("inline", "keep"), ("chat", "as_served")])
def test_what_is_sampled_is_what_the_trainer_scores(style: Any, history: str, adapter: bool):
    policy = two(agent_policy(style), adapter)
    with roller(policy, history=history) as roll:
        found = roll(agent_tasks(6), [Mode.AUTO, Mode.THINK, Mode.NO_THINK], temperature=1.0, seed=1)
    for t in found:
        logprobs, entropies = trainer_logprobs(policy, t, 1.0)
        assert np.abs(t.logprobs - logprobs).max() < 1e-4
        assert np.abs(np.nan_to_num(t.entropies) - entropies)[t.sampled].max() < 1e-4


def test_single_responses_come_from_slots():
    policy = two(tiny_policy())
    requests = requests_for(policy, calls_tasks(4), [Mode.AUTO] * 3)
    with SingleSampler(policy.format, lambda temperature: SlotSampler(policy, 8, temperature)) as sampler:
        found = sampler.sample(requests, temperature=1.0, max_new_tokens=20)
    for t in found:
        logprobs, _ = trainer_logprobs(policy, t, 1.0)
        assert np.abs(t.logprobs - logprobs).max() < 1e-4
    with pytest.raises(ModelError, match="by slots only"):
        LocalSampler(policy)


def test_no_loss_reaches_both_and_what_is_frozen_is_shared():
    policy = two(tiny_policy(dtype=torch.float64), adapter=True)
    ids, routes = torch.randint(0, 90, (2, 15)), torch.randint(0, 2, (2, 15))
    with routed(policy.model, routes):
        logits = policy.model(input_ids=ids, use_cache=False).logits
    logits[routes == 0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter_parameters(policy.model, "reasoning"))
    assert all(p.grad is None or not p.grad.any() for p in adapter_parameters(policy.model, "action"))
    first, second = policy.model.agents.values()
    frozen = {id(p) for p in first.parameters() if not p.requires_grad}
    assert frozen and frozen == {id(p) for p in second.parameters() if not p.requires_grad}
    assert first.config is second.config


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_saved_in_a_stock_folder_each_and_back(adapter: bool, tmp_path):
    policy = two(tiny_policy(), adapter)
    policy.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"reasoning", "action", "tokenizer.json"}
    again = two(tiny_policy(), adapter)
    for p in again.model.parameters():
        if p.requires_grad:
            p.data.zero_()
    again.load_weights(tmp_path)
    for (name, ours), (_, theirs) in zip(again.trainable(), policy.trainable(), strict=True):
        assert torch.equal(ours, theirs), name


def test_two_agents_of_a_recipe():
    path = "unbraid.lab.base_model:base_path?seed=0"
    loaded = load_policy(ModelConfig(path=path, two_agents=True, gradient_checkpointing=True), CHAT)
    alone = load_policy(ModelConfig(path=path), CHAT)
    assert isinstance(loaded.model, TwoAgents) and len(loaded.trainable()) == 2 * len(alone.trainable())
    both = ModelConfig(path=path, two_agents=True, adapter=AdapterConfig(routing=RoutingConfig()))
    with pytest.raises(ModelError, match="set one of them"):
        load_policy(both, CHAT)
