"""Decoding after shared prompts: the same tokens and log-probs as with a cache of its own for every row."""

from typing import Any

import numpy as np
import pytest
import torch
from policies import calls_tasks, requests_for, tiny_policy

from unbraid.chat.types import Mode
from unbraid.policy.routing import RoutingConfig
from unbraid.rollout import LocalSampler, Trajectory, prefix
from unbraid.rollout.cache import growing_cache

MODES = [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO, Mode.AUTO]


def sample(policy: Any, spared: float, monkeypatch: pytest.MonkeyPatch, used: list[Any]) -> list[Trajectory]:
    """Responses of 1 to 24 tokens to prompts of several lengths, if prefixes are worth it from `spared` tokens on."""
    monkeypatch.setitem(prefix.WORTH, "cpu", spared)
    worth = prefix.Prefix.worth

    def noted(*given: Any) -> Any:
        used.append(worth(*given))
        return used[-1]

    monkeypatch.setattr(prefix.Prefix, "worth", noted)
    found = LocalSampler(policy).sample(requests_for(policy, calls_tasks(6), MODES), temperature=1.0, max_new_tokens=24)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("given", [{}, {"adapter": True}, {"routing": RoutingConfig()}], ids=["full", "lora", "routed"])
def test_the_same_is_drawn(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    policy, used = tiny_policy(**given), []
    each = sample(policy, float("inf"), monkeypatch, used)
    shared = sample(policy, 0, monkeypatch, used)
    assert used[0] is None and isinstance(used[1], prefix.Prefix)
    assert used[1].mask is not None  # prompts were padded
    assert given or not used[1].regular  # rows left before others
    for one, other in zip(each, shared, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-5)


def test_a_model_that_forgets_keeps_a_cache_for_every_row(monkeypatch: pytest.MonkeyPatch):
    policy = tiny_policy()
    monkeypatch.setitem(prefix.WORTH, "cpu", 0)
    cache = growing_cache()
    with torch.no_grad():
        policy.model(input_ids=torch.ones((1, 9), dtype=torch.long), past_key_values=cache, use_cache=True)
    given = (cache, torch.zeros(4, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert prefix.Prefix.worth(policy.model, *given)
    policy.model.config.sliding_window, policy.model.config.layer_types = 4, ["sliding_attention"] * 2
    assert prefix.Prefix.worth(policy.model, *given) is None
