"""Servers that follow the policy: weights go out once per change, and what is drawn from them is checked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import calls_tasks, requests_for, sampled_batch, tiny_policy
from safetensors import safe_open
from served_runs import assert_the_trainers, draw
from stand_in_vllm import StandIn, Trouble

from unbraid.chat.types import Mode
from unbraid.errors import ServerError
from unbraid.learn.batch import collate
from unbraid.learn.grpo import LearnConfig, make_optimiser
from unbraid.learn.objective import score_tokens
from unbraid.policy import AdapterConfig, ModelConfig, Policy
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.probe import PROBE_TOKENS, Gap, probe_prompts
from unbraid.rollout.start_fleet import run_fleet

GENERATE = "/inference/v1/generate"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbraid.rollout.fleet.PAUSE", 0.005)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(tiny_policy().model) as server:
        yield server


@contextmanager
def fleet_at(folder: Path, policy: Policy, *servers: StandIn | str, max_tokens: int = 120, **config: Any):
    """What a run does with servers that run already, probe included."""
    urls = [server if isinstance(server, str) else server.url for server in servers]
    settings = SamplerConfig(engine="vllm", urls=tuple(urls), **config)
    adapter = AdapterConfig(rank=4, alpha=8) if policy.has_adapter else None
    prompts = [request.prompt_ids for request in requests_for(policy, calls_tasks(8), [Mode.AUTO])]
    model = ModelConfig(path="unused", adapter=adapter)
    with run_fleet(policy, model, settings, folder / "servers", max_tokens=max_tokens, prompts=prompts) as fleet:
        yield fleet


def learn(policy: Policy, size: float = 0.02) -> None:
    """Another policy, near the one before."""
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(torch.randn_like(parameter) * size)


def roll(fleet: Fleet, policy: Policy, count: int = 3, **arguments: Any):
    return draw(fleet, policy, requests_for(policy, calls_tasks(count), [Mode.AUTO] * 2), **arguments)


# -- when weights go out -----------------------------------------------------------------------------------------------


def step(policy: Policy, kind: str) -> None:
    for _, parameter in policy.trainable():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimisers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "own": lambda _: make_optimiser(policy, LearnConfig(steps=1)),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
        "foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    }
    optimisers[kind]([p for _, p in policy.trainable()]).step()


def write(policy: Policy) -> None:
    with torch.no_grad():
        policy.trainable()[0][1].mul_(1.01)


def look(policy: Policy) -> None:
    """Everything that only reads: sampling, scoring with gradients, the reference."""
    trajectories, groups = sampled_batch(policy, prompts=2, samples=2, budget=3)
    batch = collate(trajectories, np.zeros(len(groups)), policy.format.modes.position)
    score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids).logprobs.sum().backward()
    policy.freeze_reference()
    with policy.reference() as model, torch.no_grad():
        score_tokens(model, batch, 1.0, policy.format.modes.choice_ids)
    policy.model.eval()
    policy.model.train()
    for _, parameter in policy.trainable():
        parameter.grad = None


CHANGES = ("own", "adamw", "foreach", "sgd", "write", "load")


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@given(deeds=st.lists(st.sampled_from([*CHANGES, "look", "save"]), min_size=1, max_size=5))
@settings(max_examples=12)
def test_a_stamp_changes_with_the_weights_and_with_nothing_else(tmp_path_factory, adapter, deeds):
    policy = tiny_policy(layers=1, adapter=adapter)
    folder = tmp_path_factory.mktemp("saved")
    policy.save(folder)
    seen = {policy.stamp()}
    for deed in deeds:
        before = policy.stamp()
        if deed == "look":
            look(policy)
        elif deed == "save":
            policy.save(folder)
        elif deed == "write":
            write(policy)
        elif deed == "load":
            policy.load_weights(folder)
        else:
            step(policy, deed)
        assert (policy.stamp() != before) == (deed in CHANGES)
        assert deed not in CHANGES or policy.stamp() not in seen
        seen.add(policy.stamp())


def test_the_optimiser_is_of_a_kind_that_stamps_see():
    """Fused ones write behind the back of torch's own count of writes."""
    assert not make_optimiser(tiny_policy(layers=1), LearnConfig(steps=1)).defaults["fused"]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_weights_go_out_once_per_change(tmp_path, monkeypatch, server, adapter):
    monkeypatch.chdir(tmp_path)
    policy = tiny_policy(adapter=adapter)
    loading = "/v1/load_lora_adapter" if adapter else "/update_weights"
    names: list[str] = []
    with fleet_at(Path(), policy, server) as fleet:  # as most runs: their folder is given relative to this one
        for change in (False, False, True, False, True):
            if change:
                learn(policy)
            with policy.reference() if policy._start else contextmanager(lambda: iter([None]))():
                pass
            policy.freeze_reference()
            assert_the_trainers(policy, roll(fleet, policy), 1.0)
            names.append(fleet.salt)
            # The present weights, and no others, are there for a server that has to be started again.
            assert [path.name for path in Path("servers/weights").iterdir()] == [fleet.salt]
            assert list(server.adapters) == ([fleet.model] if adapter else [])
        assert len(server.bodies(loading)) == 3
        assert names[0] == names[1] != names[2] == names[3] != names[4] and len(set(names)) == 3
        told = [body.get("lora_path") or body["update_info"]["folder"] for body in server.bodies(loading)]
        assert [Path(folder).name for folder in told] == sorted(set(names)) and all(
            map(Path.is_absolute, map(Path, told))
        )
        told = {"seconds/sync", "seconds/sync_probe", "sync/bytes", "sync/gap_mean", "sync/gap_q99"}
        assert set(fleet.metrics()) == told
        assert 0 < fleet.metrics()["sync/gap_mean"] < 2e-5 and not fleet.correct and not fleet.notes()
        salts = {body["cache_salt"] for body in server.bodies()}
        assert salts == set(names)
    assert not Path("servers/weights").exists()
    with fleet_at(Path(), policy, server) as another:
        roll(another, policy)
        assert another.salt not in names


