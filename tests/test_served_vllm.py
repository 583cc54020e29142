"""Sampling from real vLLM servers is the trainer's policy, token for token: exactness, hand-over, errors, deaths.

Servers take half a minute to start, so a few of them serve many tests: one that all share (`search_server`), and one
for each class below.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_servers import (
    POSITIONS,
    Counters,
    ask,
    change,
    check_choices,
    check_greedy,
    chunk_of,
    differences,
    engine_of,
    enlarge,
    fleet_on,
    sampler_config,
    search_recipe_of,
    search_server,
    served_models,
    serving,
    tiny_model,
    tiny_policy_of,
)

from unbraid.chat.types import Mode
from unbraid.errors import ServerError
from unbraid.lab.search_base import search_base_path
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy
from unbraid.prepare import load_tasks, make_environment, roll_of
from unbraid.recipe import Recipe
from unbraid.rollout import LocalSampler, Request, Trajectory
from unbraid.rollout.episodes import EpisodeRoll
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.probe import own_logprobs
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.single import SingleSampler
from unbraid.rollout.start_fleet import run_fleet
from unbraid.tasks import Task
from unbraid.vllm.client import Client, Generated
from unbraid.vllm.server import Server

pytestmark = pytest.mark.vllm

LARGEST, MEAN = 1e-4, 1e-5
"""Of |Δ log-prob| in float32, nats."""
ADAPTER = "model.adapter={{rank: {}, alpha: 32}}"
LOADED = "/v1/load_lora_adapter"


def assert_exact(policy: Policy, trajectories: Sequence[Trajectory], temperature: float) -> None:
    """The log-probs of all drawn tokens are the trainer's, and so are the probabilities of the modes."""
    found = np.abs(differences(policy, trajectories, temperature))
    assert len(found) > len(trajectories)
    assert found.max() <= LARGEST and found.mean() < MEAN, (found.max(), found.mean())
    assert check_choices(policy, trajectories, temperature) > 0
    if not temperature:
        check_greedy(policy, trajectories)


class SearchAgent:
    """The search world's policy, its tasks, and how it plays them: on a fleet, or in this process."""

    def __init__(self, rank: int, size: float = 0.05, seed: int = 0, *overrides: str):
        adapter = [ADAPTER.format(rank), *overrides] if rank else []
        self.recipe: Recipe = search_recipe_of(
            "tasks.train=unbraid.lab.search_world:train_set?world=0&count=60", *adapter
        )
        self.policy = load_policy(self.recipe.model, self.recipe.chat)
        if rank:
            enlarge(self.policy, size, seed)
        self.environment = make_environment(self.recipe)
        self.tasks = load_tasks(self.recipe, self.policy, self.environment).train
        form = self.policy.format
        self.prompts = [tuple(form.prompt_ids(task.messages, task.tools)) for task in self.tasks]

    def play(
        self, fleet: Fleet | None, tasks: int, modes: Sequence[Mode], temperature: float = 1.0
    ) -> list[Trajectory]:
        roll = roll_of(self.recipe, self.policy, self.environment, fleet)
        assert isinstance(roll, EpisodeRoll)
        with roll:
            return roll(self.tasks[:tasks], modes, temperature=temperature, seed=1)

    def fleet(self, servers: Sequence[Server], folder: Path, **settings: Any) -> Fleet:
        return fleet_on(servers, folder, 256, self.prompts, **settings)


def follow(fleet: Fleet, policy: Policy) -> None:
    """Hand the policy over, with all that a step begins with."""

    async def run() -> None:
        async with ServedSampler(fleet, policy, 1, 1.0):
            pass

    asyncio.run(run())


@pytest.mark.parametrize("rank", [8, 12])
def test_episodes_are_sampled_from_the_policy(rank: int, tmp_path: Path):
    agent, longest = SearchAgent(rank), 0
    fleet = agent.fleet([search_server()], tmp_path)
    for mode, temperature in [(Mode.AUTO, 1.0), (Mode.THINK, 0.7), (Mode.NO_THINK, 1.0), (Mode.AUTO, 0.0)]:
        samples = 4 if temperature else 1
        played = agent.play(fleet, 8, [mode] * samples, temperature)
        assert len(played) == 8 * samples
        longest = max(longest, *(len(one.responses) for one in played))
        assert_exact(agent.policy, played, temperature)
    assert longest >= 2
    assert fleet.metrics()["sync/gap_mean"] < MEAN and not fleet.correct and not fleet.notes()
    local = agent.play(None, 8, [Mode.AUTO], 0.0)
    same = [one.ids.tolist() == other.ids.tolist() for one, other in zip(played, local, strict=True)]
    assert np.mean(same) >= 0.85, "greedy episodes are the local sampler's, but for near-ties"


def test_every_change_of_the_weights_is_sampled_and_the_last_ones_are_forgotten(tmp_path: Path):
    agent = SearchAgent(8)
    fleet, names = agent.fleet([search_server()], tmp_path), set()
    for seed in range(5):
        change(agent.policy, 0.01, seed)
        assert_exact(agent.policy, agent.play(fleet, 4, [Mode.AUTO] * 2), 1.0)
        names.add(fleet.model)
        assert {name for name in served_models(search_server()) if name.startswith(fleet._name)} == {fleet.model}
        assert [folder.name for folder in tmp_path.iterdir()] == [fleet.model]
    assert len(names) == 5


def test_the_weights_of_the_step_before_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    agent = SearchAgent(8)
    fleet = agent.fleet([search_server()], tmp_path / "weights")
    agent.policy.model.save_pretrained(tmp_path / "old")
    follow(fleet, agent.policy)

    def save_old(policy: Policy) -> None:
        shutil.copytree(tmp_path / "old", fleet.folder / fleet.salt)

    monkeypatch.setattr(fleet, "_save", save_old)
    change(agent.policy, 0.0005, 0)  # no more than a step
    follow(fleet, agent.policy)
    assert fleet.correct and "more than rounding explains" in fleet.notes()[0]
    change(agent.policy, 0.05, 0)
    with pytest.raises(ServerError, match="draws from another policy than the trainer's"):
        follow(fleet, agent.policy)


def test_another_temperature_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    agent, generate = SearchAgent(8), Client.generate

    def warmer(self: Client, ids: Sequence[int], **asked: Any) -> Any:
        return generate(self, ids, **{**asked, "temperature": asked["temperature"] * 1.3})

    monkeypatch.setattr(Client, "generate", warmer)
    with pytest.raises(ServerError, match="look for another temperature"):
        follow(agent.fleet([search_server()], tmp_path), agent.policy)


def test_an_adapter_replaced_in_place_is_sampled_over_the_old_ones_keys_and_a_fresh_name_is_not(tmp_path: Path):
    """What fresh names are for: vLLM knows a beginning by its adapter's name and path, not by its weights."""
    agent, server = SearchAgent(8, size=0.2), search_server()
    prompt = np.random.default_rng(0).integers(3, 200, size=200).tolist()  # more than one block of 128

    def draw(name: str, in_place: bool = False) -> float:
        """Largest |Δ log-prob| of a response drawn from the adapter in a folder that is always the same."""
        agent.policy.model.save_pretrained(tmp_path / "adapter")
        body = {"lora_name": name, "lora_path": str(tmp_path / "adapter"), "load_inplace": in_place}

        async def work(client: Client) -> Generated:
            await client._post(LOADED, body, 60)
            asked: dict[str, Any] = {"temperature": 1.0, "max_tokens": 16, "seed": None, "stop_ids": (), "salt": "same"}
            return await client.generate(prompt, model=name, **asked)

        drawn = ask(server, work)
        own = own_logprobs(agent.policy, [*prompt, *drawn.ids], len(prompt), 1.0)
        return float(np.abs(own - drawn.logprobs).max())

    name = f"in-place-{os.getpid()}"
    assert draw(name) < LARGEST
    enlarge(agent.policy, 0.2, seed=1)
    assert draw(name, in_place=True) > 100 * LARGEST
    assert draw(f"{name}-fresh") < LARGEST
    for one in (name, f"{name}-fresh"):
        ask(server, lambda client, one=one: client.unload_adapter(one))


