"""Checkpoints: whole or not there, the right ones kept, everything with state brought back, clear words when broken."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.errors import CheckpointError
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.constraint import Adaptive, Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig, make_optimiser, update
from unbraid.policy import Policy


def store_in(folder: Path, keep: int = 2, fingerprint: str = "this recipe") -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", CheckpointConfig(every=1, keep=keep), fingerprint)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(layers=1)


def test_the_last_ones_and_the_best_stay(tmp_path: Path, policy: Policy):
    store = store_in(tmp_path, keep=2)
    for step, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3), (6, 3)]:
        store.save(step, policy, {}, best)
        assert {c.step for c in store.all()} == {s for s in range(1, step + 1) if s > step - 2 or s == best}
    assert names(tmp_path) == ["step-000003", "step-000005", "step-000006"]
    assert store.latest() == store.all()[-1] and store.all()[-1].step == 6


def test_without_validation_only_the_last_ones_stay(tmp_path: Path, policy: Policy):
    store = store_in(tmp_path, keep=1)
    assert store.latest() is None
    for step in (5, 10, 1000000):
        store.save(step, policy, {}, None)
    assert names(tmp_path) == ["step-1000000"] and [c.step for c in store.all()] == [1000000]


@pytest.mark.parametrize("restores", [True, False], ids=["restore", "save"])
def test_what_a_killed_process_left_is_cleared_and_never_taken_for_a_checkpoint(
    tmp_path: Path, policy: Policy, restores: bool
):
    store = store_in(tmp_path)
    first = store.save(1, policy, {}, None)
    for name in (".writing-000002", ".dropping-000000"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "model.safetensors").write_bytes(b"half a file")
    assert store.latest() == first
    if restores:
        store.restore(first, policy)
        assert names(tmp_path) == ["step-000001"]
    else:
        store.save(2, policy, {}, None)
        assert names(tmp_path) == ["step-000001", "step-000002"]


def test_a_failed_save_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    store = store_in(tmp_path, keep=1)
    first = store.save(1, policy, {}, None)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        store.save(2, policy, {}, None)
    assert store.all() == [first]


@pytest.mark.parametrize("file", ["model.safetensors", "trainer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "garbage", "empty", "gone"])
def test_a_broken_checkpoint_is_named_and_says_what_to_do(tmp_path: Path, policy: Policy, file: str, damage: str):
    store = store_in(tmp_path)
    checkpoint = store.save(3, policy, {"best": {"step": 0}}, None)
    path = checkpoint.path / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut short": content[: len(content) // 2], "garbage": b"\x00{[" * 50, "empty": b""}[damage])
    with pytest.raises(CheckpointError) as caught:
        store.restore(checkpoint, policy)
    message = str(caught.value)
    assert "step-000003" in message and "delete this folder" in message and "\n" not in message


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, policy: Policy):
    checkpoint = store_in(tmp_path).save(1, policy, {}, None)
    with pytest.raises(CheckpointError, match="another recipe"):
        store_in(tmp_path, fingerprint="that recipe").restore(checkpoint, policy)


def test_the_thread_count_comes_back(tmp_path: Path, policy: Policy):
    store, before = store_in(tmp_path), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        checkpoint = store.save(1, policy, {}, None)
        torch.set_num_threads(1)
        store.restore(checkpoint, policy)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_random_generators_go_on_where_they_stood(tmp_path: Path, policy: Policy):
    def draw() -> list[float]:
        return [random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))]

    draw()  # a spare Gaussian now waits in two of the generators
    store = store_in(tmp_path)
    checkpoint = store.save(1, policy, {}, None)
    expected = [draw() for _ in range(3)]
    store.restore(checkpoint, policy)
    assert [draw() for _ in range(3)] == expected


def test_a_checkpoint_is_read_without_running_what_is_in_it(tmp_path: Path, policy: Policy):
    store = store_in(tmp_path)
    checkpoint = store.save(1, policy, {}, None)
    torch.save({"random": Path}, checkpoint.path / "trainer.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.restore(checkpoint, policy)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_optimiser_and_constraints_go_on_bit_for_bit(tmp_path: Path, adapter: bool):
    config = LearnConfig(learning_rate=1e-2, steps=4, minibatches=2, weight_decay=0.1)

    def parts(policy: Policy) -> tuple[torch.optim.Optimizer, list[Constraint]]:
        kinds = [Adaptive(start=0.05, rule=rule, learning_rate=0.05) for rule in ("adam", "gradient", "step")]
        configs = [ConstraintConfig(name=k.rule, target=3.0, coefficient=k, gate="batch") for k in kinds]
        return make_optimiser(policy, config), [Constraint(c) for c in configs]

    def steps(
        policy: Policy, optimiser: torch.optim.Optimizer, constraints: list[Constraint], first: int
    ) -> list[dict]:
        return [
            update(policy, trajectories, groups, optimiser, constraints, config, step=step, temperature=1.0).metrics
            for step in range(first, first + 2)
        ]

    policy = tiny_policy(adapter=adapter)
    trajectories, groups = sampled_batch(policy)
    optimiser, constraints = parts(policy)
    steps(policy, optimiser, constraints, 0)
    store = store_in(tmp_path)
    state = {"optimiser": optimiser.state_dict(), "constraints": [c.state_dict() for c in constraints]}
    checkpoint = store.save(2, policy, state, None)
    expected = steps(policy, optimiser, constraints, 2)

    other = tiny_policy(seed=0 if adapter else 1, adapter=adapter)  # an adapter's checkpoint does not hold the base
    saved = store.restore(checkpoint, other)
    fresh_optimiser, fresh_constraints = parts(other)
    fresh_optimiser.load_state_dict(saved["optimiser"])
    for constraint, constraint_state in zip(fresh_constraints, saved["constraints"], strict=True):
        constraint.load_state_dict(constraint_state)
    assert steps(other, fresh_optimiser, fresh_constraints, 2) == expected
    for (name, ours), (_, theirs) in zip(other.trainable(), policy.trainable(), strict=True):
        assert torch.equal(ours, theirs), name


def test_state_json_says_what_a_person_may_want_to_know(tmp_path: Path, policy: Policy):
    checkpoint = store_in(tmp_path).save(7, policy, {}, None)
    info = json.loads((checkpoint.path / "state.json").read_text())
    assert info == {"step": 7, "threads": torch.get_num_threads(), "fingerprint": "this recipe"}
