"""Steps of fixed shapes: the same tokens and log-probs as ordinary steps; recorded on a tape they stay right."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from policies import calls_tasks, requests_for, tiny_policy
from tape import Tape, TapeRecorder

from unbraid.chat.types import Mode
from unbraid.policy import Policy
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import LocalSampler, Trajectory, fixed, prefix

MODES = [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO, Mode.AUTO]
KINDS = [{}, {"adapter": True}, {"routing": RoutingConfig()}]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several stretches in a response."""
    monkeypatch.setattr(fixed, "STRETCH", 7)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Recording goes to tapes; these."""
    monkeypatch.setattr(fixed, "Recorder", TapeRecorder)
    monkeypatch.setattr(TapeRecorder, "tapes", made := [])
    return made


def sample(policy: Policy, steps: fixed.FixedSteps | None) -> list[Trajectory]:
    """Responses of 1 to 40 tokens to prompts of several lengths."""
    sampler = LocalSampler(policy)
    sampler.fixed = steps
    return sampler.sample(requests_for(policy, calls_tasks(6), MODES), temperature=1.0, max_new_tokens=40)


def assert_same(found: list[Trajectory], expected: list[Trajectory], apart: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=apart)
        np.testing.assert_allclose(one.entropies, other.entropies, atol=apart)


@pytest.mark.parametrize("shared", [False, True], ids=["own prompts", "shared prompts"])
@pytest.mark.parametrize("given", KINDS, ids=["full", "lora", "routed"])
def test_the_same_is_drawn(given: dict[str, Any], shared: bool, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy(dtype=torch.float64, **given)
    monkeypatch.setitem(prefix.WORTH, "cpu", 0 if shared else float("inf"))
    expected = sample(policy, None)
    assert len({t.response_tokens for t in expected}) > 3  # rows leave
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(sample(policy, steps := fixed.FixedSteps(policy, record=False)), expected)
        assert steps.usable and not steps.unchecked and not tapes
        assert_same(sample(policy, steps := fixed.FixedSteps(policy, record=True)), expected)
    assert steps.usable and not steps.unchecked
    assert len(tapes) >= 2 and max(tape.replayed for tape in tapes) >= 5


def test_only_where_asked():
    assert LocalSampler(tiny_policy()).fixed is None
    asked = LocalSampler(tiny_policy(), fixed=True).fixed
    assert asked and asked.usable and asked.recorder is None


def test_a_place_that_does_not_move_on_is_noticed(monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy(dtype=torch.float64)
    advance = fixed.Stretch._advance

    def stuck(stretch: fixed.Stretch) -> torch.Tensor:
        found = advance(stretch)
        stretch.place -= 1
        return found

    monkeypatch.setattr(fixed.Stretch, "_advance", stuck)
    expected, steps = sample(policy, None), fixed.FixedSteps(policy, record=False)
    with pytest.warns(UserWarning, match="log-probs are off by"):
        found = sample(policy, steps)
    assert not steps.usable
    assert_same(found, expected)


def test_a_number_of_pythons_in_a_recorded_step_is_noticed(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy(dtype=torch.float64)
    advance = fixed.Stretch._advance

    def counting(stretch: fixed.Stretch) -> torch.Tensor:
        stretch.place.fill_(stretch.start + stretch.taken)
        return advance(stretch)

    monkeypatch.setattr(fixed.Stretch, "_advance", counting)
    expected = sample(policy, None)
    assert_same(sample(policy, fixed.FixedSteps(policy, record=False)), expected)
    with pytest.warns(UserWarning, match="log-probs are off by"):
        found = sample(policy, fixed.FixedSteps(policy, record=True))
    assert len(tapes) == 1
    assert_same(found, expected)


@pytest.mark.parametrize("good", [0, 1])
def test_a_model_that_cannot_be_recorded_goes_on_with_ordinary_steps(
    good: int, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
):
    policy = tiny_policy(dtype=torch.float64)
    expected, steps = sample(policy, None), fixed.FixedSteps(policy, record=True)
    forward = policy.model.model.norm.forward

    def looks(x: torch.Tensor) -> torch.Tensor:
        assert len(tapes) < good or float(x.sum()) < np.inf  # a number: CUDA could not record that
        return forward(x)

    monkeypatch.setattr(policy.model.model.norm, "forward", looks)
    with pytest.warns(UserWarning, match="one failed .*not permitted when stream is capturing"):
        found = sample(policy, steps)
    assert not steps.usable and len(tapes) == good
    assert_same(found, expected)


def test_a_model_that_forgets_takes_ordinary_steps():
    policy = tiny_policy()
    policy.model.config.sliding_window, policy.model.config.layer_types = 4, ["sliding_attention"] * 2
    assert not fixed.FixedSteps(policy, record=False).usable
