"""Sums over several processes: of counts, and of gradients, whatever roles each of them saw."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every `.grad` by its sum over all processes; nothing to do in one that is alone.

    Adapters are small and stay outside the wrappers of DDP and FSDP, which wait for a gradient of every parameter: a
    process whose samples hold no action token has none for the action adapter, and would keep the others waiting. Here
    it counts as zero. One message for all, in float32 or wider. A parameter that no process has a gradient for keeps
    none, so that the optimiser leaves it alone everywhere or nowhere.

    The losses of all processes must be shares of one loss (`learn.grpo.Totals` over all of them): it is a sum.
    """
    if _alone() or not parameters:
        return
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    device = parameters[0].device
    has = torch.tensor([float(p.grad is not None) for p in parameters], dtype=wide, device=device)
    flat = torch.cat([has, *(_flat(p, wide) for p in parameters)])
    torch.distributed.all_reduce(flat)
    has, rest = flat[: len(parameters)], flat[len(parameters) :]
    for count, parameter, grad in zip(has, parameters, rest.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter).to(parameter.dtype) if count else None


def sum_counts(counts: Sequence[float]) -> list[float]:
    """Every count summed over all processes."""
    if _alone():
        return [float(count) for count in counts]
    every: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, [float(count) for count in counts])
    return [sum(column) for column in zip(*every, strict=True)]


def _alone() -> bool:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_world_size() == 1


def _flat(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return grad.detach().flatten().to(dtype)
