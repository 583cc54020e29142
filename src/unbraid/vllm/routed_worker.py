"""Routed adapters in vLLM's worker: their parts in slots of their own, and every token to the slot of its route.

Each function is called in place of vLLM's of that name, with vLLM's own, `stock`, before its arguments (`routing.py`).
"""

from typing import Any

import numpy as np

from unbraid.vllm.routes import FURTHER, BatchRoutes, Routed, routed_of, told_by

NO_LORA_ON = ("embed_tokens", "lm_head")
"""Modules whose adapters vLLM applies by request. Choice: refused, for nobody checked them token by token."""


def _parts(routed: Routed) -> list[Any]:
    """`LoRARequest`s of the ordinary adapters that a routed one consists of."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return [LoRARequest(*part) for part in zip(routed.names, routed.numbers, routed.folders, strict=True)]


def _numbers_here(manager: Any, number: int) -> list[int]:
    """The numbers of all adapters here that belong to the one with this number, itself included."""
    return [one for one in manager.list_adapters() if one % FURTHER == number]


def add_adapter(stock: Any, self: Any, request: Any) -> bool:
    """Loads all that a routed adapter consists of, or nothing."""
    routed = routed_of(request)
    if routed is None:
        return stock(self, request)
    try:
        added = [stock(self, part) for part in _parts(routed)]
        for number in routed.numbers:
            modules = self._adapter_manager.get_adapter(number).loras
            if wrong := [name for name in modules if name.rpartition(".")[2] in NO_LORA_ON]:
                raise ValueError(f"{routed.names[0]}: {wrong[0]} cannot be routed: train adapters without it")
    except Exception:
        self.remove_adapter(routed.number)
        raise
    return all(added)


def remove_adapter(stock: Any, self: Any, number: int) -> bool:
    """Removes all of it."""
    for further in _numbers_here(self, number):
        if further != number:
            stock(self, further)
    return stock(self, number)


def pin_adapter(stock: Any, self: Any, number: int) -> bool:
    """Pins all of it."""
    return all([stock(self, one) for one in _numbers_here(self, number)] or [stock(self, number)])


def list_loras(stock: Any, self: Any) -> set[int]:
    """Lists a routed adapter once."""
    return {number for number in stock(self) if number < FURTHER}


# The batch. `_unbraid_routes` of an InputBatch is there from its first routed request on.


def add_request(stock: Any, self: Any, request: Any) -> int:
    """Routes the tokens that a request comes with."""
    row = stock(self, request)
    if request.lora_request is not None and (routed := routed_of(request.lora_request)):
        routes = self.__dict__.setdefault("_unbraid_routes", BatchRoutes(self.max_num_reqs))
        routes.add(request.req_id, routed, request.prompt_token_ids, request.output_token_ids, told_by(request))
        # What is counted here is active: the first has the number of the whole and takes its place.
        self.lora_id_to_lora_request.update(zip(routed.numbers, _parts(routed), strict=True))
    return row


def remove_request(stock: Any, self: Any, request: str) -> int | None:
    """Forgets its routes; its adapters are no longer active if no other request has them."""
    row = stock(self, request)
    routes = self.__dict__.get("_unbraid_routes")
    routed = routes.drop(request) if routes else None
    if routed and routed.number not in self.lora_id_to_request_ids:
        for number in routed.numbers:
            self.lora_id_to_lora_request.pop(number, None)
    return row


def make_lora_inputs(stock: Any, self: Any, scheduled: Any, sampled: Any) -> Any:
    """Gives (adapter by sampled token, adapter by token, active adapters) of a step by route."""
    routes = self.__dict__.get("_unbraid_routes")
    if not routes:
        return stock(self, scheduled, sampled)
    rows = self.num_reqs
    tokens, last = routes.numbers(
        self._req_ids,
        self.request_lora_mapping[:rows],
        np.asarray(scheduled),
        self.num_computed_tokens_cpu[:rows],
        self.token_ids_cpu,
    )
    # Plain integers: vLLM looks each of them up in a dictionary.
    active = set(self.lora_id_to_lora_request.values())
    return tuple(last.repeat(sampled).tolist()), tuple(tokens.tolist()), active


# Kernels on CPUs. Those on GPUs take any number for any token.


def init_kernels(stock: Any, self: Any, tokens: int, batches: int, device: Any, **more: Any) -> None:
    """Makes room for as many stretches of one adapter as there are tokens, where vLLM has one for each request."""
    stock(self, tokens, max(batches, tokens), device, **more)
    self._unbraid_bare = None


def update_kernels(stock: Any, self: Any, numbers: Any) -> None:
    """Remembers which tokens of a step run through no adapter."""
    stock(self, numbers)
    bare = numbers < 0
    self._unbraid_bare = bare[:, None] if not self.no_lora and bool(bare.any()) else None


def shrink(stock: Any, self: Any, y: Any, *args: Any) -> None:
    """Makes y, A x of each token, nil where there is no adapter: vLLM 0.32 takes the last slot's (vllm#48421)."""
    stock(self, y, *args)
    if self._unbraid_bare is not None:
        y.masked_fill_(self._unbraid_bare, 0.0)
