"""Log-probs and entropies straight from hidden states, at the positions that train and nowhere else.

The output matrix is applied to a few positions at a time; logits are made again in the backward pass instead of being
kept. With z the logits over temperature, p = softmax(z), H the entropy and g what comes back for each output,

    ∂/∂z_j = g_logprob (δ_{j,target} − p_j) − g_entropy p_j (log p_j + H),

so the entropy has its whole gradient, and a frozen output matrix gets none, nor memory for one.

Source: Liger's and TRL's fused heads make logits in chunks too. Choice: no kernel of our own, so that any device and
dtype will do: the three matrix products of a chunk are most of the work.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbraid.policy.memory import HEAD_LOGITS

LEAST_LOGPROB = -1e4
"""Stands for −∞ in p log p, which is 0 there, not NaN."""


@dataclass(frozen=True)
class Head:
    """A model taken apart: `backbone` gives hidden states, and logits = softcap(scale · (linear(hidden)))."""

    backbone: Any
    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None


def head_of(model: Any) -> Head | None:
    """Backbone and head of a causal language model, wrapped by PEFT or not; None where the head is no plain linear.

    What else a model does to its logits is not found here; `fast` compares with the model's own logits before use.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base, "get_output_embeddings") or not hasattr(base, "get_decoder"):
        return None
    linear, backbone = base.get_output_embeddings(), base.get_decoder()
    if type(linear) is not nn.Linear or backbone is None or backbone is base:
        return None
    config = base.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(backbone, linear, scale, getattr(config, "final_logit_softcapping", None))


def score_hidden(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    also: tuple[int, ...] = (),
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What softmax(logits / temperature) says at every position, with gradient.

    Args:
        hidden: (N, H). targets: (N,) ids.
        also: further ids whose log-probs are wanted at every position.
        chunk: most logits at a time; default: `HEAD_LOGITS` of the device.

    Returns:
        Log-probs of the targets (N,), entropies (N,) and log-probs of `also` (N, len(also)), in nats, float32 or wider.
    """
    rows = max(1, (chunk or HEAD_LOGITS.get(hidden.device.type, HEAD_LOGITS["cuda"])) // head.linear.weight.shape[0])
    return _Score.apply(hidden, head.linear.weight, head.linear.bias, targets, temperature, also, rows, head)


class _Score(torch.autograd.Function):
    """The arithmetic of `score_hidden`, `rows` positions at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        also: tuple[int, ...],
        rows: int,
        head: Head,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.temperature, ctx.also, ctx.rows, ctx.head = temperature, list(also), rows, head
        wide = torch.promote_types(hidden.dtype, torch.float32)
        count = len(hidden)
        chosen, entropy, norm = (torch.empty(count, dtype=wide, device=hidden.device) for _ in range(3))
        beside = torch.empty((count, len(also)), dtype=wide, device=hidden.device)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            logp, _ = _logits(hidden[part], weight, bias, temperature, head)
            norm[part] = logp.logsumexp(-1)
            logp -= norm[part][:, None]
            chosen[part] = logp.gather(-1, targets[part][:, None])[:, 0]
            beside[part] = logp[:, ctx.also]
            p = logp.exp()
            entropy[part] = p.mul_(logp.clamp_(min=LEAST_LOGPROB)).sum(-1).neg_()
        ctx.save_for_backward(hidden, weight, bias, targets, entropy, norm)
        return chosen, entropy, beside

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_chosen, of_entropy, of_beside = gradients
        hidden, weight, bias, targets, entropy, norm = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight) if wants_weight else None
        to_bias = torch.zeros_like(bias) if wants_bias else None
        for first in range(0, len(hidden), ctx.rows):
            part = slice(first, first + ctx.rows)
            logp, slope = _logits(hidden[part], weight, bias, ctx.temperature, ctx.head)
            logp -= norm[part][:, None]
            p = logp.exp()
            d = logp.clamp_(min=LEAST_LOGPROB).add_(entropy[part][:, None]).mul_(-of_entropy[part][:, None])
            d.sub_((of_chosen[part] + of_beside[part].sum(-1))[:, None]).mul_(p)
            d.scatter_add_(1, targets[part][:, None], of_chosen[part][:, None])
            for column, token in enumerate(ctx.also):
                d[:, token] += of_beside[part, column]
            d.mul_(ctx.head.scale / ctx.temperature)
            d = (d if slope is None else d.mul_(slope)).to(weight.dtype)
            if to_hidden is not None:
                to_hidden[part] = d @ weight
            if to_weight is not None:
                to_weight.addmm_(d.T, hidden[part])
            if to_bias is not None:
                to_bias += d.sum(0)
        return to_hidden, to_weight, to_bias, None, None, None, None, None


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, head: Head
) -> tuple[Tensor, Tensor | None]:
    """Logits over temperature, (n, V), and the slope of the softcap there; None without one."""
    raw = functional.linear(hidden, weight, bias)
    logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if head.scale != 1:
        logits *= head.scale
    slope = None
    if head.softcap is not None:
        bent = torch.tanh_(logits.div_(head.softcap))
        slope = 1 - bent.square()
        logits = bent * head.softcap
    return (logits if temperature == 1 else logits.div_(temperature)), slope
