"""The models that attribution compares: trained on one role's tokens, or put together from two that were.

Single-role models learn from a start of their own accord with `learn.roles` (RL) or with `only_role` (supervised). Two
of them become one policy in either of two ways, which differ in what a model reads of the past:

    take_turns      two whole models hand over token by token; each reads everything with its own keys and values
    route_together  their adapters become the adapters of one routed model; keys and values are those of whoever wrote

In both the reasoning model decides to call and writes the opening tag (Eq. 2 of arXiv 2602.00994), and the tool model
writes the call and its closing tag.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from unbraid.errors import ModelError
from unbraid.learn.supervised import SupervisedExample
from unbraid.policy import Policy
from unbraid.policy.routing import RoutingConfig, make_router
from unbraid.policy.two_agents import TwoAgents
from unbraid.tokens import Provenance, Role, RoleAutomaton


def only_role(example: SupervisedExample, automaton: RoleAutomaton, role: Role) -> SupervisedExample:
    """The example with loss on the tokens of one role; the others' weights are 0."""
    ids = np.array(example.prompt_ids + example.response_ids)
    origin = np.where(example.written, Provenance.MODEL, Provenance.OBSERVATION)
    origin[: len(example.prompt_ids)] = Provenance.PROMPT
    roles = automaton.label(ids, origin)[len(example.prompt_ids) :]
    weights = tuple(w if r == role else 0.0 for w, r in zip(example.weights, roles, strict=True))
    return replace(example, weights=weights)


def take_turns(reasoning: Policy, action: Policy) -> Policy:
    """A policy whose reasoning is written by one model and whose actions by another; it shares their weights.

    Raises:
        ModelError: one of them already routes its tokens.
    """
    if reasoning.router or action.router:
        raise ModelError("models that take turns must not route their own tokens: train them without model.routing")
    router = make_router(RoutingConfig(), reasoning.format.automaton)
    model = TwoAgents.taking_turns({"reasoning": reasoning.model, "action": action.model}, router)
    return Policy(model, reasoning.tokenizer, reasoning.format, reasoning.device, reasoning.has_adapter)


@torch.no_grad()
def route_together(routed: Policy, trained: Mapping[str, Policy]) -> Policy:
    """Give a routed policy the adapters of others, each trained alone over the same base.

    Args:
        routed: loaded with `model.adapter.routing` and the others' rank and targets; changed in place and returned.
        trained: adapter of `routed` → policy with one adapter. Adapters that are not named stay as they are: new ones
            change nothing (their B is 0), so their tokens are the base's.

    Raises:
        ModelError: the adapters do not fit.
    """
    own = dict(routed.trainable())
    for adapter, policy in trained.items():
        for name, weights in policy.trainable():
            target = own.get(name.replace(".default.", f".{adapter}."))
            if target is None or target.shape != weights.shape:
                raise ModelError(
                    f"{name} of the {adapter} model has no place in the routed one: give both the same base, "
                    "model.adapter.rank and model.adapter.targets"
                )
            target.copy_(weights)
    return routed


@torch.no_grad()
def widen(wide: Policy, narrow: Policy) -> Policy:
    """Give an adapter of higher rank what one of lower rank has learned: the same function, with room to learn more.

    Rows of A beyond the narrow rank keep their new numbers, columns of B there are 0. Both have one alpha / rank.
    """
    given = dict(narrow.trainable())
    for name, weights in wide.trainable():
        source = given[name]
        if "lora_A" in name:
            weights[: len(source)] = source
        else:
            weights.zero_()
            weights[:, : source.shape[1]] = source
    return wide
