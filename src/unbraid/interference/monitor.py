"""While a run goes on: do its reasoning and its action tokens pull the weights the same way?

Every `learn.interference_every` steps, on some of the episodes that the step learns from anyway, with their advantages
and before the weights move. One look costs a forward and four backward passes over at most a quarter of a step's
episodes: under 5 % of a run at the default (`benchmarks/interference.py` measures it).

A single look is noisy: read it beside its null (`interference/random`, tokens parted at random) and its deviation.
"""

from collections.abc import Sequence

import numpy as np

from unbraid.interference.geometry import geometry, role_gradients
from unbraid.learn.advantages import group_advantages
from unbraid.learn.config import LearnConfig
from unbraid.policy import Policy
from unbraid.rollout.trajectory import Trajectory
from unbraid.tokens import Router

EPISODES = 64
"""Most episodes of a look. Choice: on a laptop's worlds a look is then as long as a step, or shorter."""
SHARE = 0.25
"""Most of a step's episodes that a look takes, however few they are."""
PARTS = 4


class Monitor:
    """What `Training` asks for a look; numbers go into the log as `interference/…`.

    Args:
        temperature: that of sampling.
    """

    def __init__(self, policy: Policy, config: LearnConfig, temperature: float):
        self.policy, self.config, self.temperature = policy, config, temperature

    def __call__(self, step: int, trajectories: Sequence[Trajectory], groups: np.ndarray) -> dict[str, float]:
        """One look: what to log, nothing if no episode has an advantage.

        Args:
            groups: (N,) int, which prompt each trajectory answers.
        """
        rewards = np.array([t.reward for t in trajectories], dtype=np.float64)
        advantages = group_advantages(rewards, groups, self.config.advantage_scale)
        rows = self._rows(advantages, groups)
        if not len(rows):
            return {}
        gradients = role_gradients(
            self.policy,
            [trajectories[i] for i in rows],
            advantages[rows],
            parts=PARTS,
            averaging=self.config.averaging,
            temperature=self.temperature,
            micro_batch=self.config.micro_batch,
            fast=self.config.fast,
            seed=step,
        )
        found = geometry(gradients, owners_of(self.policy))
        return {
            "interference/cosine": found.pooled.cosine,
            "interference/deviation": found.pooled.deviation,
            "interference/random": found.random.cosine,
            "interference/raw": found.raw,
            **{f"interference/same/{role}": value for role, value in found.same.items()},
            **{f"interference/norm/{role}": value for role, value in found.norms.items()},
            **{f"interference/leak/{adapter}": value for adapter, value in found.leak.items()},
        }

    def _rows(self, advantages: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Whole groups that have something to learn from, the first ones, as many as a look may take."""
        room = min(EPISODES, max(1, int(SHARE * len(groups))))
        chosen: list[int] = []
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            if advantages[own].any() and (len(chosen) + len(own) <= room or not chosen):
                chosen += own.tolist()
        return np.array(chosen, dtype=np.int64)


def owners_of(policy: Policy) -> dict[str, str]:
    """Role → the adapter (or agent) that writes its tokens; empty unless each role has one of its own."""
    router = policy.router
    if not isinstance(router, Router):
        return {}
    spans = zip(router.automaton.delimiters, router.spans, strict=True)
    owners: dict[str, set[str]] = {}
    for role, adapter in [(router.automaton.outside, router.outside), *((d.role, adapter) for d, adapter in spans)]:
        owners.setdefault(role.name.lower(), set()).add(adapter)
    single = {role: next(iter(adapters)) for role, adapters in owners.items() if len(adapters) == 1}
    return single if len(set(single.values())) == len(owners) else {}
