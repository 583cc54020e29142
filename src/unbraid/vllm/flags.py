"""The flags of a server that samples for a trainer. Those of a server for users are in `serve/`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unbraid.vllm.plugin import BACKEND
from unbraid.vllm.routing import ROUTED

BASE = "base"
"""Name under which the model itself is served to a trainer."""
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""What vLLM's attention on CPUs takes."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""


@dataclass(frozen=True)
class Sampled:
    """What a server is to sample from.

    model: folder or hub name. max_tokens: longest context. rank: of the adapters to come, 0 for none: all weights are
    replaced instead. memory: of a GPU its share, of a CPU GiB for keys and values. devices: as CUDA_VISIBLE_DEVICES
    takes them, "" leaves them to vLLM. cpu: whether vLLM is a build for CPUs. seeded: whether requests have seeds.
    routed: the adapters that a routed policy consists of, 0 for a policy that is not routed.
    """

    model: str
    dtype: str
    max_tokens: int
    rank: int
    memory: float
    sleep: bool
    devices: str
    cpu: bool
    seeded: bool = False
    routed: int = 0


def sampling_flags(what: Sampled, further: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """(arguments, environment) of one server.

    Log-probs are of the distribution drawn from, `processed_logprobs`; the model's own generation settings, which may
    cut that distribution, are left out. The routes that change weights are on, so the server listens locally only.
    """
    flags = [
        f"--model={what.model}",
        f"--served-model-name={BASE}",
        f"--dtype={what.dtype}",
        f"--max-model-len={what.max_tokens}",
        "--logprobs-mode=processed_logprobs",
        "--generation-config=vllm",
        "--enable-scale-out",  # the route that takes and gives token ids
        "--disable-uvicorn-access-log",
    ]
    environment: dict[str, str] = {}
    if what.rank:
        # One policy is sampled from at a time; the next one is loaded before the last one goes.
        slots = max(what.routed, 1)
        flags += ["--enable-lora", f"--max-lora-rank={lora_rank(what.rank)}"]
        flags += [f"--max-loras={slots}", f"--max-cpu-loras={2 * slots}"]
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    else:
        flags.append(f"--weight-transfer-config={json.dumps({'backend': BACKEND})}")
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    if what.routed:
        routed_flags, routed_environment = flags_of_routed()
        flags, environment = [*flags, *routed_flags], environment | routed_environment
    if what.sleep:
        flags.append("--enable-sleep-mode")
        environment["VLLM_SERVER_DEV_MODE"] = "1"
    if what.cpu:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(cpu_gib(what.memory))
        # Choice: trainer and servers share the cores; bound threads would queue behind each other on the same ones.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if what.seeded:
            # vLLM 0.32 moves the generator of a prompt that is prefilled in part back, which torch's CPU one cannot.
            flags += ["--no-enable-chunked-prefill", f"--max-num-batched-tokens={max(what.max_tokens, 2048)}"]
    else:
        flags.append(f"--gpu-memory-utilization={what.memory}")
        if what.devices:
            environment["CUDA_VISIBLE_DEVICES"] = what.devices
            if (many := len(what.devices.split(","))) > 1:
                flags.append(f"--tensor-parallel-size={many}")
    return [*flags, *further], environment


def flags_of_routed() -> tuple[list[str], dict[str, str]]:
    """(arguments, environment) of any server of routed adapters, beside room for them; `routing.py` says what for."""
    return ["--no-async-scheduling"], {ROUTED: "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}


def cpu_gib(memory: float) -> int:
    """GiB of keys and values of a server on a CPU: vLLM takes whole ones, at least one."""
    return max(1, math.ceil(memory))


def lora_rank(rank: int) -> int:
    """The smallest rank that `--max-lora-rank` takes and that holds `rank`.

    Raises:
        ValueError: there is none.
    """
    fitting = [one for one in LORA_RANKS if one >= rank]
    if not fitting:
        raise ValueError(f"rank {rank}: vLLM takes adapters up to rank {LORA_RANKS[-1]}")
    return fitting[0]


def refused_on_cpu(config: Mapping[str, Any]) -> str:
    """Why vLLM's build for CPUs would die of the first request to a model; "" if it would not.

    Args:
        config: of the model, as in its config.json.
    """
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    size = config.get("head_dim") or (hidden // heads if heads and hidden else 0)
    if not size or size in CPU_HEAD_SIZES:
        return ""
    sizes = ", ".join(map(str, CPU_HEAD_SIZES))
    return f"the model's attention heads have {size} dimensions, and vLLM on a CPU takes {sizes}"
