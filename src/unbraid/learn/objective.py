"""The objective, as pure functions of tensors: scores of a batch, the clipped policy term, the KL term."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unbraid.learn.batch import TokenBatch
from unbraid.policy.routed_lora import routed

Averaging = Literal["sample", "token"]


@dataclass
class Scores:
    """What the current policy says of a batch; all with gradient, nats, zero where the target was not sampled.

    logprobs, entropy: (B, L). choice_entropy: (B, L), the two-way entropy of {think, no_think} at the free mode choice.
    choice_think: (B, L), the two-way probability of think there. choice_outside: (B, L), probability mass on any other
    id there (no gradient).
    """

    logprobs: Tensor
    entropy: Tensor
    choice_entropy: Tensor
    choice_think: Tensor
    choice_outside: Tensor

    @property
    def with_gradient(self) -> list[Tensor]:
        """All that a loss can depend on the policy through, each (B, L)."""
        return [self.logprobs, self.entropy, self.choice_entropy, self.choice_think]


def score_tokens(model: Any, batch: TokenBatch, temperature: float, choice_ids: tuple[int, int]) -> Scores:
    """Run the model on a batch and score its sampled targets under softmax(logits / temperature).

    Logits are made for the columns that have a sampled target only; softmax runs in float32 (or wider).
    """
    columns = batch.sampled.any(0).nonzero()[:, 0]
    first = int(columns[0]) if len(columns) else batch.sampled.shape[1] - 1
    length = batch.ids.shape[1]
    with routed(model, batch.routes):
        out = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=length - first)
    where = batch.sampled[:, first:]
    logits = out.logits[:, :-1][where]
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    chosen = logp.gather(-1, batch.ids[:, first + 1 :][where][:, None])[:, 0]
    # A token whose probability underflows to 0 has log-prob −inf; its share of the entropy is 0, not NaN.
    entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
    pair = logp[batch.choice[:, first:][where]][:, list(choice_ids)]
    return spread_scores(batch, chosen, entropy, pair)


def spread_scores(batch: TokenBatch, logprobs: Tensor, entropy: Tensor, pair: Tensor) -> Scores:
    """What was found at N sampled targets, and at C of them that are choices, laid out like the batch.

    Args:
        logprobs, entropy: (N,). pair: (C, 2), log-probs of the (think, no_think) id.
    """
    two_way = torch.log_softmax(pair, dim=-1)

    def spread(values: Tensor, mask: Tensor) -> Tensor:
        full = torch.zeros(batch.sampled.shape, dtype=values.dtype, device=values.device)
        return full.masked_scatter(mask, values)

    return Scores(
        logprobs=spread(logprobs, batch.sampled),
        entropy=spread(entropy, batch.sampled),
        choice_entropy=spread(-(two_way.exp() * two_way).sum(-1), batch.choice),
        choice_think=spread(two_way[:, 0].exp(), batch.choice),
        choice_outside=spread(1 - pair.detach().exp().sum(-1), batch.choice),
    )


def policy_terms(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A) per token, and where the clip binds (bool).

    Args:
        logprobs, old_logprobs: (B, L); the old are the trainer's before the update where that is known (`importance`),
            else the sampler's, which are meant to be the same. advantages: (B,).

    Source: PPO's clipped surrogate, token-level ratio (GRPO); the paper writes ρ per sample i without saying how it is
    formed.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    a = advantages[:, None].to(ratio.dtype)
    plain, clipped = ratio * a, ratio.clamp(1 - clip_low, 1 + clip_high) * a
    return -torch.minimum(plain, clipped), clipped < plain


def kl_terms(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The k3 estimator of KL(policy ‖ reference) per token: exp(d) − d − 1 with d = reference − policy, (B, L)."""
    delta = reference_logprobs - logprobs
    return torch.exp(delta) - delta - 1


def token_weights(
    batch: TokenBatch, averaging: Averaging, samples: float, tokens: float, mode_weight: float = 1.0
) -> Tensor:
    """Weight of each target, (B, L): with mode weight 1 they sum to 1 over the batch, however it is split.

    Args:
        averaging: `sample` = mean over a response, then over samples (GRPO; "sample-level policy loss" of the
            paper); `token` = mean over all tokens (DAPO).
        samples, tokens: totals of the whole batch, over all micro-batches and ranks.
        mode_weight: factor on the free choice of mode, one token that otherwise counts for one in a response.
    """
    mask = batch.sampled.to(torch.float64) * (1 + (mode_weight - 1) * batch.choice)
    if averaging == "token":
        return mask / tokens
    return mask / (batch.tokens[:, None].clamp(min=1) * samples)
