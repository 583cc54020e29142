"""Several ranks are one run: what it draws, learns, logs and saves does not depend on their number."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from agents import agent_policy, agent_tasks
from policies import calls_tasks, sampled_batch, tiny_policy
from ranked import on_ranks
from test_episodes_exact import roller

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.errors import DataError, EnvError, RewardError
from unbraid.interference.monitor import Monitor
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.constraint import Adaptive, Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.learn.log import WALL_CLOCK, read_metrics, read_notes, read_rollouts
from unbraid.learn.shares import share_out
from unbraid.learn.trainer import Training
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import LocalSampler
from unbraid.rollout.config import RolloutConfig
from unbraid.rollout.episodes import refuse_failures
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.shared import SharedRoll, task_owners
from unbraid.tasks.episode import Ended, Episode
from unbraid.tasks.reward import RewardConfig, reward_function

STEPS = 4
CONSTRAINTS = (
    ConstraintConfig(name="tokens", group_by="mode", target=3.0, coefficient=Adaptive(start=0.1, rule="adam")),
    ConstraintConfig(name="mode", measure="choice_rate", target=0.6, coefficient=Adaptive(start=0.1, rule="step")),
    ConstraintConfig(name="gate", gate="batch", target=3.0, coefficient=Adaptive(start=0.1, learning_rate=0.1)),
)
KINDS: dict[str, dict[str, Any]] = {
    "full": {"minibatches": 2, "epochs": 2, "kl": 0.1, "importance": "always", "advantage_scale": "group"},
    "adapter": {"minibatches": 3, "mode_weight": 3.0, "fast": False, "averaging": "token", "skip_dead": False},
    "strict": {"micro_batch": 3},
}
PADDING = ("learn/padding", "learn/shared")
"""What is logged of how samples were batched: other with other shares, and nothing but speed."""


def learned(kind: str) -> dict[str, Any]:
    """Two updates from five groups; what is left of them."""
    routing = RoutingConfig(isolation="strict") if kind == "strict" else None
    policy = tiny_policy(dtype=torch.float64, layers=1, adapter=kind == "adapter", routing=routing)
    trajectories, groups = sampled_batch(policy, prompts=5, samples=3, budget=8)
    config = LearnConfig(learning_rate=1e-2, weight_decay=0.1, steps=4, **KINDS[kind])
    constraints, optimiser = [Constraint(c) for c in CONSTRAINTS], make_optimiser(policy, config)
    if config.kl:
        policy.freeze_reference()
    rows = [
        update(policy, trajectories, groups, optimiser, constraints, config, step=step, temperature=0.9).metrics
        for step in range(2)
    ]
    weights = {name: p.detach().clone() for name, p in policy.trainable()}
    return {"weights": weights, "constraints": [c.state_dict() for c in constraints], "rows": rows}


@cache
def all_learned() -> dict[str, Any]:
    return {kind: learned(kind) for kind in KINDS}


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_ranks_make_the_steps_of_one(tmp_path: Path, world: int):
    expected = all_learned()
    for found in on_ranks(all_learned, world, tmp_path):
        assert isinstance(found, dict), found
        for kind in KINDS:
            for name, value in expected[kind]["weights"].items():
                torch.testing.assert_close(found[kind]["weights"][name], value, atol=1e-9, rtol=0, msg=f"{kind} {name}")
            assert_alike(found[kind]["rows"], expected[kind]["rows"], 1e-9)
            assert_alike(found[kind]["constraints"], expected[kind]["constraints"], 1e-12)


def assert_alike(found: Any, expected: Any, tolerance: float, place: str = "") -> None:
    """Equal, numbers up to a tolerance, all the way down."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_alike(found[key], expected[key], tolerance, f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, tolerance, f"{place}.{number}")
    elif isinstance(expected, float | torch.Tensor):
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance, err_msg=place)
    else:
        assert found == expected, place


def uneven(task: Any, reading: Any) -> Any:
    """Something to learn from in every group, which the plain reward gives a random policy seldom."""
    plain = reward_function(RewardConfig())(task, reading)
    return replace(plain, total=float(crc32(repr(reading).encode()) % 7))


def run(folder: Path, reward: Callable[..., Any] = uneven, steps: int = STEPS) -> list[torch.Tensor]:
    """A run in float64, from nothing or from what is in the folder; its weights."""
    policy = tiny_policy(dtype=torch.float64, layers=1)
    learn = LearnConfig(
        steps=steps, learning_rate=1e-2, kl=0.1, minibatches=2, probe_every=3, interference_every=2, fast=False
    )
    roll = SharedRoll(SingleStep(LocalSampler(policy), policy.format, reward, max_new_tokens=10))

    def validate(done: int) -> tuple[float, dict[str, float]]:
        found = roll(calls_tasks(3), [Mode.AUTO], temperature=0.0, seed=0)
        reward = float(np.mean([t.reward for t in found]))
        return reward, {"validation/reward": reward}

    training = Training(
        policy=policy,
        roll=roll,
        tasks=calls_tasks(5),  # steps of three: the second batch runs over the end of a pass, the fourth into a third
        rollout=RolloutConfig(prompts=3, samples=3, max_new_tokens=10),
        learn=learn,
        constraints=[Constraint(c) for c in CONSTRAINTS],
        store=CheckpointStore(folder / "checkpoints", CheckpointConfig(every=1, keep=9), "recipe"),
        run_dir=folder,
        validate=validate,
        validate_every=2,
        monitor=Monitor(policy, learn, 1.0),
    )
    training.run()
    return [p.detach().clone() for _, p in policy.trainable()]


def assert_same_run(folder: Path, other: Path) -> None:
    """All that a run leaves: data order and tokens exactly, numbers up to rounding."""
    rows = [
        [{k: v for k, v in row.items() if not k.startswith((*WALL_CLOCK, *PADDING))} for row in read_metrics(one)]
        for one in (folder, other)
    ]
    assert len(rows[0]) == STEPS and any("interference/norm/reasoning" in row for row in rows[0])
    assert_alike(rows[0], rows[1], 1e-6)
    assert read_notes(folder) == read_notes(other)
    assert [p.name for p in sorted(folder.glob("checkpoints/*"))] == [
        p.name for p in sorted(other.glob("checkpoints/*"))
    ]
    for step in range(1, STEPS + 1):
        pair = [read_rollouts(one / "rollouts" / f"step_{step:06d}.parquet") for one in (folder, other)]
        for a, b in zip(*pair, strict=True):
            assert (a.task_id, a.sample, a.reward, a.mode) == (b.task_id, b.sample, b.reward, b.mode)
            assert (a.ids == b.ids).all()
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_of_ranks_is_the_run_of_one(tmp_path: Path, alone: Any, world: int):
    folder, weights = alone
    for found in on_ranks(run, world, tmp_path / "ranks", tmp_path / "run"):
        assert isinstance(found, list), found
        for one, other in zip(found, weights, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    assert_same_run(tmp_path / "run", folder)


def run_until_killed(folder: Path) -> None:
    """Rank 1 is killed while the third step draws."""

    def deadly(task: Any, reading: Any) -> Any:
        if ranks.rank() == 1 and (folder / "checkpoints" / "step-000002").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return uneven(task, reading)

    run(folder, deadly)


@pytest.mark.slow
def test_a_run_killed_on_two_ranks_goes_on_on_one_or_four(tmp_path: Path, alone: Any):
    survivor, killed = on_ranks(run_until_killed, 2, tmp_path / "ranks", tmp_path / "two")
    assert killed is None and survivor.startswith("RanksError: another rank is gone") and "\n" not in survivor
    assert (tmp_path / "two" / "checkpoints" / "step-000002").is_dir()
    shutil.copytree(tmp_path / "two", tmp_path / "four")
    folder, weights = alone
    one, four = run(tmp_path / "two"), on_ranks(run, 4, tmp_path / "ranks4", tmp_path / "four")
    for found in (one, *four):
        assert isinstance(found, list), found
        for a, b in zip(found, weights, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert_same_run(tmp_path / "two", folder)
    assert_same_run(tmp_path / "four", folder)


def meetings(folder: Path) -> dict[str, Any]:
    """What fails on one rank, as each rank sees it; what each was given; and episodes drawn by both."""

    def of(work: Callable[[], Any]) -> str:
        try:
            return str(work())
        except Exception as error:
            return f"{type(error).__name__}: {error} ({ranks.is_told(error)})"

    def fail(rank: int, error: Exception) -> Any:
        if ranks.rank() == rank:
            raise error

    def write(name: str) -> int:
        (folder / name).write_text("here")
        return (folder / "0").exists() + (folder / "1").exists()

    policy = agent_policy("inline")
    failed = replace(sampled_batch(tiny_policy(layers=1), 1, 1)[0][0], episode=Episode(ended=Ended.FAILED))
    half = SharedRoll(lambda tasks, *_, **__: [failed if ranks.rank() else replace(failed, episode=None)], None)
    tasks = [*agent_tasks(3), agent_tasks(1)[0]]
    with roller(policy) as roll:
        shared = SharedRoll(roll.play, refuse_failures)(tasks, [Mode.AUTO] * 2, temperature=1.0, seed=0)
    return {
        "errors": [
            of(lambda: ranks.agree(lambda: fail(1, RewardError("a line")))),
            of(lambda: ranks.first(lambda: fail(0, DataError("no disk")))),
            of(lambda: ranks.agree(lambda: fail(1, KeyError("a bug")))),
            of(lambda: ranks.check_same("tasks", ranks.rank())),
            of(lambda: SharedRoll(half.roll, refuse_failures)(calls_tasks(2), [Mode.AUTO], temperature=1, seed=0)),
        ],
        "turns": ranks.in_turn(lambda: write(str(ranks.rank()))),
        "first": ranks.first(lambda: (ranks.rank(), "alone")),
        "gathered": ranks.gather(lambda: ranks.rank() * 2),
        "episodes": [(t.task_id, t.sample, t.ids.tolist(), t.logprobs.tobytes(), t.reward) for t in shared],
    }


def test_what_fails_on_one_rank_fails_on_all_and_is_said_once(tmp_path: Path):
    one, two = on_ranks(meetings, 2, tmp_path, tmp_path)
    assert isinstance(one, dict), one
    different = "RanksError: ranks 0 and 1 have different tasks: they need the same files, packages and machines"
    assert one["errors"][:4] == [
        "RewardError: rank 1: a line (False)",
        "DataError: no disk (False)",
        "RanksError: rank 1: KeyError: 'a bug' (False)",
        f"{different} (False)",
    ]
    # A bug has its traceback where it was, and so says itself.
    assert two["errors"][:4] == [
        "RewardError: a line (True)",
        "DataError: no disk (True)",
        "KeyError: 'a bug' (False)",
        f"{different} (True)",
    ]
    assert one["errors"][4] == two["errors"][4] and one["errors"][4].startswith("[Trajectory(")
    assert (one["turns"], two["turns"]) == (1, 2)
    assert one["first"] == two["first"] == (0, "alone") and one["gathered"] == two["gathered"] == [0, 2]
    # Episodes bit for bit, in the order of their tasks; a task that comes twice counts its samples on.
    tasks = [*agent_tasks(3), agent_tasks(1)[0]]
    with roller(agent_policy("inline")) as roll:
        alone = roll(tasks, [Mode.AUTO] * 2, temperature=1.0, seed=0)
    assert one["episodes"] == two["episodes"]
    assert one["episodes"] == [(t.task_id, t.sample, t.ids.tolist(), t.logprobs.tobytes(), t.reward) for t in alone]


def test_a_batch_whose_every_episode_failed_is_refused():
    failed = replace(sampled_batch(tiny_policy(layers=1), 1, 1)[0][0], episode=Episode(ended=Ended.FAILED))
    roll = SharedRoll(lambda *_, **__: [failed, failed], refuse_failures)
    with pytest.raises(EnvError, match="failed in all 2 episodes"):
        roll(calls_tasks(2), [Mode.AUTO], temperature=1, seed=0)


def test_groups_are_shared_out_whole_and_evenly():
    groups = np.repeat([3, 5, 7, 9, 11], [2, 3, 1, 4, 2])
    tokens = np.array([50, 50, 10, 10, 10, 90, 5, 5, 5, 5, 30, 30])
    rounds = [np.flatnonzero(np.isin(groups, [3, 5, 7])), np.flatnonzero(np.isin(groups, [9, 11]))]
    owners = share_out(rounds, groups, tokens, 2)
    assert owners.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert share_out(rounds, groups, tokens, 1).tolist() == [0] * 12
    assert set(share_out(rounds, groups, tokens, 8).tolist()) == {0, 1, 2}  # the others have nothing to do


def test_a_task_that_comes_twice_stays_with_one_rank():
    tasks = calls_tasks(3)
    assert task_owners([tasks[0], tasks[1], tasks[0], tasks[2], tasks[1]], 2) == [0, 1, 0, 0, 1]
    assert task_owners(tasks, 8) == [0, 1, 2]
