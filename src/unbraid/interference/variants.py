"""The models that attribution compares: trained on one role's tokens, or put together from two that were.

Single-role models learn from a start of their own accord with `learn.roles` (RL) or with `only_role` (supervised).
What the other role's tokens become then is nobody's business, and often they are wrecked; `learn.off_role_kl` and
`OffRole` hold them near the start. Two of them become one policy in either of two ways, which differ in what a model
reads of the past:

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
from unbraid.learn.supervised import Batches, SupervisedExample, pack, target_logits
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


class OffRole:
    """Beside a single-role likelihood (`SupervisedTrainer(beside=…)`): KL to the start on the other role's tokens.

        coefficient · mean over those tokens of  KL(start ‖ model)      over the whole vocabulary, nats

    Choice: of the start from the model, as the tokens before are the data's and none is drawn: it keeps all that the
    start could write. In RL, where the model draws them, it is the other way round (`learn.off_role_kl`).

    Args:
        policy: at its start; what it would say from now on is what is kept.
        batches: the trainer's, with weights on the other role's tokens instead (`only_role`).
    """

    def __init__(self, policy: Policy, batches: Batches, coefficient: float, micro_batch_tokens: int = 4096):
        policy.freeze_reference()
        self.policy, self.batches, self.coefficient = policy, batches, coefficient
        self.micro_batch_tokens = micro_batch_tokens

    def __call__(self, step: int) -> float:
        """Add the gradients of a step's term; returns the term."""
        rows = pack(self.batches(step), router=self.policy.router)
        total, term = float(rows.weights.sum()), 0.0
        for part in rows.split(self.micro_batch_tokens):
            if part.weights.any():
                with torch.no_grad(), self.policy.reference():
                    start = target_logits(self.policy.model, part)[0].log_softmax(-1)
                logits, columns = target_logits(self.policy.model, part)
                divergence = (start.exp() * (start - logits.log_softmax(-1))).sum(-1)
                weights = part.weights[:, 1:][:, columns].to(divergence)
                loss = self.coefficient / total * (divergence * weights).sum()
                loss.backward()
                term += loss.item()
        return term


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