@pytest.mark.parametrize("kind", ["lora", "routed", "full"])
def test_of_adapters_nothing_but_adapters_goes_over(tmp_path, kind):
    policy = tiny_policy(adapter=kind == "lora", routing=RoutingConfig() if kind == "routed" else None)
    trained = sum(p.numel() * p.element_size() for _, p in policy.trainable())
    everything = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    fleet = Fleet([], SamplerConfig(), tmp_path / "weights", "float32", 100)
    fleet._save(policy)
    size = fleet._written()
    handed = {name for path in tmp_path.rglob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118
    if kind == "full":
        assert everything == trained <= size
        return
    assert handed and all(".lora_A." in name or ".lora_B." in name for name in handed)
    # Names, configurations and a card for people come with them; they do not grow with the model's width.
    assert trained <= size < trained + 20_000 and trained < everything


def test_another_policy_is_another_policy(tmp_path, server):
    """Two policies that were never written to have the same stamp."""
    first, second = tiny_policy(seed=1), tiny_policy(seed=2)
    with fleet_at(tmp_path, first, server) as fleet:
        assert_the_trainers(first, roll(fleet, first), 1.0)
        assert_the_trainers(second, roll(fleet, second), 1.0)


def test_every_server_gets_them(tmp_path):
    policy = tiny_policy(seed=4)
    with StandIn(tiny_policy().model) as one, StandIn(tiny_policy().model) as two:
        with fleet_at(tmp_path, policy, one, two) as fleet:
            assert_the_trainers(policy, roll(fleet, policy, 6), 1.0)
        assert len(one.bodies("/update_weights")) == len(two.bodies("/update_weights")) == 1
        assert len(one.questions()) == len(two.questions()) == 3  # one for each of six prompts
        assert {body["cache_salt"] for server in (one, two) for body in server.bodies()} == {fleet.salt}


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", GENERATE])
@pytest.mark.parametrize("kind", ["status", "cut", "garbage"])
def test_passing_trouble_over_new_weights_is_waited_out(tmp_path, server, path, kind):
    policy = tiny_policy(adapter=True)
    with fleet_at(tmp_path, policy, server) as fleet:
        roll(fleet, policy)
        learn(policy)
        server.troubles = [Trouble(kind, path, times=2)]
        assert_the_trainers(policy, roll(fleet, policy), 1.0)
        assert list(server.adapters) == [fleet.model] and not fleet.notes()


def test_a_server_that_refuses_the_weights_ends_it(tmp_path, server):
    policy = tiny_policy(adapter=True)
    server.troubles = [Trouble("status", "/v1/load_lora_adapter", times=9, status=400)]
    with fleet_at(tmp_path, policy, server) as fleet, pytest.raises(ServerError, match="load_lora_adapter: 400"):
        roll(fleet, policy)
    assert len(server.bodies("/v1/load_lora_adapter")) == 1


def test_a_server_that_dies_in_the_probe_is_done_without(tmp_path):
    policy = tiny_policy()
    with (
        StandIn(policy.model, Trouble("die", after=2)) as one,
        StandIn(policy.model) as two,
        fleet_at(tmp_path, policy, one, two) as fleet,
    ):
        assert_the_trainers(policy, roll(fleet, policy), 1.0)
        assert [bool(member.lost) for member in fleet.members] == [True, False] and fleet.notes()


def test_sleep_and_waking_come_in_order(tmp_path, server):
    policy = tiny_policy()
    server.asleep = True  # left so by a run that was killed
    with fleet_at(tmp_path, policy, server, sleep=True) as fleet:
        roll(fleet, policy)
        learn(policy)
        roll(fleet, policy)
        assert server.asleep
    routes = [path.partition("?")[0] for path, _ in server.asked]
    managed = [path for path in routes if path in ("/wake_up", "/sleep", "/update_weights")]
    assert managed == ["/wake_up", "/update_weights", "/sleep"] * 2
    assert routes[-1] == "/sleep" and "/sleep?level=1" in [path for path, _ in server.asked]
    with fleet_at(tmp_path, policy, server) as fleet, pytest.raises(ServerError, match="given up"):
        roll(fleet, policy)  # nobody wakes it where the recipe says nothing of sleep


# -- whether they draw from the policy --------------------------------------------------------------------------------


def test_an_old_adapter_under_a_new_name_is_found(tmp_path, server):
    policy = tiny_policy(adapter=True)
    with fleet_at(tmp_path, policy, server) as fleet:
        roll(fleet, policy)
        server.stale = True
        learn(policy, 0.2)
        with pytest.raises(ServerError, match="draws from another policy") as caught:
            roll(fleet, policy)
    assert server.url in str(caught.value) and "sampler.max_gap" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("factor", "hard"), [(1.002, False), (1.5, True)])
