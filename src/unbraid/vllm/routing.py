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

from unbraid.vllm import routed_engine, routed_worker
from unbraid.vllm.installation import SUPPORTED, is_supported
from unbraid.vllm.routes import prompt_written, read_routed, routed_of, told_by

ROUTED = "UNBRAID_ROUTED"
"""Variable that announces routed adapters to a server: what would be refused when one is loaded is refused at once."""


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
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase  # pyright: ignore[reportMissingImports]
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU  # pyright: ignore[reportMissingImports]
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
        (kv_cache_utils, "generate_block_hash_extra_keys", routed_engine.extra_keys),
        (block_pool, "generate_block_hash_extra_keys", routed_engine.extra_keys),
        (Scheduler, "schedule", routed_engine.schedule),
        (Scheduler, "_handle_blocked_waiting_request", routed_engine.may_be_scheduled),
        (LRUCacheWorkerLoRAManager, "add_adapter", routed_worker.add_adapter),
        (LRUCacheWorkerLoRAManager, "remove_adapter", routed_worker.remove_adapter),
        (LRUCacheWorkerLoRAManager, "pin_adapter", routed_worker.pin_adapter),
        (LoRAModelRunnerMixin, "list_loras", routed_worker.list_loras),
        (InputBatch, "add_request", routed_worker.add_request),
        (InputBatch, "remove_request", routed_worker.remove_request),
        (InputBatch, "make_lora_inputs", routed_worker.make_lora_inputs),
        (PunicaWrapperBase, "__init__", routed_worker.init_kernels),
        (PunicaWrapperBase, "_update_prefill_metadata", routed_worker.update_kernels),
        (PunicaWrapperCPU, "_shrink_prefill", routed_worker.shrink),
    ]


def _amended(stock: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def amended(*args: Any, **kwargs: Any) -> Any:
        return around(stock, *args, **kwargs)

    amended.__module__ = __name__
    return amended


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
    if lora.specialize_active_lora:  # graphs for so many adapters leave out tokens without one
        return f"{no} by graphs for each number of adapters: start vLLM without --specialize-active-lora"
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
    if request.lora_request is None or (routed := routed_of(request.lora_request)) is None:
        return request
    problem = refusal(self.vllm_config, len(routed.numbers))
    if request.prompt_embeds is not None or request.pooling_params is not None or request.resumable:
        problem = "a routed adapter answers prompts of token ids, whole ones, with tokens: ask for those"
    try:
        prompt_written(routed.router, request.prompt_token_ids or (), told_by(request))
    except ValueError as malformed:
        problem = problem or str(malformed)
    if problem:
        raise VLLMValidationError(problem)
    return request


def _get_beam(stock: Any, self: Any) -> Any:
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]

    if routed_of(self.lora_request):  # each step is a request of its own, which knows nothing of who wrote its prompt
        raise VLLMValidationError("a routed adapter cannot be searched with beams: ask for samples instead")
    return stock(self)
