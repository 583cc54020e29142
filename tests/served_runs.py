"""Fleets of stand-ins, what is drawn from them, and what it is held against, for several test files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slot_agents import MODES
from stand_in_vllm import StandIn, Trouble

from unbraid.chat.types import Mode
from unbraid.learn.batch import collate
from unbraid.learn.objective import score_tokens
from unbraid.policy import Policy
from unbraid.rollout import Request, Trajectory
from unbraid.rollout.config import SamplerConfig
from unbraid.rollout.fleet import Fleet, Member
from unbraid.rollout.served import ServedSampler
from unbraid.rollout.single import SingleSampler
from unbraid.tasks.reward import Reward

AGAIN = [*MODES, Mode.AUTO, Mode.AUTO]


def fleet_of(folder: Path, *servers: StandIn, max_tokens: int = 256, **config: Any) -> Fleet:
    """Servers as a run has them, without a probe."""
    defaults: dict[str, Any] = {"seconds": 20.0}
    settings = SamplerConfig(**(defaults | config))
    return Fleet([Member(one.url) for one in servers], settings, folder / "weights", "float32", max_tokens)


def draw(
    fleet: Fleet, policy: Policy, requests: Sequence[Request], temperature: float = 1.0, budget: int = 8, contexts=16
) -> list[Trajectory]:
    with SingleSampler(policy.format, lambda t: ServedSampler(fleet, policy, contexts, t)) as sampler:
        return sampler.sample(requests, temperature=temperature, max_new_tokens=budget, seed=1)


def assert_the_trainers(policy: Policy, trajectories: Sequence[Trajectory], temperature: float) -> None:
    """Log-probs of the sampled tokens, and the chances of the modes, against the objective's."""
    pieces = [piece for trajectory in trajectories for piece in trajectory.split()]
    batch = collate(pieces, np.zeros(len(pieces)), policy.format.modes.position)
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, temperature or 1.0, policy.format.modes.choice_ids)
    for row, piece in enumerate(pieces):
        drawn = np.flatnonzero(piece.sampled)
        np.testing.assert_allclose(piece.logprobs[drawn], scores.logprobs[row, drawn - 1].numpy(), atol=3e-5)
        assert not piece.logprobs[~piece.sampled].any() and np.isnan(piece.entropies).all()


class Starts:
    """`Fleet.start`: a new server with the weights that all of them start with."""

    def __init__(self, model: Any, *troubles: Callable[[], list[Trouble]]):
        self.model, self.troubles, self.servers = model, list(troubles), []

    def __call__(self, number: int) -> Any:
        assert number == 0
        troubles = self.troubles.pop(0)() if self.troubles else []
        self.servers.append(StandIn(self.model, *troubles).start())
        return self.servers[-1]

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def own_fleet(folder: Path, first: StandIn, start: Starts, **config: Any) -> Fleet:
    fleet = fleet_of(folder, first, **config)
    fleet.members[0].server, fleet.start = first, start  # type: ignore[assignment]
    return fleet


def by_words(task: Any, reading: Any) -> Reward:
    """A reward that differs between the responses of any policy."""
    return Reward(len(reading.content) % 7 / 7 + len(reading.thought) % 5, {}, False, "by words")
