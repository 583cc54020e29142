"""Token-routed LoRA in stock vLLM: where `plugin.py` hooks it in, and what it refuses.

vLLM gives every token of a batch a number, that of its request's adapter, and its kernels go by these numbers. All that
is needed is other numbers, so nothing of vLLM is replaced: its functions are called, and what they say is amended.

* worker: a routed adapter is loaded as the ordinary adapters it consists of, each in a slot of its own, and
  `InputBatch.make_lora_inputs` gives every token the one of its route (`BatchRoutes`).
* scheduler: it is charged as many slots as it has adapters, so a batch never needs more than `--max-loras`.
* prefix cache: the routes of a block's tokens are part of what identifies it, beside the adapter's name and folder:
  equal tokens that ran through other adapters are other blocks.
* front: a request that cannot be routed is refused before it reaches the engine, and so is a routed adapter on a server
  that would route it wrongly. Without routed adapters nothing is refused and nothing is amended.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from unbraid.vllm.installation import SUPPORTED, is_supported
from unbraid.vllm.routes import (
    FURTHER,
    WRITTEN,
    BatchRoutes,
    RequestRoutes,
    Routed,
    open_routed,
    prompt_written,
    read_routed,
)

ROUTED = "UNBRAID_ROUTED"
"""Variable that announces routed adapters to a server: what would be refused when one is loaded is refused at once."""
NO_LORA_ON = ("embed_tokens", "lm_head")
"""Modules whose adapters vLLM applies by request. Choice: refused, for nobody checked them token by token."""


def asked_for() -> bool:
    """Whether this server is to serve routed adapters."""
    return os.environ.get(ROUTED, "0") not in ("", "0")


def install() -> None:
    """Hook all of it in, or nothing. Calling it again changes nothing.

    Raises:
        RuntimeError: this vLLM is not one that was tried, or lacks what is amended here.
    """
    import vllm  # pyright: ignore[reportMissingImports]

    if not is_supported(vllm.__version__):
        raise RuntimeError(
            f"vLLM {vllm.__version__} was not tried with routed adapters: supported are {SUPPORTED[0]} up to, but not "
            f"with, {SUPPORTED[1]}"
        )
    try:
        hooks = [(owner, name, around, getattr(owner, name)) for owner, name, around in _hooks()]
    except (ImportError, AttributeError) as problem:
        raise RuntimeError(f"vLLM {vllm.__version__} cannot serve routed adapters: {problem}") from problem
    for owner, name, around, stock in hooks:
        if not hasattr(stock, "__wrapped__") or stock.__module__ != __name__:
            setattr(owner, name, _amended(stock, around))


def _hooks() -> list[tuple[Any, str, Callable[..., Any]]]:
    from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.entrypoints.generate.beam_search.utils import (  # pyright: ignore[reportMissingImports]
        BeamSearchSequence,
    )
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels  # pyright: ignore[reportMissingImports]
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager  # pyright: ignore[reportMissingImports]
    from vllm.v1.core import block_pool, kv_cache_utils  # pyright: ignore[reportMissingImports]
    from vllm.v1.core.sched.scheduler import Scheduler  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.core import EngineCore  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.gpu_input_batch import InputBatch  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin  # pyright: ignore[reportMissingImports]

    return [
        (EngineArgs, "create_engine_config", _create_engine_config),
        (OpenAIServingModels, "_check_load_lora_adapter_request", _check_load),
        (InputProcessor, "process_inputs", _process_inputs),
        (BeamSearchSequence, "get_prompt", _get_beam),
        (EngineCore, "add_lora", _add_lora),
        (kv_cache_utils, "generate_block_hash_extra_keys", _extra_keys),
        (block_pool, "generate_block_hash_extra_keys", _extra_keys),
        (Scheduler, "schedule", _schedule),
        (Scheduler, "_handle_blocked_waiting_request", _may_be_scheduled),
        (LRUCacheWorkerLoRAManager, "add_adapter", _add_adapter),
        (LRUCacheWorkerLoRAManager, "remove_adapter", _remove_adapter),
        (LRUCacheWorkerLoRAManager, "pin_adapter", _pin_adapter),
        (LoRAModelRunnerMixin, "list_loras", _list_loras),
        (InputBatch, "add_request", _add_request),
        (InputBatch, "remove_request", _remove_request),
        (InputBatch, "make_lora_inputs", _make_lora_inputs),
    ]


def _amended(stock: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def amended(*args: Any, **kwargs: Any) -> Any:
        return around(stock, *args, **kwargs)

    amended.__module__ = __name__
    return amended


def _routed(request: Any) -> Routed | None:
    """The routed adapter that a `LoRARequest` names, if it is one."""
    return None if request is None else open_routed(request.lora_name, request.lora_int_id, request.lora_path)


# What is refused.


def refusal(config: Any, adapters: int = 1) -> str:
    """Why a server cannot serve a routed adapter that consists of so many; "" if it can.

    Args:
        config: vLLM's whole configuration.
    """
    lora, parallel = config.lora_config, config.parallel_config
    no = "routed adapters cannot be served"
    if lora is None:
        return f"{no} without --enable-lora"
    if config.scheduler_config.async_scheduling:
        return f"{no} with async scheduling, which hides the newest token: start vLLM with --no-async-scheduling"
    if config.speculative_config is not None:
        return f"{no} with speculative decoding: start vLLM without --speculative-config"
    if config.use_v2_model_runner:
        return f"{no} by the V2 model runner: start vLLM with VLLM_USE_V2_MODEL_RUNNER=0"
    if parallel.pipeline_parallel_size > 1 or getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return f"{no} in pipeline or context parallel: use --tensor-parallel-size or --data-parallel-size instead"
    if config.kv_transfer_config is not None:
        return f"{no} with a KV connector, which may not tell routes apart: start vLLM without --kv-transfer-config"
    if lora.enable_tower_connector_lora:
        return f"{no} with adapters on encoders: start vLLM without --enable-tower-connector-lora"
    if lora.max_loras < adapters:
        return f"{no} in {lora.max_loras} slots, this one takes {adapters}: start vLLM with --max-loras={adapters}"
    return ""


def _refused_to_load(config: Any, name: str, path: str, in_place: bool) -> str:
    """Why an adapter cannot be loaded on this server; "" if it can, or if it is an ordinary one."""
    try:
        routed = read_routed(name, 1, path)
    except ValueError as problem:
        return str(problem)
    if routed is None:
        return ""
    if in_place:
        return "a routed adapter cannot be replaced in place: load the new one under a new name"
    return refusal(config, len(routed.numbers))


def _create_engine_config(stock: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    config = stock(self, *args, **kwargs)
    if asked_for() and (problem := refusal(config)):
        raise ValueError(problem)
    return config


async def _check_load(stock: Any, self: Any, request: Any) -> Any:
    from vllm.entrypoints.openai.models import serving  # pyright: ignore[reportMissingImports]

    if (answer := await stock(self, request)) is not None:
        return answer
    config = self.engine_client.vllm_config
    problem = _refused_to_load(config, request.lora_name, request.lora_path, request.load_inplace)
    return serving.create_error_response(message=problem) if problem else None


def _add_lora(stock: Any, self: Any, request: Any) -> Any:
    if problem := _refused_to_load(self.vllm_config, request.lora_name, request.lora_path, request.load_inplace):
        raise ValueError(problem)
    return stock(self, request)


def _process_inputs(stock: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

    request = stock(self, *args, **kwargs)
    if request.lora_request is None or (routed := _routed(request.lora_request)) is None:
        return request
    problem = refusal(self.vllm_config, len(routed.numbers))
    if request.prompt_embeds is not None or request.pooling_params is not None or request.resumable:
        problem = "a routed adapter answers prompts of token ids, whole ones, with tokens: ask for those"
    try:
        prompt_written(routed.router, request.prompt_token_ids or (), _told(request))
    except ValueError as malformed:
        problem = problem or str(malformed)
    if problem:
        raise VLLMValidationError(problem)
    return request


def _get_beam(stock: Any, self: Any) -> Any:
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

    if _routed(self.lora_request):  # each step is a request of its own, which knows nothing of who wrote its prompt
        raise VLLMValidationError("a routed adapter cannot be searched with beams: ask for samples instead")
    return stock(self)


def _told(request: Any) -> Any:
    """What a request says of its prompt; it may be vLLM's in any of its processes."""
    extra = request.sampling_params.extra_args if request.sampling_params else None
    return (extra or {}).get(WRITTEN)