def test_another_temperature_is_found(tmp_path, server, factor, hard):
    policy = tiny_policy()
    server.factor = factor
    with fleet_at(tmp_path, policy, server) as fleet:
        if hard:
            with pytest.raises(ServerError, match="temperature"):
                roll(fleet, policy)
        else:
            roll(fleet, policy)
            assert fleet.correct and len(fleet.notes()) == 1


def test_what_the_server_remembers_of_other_weights_is_found(tmp_path, server, monkeypatch):
    policy = tiny_policy()
    with fleet_at(tmp_path, policy, server) as fleet:
        roll(fleet, policy)
        server._remembered = {("base", "", ids): cache for (_, _, ids), cache in server._remembered.items()}
        recall = server._recall
        monkeypatch.setattr(server, "_recall", lambda name, salt, ids: recall(name, "", ids))
        learn(policy, 0.1)
        with pytest.raises(ServerError, match="draws from another policy"):
            roll(fleet, policy)


def test_what_the_server_remembers_wrongly_is_found(tmp_path, server, monkeypatch):
    """The first answer to a prompt is right; those that build on what is remembered of it are not."""
    policy, remember = tiny_policy(), server._remember

    def wrongly(name: str, salt: str, ids: list[int], cache: Any) -> None:
        remember(name, salt, ids, cache)
        for kept in server._remembered.values():
            kept.layers[0].values = kept.layers[0].values * 0.5

    monkeypatch.setattr(server, "_remember", wrongly)
    with fleet_at(tmp_path, policy, server) as fleet, pytest.raises(ServerError, match="draws from another policy"):
        roll(fleet, policy)


