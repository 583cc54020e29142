"""A retriever that is killed in mid-run: one that comes back leaves no trace, one that does not ends no run."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from agents import Parrot, agent_policy, agent_tasks
from ranked import free_port

from unbraid.errors import EnvError
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.grpo import LearnConfig
from unbraid.learn.log import read_metrics, without_wall_clock
from unbraid.learn.trainer import Training
from unbraid.rollout.config import EnvironmentConfig, RolloutConfig
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.slots import SlotSampler
from unbraid.tasks.reward import RewardConfig
from unbraid.tasks.search import RemoteRetriever, SearchQA
from unbraid.tasks.tools import tool


class Served:
    """`unbraid serve-retriever` in a process of its own, at one address however often it is started."""

    def __init__(self, folder: Path):
        corpus = folder / "corpus"
        corpus.mkdir()
        for i in range(30):
            (corpus / f"{i}.txt").write_text(f"w{i % 8} w{i % 5} </search> w{i % 3}")
        self.port = free_port()
        self.command = [sys.executable, "-m", "unbraid.cli", "serve-retriever", str(corpus), "--port", str(self.port)]
        self.environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, env=self.environment, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        until = monotonic() + 120
        while monotonic() < until:
            with suppress(urllib.error.URLError), urllib.request.urlopen(f"{self.url}/health"):
                return
            sleep(0.05)
        raise AssertionError("the retriever does not come up")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Looking(Parrot):
    """An environment whose tool asks a retriever; `before` is told how many searches there were."""

    def __init__(self, url: str, retries: int, before: Callable[[int], None] = lambda searches: None):
        super().__init__(replies=3)
        self.retriever, self.before = RemoteRetriever(url, retries=retries, backoff=0.02), before
        self.searches: list[str] = []

    @tool
    def search(self, query: str) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is found about a query."""
        self.searches.append(query)
        self.before(len(self.searches))
        return " ".join(hit.text for hit in self.retriever.search(query, 2)) or "w0"


def run(folder: Path, environment: Looking) -> dict[str, Any]:
    policy = agent_policy("chat")
    config = EnvironmentConfig(name="looking", turns=5, tokens=700, seconds=600, tool_seconds=300)
    player = Player(environment, policy.format, config, RewardConfig(), 60)
    Training(
        policy=policy,
        roll=EpisodeRoll(player, lambda temperature: SlotSampler(policy, 16, temperature)),
        tasks=agent_tasks(8),
        rollout=RolloutConfig(prompts=4, samples=4, max_new_tokens=60),
        learn=LearnConfig(steps=2, learning_rate=1e-2),
        constraints=[],
        store=CheckpointStore(folder / "checkpoints", CheckpointConfig(every=1), "recipe"),
        run_dir=folder,
    ).run()
    return {
        "weights": [p.detach().numpy().tobytes() for _, p in policy.trainable()],
        "metrics": [without_wall_clock(row) for row in read_metrics(folder)],
        "rollouts": [path.read_bytes() for path in sorted((folder / "rollouts").iterdir())],
        "searches": len(environment.searches),
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    server = Served(tmp_path_factory.mktemp("retriever"))
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_retriever_that_is_killed_and_comes_back_changes_no_bit_of_a_run(tmp_path: Path, served: Served):
    unbroken = run(tmp_path / "unbroken", Looking(served.url, retries=3))
    assert unbroken["searches"] > 10

    def kill_one(searches: int) -> None:
        if searches == unbroken["searches"] // 2:  # in the middle of a step; episodes are waiting for answers
            served.kill()
            served.start()

    broken = run(tmp_path / "broken", Looking(served.url, retries=13, before=kill_one))
    assert broken == unbroken


def test_a_retriever_that_stays_away_is_counted_and_ends_nothing(tmp_path: Path):
    gone = run(tmp_path / "gone", Looking(f"http://127.0.0.1:{free_port()}", retries=1))
    rows = [row for row in gone["metrics"] if row["calls"]]
    assert rows and all(row["fault/exception"] > 0 for row in rows)


def test_search_qa_says_how_often_to_try(tmp_path: Path):
    assert SearchQA(url="http://127.0.0.1:1", retries=7).retriever._retries == 7  # type: ignore[attr-defined]
    with pytest.raises(EnvError, match="count from"):
        SearchQA(url="http://127.0.0.1:1", retries=-1)
