"""Routed LoRA: several PEFT adapters over one frozen base, and every token runs through its own.

    h'_t = W h_t + B_u A_u h_t,   u = the route of position t

The adapters are ordinary ones, all active at once. PEFT asks each of them in turn for its part of a layer's output; the
first one computes the parts of all as one wide product whose middle is masked by route,

    Δ = ((x [A_1; …; A_K]ᵀ) ⊙ mask(u)) [B_1 … B_K]ᵀ,   mask: α_k / r_k on the r_k columns of adapter u, else 0

and the others hand on what they are given. That costs what one adapter of the summed rank costs.

PEFT gives its variants no way to take a mask as argument. So it is bound to the model while a forward pass runs
(`routed`), and bound again while a layer is recomputed for gradient checkpointing (`checkpoint_contexts`).

Source: arXiv 2602.00994, Eq. 10; its code holds one fused adapter. `docs/routed-lora.md` explains it all.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from unbraid.errors import ModelError

MERGING = (
    "routed adapters cannot be merged: each acts on its own tokens only, and a merged weight acts on all; "
    "serve them with `unbraid serve`, or give up routing and merge one of them after loading it alone"
)
WRAPPERS = (DistributedDataParallel, FullyShardedDataParallel, FSDPModule)
QUANTISED = (".bnb", ".gptq", ".hqq")
"""Modules of PEFT whose quantised linear layers ask variants, as its `Linear` does; others do not."""


class Routes(Protocol):
    """What decides routes: `tokens.Router`, or a control in `policy.control_routers`. `Router` says what they mean.

    A route is an index into `adapters`, −1 for none, or `len(adapters)` for all of them (a control).
    """

    @property
    def adapters(self) -> tuple[str, ...]: ...
    def route(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.int8]: ...
    def owners(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.int8]: ...
    def state(self, ids: ArrayLike, written: ArrayLike) -> NDArray[Any]: ...
    def step(self, states: NDArray[Any], ids: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int8]]: ...


class Binding:
    """What `model.routing` holds: the router, and the routes of the forward pass that is under way.

    strict: a token's loss is to move the adapter that owns it, and no other (`learn.isolation`).
    """

    def __init__(self, router: Routes, strict: bool = False):
        self.router, self.strict = router, strict
        self.routes: Tensor | None = None

    @contextmanager
    def bind(self, routes: Tensor | NDArray[np.int8]) -> Iterator[None]:
        """Within, the model's forward passes are over tokens of these routes, (B, T)."""
        before = self.routes
        self.routes = torch.as_tensor(routes)
        try:
            yield
        finally:
            self.routes = before


class _AdapterBinding(Binding):
    """Also holds the mask that all layers share, made once for each forward pass."""

    def __init__(self, router: Routes, ranks: Sequence[int], scales: Sequence[float], strict: bool):
        super().__init__(router, strict)
        parts = (torch.full((1, r), s, dtype=torch.float64) for r, s in zip(ranks, scales, strict=True))
        blocks = torch.block_diag(*parts)
        # Row u is the mask of route u; then come "all" and, last, "none".
        self._exact = torch.cat([blocks, blocks.sum(0, keepdim=True), torch.zeros_like(blocks[:1])])
        self._table = self._exact
        self.mask: Tensor | None = None

    @contextmanager
    def bind(self, routes: Tensor | NDArray[np.int8]) -> Iterator[None]:
        before, self.mask = self.mask, None  # made when a layer first asks
        try:
            with super().bind(routes):
                yield
        finally:
            self.mask = before

    def mask_for(self, x: Tensor) -> Tensor:
        """The mask of a layer's input (B, T, width): (B, T, sum of ranks).

        Raises:
            ModelError: no routes are bound, or the layer sees other tokens than the model was given.
        """
        if self.mask is None:
            if self.routes is None:
                raise ModelError(
                    "a routed model was called without routes: call it within `with routed(model, routes):`, routes "
                    "from policy.routes(ids, written)"
                )
            if self._table.device != x.device or self._table.dtype != x.dtype:
                self._table = self._exact.to(x.dtype).to(x.device)
            routes = self.routes.to(x.device, torch.long)
            self.mask = self._table[torch.where(routes < 0, len(self._table) - 1, routes)]
        if self.mask.shape[:-1] != x.shape[:-1]:
            raise ModelError(
                f"a layer sees tokens of shape {tuple(x.shape[:-1])}, routes are {tuple(self.mask.shape[:-1])}: give "
                "one route per token, and adapt no layer that sees only some (experts) by model.adapter.targets"
            )
        return self.mask if self.mask.dtype == x.dtype else self.mask.to(x.dtype)


