"""Two models instead of one: one writes reasoning, the other actions, and they take turns at the delimiters.

Both read everything, each with keys and values of its own; a token is drawn from the model that owns its role. So no
weight serves both roles and no loss reaches both: the isolation that routed adapters come near to, at twice the memory
and twice the work. With adapters these are two LoRA agents: one frozen base, run twice.

Source: arXiv 2602.00994, the "2-Agent" baseline, described there as two independent models and an orchestrator. Its
released code has one network with doubled projections mixed 0.8 to 0.2, shared embeddings and shared keys and values
instead. Choice: what the paper describes, with hand-over by token, not by text.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from unbraid.errors import ModelError
from unbraid.policy.routed_lora import Binding, Routes


class TwoAgents(nn.Module):
    """The agents as one causal language model: logits at a position are those of the agent that it is routed to.

    Args:
        agents: name → model, in the order of the router's adapters; of one architecture, with one configuration.
        router: says who writes what.
    """

    def __init__(self, agents: Mapping[str, nn.Module], router: Routes):
        super().__init__()
        self.agents = nn.ModuleDict(agents)
        self.routing = Binding(router)
        first: Any = next(iter(agents.values()))
        self.config = first.config

    @classmethod
    def of(cls, model: Any, router: Routes) -> "TwoAgents":
        """Two agents that both start as `model`; what is frozen they share."""
        agents = {name: model if number == 0 else _twin(model) for number, name in enumerate(router.adapters)}
        return cls._numbered(agents, router)

    @classmethod
    def taking_turns(cls, agents: Mapping[str, Any], router: Routes) -> "TwoAgents":
        """Agents that were trained apart, to be run as one: weights are those of the models given, not copies."""
        return cls._numbered({name: _view(agents[name]) for name in router.adapters}, router)

    @classmethod
    def _numbered(cls, agents: Mapping[str, Any], router: Routes) -> "TwoAgents":
        """One cache holds the keys and values of all: layer i of agent k is its layer k · layers + i."""
        for number, agent in enumerate(agents.values()):
            layers = agent.config.get_text_config().num_hidden_layers
            for module in agent.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx += number * layers
        return cls(agents, router)

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

    @property
    def _first(self) -> Any:
        return next(iter(self.agents.values()))

    def get_input_embeddings(self) -> Any:
        """The first agent's."""
        return self._first.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The first agent's."""
        return self._first.get_output_embeddings()

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0, **given: Any) -> CausalLMOutputWithPast:
        """As a causal language model of transformers, within `routed(model, routes)`; routes are (B, T).

        Raises:
            ModelError: no routes are bound.
        """
        routes = self.routing.routes
        if routes is None or routes.shape != input_ids.shape:
            raise ModelError("two agents were called without a route for every token: call within `routed(model, …)`")
        if isinstance(logits_to_keep, int):
            routes = routes[:, -logits_to_keep:] if logits_to_keep else routes
        else:
            routes = routes[:, logits_to_keep.cpu()]
        if given.get("past_key_values") is None:
            given["use_cache"] = False  # transformers would make a cache for the layers of one agent
        logits: Tensor | None = None
        for number, agent in enumerate(self.agents.values()):
            own = agent(input_ids=input_ids, logits_to_keep=logits_to_keep, **given).logits
            here = (routes == number).to(own.device)[..., None]
            logits = own if logits is None else torch.where(here, own, logits)
        return CausalLMOutputWithPast(logits=logits)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """In every agent."""
        for agent in self.agents.values():
            agent.gradient_checkpointing_enable(**options)  # type: ignore[operator]

    def enable_input_require_grads(self) -> None:
        """In every agent."""
        for agent in self.agents.values():
            agent.enable_input_require_grads()  # type: ignore[operator]


def _twin(model: Any) -> Any:
    """A copy with trained weights of its own; the configuration and what is frozen stay shared."""
    shared = [p for p in model.parameters() if not p.requires_grad] + [model.config]
    return deepcopy(model, {id(one): one for one in shared})


def _view(model: Any) -> Any:
    """Another model over the very same weights."""
    shared = [*model.parameters(), *model.buffers(), model.config]
    return deepcopy(model, {id(one): one for one in shared})
