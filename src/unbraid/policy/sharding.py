"""Full fine-tuning with weights, gradients and optimiser spread over the ranks: torch's FSDP2.

Each rank keeps a part of every weight in the type that the recipe loads it in, float32 as a rule, from which the
optimiser steps. For a forward or backward pass the parts of one layer come together, in `accelerate`'s mixed precision
if there is one, and are dropped again. While the policy samples for itself they stay together (`unsharded`), so that
ranks may take different numbers of forward passes.

Whether to shard is a matter of machines, not of what is trained: it is no part of a recipe but of how the ranks are
started, `accelerate launch --use_fsdp --fsdp_version 2` or `ACCELERATE_USE_FSDP=true`. A checkpoint is whole, and any
number of ranks, sharded or not, goes on from it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unbraid import ranks
from unbraid.errors import ModelError

COMPUTED_IN = {"no": None, "bf16": torch.bfloat16}
"""By accelerate's names; fp16 would need its losses scaled."""


def asked_for() -> bool:
    """Whether the ranks were started to shard."""
    return ranks.world() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What passes through sharded weights are computed in; `dtype` where the launcher names nothing else."""
    return COMPUTED_IN.get(os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) or dtype


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over the ranks."""
    return isinstance(model, FSDPModule)


def shard(model: Any, device: torch.device) -> None:
    """Spread a model over all ranks, layer by layer, in place; what is on the CPU moves to `device` meanwhile.

    Raises:
        ModelError: it has adapters, its weights are held in too few bits, or it does not name its layers.
    """
    if hasattr(model, "peft_config") or not hasattr(model, "_no_split_modules"):
        raise ModelError("sharding (FSDP) is for training all weights of one model: leave model.adapter out, or FSDP")
    if model.dtype.itemsize < 4:
        raise ModelError(
            f"sharding (FSDP) steps from the weights as they are held, and {str(model.dtype).removeprefix('torch.')} "
            "loses small updates: set model.dtype to float32, and accelerate's --mixed_precision to bf16"
        )
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if name not in COMPUTED_IN:
        raise ModelError(f"accelerate's mixed precision is {name}: here it is one of {', '.join(COMPUTED_IN)}")
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(f"{type(model).__name__} does not say which its layers are: it cannot be sharded (FSDP)")
    # Where everything is computed in the type that weights are held in, so are sums of gradients.
    precision = MixedPrecisionPolicy(param_dtype=COMPUTED_IN[name], reduce_dtype=model.dtype)
    mesh = init_device_mesh(device.type, (ranks.world(),))
    for module in (*layers, model):
        # By default what belongs to no layer would stay together after a forward pass: without a backward pass to end
        # that, the next one would see old weights.
        fully_shard(module, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
        # Losses are shares of one loss: gradients add up. gloo can only do that, and must be asked for nothing else.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


@contextmanager
def unsharded(model: Any) -> Iterator[None]:
    """Within, every rank has all weights and may run the model as often as it likes; without gradients."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)] if is_sharded(model) else []
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    with torch.no_grad():
        for part in parts:
            part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@contextmanager
def in_step(model: Any, passes: int, learn: bool = True) -> Iterator[None]:
    """Within, the rank makes `passes` passes through the model. Each is the work of all ranks where that is sharded, so
    one that has fewer to make than another adds empty ones.

    Args:
        learn: forward and backward; the added ones add nothing to any gradient.
    """
    missing = max(ranks.gather(lambda: passes)) - passes if is_sharded(model) else 0
    yield
    for _ in range(missing):
        with torch.set_grad_enabled(learn):
            logits = model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device), use_cache=False).logits
        if learn:
            (logits.sum() * 0).backward()


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights on the CPU, for rank 0; others help and get none. A stock state dict."""
    once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied weights have two names
    state = _whole({name: value for name, value in model.state_dict().items() if name in once})
    return state if ranks.is_first() else {}


def whole_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name, whole as `whole_state` is."""
    return _whole({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})


def take_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Take over what `whole_parameters` gave rank 0, which every rank has read by now."""
    trained = dict(model.named_parameters())
    overwrite([trained[name] for name in values], [part_of(value, trained[name]) for name, value in values.items()])


def whole_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state with whole tensors, as one that shards nothing has it; other ranks than 0 get empty ones."""
    state = optimiser.state_dict()
    return {**state, "state": {number: _whole(entry) for number, entry in state["state"].items()}}


def shares_of(state: dict[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
    """The rank's part of what `whole_state` gave: moments are spread as the weights are that they belong to."""
    spread = {
        number: {
            name: part_of(value, parameters[number]) if isinstance(value, Tensor) and value.ndim else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": spread}


@torch.no_grad()
def overwrite(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Give parameters other values, in the storage that is theirs: FSDP reads no other. Returns what they had."""
    before = [p.detach().clone() for p in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    return before


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every rank has, spread as `like` is; nothing to do where that is whole itself."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _whole(values: Mapping[str, Any]) -> dict[str, Any]:
    """One by one, so that no rank but the first ever has more than one of them."""
    found = {}
    for name, value in values.items():
        if isinstance(value, DTensor):
            value = value.full_tensor()
            value = value.cpu() if ranks.is_first() else value.new_empty(0, device="cpu")
        found[name] = value
    return found
