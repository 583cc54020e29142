"""The backward pass, and what strict isolation makes of it.

Routing by position decides which adapter writes a token, not which adapter its loss moves: a reasoning token attends to
the keys and values of action tokens, which the action adapter made, so its gradient reaches that adapter too. `strict`
keeps of every token's gradient only the part in the adapter that owns the token:

    ∂/∂θ_k  Σ_t [owner(t) = k] L_t     for each adapter k, all of them from one forward pass

L_t is what of the loss goes through the scores of target t (log-prob, entropies), whatever the loss does with them: the
chain rule is cut at the scores, and their gradients are sent on once for each adapter. Each of these is a gradient, of
its own adapter's part of the loss with the other adapters held; together they are the gradient of no function, so
nothing says that a step along them lowers anything.

What stays: an adapter moves its own later tokens also by way of other tokens' hidden states (its token → another role's
token → its token). These paths end and begin in the same adapter, and cutting them would take away part of its own
effect on its own loss.

Source: arXiv 2602.00994 claims that no parameter gets gradient from both roles and cuts nothing. Choice: two (K) calls
of autograd on one graph; each has half of the work for the adapters and all of the work for the base.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unbraid.policy.routed_lora import Binding, adapter_parameters

STRICT_WARNING = (
    "model.adapter.routing.isolation is strict: no adapter is told what its steps do to the other role, whose tokens "
    "read its keys and values; with opposed skills that has wrecked both (docs/routed-lora.md): watch the accuracy, "
    "and go back to positional if it falls"
)
"""Said once per run. Measured by `benchmarks/strict_isolation.py`."""


def is_strict(model: Any) -> bool:
    """Whether `backward` cuts the gradients of this model."""
    binding: Binding | None = getattr(model, "routing", None)
    return binding is not None and binding.strict


def backward(model: Any, loss: Tensor, scores: Sequence[Tensor], owners: Tensor | None) -> None:
    """Add the gradient of `loss` to the `.grad` of what is trained, cut as the model's isolation says.

    Args:
        model: one that is routed strictly gets the gradients above; any other those of `loss.backward()`.
        scores: all that `loss` depends on the model through, each of the shape of `owners`.
        owners: the adapter that each score belongs to (`TokenBatch.owners`); −1 is nobody's, and moves nothing.
    """
    if not is_strict(model) or owners is None:
        loss.backward()
        return
    binding: Binding = model.routing
    used = [score for score in scores if score.requires_grad]
    if not loss.requires_grad or not used:
        return
    grads = torch.autograd.grad(loss, used, allow_unused=True)
    kept = [(score, grad) for score, grad in zip(used, grads, strict=True) if grad is not None]
    concerned = [k for k in range(len(binding.router.adapters)) if (owners == k).any()]
    for k in concerned:
        parameters = adapter_parameters(model, binding.router.adapters[k])
        own = [grad * (owners == k) for _, grad in kept]
        found = torch.autograd.grad(
            [score for score, _ in kept], parameters, own, retain_graph=k != concerned[-1], allow_unused=True
        )
        for parameter, grad in zip(parameters, found, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad
