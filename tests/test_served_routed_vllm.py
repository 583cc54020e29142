"""A routed policy sampled from a real vLLM server is the trainer's policy, token for token, over turns with tools."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_served_vllm import LARGEST, SearchAgent, assert_exact, follow
from vllm_servers import Counters, change, differences, served_models, serving

from unbraid.chat.types import Mode
from unbraid.errors import ServerError
from unbraid.lab.search_base import search_base_path
from unbraid.policy import Policy
from unbraid.tokens import Role
from unbraid.vllm.client import Client
from unbraid.vllm.server import Server

pytestmark = pytest.mark.vllm

SETTINGS = {
    "paper": "model.adapter.routing={}",
    "bare context": "model.adapter.routing={context: null}",
    "shifted": "model.adapter.routing={boundary: shifted}",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    flags = ("--block-size=32", "--max-num-batched-tokens=256")
    with serving(search_base_path(0), folder, tokens=256, rank=8, routed=2, flags=flags) as running:
        yield running


@pytest.mark.parametrize("setting", SETTINGS)
def test_episodes_are_sampled_from_the_policy(server: Server, setting: str, tmp_path: Path):
    agent = SearchAgent(8, 0.05, 0, SETTINGS[setting])
    assert agent.policy.router and len(agent.policy.router.adapters) == 2
    fleet, turns, actions = agent.fleet([server], tmp_path), 0, 0
    before = Counters.of(server).hits
    for mode, temperature in [(Mode.AUTO, 1.0), (Mode.THINK, 0.7), (Mode.NO_THINK, 1.0), (Mode.AUTO, 0.0)]:
        played = agent.play(fleet, 8, [mode] * (4 if temperature else 1), temperature)
        turns = max(turns, *(len(one.responses) for one in played))
        actions += sum(int((one.roles == Role.ACTION).sum()) for one in played)
        assert_exact(agent.policy, played, temperature)
    assert turns >= 2 and Counters.of(server).hits > before
    print(f"{setting}: {actions} tokens of actions")
    assert actions > 100, "the action adapter has something to do"
    assert not fleet.correct and not fleet.notes()


def test_new_weights_of_both_adapters_are_sampled(server: Server, tmp_path: Path):
    agent = SearchAgent(8, 0.1, 0, SETTINGS["paper"])
    fleet = agent.fleet([server], tmp_path)
    for seed in range(3):
        change(agent.policy, 0.01, seed)
        assert_exact(agent.policy, agent.play(fleet, 4, [Mode.AUTO] * 2), 1.0)
        assert {name for name in served_models(server) if name.startswith(fleet._name)} == {fleet.model}


def test_swapped_adapters_are_noticed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    agent = SearchAgent(8, 0.1, 0, SETTINGS["paper"])
    fleet = agent.fleet([server], tmp_path)

    def save_swapped(policy: Policy) -> None:
        folder = fleet.folder / fleet.salt
        policy.save_weights(folder)
        (folder / "reasoning").rename(folder / "between")
        (folder / "action").rename(folder / "reasoning")
        (folder / "between").rename(folder / "action")

    monkeypatch.setattr(fleet, "_save", save_swapped)
    with pytest.raises(ServerError, match="draws from another policy than the trainer's"):
        follow(fleet, agent.policy)


def test_without_provenance_the_second_turn_is_another_policys(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What earlier responses are told for: read as context, their tokens run through the wrong adapter."""
    agent, generate = SearchAgent(8, 0.1, 0, SETTINGS["bare context"]), Client.generate
    monkeypatch.setattr(Client, "generate", lambda self, ids, **asked: generate(self, ids, **{**asked, "written": ()}))
    played = agent.play(agent.fleet([server], tmp_path), 8, [Mode.AUTO] * 2)
    assert np.abs(differences(agent.policy, played, 1.0)).max() > 100 * LARGEST
