"""Routed adapters in vLLM's engine: what identifies a cached block, and which requests find room in a step.

Each function is called in place of vLLM's of that name, with vLLM's own, `stock`, before its arguments (`routing.py`).
"""

from typing import Any

from unbraid.vllm.routes import RequestRoutes, routed_of, told_by


def extra_keys(stock: Any, request: Any, start: int, end: int, start_mm: int) -> Any:
    """Adds the routes of the block's tokens, [start, end), to what its hash is made of beside their ids."""
    keys, next_mm = stock(request, start, end, start_mm)
    routes = request.__dict__.get("_unbraid_routes")
    if routes is None:
        if (routed := routed_of(request.lora_request)) is None:
            return keys, next_mm
        routes = RequestRoutes(routed.router, request.prompt_token_ids, told_by(request))
        request._unbraid_routes = routes
    return (*(keys or ()), ("unbraid_routes", routes.between(request.all_token_ids, start, end))), next_mm


class _Charge:
    """The slots that the adapters of the running requests take in one step: (adapter's number, slots)."""

    def __init__(self) -> None:
        self._counted = 0
        self.slots: dict[int, int] = {}

    def admits(self, request: Any, running: list[Any], most: int) -> bool:
        """Whether a waiting request's adapter finds room. running only grows while a step is planned."""
        for one in running[self._counted :]:
            if one.lora_request is not None:
                self.slots.setdefault(one.lora_request.lora_int_id, _slots_of(one.lora_request))
        self._counted = len(running)
        number = request.lora_request.lora_int_id
        return number in self.slots or sum(self.slots.values()) + _slots_of(request.lora_request) <= most


def _slots_of(request: Any) -> int:
    routed = routed_of(request)
    return 1 if routed is None else len(routed.numbers)


def schedule(stock: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Counts slots anew for the step that is planned."""
    self._unbraid_charge = _Charge()
    return stock(self, *args, **kwargs)


def may_be_scheduled(stock: Any, self: Any, request: Any) -> bool:
    """Lets a request wait, as vLLM does, whose adapters would be more than there are slots."""
    if not stock(self, request):
        return False
    if self.lora_config is None or request.lora_request is None:
        return True
    if routed_of(request.lora_request):
        self._unbraid_routes = True
    # Until the first routed request vLLM's own count is right.
    return not self.__dict__.get("_unbraid_routes") or self._unbraid_charge.admits(
        request, self.running, self.lora_config.max_loras
    )
