"""Servers of routed adapters without vLLM: what they refuse, how they are started, how adapters come and go."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from routed_adapters import ROUTERS, lora_of, make_router, save_routed

from unbraid.vllm import routed_worker, routing
from unbraid.vllm.flags import Sampled, sampling_flags
from unbraid.vllm.routes import FURTHER


def slots(most: int, **changes: Any) -> Any:
    """vLLM's configuration of adapters."""
    return SimpleNamespace(
        **{"max_loras": most, "enable_tower_connector_lora": False, "specialize_active_lora": False, **changes}
    )


def config_of(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "lora_config": slots(2),
        "scheduler_config": SimpleNamespace(async_scheduling=False),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1, prefill_context_parallel_size=1),
        "speculative_config": None, "kv_transfer_config": None, "use_v2_model_runner": False,
    }  # fmt: skip
    return SimpleNamespace(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, ""),
        ({"scheduler_config": SimpleNamespace(async_scheduling=True)}, "--no-async-scheduling"),
        ({"speculative_config": "some"}, "--speculative-config"),
        ({"use_v2_model_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "--tensor-parallel-size"),
        ({"kv_transfer_config": "some"}, "--kv-transfer-config"),
        ({"lora_config": None}, "--enable-lora"),
        ({"lora_config": slots(1)}, "--max-loras=2"),
        ({"lora_config": slots(2, enable_tower_connector_lora=True)}, "--enable-tower-connector"),
        ({"lora_config": slots(2, specialize_active_lora=True)}, "--specialize-active-lora"),
    ],
)
def test_servers_that_would_route_wrongly_are_refused(changes: dict[str, Any], advice: str, tmp_path: Path):
    refused = routing.refusal(config_of(**changes), 2)
    assert advice in refused and bool(refused) == bool(advice) and "\n" not in refused
    folder = str(save_routed(tmp_path / "routed", make_router()))
    assert routing._refused_to_load(config_of(**changes), "name", folder, False) == refused
    assert routing._refused_to_load(config_of(**changes), "name", str(tmp_path), False) == ""  # an ordinary one
    assert "under a new name" in routing._refused_to_load(config_of(), "name", folder, True)


def test_a_server_is_asked_at_its_start_only_where_routing_is_announced(monkeypatch: pytest.MonkeyPatch):
    wrong = config_of(use_v2_model_runner=True)
    for value in ("", "0"):
        monkeypatch.setenv(routing.ROUTED, value)
        assert routing._create_engine_config(lambda _: wrong, None) is wrong
    monkeypatch.setenv(routing.ROUTED, "1")
    assert routing._create_engine_config(lambda _: config_of(), None)
    with pytest.raises(ValueError, match="V2 model runner"):
        routing._create_engine_config(lambda _: wrong, None)


def test_flags_of_servers_for_routed_policies():
    what: dict[str, Any] = {
        "model": "m", "dtype": "float32", "max_tokens": 64, "rank": 8, "memory": 1, "sleep": False, "devices": "",
        "cpu": True,
    }  # fmt: skip
    flags, environment = sampling_flags(Sampled(**what, routed=3))
    assert {"--no-async-scheduling", "--max-loras=3", "--max-cpu-loras=6"} <= set(flags)
    assert environment[routing.ROUTED] == "1" and environment["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    flags, environment = sampling_flags(Sampled(**what))
    assert "--max-loras=1" in flags and "--no-async-scheduling" not in flags and routing.ROUTED not in environment


# Adapters in a worker.


class Manager:
    """vLLM's, as far as its adapters are concerned: numbers, and modules of each."""

    def __init__(self, modules: Sequence[str] = ("model.layers.0.mlp.up_proj",)):
        self.held: dict[int, Any] = {}
        self.modules = modules
        self._adapter_manager = SimpleNamespace(get_adapter=lambda number: self.held[number])

    def stock_add(self, _: Any, part: Any) -> bool:
        self.held[part.lora_int_id] = SimpleNamespace(loras=dict.fromkeys(self.modules), path=part.lora_path)
        return True

    def list_adapters(self) -> set[int]:
        return set(self.held)

    def remove_adapter(self, number: int) -> bool:
        return routed_worker.remove_adapter(lambda _, one: self.held.pop(one, None) is not None, self, number)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LoRARequest`s without vLLM."""
    monkeypatch.setattr(
        routed_worker,
        "_parts",
        lambda routed: [
            SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=folder)
            for name, number, folder in zip(routed.names, routed.numbers, routed.folders, strict=True)
        ],
    )


@pytest.mark.usefixtures("parts")
def test_all_adapters_come_and_go_together(tmp_path: Path):
    manager, lora = Manager(), lora_of(save_routed(tmp_path / "routed", ROUTERS["none"]), 3)
    manager.held[3 + 1] = SimpleNamespace()
    assert routed_worker.add_adapter(manager.stock_add, manager, lora)
    assert [Path(manager.held[3 + index * FURTHER].path).name for index in range(3)] == ["reasoning", "action", "query"]
    assert routed_worker.list_loras(lambda self: self.list_adapters(), manager) == {3, 4}
    pinned: list[int] = []
    routed_worker.pin_adapter(lambda _, number: not pinned.append(number), manager, 3)
    assert sorted(pinned) == [3, 3 + FURTHER, 3 + 2 * FURTHER]
    assert manager.remove_adapter(3) and manager.list_adapters() == {4}
    assert not manager.remove_adapter(3)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
def test_adapters_of_embeddings_and_heads_are_refused(tmp_path: Path, module: str):
    manager, lora = (
        Manager(["model.layers.0.mlp.up_proj", module]),
        lora_of(save_routed(tmp_path / "routed", make_router())),
    )
    with pytest.raises(ValueError, match=f"{module} cannot be routed"):
        routed_worker.add_adapter(manager.stock_add, manager, lora)
    assert not manager.held
