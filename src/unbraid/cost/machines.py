"""How fast machines are: what their makers state, and the share of it that a run is expected to get."""

from dataclasses import dataclass, fields, replace

import torch

from unbraid.cost.work import Work
from unbraid.errors import UnbraidError
from unbraid.learn.profile import PEAK_FLOPS

MIB = 1 << 20


@dataclass(frozen=True)
class Speed:
    """Rates of one kind of work, by what `Work` counts: so many a second, and seconds a call of a layer."""

    products: float
    attention: float
    moved: float
    weights: float
    logits: float
    call: float

    def seconds(self, work: Work) -> float:
        """One after the other: nothing is assumed to hide behind anything else."""
        rates = ("products", "attention", "moved", "weights", "logits")
        return sum(getattr(work, name) / getattr(self, name) for name in rates) + work.calls * self.call

    def times(self, factor: float) -> "Speed":
        """A machine so many times as slow."""
        slower = {field.name: getattr(self, field.name) / factor for field in fields(self)}
        return Speed(**slower | {"call": self.call * factor})


@dataclass(frozen=True)
class Machine:
    """Memory of one device in bytes, and speeds: of passes over many tokens, and of drawing token by token.

    link: bytes a second from one device to another.
    """

    name: str
    memory: int
    passes: Speed
    drawing: Speed
    link: float = 1e9

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"


@dataclass(frozen=True)
class Gpu:
    """memory: MiB, as nvidia-smi says. flops: dense bfloat16 a second, a key of `PEAK_FLOPS`. float32: without tensor
    cores, a second. bandwidth: bytes a second. nvlink: bytes a second to all others, both ways; 0 where there is none.
    """

    memory: int
    flops: str
    float32: float
    bandwidth: float
    nvlink: float = 0.0


GPUS = {
    "h200": Gpu(143771, "H200", 67e12, 4.8e12, 900e9),
    "h100": Gpu(81559, "H100", 67e12, 3.35e12, 900e9),
    "a100-80": Gpu(81920, "A100", 19.5e12, 2.04e12, 600e9),
    "a100-40": Gpu(40960, "A100", 19.5e12, 1.56e12, 600e9),
    "l40s": Gpu(46068, "L40S", 91.6e12, 0.86e12),
    "4090": Gpu(24564, "RTX 4090", 82.6e12, 1.01e12),
    "3090": Gpu(24576, "RTX 3090", 35.6e12, 0.94e12),
    "a10g": Gpu(23028, "A10G", 31.2e12, 0.6e12),
    "l4": Gpu(23034, "L4", 30.3e12, 0.3e12),
}
"""Source: NVIDIA's data sheets; memory as nvidia-smi reports it."""
MFU = 0.4
"""Share of the stated operations that matrix products get. Choice: usual for bfloat16; not measured by us on a GPU."""
BANDWIDTH = 0.6
"""Share of the stated bandwidth. Choice, likewise."""
CALLS = {"passes": 2e-4, "drawing": 3e-5}
"""Seconds to start a layer on a GPU: transformers' dozens of kernels, and a captured graph's. Choice, likewise."""
ATTENTION = 0.5
"""Speed of attention's products in parts of that of others. Choice, likewise."""
LOGIT_BYTES = 56
"""Traffic of a logit on a GPU, from its product to a draw or a gradient: fourteen times four bytes."""
NVLINK, PCIE = 0.3, 12e9
"""Between GPUs of one machine: share of NVLink's stated bytes, which count both ways; else bytes a second through the
host, half of PCIe 4.0 x16. Choice, not measured by us."""
CPU = Machine("cpu", 0, Speed(125e9, 31e9, 3.3e9, 6e9, 0.57e9, 1.35e-3), Speed(200e9, 60e9, 15e9, 8e9, 0.21e9, 1.13e-3))
"""One thread of the machine that `benchmarks/cost.py` ran on; `measure.calibrate` scales it to the one at hand."""


def machine(name: str, mfu: float | None = None, bandwidth: float | None = None, itemsize: int = 2) -> Machine:
    """A GPU by its name in `GPUS`, or `cpu`.

    Args:
        itemsize: bytes of a weight; of four, products are float32 ones, for torch rounds none of them unasked.
        mfu, bandwidth: shares of what the maker states; None takes `MFU` and `BANDWIDTH`.

    Raises:
        UnbraidError: the name is none of these.
    """
    if name == "cpu":
        return CPU
    if name not in GPUS:
        raise UnbraidError(
            f"--gpu {name}: known are {', '.join(GPUS)} and cpu; --mfu and --bandwidth fit the next best"
        )
    gpu = GPUS[name]
    flops = (PEAK_FLOPS[gpu.flops] if itemsize < 4 else gpu.float32) * (mfu or MFU)
    rate = gpu.bandwidth * (bandwidth or BANDWIDTH)
    logits = rate / LOGIT_BYTES
    speeds = {kind: Speed(flops, ATTENTION * flops, rate, rate, logits, call) for kind, call in CALLS.items()}
    return Machine(name, gpu.memory * MIB, speeds["passes"], speeds["drawing"], NVLINK * gpu.nvlink or PCIE)


def machine_of(
    device: str, name: str = "", mfu: float | None = None, bandwidth: float | None = None, itemsize: int = 2
) -> Machine:
    """The machine that is meant: the GPU named, or the one here, or this CPU.

    Args:
        device: model.device.

    Raises:
        UnbraidError: the recipe wants a GPU, none is named, and none that we know is here.
    """
    if name or device == "cpu":
        return machine(name or "cpu", mfu, bandwidth, itemsize)
    if torch.cuda.is_available():
        here = torch.cuda.get_device_name()
        total = torch.cuda.mem_get_info()[1]
        alike = [key for key, gpu in GPUS.items() if gpu.flops in here]
        if alike:
            nearest = min(alike, key=lambda key: abs(GPUS[key].memory * MIB - total))
            return replace(machine(nearest, mfu, bandwidth, itemsize), memory=total)
        raise UnbraidError(f"{here} is not among the GPUs whose speed is known: name one like it with --gpu")
    if device.startswith("cuda"):
        raise UnbraidError(
            f"model.device is {device} and there is no GPU here: name one with --gpu ({', '.join(GPUS)})"
        )
    return CPU


def scaled(machine: Machine, passes: float, drawing: float) -> Machine:
    """The machine, so many times as slow at each kind of work."""
    return replace(machine, passes=machine.passes.times(passes), drawing=machine.drawing.times(drawing))