class RoutedVariant(LoraVariant):
    """What PEFT calls instead of its own LoRA arithmetic, in every adapted layer and for every adapter."""

    def __init__(self, binding: _AdapterBinding):
        self.binding = binding

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The layer's output with the adapters' parts, (B, T, out). `x` comes in the adapters' dtype."""
        names = self.binding.router.adapters
        if active_adapter != names[0]:
            return result
        down = torch.cat([module.lora_A[name].weight for name in names])
        up = torch.cat([module.lora_B[name].weight for name in names], dim=1)
        x = x.to(down.dtype)
        return result + functional.linear(functional.linear(x, down) * self.binding.mask_for(x), up)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        raise ModelError(MERGING)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        raise ModelError(MERGING)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        raise ModelError(MERGING)


def route_adapters(model: Any, router: Routes, strict: bool = False) -> None:
    """Make a PEFT model route its adapters: all of `router.adapters` become active, trainable and masked by route.

    Args:
        strict: see `Binding`.

    Raises:
        ModelError: an adapter is missing, PEFT has no variants for some of the adapted layers, or DDP or FSDP wraps
            some of them: they wait for a gradient of every adapter, and a process may have no token of one's role.
    """
    if wrapped := [module for module in model.modules() if isinstance(module, WRAPPERS)]:
        raise ModelError(
            f"{type(wrapped[0]).__name__} wraps routed adapters: leave them unwrapped, and sum their gradients with "
            "unbraid.learn.reduce.sum_gradients"
        )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        if not (isinstance(layer, Linear) or type(layer).__module__.endswith(QUANTISED)):
            raise ModelError(
                f"{name}: PEFT's {type(layer).__name__} takes no routing: set model.adapter.targets to linear layers"
            )
        if missing := [a for a in router.adapters if a not in layer.lora_A]:
            raise ModelError(f"{name} has no adapter {missing[0]}: every routed layer needs all of {router.adapters}")
    first = next(iter(layers.values()))
    binding = _AdapterBinding(
        router, [first.r[a] for a in router.adapters], [first.scaling[a] for a in router.adapters], strict
    )
    variant = RoutedVariant(binding)
    for layer in layers.values():
        for adapter in router.adapters:
            layer.lora_variant[adapter] = variant
    # The PEFT model takes one name only; what it wraps takes a list.
    model.base_model.set_adapter(list(router.adapters))
    model.routing = binding


def routed(model: Any, routes: Tensor | NDArray[np.int8] | None) -> AbstractContextManager[None]:
    """Within, `model` runs over tokens of these routes, (B, T); nothing to do for models that do not route."""
    binding: Binding | None = getattr(model, "routing", None)
    if binding is None or routes is None:
        return nullcontext()
    return binding.bind(routes)


def checkpoint_contexts(model: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch's checkpoint: a layer is recomputed with the mask that it was computed with.

    By then the forward pass is over, and another one may have run: its mask is not this one's.
    """
    binding: _AdapterBinding = model.routing
    captured = _Captured(binding)
    return captured, _Again(captured)


class _Captured(AbstractContextManager[None]):
    """Remembers what is bound while a layer is computed."""

    mask: Tensor | None = None

    def __init__(self, binding: _AdapterBinding):
        self.binding, self.routes = binding, binding.routes

    def __exit__(self, *_: object) -> None:
        # Made by the first layer that asked, and the same for all of them.
        self.mask = self.binding.mask


class _Again(AbstractContextManager[None]):
    """Binds that again, as often as it is entered: once for every backward pass through the layer."""

    def __init__(self, captured: _Captured):
        self.captured = captured
        self._before: list[tuple[Tensor | None, Tensor | None]] = []

    def __enter__(self) -> None:
        binding, captured = self.captured.binding, self.captured
        self._before.append((binding.routes, binding.mask))
        binding.routes, binding.mask = captured.routes, captured.mask

    def __exit__(self, *_: object) -> None:
        self.captured.binding.routes, self.captured.binding.mask = self._before.pop()


def adapter_parameters(model: Any, adapter: str) -> list[nn.Parameter]:
    """The trained weights of one adapter of a routed model, or of one of two agents, in a fixed order."""
    mark = f".{adapter}."
    return [p for name, p in model.named_parameters() if p.requires_grad and mark in f".{name}."]