# Single responses of tiny models to long prompts.

TIGHT = ("--max-num-batched-tokens=64", "--max-num-seqs=8", "--num-gpu-blocks-override=8")
MODES = (Mode.AUTO, Mode.AUTO, Mode.THINK, Mode.NO_THINK)


def long_requests(policy: Policy, prompts: int, seed: int) -> list[Request]:
    """Four to each prompt; half of the prompts share a beginning of two blocks (128 tokens each)."""
    rng = np.random.default_rng(seed)
    words = [i for i in range(len(policy.tokenizer)) if i not in policy.format.stop_ids]
    shared = rng.choice(words, size=256)
    found = []
    for number in range(prompts):
        own = rng.choice(words, size=rng.integers(20, 200)).tolist()
        ids = (*(shared.tolist() if number % 2 else []), *own)
        task = Task(f"{seed}-{number}", ())
        found += [Request(task, ids, sample, mode) for sample, mode in enumerate(MODES)]
    return found


def check_singles(fleet: Fleet, policy: Policy, prompts: int, temperatures: Sequence[float], budget: int = 48) -> None:
    """Draw four responses to every prompt at every temperature, and hold them against the policy."""
    with SingleSampler(policy.format, lambda temperature: ServedSampler(fleet, policy, 64, temperature)) as sampler:
        for temperature in temperatures:
            requests = long_requests(policy, prompts, seed=int(temperature * 10))
            drawn = sampler.sample(requests, temperature=temperature, max_new_tokens=budget)
            assert [one.ids[: one.prompt_length].tolist() for one in drawn] == [list(r.prompt_ids) for r in requests]
            assert_exact(policy, drawn, temperature)
            if not temperature:
                local = LocalSampler(policy).sample(requests, temperature=0.0, max_new_tokens=budget)
                same = [one.ids.tolist() == other.ids.tolist() for one, other in zip(drawn, local, strict=True)]
                assert np.mean(same) >= 0.9, "greedy responses are the local sampler's, but for near-ties"


@pytest.fixture(scope="class")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Policy, Fleet]]:
    folder = tmp_path_factory.mktemp("tight")
    model = ModelConfig(path=str(tiny_model(folder / "model", "qwen2")))
    policy = tiny_policy_of(model)
    prompts = [request.prompt_ids for request in long_requests(policy, 8, 99)]
    config = sampler_config(flags=("--enforce-eager", *TIGHT))
    with run_fleet(policy, model, config, folder, max_tokens=POSITIONS, prompts=prompts) as fleet:
        yield policy, fleet


class TestAllWeightsOfAServerWithLittleRoom:
    """Prompts arrive in chunks, keys and values of running responses are thrown out and computed again."""

    def test_it_draws_from_the_policy(self, tight: tuple[Policy, Fleet]):
        policy, fleet = tight
        check_singles(fleet, policy, 12, [1.0, 0.7, 0.0])
        server = fleet.members[0].server
        assert server
        seen = Counters.of(server)
        assert chunk_of(server) == 64, "less than the longest prompts by far"
        assert seen.preemptions > 0 and seen.hits > 0

    def test_all_weights_change(self, tight: tuple[Policy, Fleet]):
        policy, fleet = tight
        for seed in range(2):
            change(policy, 0.03, seed)
            check_singles(fleet, policy, 3, [1.0])
            assert fleet.metrics()["sync/gap_mean"] < MEAN


@pytest.fixture(scope="class")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("large")
    tiny_model(folder / "model", "qwen3")
    flags = ("--max-num-batched-tokens=128", "--max-num-seqs=8")
    with serving(folder / "model", folder, tokens=POSITIONS, rank=12, flags=flags) as server:
        yield server


class TestLargeAdapters:
    """Adapters that change everything, on a model with shared heads; chunked prefill."""

    @pytest.mark.parametrize("rank", [8, 12])
    def test_they_are_sampled(self, large: Server, rank: int, tmp_path: Path):
        adapter = AdapterConfig(rank=rank, alpha=32)
        policy = tiny_policy_of(ModelConfig(path=str(large.log.parent / "model"), adapter=adapter), size=0.5)
        fleet = fleet_on([large], tmp_path, POSITIONS)
        check_singles(fleet, policy, 6, [1.0, 0.7, 0.0])
        assert Counters.of(large).hits > 0 and chunk_of(large) == 128


@pytest.fixture(scope="class")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("raw")
    flags = ("--logprobs-mode=raw_logprobs",)
    with serving(search_base_path(0), folder, tokens=256, rank=16, flags=flags) as server:
        yield server


class TestAnotherServer:
    """A server of log-probs before temperature; it dies, and another takes over."""

    def test_log_probs_before_temperature_are_noticed(self, raw: Server, tmp_path: Path):
        agent = SearchAgent(8)
        with pytest.raises(ServerError, match="draws from another policy than the trainer's"):
            follow(agent.fleet([raw], tmp_path / "weights", temperature=0.7), agent.policy)
        follow(agent.fleet([raw], tmp_path / "more", temperature=1.0), agent.policy)

    def test_another_server_takes_over(self, raw: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        agent = SearchAgent(8)
        fleet = agent.fleet([raw, search_server()], tmp_path)
        follow(fleet, agent.policy)  # so that nothing is probed later
        with killed_after(20, raw, monkeypatch) as answered:
            played = agent.play(fleet, 12, [Mode.AUTO] * 4)
        assert_exact(agent.policy, played, 1.0)
        assert_drawn_once(played, answered)
        assert [bool(member.lost) for member in fleet.members] == [True, False]
        assert "server 0" in (note := " ".join(fleet.notes())) and "sampling goes on without it" in note


@contextmanager
def killed_after(count: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The engine of a server is killed after so many responses. Yields all that are answered: context and response."""
    answered: list[tuple[int, ...]] = []
    generate: Callable[..., Any] = Client.generate

    async def counting(self: Client, ids: Sequence[int], **asked: Any) -> Generated:
        drawn = await generate(self, ids, **asked)
        answered.append((*ids, *drawn.ids))
        if len(answered) == count:
            os.kill(engine_of(server), signal.SIGKILL)
        return drawn

    with monkeypatch.context() as patched:
        patched.setattr(Client, "generate", counting)
        yield answered


def assert_drawn_once(played: Sequence[Trajectory], answered: Sequence[tuple[int, ...]]) -> None:
    """Every answer of a server became a response, those from before the death too; there are no others."""
    found = [
        tuple(piece.ids[: response.end].tolist())
        for trajectory in played
        for piece in trajectory.split()
        for response in piece.responses
    ]
    assert sorted(found) == sorted(answered)


@pytest.fixture(scope="class")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SearchAgent, Fleet]]:
    agent, folder = SearchAgent(0), tmp_path_factory.mktemp("own")
    with run_fleet(
        agent.policy, agent.recipe.model, sampler_config(), folder, max_tokens=256, prompts=agent.prompts
    ) as fleet:
        yield agent, fleet


class TestOwnServer:
    """A server that a run started, of all weights: it dies, and is started again with the weights it had."""

    def test_episodes_with_all_weights(self, own: tuple[SearchAgent, Fleet]):
        agent, fleet = own
        for seed in range(2):
            change(agent.policy, 0.005, seed)
            played = agent.play(fleet, 4, [Mode.AUTO] * 4)
            assert max(len(one.responses) for one in played) >= 2
            assert_exact(agent.policy, played, 1.0)

    def test_a_killed_engine(self, own: tuple[SearchAgent, Fleet], monkeypatch: pytest.MonkeyPatch):
        agent, fleet = own
        first = fleet.members[0].server
        assert first
        monkeypatch.setattr(fleet, "prompts", ())  # the probe of the one that comes back would be among the answers
        with killed_after(10, first, monkeypatch) as answered:
            played = agent.play(fleet, 8, [Mode.AUTO] * 4)
        assert len(played) == 32 and fleet.members[0].server is not first
        assert_exact(agent.policy, played, 1.0)
        assert_drawn_once(played, answered)
        assert any("it is started again" in note for note in fleet.notes())