def test_a_small_gap_is_corrected_for_and_noted_once(tmp_path, server):
    policy = tiny_policy()
    seen = []
    with fleet_at(tmp_path, policy, server) as fleet:
        for noise in (0.0, 2e-3, 2e-3, 0.0, 2e-3):
            server.noise = noise
            learn(policy)
            roll(fleet, policy)
            seen.append((fleet.correct, len(fleet.notes())))
            assert fleet.metrics()["sync/gap_mean"] == pytest.approx(noise, abs=2e-5)
        server.noise = 6e-3
        learn(policy)
        with pytest.raises(ServerError, match=r"mean 0\.006,"):
            roll(fleet, policy)
    assert seen == [(False, 0), (True, 1), (True, 0), (False, 0), (True, 1)]


def test_the_recipe_may_set_the_limit(tmp_path, server):
    policy = tiny_policy()
    server.noise = 6e-3
    with fleet_at(tmp_path, policy, server, max_gap=0.01) as fleet:
        roll(fleet, policy)
        assert fleet.limit == 0.01 and not fleet.correct


def test_gaps():
    assert Gap.of(np.array([-0.1, 0.1])).over(0.1) == pytest.approx(1)
    assert Gap.of(np.array([0.0] * 99 + [5.0])).over(0.1) < 1 < Gap.of(np.array([0.0] * 9 + [5.0])).over(0.1)
    assert Gap.of(np.array([0.0, np.nan])).over(0.1) == Gap.of(np.array([np.inf])).over(0.1) == float("inf")


def test_the_probe_asks_the_longest_prompts_that_leave_room():
    prompts = [[1] * length for length in (5, 30, 9, 9, 40, 50, 20, 12, 31, 32, 33, 34)]
    assert [len(p) for p in probe_prompts(prompts, 50 + PROBE_TOKENS - 1)] == [40, 34, 33, 32, 31, 30, 20, 12]
    assert probe_prompts(prompts, PROBE_TOKENS) == []


def test_prompts_that_are_too_long_for_the_server_are_left_out(tmp_path):
    policy = tiny_policy()
    lengths = sorted({len(r.prompt_ids) for r in requests_for(policy, calls_tasks(8), [Mode.AUTO])})
    with StandIn(policy.model, max_tokens=lengths[-1] + PROBE_TOKENS - 1) as server:
        with fleet_at(tmp_path, policy, server) as fleet:
            assert fleet.max_tokens == server.max_tokens
            roll(fleet, policy, 1)
            (note,) = fleet.notes()
            assert f"contexts of {server.max_tokens} tokens" in note and "--max-model-len" in note
        probed = [len(body["token_ids"]) for body in server.bodies() if body["sampling_params"]["max_tokens"] == 24]
        assert probed and max(probed) == lengths[-2]


# -- what runs at the addresses ---------------------------------------------------------------------------------------


def one_line(folder: Path, *servers: StandIn | str) -> str:
    with pytest.raises(ServerError) as caught, fleet_at(folder, tiny_policy(), *servers):
        pass
    assert "\n" not in str(caught.value) and "sampler.urls" in str(caught.value)
    assert not list(folder.rglob("weights"))
    return str(caught.value)


def test_addresses_where_no_vllm_is_are_one_line(tmp_path, server):
    assert "http://127.0.0.1:9/version" in one_line(tmp_path, server, "http://127.0.0.1:9")
    assert "no-scheme" in one_line(tmp_path, "no-scheme:80")
    server.troubles = [Trouble("status", "/version", status=404)]
    assert "404" in one_line(tmp_path, server)
    server.troubles = [Trouble("garbage", "/version")]
    assert "/version" in one_line(tmp_path, server)
    server.tells = "0.31.2"
    assert "is vLLM 0.31.2: supported are 0.32" in one_line(tmp_path, server)


def test_servers_that_go_on_without_the_run_are_left_as_they_were(tmp_path):
    policy = tiny_policy(adapter=True)
    with StandIn(tiny_policy().model) as one, StandIn(tiny_policy().model) as two:
        with fleet_at(tmp_path, policy, one, two) as fleet:
            roll(fleet, policy, 1)
            assert one.adapters and two.adapters
            two.stop()
        assert not one.adapters
