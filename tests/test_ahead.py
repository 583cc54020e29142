"""Look-ahead: what a step learns from was drawn with weights one update old, wherever the run was stopped."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from policies import calls_tasks, requests_for, sampled_batch, tiny_policy
from served_runs import Starts, fleet_of, own_fleet
from stand_in_vllm import StandIn, Trouble
from test_training import LEARN, PUBLISHED, STEPS, Interrupted, interrupt_at, outcome, training

from unbraid.chat.types import Mode
from unbraid.errors import RecipeError
from unbraid.learn.ahead import Batches
from unbraid.learn.importance import sequence_logprobs
from unbraid.learn.log import read_metrics, read_rollouts
from unbraid.policy import Policy
from unbraid.recipe import load_recipe
from unbraid.rollout import Trajectory
from unbraid.rollout.fleet import Fleet
from unbraid.rollout.scoring import SingleStep
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.single import SingleSampler


def uneven(task: Any, reading: Any) -> Any:
    """Something to learn from in every group, which the plain reward gives a random policy seldom."""
    return replace(PUBLISHED(task, reading), total=float(crc32(repr(reading).encode()) % 7))


def no_clock(_: str) -> AbstractContextManager[None]:
    return nullcontext()


class Weights:
    """Stands for a policy whose only weight is a number."""

    version = 0


def drawing(weights: Weights, drawn: list[tuple[int, int]]) -> Callable[[int], list[Trajectory]]:
    """Draws trajectories that say of which step they are and what drew them; (step, weights) go to `drawn`."""
    (one,), _ = sampled_batch(tiny_policy(layers=1), prompts=1, samples=1, budget=2)

    def draw(step: int) -> list[Trajectory]:
        drawn.append((step, weights.version))
        return [replace(one, task_id=f"{step} by {weights.version}")]

    return draw


@pytest.mark.parametrize(("ahead", "by"), [(False, [0, 1, 2, 3]), (True, [0, 0, 1, 2])])
def test_a_batch_is_one_update_old_or_none(ahead: bool, by: list[int]):
    weights, drawn = Weights(), []
    batches = Batches(drawing(weights, drawn), 4, tiny_policy(layers=1), ahead=ahead)
    for step in range(4):
        batch = batches.take(step)
        assert batch.trajectories[0].task_id == f"{step} by {by[step]}"
        assert batch.staleness == weights.version - by[step]
        with batches.beside(step + 1, no_clock):
            weights.version += 1
        assert [t.task_id for t in batches.drawn] == ([f"{step + 1} by {step}"] if ahead and step < 3 else [])
    assert drawn == list(enumerate(by))


@pytest.mark.parametrize(("every", "adapter"), [(1, True), (2, False)])
def test_a_run_that_looks_ahead_equals_the_unbroken_one_wherever_it_is_stopped(
    tmp_path: Path, every: int, adapter: bool
):
    unbroken = training(tmp_path / "unbroken", every, adapter, uneven, ahead=True)
    best = unbroken.run()
    for moment in (1, 3, 4):
        with pytest.raises(Interrupted):
            training(tmp_path / "broken", every, adapter, uneven, ahead=True, on_step=interrupt_at(moment)).run()
    resumed = training(tmp_path / "broken", every, adapter, uneven, ahead=True)
    assert resumed.run() == best
    assert outcome(resumed) == outcome(unbroken)
    assert [row["staleness"] for row in read_metrics(tmp_path / "broken")] == [0, 1, 1, 1, 1, 1]
    # A checkpoint keeps what was drawn for the step after it; after the last step there is none.
    files = {p.parent.name for p in (tmp_path / "broken").rglob("drawn.parquet")}
    assert files == {c.path.name for c in resumed.store.all() if c.step < STEPS}


def test_log_probs_are_those_of_the_weights_that_drew_and_the_update_is_made_up_for(tmp_path: Path):
    held: list[list[np.ndarray]] = []

    def keep(step: int, metrics: dict[str, Any]) -> None:
        """The weights after each step."""
        held.append([p.detach().numpy().copy() for _, p in run.policy.trainable()])

    run = training(tmp_path, every=1, reward=uneven, ahead=True, validate=None, on_step=keep)
    first = [p.detach().numpy().copy() for _, p in run.policy.trainable()]
    run.run()
    weights = [first, *held]
    policy = tiny_policy(layers=1)
    for step, row in enumerate(read_metrics(tmp_path)):
        drawn = read_rollouts(tmp_path / "rollouts" / f"step_{step + 1:06d}.parquet")
        gaps = {}
        for age in (0, 1):
            for (_, parameter), value in zip(policy.trainable(), weights[max(0, step - age)], strict=True):
                parameter.data.copy_(parameter.new_tensor(value))
            own = sequence_logprobs(policy, drawn, 4, 1.0)
            gaps[age] = max(float(np.abs((o - t.logprobs)[t.sampled]).max()) for o, t in zip(own, drawn, strict=True))
        assert gaps[1] < 1e-4
        assert (gaps[0] > 1e-3) == (step > 0)
        assert (row["sampler_gap/mean"] > 1e-4) == (step > 0)
        assert ("importance/mean" in row) == (step > 0)


def test_off_is_off(tmp_path: Path):
    training(tmp_path, reward=uneven, learn=LEARN.model_copy(update={"steps": 2}), validate=None).run()
    assert not list(tmp_path.rglob("drawn.parquet"))
    assert not any({"staleness", "seconds/drawing"} & row.keys() for row in read_metrics(tmp_path))


def test_recipes_say_so():
    plain, ahead = load_recipe(["calls"]), load_recipe(["calls"], ["sampler.ahead=true"])
    assert plain.fingerprint() != ahead.fingerprint()
    with pytest.raises(RecipeError, match=r"sampler: ahead draws while the trainer learns"):
        load_recipe(["calls"], ["sampler={engine: vllm, ahead: true, sleep: true}"])


# Servers


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(tiny_policy(layers=1).model, seconds=0.05) as one:
        yield one


@contextmanager
def served(folder: Path, policy: Policy, *servers: StandIn) -> Iterator[tuple[Fleet, SingleStep]]:
    fleet = fleet_of(folder, *servers, seeded=True)
    with SingleSampler(policy.format, lambda t: ServedSampler(fleet, policy, 32, t)) as sampler:
        yield fleet, SingleStep(sampler, policy.format, uneven, max_new_tokens=6)


def test_servers_draw_with_the_weights_of_before_while_the_policy_moves(tmp_path: Path, server: StandIn):
    policy = tiny_policy(layers=1)
    tasks = calls_tasks(3)
    with served(tmp_path, policy, server) as (fleet, roll):
        batches = Batches(
            lambda step: roll(tasks, [Mode.AUTO] * 2, temperature=1.0, seed=step), 3, policy, fleet, ahead=True
        )
        batches.take(0)
        before = {name: p.detach().clone() for name, p in policy.trainable()}
        with batches.beside(1, no_clock):
            asked = len(server.bodies())
            for _, parameter in policy.trainable():
                parameter.data.mul_(1.5)
                parameter.detach().add_(0)  # counted, as an optimiser's step is
            until = time.monotonic() + 10
            while len(server.bodies()) == asked and time.monotonic() < until:
                time.sleep(0.01)
            assert len(server.bodies()) > asked  # they draw although the block has not ended
        drawn = batches.take(1)
        moved = [o - t.logprobs for o, t in zip(own(policy, drawn.trajectories), drawn.trajectories, strict=True)]
        assert max(np.abs(gap).max() for gap in moved) > 1e-2
        for name, parameter in policy.trainable():
            parameter.data.copy_(before[name])
        same = [o - t.logprobs for o, t in zip(own(policy, drawn.trajectories), drawn.trajectories, strict=True)]
        assert max(np.abs(gap).max() for gap in same) < 3e-5
        assert drawn.staleness == 1 and len(server.bodies("/update_weights")) == 1


def own(policy: Policy, trajectories: list[Trajectory]) -> list[np.ndarray]:
    return sequence_logprobs(policy, trajectories, 8, 1.0)


def test_drawing_beside_learning_gives_the_batches_of_drawing_before_it(tmp_path: Path):
    found = []
    for name in ("beside", "before"):
        policy, done = tiny_policy(layers=1), dict[int, threading.Event]()
        with StandIn(policy.model) as one, served(tmp_path / name, policy, one) as (fleet, roll):

            def drawn(*args: Any, seed: Any, roll: SingleStep = roll, done: Any = done, **kw: Any) -> list[Trajectory]:
                trajectories = roll(*args, seed=seed, **kw)
                done.setdefault(seed[2], threading.Event()).set()
                return trajectories

            def wait(step: int, *_: Any, done: Any = done) -> dict[str, float]:
                """Called before the weights move."""
                assert step + 1 == STEPS or done.setdefault(step + 1, threading.Event()).wait(20)
                return {}

            run = training(
                tmp_path / name, reward=uneven, policy=policy, roll=drawn, served=fleet, ahead=True, validate=None,
                learn=LEARN.model_copy(update={"interference_every": 1, "probe_every": 0}),
                monitor=wait if name == "before" else None,
            )  # fmt: skip
            run.run()
        assert all(row["seconds/drawing"] > 0 for row in read_metrics(tmp_path / name))
        steps = [read_rollouts(path) for path in sorted((tmp_path / name / "rollouts").glob("*.parquet"))]
        found.append([[t.ids.tolist() for t in drawn] for drawn in steps])
    assert found[0] == found[1] and len(found[0]) == STEPS


def test_a_server_that_is_started_again_meanwhile_gets_the_weights_that_are_held(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("unbraid.rollout.fleet.PAUSE", 0.005)
    policy = tiny_policy(layers=1)
    first, start = StandIn(policy.model, Trouble("die", after=3)).start(), Starts(policy.model)
    fleet = own_fleet(tmp_path, first, start, seeded=True, retries=5)
    fleet.prompts = [list(requests_for(policy, calls_tasks(1), [Mode.AUTO])[0].prompt_ids)] * 2
    try:
        with SingleSampler(policy.format, lambda t: ServedSampler(fleet, policy, 32, t)) as sampler, fleet.held(policy):
            for _, parameter in policy.trainable():
                parameter.data.mul_(1.5)
                parameter.detach().add_(0)
            drawn = sampler.sample(
                requests_for(policy, calls_tasks(3), [Mode.AUTO] * 2), temperature=1.0, max_new_tokens=6
            )
        assert len(start.servers) == 1 and any("started again" in note for note in fleet.notes())
        for _, parameter in policy.trainable():
            parameter.data.div_(1.5)
        gaps = [o - t.logprobs for o, t in zip(own(policy, drawn), drawn, strict=True)]
        assert max(np.abs(gap).max() for gap in gaps) < 3e-5
    finally:
        first.stop()
        start.stop()


def test_what_fails_beside_ends_the_step():
    def fails(*_: Any, **__: Any) -> list[Trajectory]:
        raise ValueError("a tool broke")

    class Held:
        correct = False

        def held(self, policy: Policy) -> AbstractContextManager[None]:
            return nullcontext()

    batches = Batches(fails, 3, tiny_policy(layers=1), Held(), ahead=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a tool broke"), batches.beside(1, no_clock):
        pass
    # What learning raises comes first: it is what the run died of.
    with pytest.raises(KeyError), batches.beside(1, no_clock):
        raise KeyError
    assert not batches.drawn