# Prefix cache.


def _extra_keys(stock: Any, request: Any, start: int, end: int, start_mm: int) -> Any:
    keys, next_mm = stock(request, start, end, start_mm)
    routes = request.__dict__.get("_unbraid_routes")
    if routes is None:
        if (routed := _routed(request.lora_request)) is None:
            return keys, next_mm
        routes = RequestRoutes(routed.router, request.prompt_token_ids, _told(request))
        request._unbraid_routes = routes
    return (*(keys or ()), ("unbraid_routes", routes.between(request.all_token_ids, start, end))), next_mm


# Scheduler.


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
    routed = _routed(request)
    return 1 if routed is None else len(routed.numbers)


def _schedule(stock: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    self._unbraid_charge = _Charge()
    return stock(self, *args, **kwargs)


def _may_be_scheduled(stock: Any, self: Any, request: Any) -> bool:
    if not stock(self, request):
        return False
    if self.lora_config is None or request.lora_request is None:
        return True
    if _routed(request.lora_request):
        self._unbraid_routes = True
    # Until the first routed request vLLM's own count is right.
    return not self.__dict__.get("_unbraid_routes") or self._unbraid_charge.admits(
        request, self.running, self.lora_config.max_loras
    )


# Worker: adapters.


def _parts(routed: Routed) -> list[Any]:
    """`LoRARequest`s of the ordinary adapters that a routed one consists of."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    return [LoRARequest(*part) for part in zip(routed.names, routed.numbers, routed.folders, strict=True)]


def _numbers_here(manager: Any, number: int) -> list[int]:
    """The numbers of all adapters here that belong to the one with this number, itself included."""
    return [one for one in manager.list_adapters() if one % FURTHER == number]


def _add_adapter(stock: Any, self: Any, request: Any) -> bool:
    routed = _routed(request)
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


def _remove_adapter(stock: Any, self: Any, number: int) -> bool:
    for further in _numbers_here(self, number):
        if further != number:
            stock(self, further)
    return stock(self, number)


def _pin_adapter(stock: Any, self: Any, number: int) -> bool:
    return all([stock(self, one) for one in _numbers_here(self, number)] or [stock(self, number)])


def _list_loras(stock: Any, self: Any) -> set[int]:
    return {number for number in stock(self) if number < FURTHER}


# Worker: batch. `_unbraid_routes` of an InputBatch is there from its first routed request on.


def _add_request(stock: Any, self: Any, request: Any) -> int:
    row = stock(self, request)
    if request.lora_request is not None and (routed := _routed(request.lora_request)):
        routes = self.__dict__.setdefault("_unbraid_routes", BatchRoutes(self.max_num_reqs))
        routes.add(request.req_id, routed, request.prompt_token_ids, request.output_token_ids, _told(request))
        # What is counted here is active: the first has the number of the whole and takes its place.
        self.lora_id_to_lora_request.update(zip(routed.numbers, _parts(routed), strict=True))
    return row


def _remove_request(stock: Any, self: Any, request: str) -> int | None:
    row = stock(self, request)
    routes = self.__dict__.get("_unbraid_routes")
    routed = routes.drop(request) if routes else None
    if routed and routed.number not in self.lora_id_to_request_ids:
        for number in routed.numbers:
            self.lora_id_to_lora_request.pop(number, None)
    return row


def _make_lora_inputs(stock: Any, self: Any, scheduled: Any, sampled: Any) -> Any:
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
