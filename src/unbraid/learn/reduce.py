"""Sums over several processes: of counts, and of gradients, whatever roles each of them saw."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unbraid import ranks


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every `.grad` by its sum over all processes; nothing to do in one that is alone.

    There are no wrappers of DDP here, which wait for a gradient of every parameter: a process whose samples hold no
    action token has none for the action adapter, and would keep the others waiting. Here it counts as zero. Messages
    of at most `BUCKET` numbers, in float32 or wider. A parameter that no process has a gradient for keeps none, so that
    the optimiser leaves it alone everywhere or nowhere.

    Gradients of sharded weights have been summed by FSDP already and are left as they are.

    The losses of all processes must be shares of one loss (`learn.grpo.Totals` over all of them): it is a sum.
    """
    parameters = [p for p in parameters if not isinstance(p, DTensor)]
    if ranks.world() == 1 or not parameters:
        return
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    has = torch.tensor([p.grad is not None for p in parameters], dtype=wide, device=parameters[0].device)
    ranks.sum_tensor(has)
    there = [p for p, count in zip(parameters, has.tolist(), strict=True) if count]
    for bucket in _buckets(there):
        flat = torch.cat([_flat(p, wide) for p in bucket])
        ranks.sum_tensor(flat)
        for parameter, grad in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = grad.view_as(parameter).to(parameter.dtype)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale all gradients down to a norm of `most` where it is larger; returns what it was."""
    norm = nn.utils.clip_grad_norm_(parameters, most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


BUCKET = 2**26
"""Most numbers of a message, unless one parameter has more: a copy of all gradients at once would be memory."""


def sum_counts(counts: Sequence[float]) -> list[float]:
    """Every count summed over all processes, in their order: the same bits everywhere."""
    every = ranks.gather(lambda: [float(count) for count in counts])
    return [sum(column) for column in zip(*every, strict=True)]


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return buckets


def _flat(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return grad.detach().flatten().to(dtype)
