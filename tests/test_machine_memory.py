"""What memory a machine has: control groups, and GPUs under their outer names."""

from types import SimpleNamespace

import torch

from unbraid.vllm import budget as machines
from unbraid.vllm.budget import HOST, DeviceMemory


def made_up(root, limit: str, used: int, files: int) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": f"{limit}\n",
        "sys/fs/cgroup/a/memory.current": f"{used}\n",
        "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {files}\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/b/memory.current": "7\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_control_group_limits_the_host(tmp_path):
    made_up(tmp_path, "300000", 120000, 20000)
    assert machines.host_memory(tmp_path) == DeviceMemory(HOST, 300000, 200000)
    made_up(tmp_path, "max", 1, 0)
    assert machines.host_memory(tmp_path) == DeviceMemory(HOST, 1024000, 614400)
    # Control groups of the first kind.
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/job\n3:pids:/job\n")
    group = tmp_path / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    for name, count in (("limit", 500000), ("usage", 100000)):
        (group / f"memory.{name}_in_bytes").write_text(f"{count}\n")
    assert machines.host_memory(tmp_path) == DeviceMemory(HOST, 500000, 400000)


def test_gpus_are_read_with_their_outer_names_and_own_blocks_count_as_free(monkeypatch):
    assert 0 < machines.devices_here(torch)[-1].free <= machines.host_memory().total
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        mem_get_info=lambda i: (10 + i, 100),
        memory_reserved=lambda i: 50,
    )
    first, second, _ = machines.devices_here(SimpleNamespace(cuda=cuda))
    assert first == DeviceMemory("cuda:0", 100, 60, "3") and second == DeviceMemory("cuda:1", 100, 61, "1")
