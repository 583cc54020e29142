"""Constraints and routed adapters in TRL on two processes, as accelerate finds them, are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("trl_ranks.py")
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path):
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "one.pt")], check=True, timeout=140)
    command = [sys.executable, *LAUNCH, str(SCRIPT), str(tmp_path / "two.pt")]
    subprocess.run(command, check=True, timeout=140, env={**os.environ, "ACCELERATE_USE_CPU": "true"})
    alone, shared = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert (alone["processes"], shared["processes"]) == (1, 2)
    for kind in ("whole", "routed"):
        assert len(alone[kind]["logged"]) == 2
        first, last = alone[kind]["logged"]
        assert first["constraint/modes/think/coefficient"] != last["constraint/modes/think/coefficient"]
        for one, two in zip(alone[kind]["logged"], shared[kind]["logged"], strict=True):
            assert one.keys() == two.keys()
            for name, value in one.items():
                assert two[name] == pytest.approx(value, abs=2e-5), (kind, name)
        for name, weight in alone[kind]["weights"].items():
            torch.testing.assert_close(shared[kind]["weights"][name], weight, atol=5e-6, rtol=0, msg=name)
