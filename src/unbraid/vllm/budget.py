"""What a trainer and the servers beside it take of a machine's memory, told and checked before the first step.

Numbers in, numbers out: what training takes comes from `unbraid.policy.memory`. Two phases must fit, sampling and
learning. A server on a GPU takes a fixed share of it, weights, keys and values and graphs inside; on a CPU its weights
and so many GiB of keys and values. A server that sleeps while the trainer learns keeps its weights in host memory
then, and the trainer gives its cached blocks back before the servers wake.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from unbraid.errors import ServerError

Phase = Literal["always", "sampling", "learning"]

GIB = 1 << 30
HOST = "host"
"""Name of the memory of the machine itself, where CPU servers live and sleeping weights go."""
MARGIN = 2 * GIB
"""Of a server's share, beside weights and keys and values: context, graphs, the activations of a prefill, the logits of
sampling. Choice: vLLM measures these when it starts."""
ASLEEP = 2 * GIB
"""What a sleeping server keeps on each GPU: context, graphs, buffers. Choice."""
MOST = 0.95
"""Largest share of a GPU that is proposed. Choice: the context of other processes must stay somewhere."""
PROCESS = {"cpu": 2 * GIB, "cuda": 4 * GIB}
"""Host memory of one server without weights, keys and values: its three processes. Measured for CPU (1.9 GB: web server
0.63, engine 0.60, worker about 0.65); a choice for GPUs."""


@dataclass(frozen=True)
class DeviceMemory:
    """One memory, in bytes. `name` as torch has it (`cuda:0`), or `host`.

    free: not taken by others; what this process holds counts as free, for the trainer's rows count it.
    visible: the GPU as CUDA_VISIBLE_DEVICES names it; empty = the number in `name`.
    """

    name: str
    total: int
    free: int
    visible: str = ""

    @property
    def number(self) -> str:
        return self.visible or self.name.rpartition(":")[2]


@dataclass(frozen=True)
class Trainer:
    """What training takes on its device (`cpu`, `cuda`, `cuda:1`), in bytes by what it is for.

    always: from the first step to the last. learning, sampling: at their largest moment in a step, gone afterwards; the
    latter where the trainer itself draws. host: of the host memory, when the device is a GPU.
    """

    device: str
    always: dict[str, int]
    learning: dict[str, int]
    host: int = 2 * GIB
    sampling: dict[str, int] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return HOST if self.device == "cpu" else "cuda:0" if self.device == "cuda" else self.device


@dataclass(frozen=True)
class Servers:
    """The servers that are started; none for servers given by URL, which live elsewhere.

    devices, memory, sleep: the settings of `sampler`. weights: bytes of the served model. layers, kv_heads, head_dim:
    of its attention. itemsize: bytes of a key's element. tokens: longest sequence, `--max-model-len`.
    """

    devices: tuple[str, ...]
    memory: float
    sleep: bool
    weights: int
    layers: int
    kv_heads: int
    head_dim: int
    itemsize: int
    tokens: int

    def sequence_bytes(self, parts: int = 1) -> int:
        """Keys and values of one sequence of full length on one of `parts` GPUs.

        2 · layers · kv_heads · head_dim · itemsize · tokens; heads are divided, but a GPU holds at least one.
        """
        heads = max(1, math.ceil(self.kv_heads / parts))
        return 2 * self.layers * heads * self.head_dim * self.itemsize * self.tokens

    def least(self, parts: int = 1) -> int:
        """Smallest share of one of `parts` GPUs in which a server can answer at all, in bytes."""
        return math.ceil(self.weights / parts) + self.sequence_bytes(parts) + MARGIN


@dataclass(frozen=True)
class Row:
    """`who` takes `bytes` of `device` in a phase, `what` for."""

    device: str
    who: str
    phase: Phase
    bytes: int
    what: str


@dataclass(frozen=True)
class Budget:
    """The whole table. problems: one line each, empty if everything fits. notes: what could not be checked."""

    devices: tuple[DeviceMemory, ...]
    rows: tuple[Row, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def taken(self, device: str, phase: Phase) -> int:
        """Bytes of a device in a phase, sampling or learning."""
        return sum(row.bytes for row in self.rows if row.device == device and row.phase in ("always", phase))

    def table(self) -> Table:
        """For people: who takes what in which phase, and what is left of every device."""
        table = Table("memory", "who", "what", title="memory of trainer and servers, at most")
        table.add_column("sampling", justify="right")
        table.add_column("learning", justify="right")
        for device in self.devices:
            rows = [row for row in self.rows if row.device == device.name]
            if not rows:
                continue
            for at, row in enumerate(rows):
                told = [size(row.bytes) if row.phase in ("always", phase) else "" for phase in ("sampling", "learning")]
                table.add_row(device.name if at == 0 else "", row.who, row.what, *told)
            left = [device.total - self.taken(device.name, phase) for phase in ("sampling", "learning")]
            said = [size(n) if n >= 0 else f"[bold red]−{size(-n)}[/]" for n in left]
            table.add_row("", "", f"left of {size(device.total)}", *said, style="bold", end_section=True)
        return table


def budget(
    devices: Sequence[DeviceMemory],
    trainer: Trainer,
    servers: Servers,
    smaller: Sequence[tuple[str, Trainer]] = (),
    partial: bool = False,
) -> Budget:
    """Who takes what, and what does not fit.

    Args:
        smaller: settings of the trainer that take less, the cheapest first, and what it then takes: tried for advice.
        partial: there may be GPUs that `devices` does not list (CUDA_VISIBLE_DEVICES is set): they are not checked.
    """
    plain = _plan(devices, trainer, servers, partial)
    if not plain.problems:
        return plain

    def fits(trainer: Trainer, servers: Servers) -> bool:
        return not _plan(devices, trainer, servers, partial).problems

    found = list(_cures(devices, trainer, servers, smaller, fits))
    advice = f"this would fit: {'; or '.join(found)}" if found else _last_resort()
    return replace(plain, problems=tuple(f"{problem} | {advice}" for problem in plain.problems))


def refuse(found: Budget) -> None:
    """Raises ServerError with everything that does not fit, in one line; does nothing if all of it fits."""
    if found.problems:
        said = [problem.partition(" | ")[0] for problem in found.problems]
        raise ServerError(f"not enough memory: {'; '.join(said)} | {found.problems[0].partition(' | ')[2]}")


def _plan(devices: Sequence[DeviceMemory], trainer: Trainer, servers: Servers, partial: bool) -> Budget:
    """The table and its problems, without advice."""
    known = {device.name: device for device in devices}
    rows = [
        Row(device.name, "others", "always", device.total - device.free, "in use already")
        for device in devices
        if device.free < device.total
    ]
    rows += [Row(trainer.place, "trainer", "always", n, what) for what, n in trainer.always.items()]
    rows += [Row(trainer.place, "trainer", "learning", n, what) for what, n in trainer.learning.items()]
    rows += [Row(trainer.place, "trainer", "sampling", n, what) for what, n in trainer.sampling.items()]
    if trainer.place != HOST:
        rows.append(Row(HOST, "trainer", "always", trainer.host, "process"))
    problems, notes = [], []
    for number, entry in enumerate(servers.devices):
        who = f"server {number}"
        places, unknown = _places(entry, devices)
        if unknown:
            said = f"sampler.devices '{entry}': there is no GPU {', '.join(unknown)} among those seen here"
            if not partial:
                problems.append(f"{said} ({', '.join(d.number for d in devices if d.name != HOST) or 'none'})")
                continue
            notes.append(f"{said}: its memory was not checked")
        if HOST in places:
            rows += _on_cpu(who, servers)
            problems += _too_small_on_cpu(who, servers)
            if servers.sleep:
                notes.append(f"{who} runs on the CPU, where vLLM cannot sleep: it takes its memory all the time")
            continue
        parts = len(places) + len(unknown)
        rows += [row for place in places for row in _on_gpu(who, known[place], servers, parts)]
        rows.append(Row(HOST, who, "always", PROCESS["cuda"], "processes"))
        if servers.sleep:
            rows.append(Row(HOST, who, "learning", servers.weights, "weights, asleep"))
        problems += [p for place in places for p in _too_small_on_gpu(who, known[place], servers, parts)]
    told = Budget(tuple(devices), tuple(row for row in rows if row.device in known), (), tuple(dict.fromkeys(notes)))
    problems += [line for device in devices for line in _overflow(told, device)]
    return replace(told, problems=tuple(problems))


def _places(entry: str, devices: Sequence[DeviceMemory]) -> tuple[list[str], list[str]]:
    """Names of the devices of one entry of sampler.devices, and the GPUs in it that are not known."""
    gpus = [device for device in devices if device.name != HOST]
    if not entry.strip():  # vLLM takes the first it sees, whichever the trainer is on
        return [gpus[0].name if gpus else HOST], []
    asked = [part.strip() for part in entry.split(",") if part.strip()]
    named = {device.number: device.name for device in gpus}
    return [named[part] for part in asked if part in named], [part for part in asked if part not in named]


def _on_gpu(who: str, device: DeviceMemory, servers: Servers, parts: int) -> list[Row]:
    """The share of a server on one of its GPUs; asleep while learning, if it sleeps."""
    share = int(servers.memory * device.total)
    inside = f"share {servers.memory:g}: {size(math.ceil(servers.weights / parts))} weights, the rest keys and values"
    if not servers.sleep:
        return [Row(device.name, who, "always", share, inside)]
    return [
        Row(device.name, who, "sampling", share, inside),
        Row(device.name, who, "learning", min(ASLEEP, share), "asleep"),
    ]


def _on_cpu(who: str, servers: Servers) -> list[Row]:
    return [
        Row(HOST, who, "always", PROCESS["cpu"], "processes"),
        Row(HOST, who, "always", servers.weights, "weights"),
        Row(HOST, who, "always", int(servers.memory * GIB), "keys and values"),
    ]


def _too_small_on_gpu(who: str, device: DeviceMemory, servers: Servers, parts: int) -> list[str]:
    if servers.memory > 1:
        return [f"sampler.memory {servers.memory:g} is a share of a GPU: at most {MOST}"]
    least = servers.least(parts)
    if least <= int(servers.memory * device.total):
        return []
    return [
        f"{who} needs {size(least)} on {device.name} ({size(math.ceil(servers.weights / parts))} weights, "
        f"{size(servers.sequence_bytes(parts))} for one sequence of {servers.tokens} tokens, {size(MARGIN)} to work "
        f"with), sampler.memory {servers.memory:g} gives it {size(int(servers.memory * device.total))}"
    ]


def _too_small_on_cpu(who: str, servers: Servers) -> list[str]:
    needed = servers.sequence_bytes()
    if needed <= int(servers.memory * GIB):
        return []
    return [
        f"{who} needs {size(needed)} of keys and values for one sequence of {servers.tokens} tokens, sampler.memory "
        f"gives it {servers.memory:g} GiB"
    ]


def _overflow(told: Budget, device: DeviceMemory) -> list[str]:
    """What does not fit on a device: one line, of the phase that takes more (of both, if equal)."""
    taken = {phase: told.taken(device.name, phase) for phase in ("sampling", "learning")}
    phase = max(taken, key=lambda p: (taken[p], p == "learning"))
    over = taken[phase] - device.total
    if over <= 0:
        return []
    sums: dict[str, int] = {}
    for row in told.rows:
        if row.device == device.name and row.phase in ("always", phase):
            sums[row.who] = sums.get(row.who, 0) + row.bytes
    parts = " + ".join(f"{who} {size(n)}" for who, n in sums.items())
    return [f"{device.name} lacks {size(over)} of {size(device.total)} while {phase}: {parts}"]


def _cures(
    devices: Sequence[DeviceMemory],
    trainer: Trainer,
    servers: Servers,
    smaller: Sequence[tuple[str, Trainer]],
    fits: Callable[[Trainer, Servers], bool],
) -> Iterator[str]:
    """Settings, with numbers, with which everything fits: single changes; several at once only where none would do."""
    gpus = [device for device in devices if device.name != HOST]
    none_found = True
    # Nearest to what is set first: the largest share that leaves room, or the smallest that is enough.
    shares = [n / 100 for n in range(round(MOST * 100), 0, -1)] if gpus else [2.0**n for n in range(8, -1, -1)]
    shares.sort(key=lambda share: abs(share - servers.memory))
    lower = [(f"sampler.memory: {share:g}", replace(servers, memory=share)) for share in shares]
    asleep = [("sampler.sleep: true", replace(servers, sleep=True))] if gpus and not servers.sleep else []
    elsewhere = [
        (f'sampler.devices: ["{gpu.number}"]', replace(servers, devices=(gpu.number,)))
        for gpu in gpus
        if gpu.name != trainer.place
    ]
    for group in (lower, asleep, elsewhere):
        if found := next((setting for setting, changed in group if fits(trainer, changed)), None):
            none_found = False
            yield found
    if found := next((setting for setting, changed in smaller if fits(changed, servers)), None):
        none_found = False
        yield found
    if not none_found:
        return
    for setting, changed in [("", trainer), *smaller]:
        for start in [("", servers), *asleep]:
            for share in shares:
                if fits(changed, replace(start[1], memory=share)):
                    yield ", ".join(filter(None, [setting, start[0], f"sampler.memory: {share:g}"]))
                    return


def _last_resort() -> str:
    """What to do where no setting that was tried is enough."""
    return (
        "no setting tried makes it fit: train an adapter (model.adapter), shorten responses (rollout.max_new_tokens, "
        "environment.tokens), take a smaller model, or give the servers other GPUs (sampler.devices) or another "
        "machine (sampler.urls)"
    )


def size(count: float) -> str:
    """Bytes for people, as vLLM counts them: GiB, or MiB below a tenth of one."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.1f} MiB"


