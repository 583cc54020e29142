"""Routed LoRA written down a second time: a plain model, hooks, and one small product per adapter and token set."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import Tensor

from unbraid.policy import Policy


def weights_of(policy: Policy) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Name of a linear layer of the base → adapter → (A, B), detached."""
    assert policy.router
    state = {name: value.detach() for name, value in policy.model.state_dict().items()}
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, value in state.items():
        layer, mark, rest = name.partition(".lora_A.")
        if mark:
            adapter = rest.partition(".")[0]
            up = state[f"{layer}.lora_B.{adapter}.weight"]
            found.setdefault(layer.removeprefix("base_model.model."), {})[adapter] = (value, up)
    return found


def base_of(policy: Policy) -> Any:
    """The base without PEFT, a copy."""
    return deepcopy(policy.model).unload()


@contextmanager
def by_hand(
    base: Any,
    weights: dict[str, dict[str, tuple[Tensor, Tensor]]],
    adapters: tuple[str, ...],
    routes: Tensor,
    scale: float,
) -> Iterator[None]:
    """Within, `base` runs with adapter `adapters[routes[b, t]]` at token t of row b, and none where that is −1."""
    handles = []

    def hook(own: dict[str, tuple[Tensor, Tensor]]) -> Any:
        def add(_: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            out = output.clone()
            for number, name in enumerate(adapters):
                down, up = own[name]
                here = routes == number
                out[here] = out[here] + ((inputs[0][here].to(down.dtype) @ down.T) @ up.T * scale).to(out.dtype)
            return out

        return add

    for name, module in base.named_modules():
        if name in weights:
            handles.append(module.register_forward_hook(hook(weights[name])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
