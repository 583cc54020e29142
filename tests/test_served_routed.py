"""Sampling a routed policy from servers: what they are told of who wrote what, and what is handed over."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies import tiny_policy
from served_runs import fleet_of

from unbraid.chat.types import Mode
from unbraid.errors import ServerError
from unbraid.policy import ModelConfig, Policy
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout.fleet import Member
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.slots import SlotSampler
from unbraid.rollout.start_fleet import needs_plugin, refuse_policy, run_fleet
from unbraid.tokens import ROUTING_FILE, Router, written_spans
from unbraid.vllm.client import Client, Generated

KEY = np.uint64(7)
Told = list[tuple[list[int], list[tuple[int, int]] | None]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """(ids, written) of every request, the questions about modes included; answers are made up."""
    requests: Told = []

    async def generate(self: Client, ids: Sequence[int], *, max_tokens: int, written: Any, **_: Any) -> Generated:
        requests.append((list(ids), written))
        return Generated(tuple(range(20, 20 + max_tokens)), (-1.0,) * max_tokens, stopped=False)

    async def next_logprobs(self: Client, ids: Sequence[int], *_: Any, written: Any, **__: Any) -> list[float]:
        requests.append((list(ids), written))
        return [-1.0, -1.0]

    monkeypatch.setattr(Client, "generate", generate)
    monkeypatch.setattr(Client, "next_logprobs", next_logprobs)
    return requests


async def converse(sampler: Any) -> list[tuple[list[int], list[bool]]]:
    """Two turns, one forced, then a context that starts anew; (ids, written by the model) before each response."""
    seen = []
    context = await sampler.open([3, 4, 5])
    written = [False] * 3
    for mode, observation in ((Mode.AUTO, [6, 7]), (Mode.THINK, [8]), (Mode.NO_THINK, [])):
        seen.append((list(context.ids), list(written)))
        before = len(context.ids)
        await context.respond(KEY, mode, 4)
        written += [True] * (len(context.ids) - before) + [False] * len(observation)
        context.extend(observation)
    context.restart([9, 10])
    seen.append(([9, 10], [False] * 2))
    await context.respond(KEY, Mode.AUTO, 2)
    context.close()
    return seen


def held(policy: Policy, tmp_path: Path, told: Told) -> list[tuple[list[int], list[bool]]]:
    async def run() -> list[tuple[list[int], list[bool]]]:
        fleet = fleet_of(tmp_path)
        fleet.members = [Member("http://nowhere")]
        sampler = ServedSampler(fleet, policy, 1, 1.0)
        sampler._session = object()  # type: ignore[assignment]
        return await converse(sampler)

    return asyncio.run(run())


def test_servers_are_told_what_the_model_wrote(tmp_path: Path, told: Told):
    policy = tiny_policy(routing=RoutingConfig())
    seen = held(policy, tmp_path, told)
    modes = policy.format.modes
    for (ids, written), mode in zip(seen, [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO], strict=True):
        question, request = told.pop(0), told.pop(0)
        for (sent, spans), forced in ((question, modes.shared), (request, modes.of(mode))):
            assert sent == [*ids, *forced] and spans is not None
            assert [span for span in spans if span[0] < span[1]] == written_spans([*written, *[True] * len(forced)])
    assert not told


def test_servers_of_other_policies_are_told_nothing(tmp_path: Path, told: Told):
    held(tiny_policy(adapter=True), tmp_path, told)
    assert len(told) == 8 and all(written is None for _, written in told)


def test_slots_keep_the_same_provenance():
    """What the sampler in this process routes by is what servers are told."""

    async def respond_twice() -> None:
        async with SlotSampler(tiny_policy(routing=RoutingConfig()), 1, 0.0) as sampler:
            context = await sampler.open([3, 4, 5])
            written = [False] * 3
            for mode in (Mode.AUTO, Mode.THINK):
                drawn = await context.respond(KEY, mode, 4)
                context.extend([6, 7])
                written += [True] * len(drawn.ids) + [False] * 2
                assert context.written == written
            context.restart([9, 10])
            assert context.written == [False] * 2

    asyncio.run(respond_twice())


def test_what_is_handed_over_is_routing_and_adapters(tmp_path: Path):
    policy, fleet = tiny_policy(routing=RoutingConfig()), fleet_of(tmp_path)
    fleet._salt = "step-1"
    fleet._save(policy)
    folder = fleet.folder / "step-1"
    assert isinstance(policy.router, Router)
    assert Router.load(folder).to_json() == policy.router.to_json()
    for name in policy.router.adapters:
        assert (folder / name / "adapter_model.safetensors").is_file()
    assert sorted(one.name for one in folder.iterdir() if one.name != "README.md") == sorted(
        [*policy.router.adapters, ROUTING_FILE]
    )


@pytest.mark.parametrize("assign", ["swapped", "random"])
def test_controls_are_refused(assign: Any, tmp_path: Path):
    policy = tiny_policy(routing=RoutingConfig(assign=assign))
    with pytest.raises(ServerError, match="is a control, which no server knows"):
        refuse_policy(policy)
    config = fleet_of(tmp_path).config.model_copy(update={"urls": ("http://nowhere",)})
    with (
        pytest.raises(ServerError, match="is a control"),
        run_fleet(policy, ModelConfig(path="."), config, tmp_path, max_tokens=9),
    ):
        pass


def test_who_needs_the_plugin():
    assert needs_plugin(tiny_policy()) and needs_plugin(tiny_policy(routing=RoutingConfig()))
    assert not needs_plugin(tiny_policy(adapter=True))