def devices_here(torch: Any, root: Path = Path("/")) -> list[DeviceMemory]:
    """The GPUs that torch sees, and the host.

    Args:
        torch: the module: this part of the code does without it elsewhere. root: where /proc and /sys are looked for.
    """
    found, visible = [], os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        own = torch.cuda.memory_reserved(index)
        name = visible[index].strip() if index < len(visible) else ""
        found.append(DeviceMemory(f"cuda:{index}", total, min(total, free + own), name))
    return [*found, host_memory(root)]


def host_memory(root: Path = Path("/")) -> DeviceMemory:
    """The machine's memory, or what the control groups of this process leave of it where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    lines = _read(root / "proc/meminfo").splitlines()
    about = {
        key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines) if rest.split()
    }
    total = about.get("MemTotal", total)
    free = about.get("MemAvailable", total)
    for limit, used in _limits(root):
        total, free = min(total, limit), min(free, max(0, limit - used))
    own = _read(root / "proc/self/statm").split()
    resident = int(own[1]) * page if len(own) > 1 else 0
    return DeviceMemory(HOST, total, min(total, free + resident))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of every control group around this process that has a limit; what only caches files is not used."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        old = "memory" in kinds.split(",")
        if kinds and not old:
            continue
        base = root / "sys/fs/cgroup" / ("memory" if old else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        inside = Path(path.lstrip("/"))
        for folder in dict.fromkeys([base / inside, *(base / above for above in inside.parents), base]):
            limit, used = (_read(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                cached = [row.split() for row in _read(folder / "memory.stat").splitlines()]
                files = sum(int(n) for key, n in cached if key == ("total_inactive_file" if old else "inactive_file"))
                yield int(limit), max(0, int(used) - files)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
