"""The collapse watch in simulated training: a choice that all prompts share, and one that each makes for itself."""

import math

import numpy as np
import pytest

from unbraid.learn.collapse import POLE, WINDOW, CollapseWatch

PROMPTS, SAMPLES = 32, 8


class Simulation:
    """GRPO on nothing but the choice: logit = shared + own. Thinking is always right, answering directly is right on
    known prompts; thoughts slip now and then. Momentum smooths the shared logit, as Adam does."""

    def __init__(self, known: float, divide: bool, shared_rate: float, own_rate: float, start: float, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.known = np.arange(PROMPTS) < known * PROMPTS
        self.shared, self.own, self.momentum = start, np.zeros(PROMPTS), 0.0
        self.divide, self.shared_rate, self.own_rate = divide, shared_rate, own_rate

    @property
    def probability(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.shared - self.own))

    def step(self) -> np.ndarray:
        """Sample, learn; returns the counted think shares."""
        p = self.probability
        think = self.rng.random((PROMPTS, SAMPLES)) < p[:, None]
        slipped = self.rng.random(think.shape) < 0.1
        right = np.where(think, ~slipped, self.known[:, None])
        reward = np.where(right, 1.0, -1.0)
        advantage = reward - reward.mean(1, keepdims=True)
        scale = reward.std(1, keepdims=True) if self.divide else advantage.std()
        push = (advantage / (scale + 1e-6) * (think - p[:, None])).mean(1)
        self.momentum = 0.8 * self.momentum + 0.2 * push.mean()
        self.shared += self.shared_rate * self.momentum
        self.own += self.own_rate * push
        return think.mean(1)


def messages(simulation: Simulation, steps: int, exact: bool, held: bool = False) -> list[tuple[int, float, str]]:
    """(step, mean think rate then, message) of a whole run."""
    watch, found = CollapseWatch(), []
    for step in range(steps):
        before = simulation.probability
        counted = simulation.step()
        said = watch.see(before if exact else counted, None if exact else SAMPLES, held)
        found += [(step, float(before.mean()), message) for message in said]
    return found


def shared_choice(seed: int = 0, known: float = 0.95) -> Simulation:
    """Prompts that cannot tell themselves apart, most of them known: what thinking costs outvotes what it is worth."""
    return Simulation(known, divide=True, shared_rate=4.0, own_rate=0.0, start=-0.8, seed=seed)


def own_choice(seed: int = 0) -> Simulation:
    """Prompts that learn for themselves about as fast as together."""
    return Simulation(0.6, divide=False, shared_rate=0.5, own_rate=0.5, start=-0.8, seed=seed)


@pytest.mark.parametrize("exact", [True, False], ids=["probabilities", "counts"])
@pytest.mark.parametrize("seed", range(5))
def test_warns_before_a_shared_choice_collapses(seed: int, exact: bool):
    simulation = shared_choice(seed)
    found = messages(simulation, 150, exact)
    assert simulation.probability.max() < 0.02, "the simulation is meant to collapse"
    step, rate, message = found[0]
    assert "collapse ahead" in message and "no_think" in message and step >= WINDOW - 1
    assert rate > POLE if exact else rate > 0.6 * POLE


def test_warns_of_the_other_pole_too():
    simulation = Simulation(0.0, divide=True, shared_rate=1.5, own_rate=0.0, start=0.5)
    (_, rate, message), *_ = messages(simulation, 60, exact=True)
    assert simulation.probability.min() > 0.98
    assert "collapse ahead" in message and "in mode think" in message and rate < 1 - POLE


@pytest.mark.parametrize("exact", [True, False], ids=["probabilities", "counts"])
@pytest.mark.parametrize("seed", range(5))
def test_is_silent_while_prompts_learn_to_differ(seed: int, exact: bool):
    simulation = own_choice(seed)
    assert messages(simulation, 300, exact) == []
    known = simulation.probability[simulation.known].mean()
    assert simulation.probability[~simulation.known].mean() - known > 0.3, "the simulation is meant to separate"


@pytest.mark.parametrize("rate", [0.08, 0.3, 0.9])
def test_is_silent_while_nothing_moves(rate: float):
    rng, watch = np.random.default_rng(0), CollapseWatch()
    for _ in range(50):
        counted = (rng.random((PROMPTS, 16)) < rate).mean(1)
        assert watch.see(counted, 16, held=False) == []


def test_is_silent_while_a_constraint_holds_the_choice_but_not_about_a_collapse():
    said = [message for _, _, message in messages(shared_choice(), 400, exact=True, held=True)]
    assert len(said) == 1 and "has collapsed" in said[0]


def test_says_each_thing_once():
    said = [message for _, _, message in messages(shared_choice(), 400, exact=True)]
    assert ["ahead" in m for m in said] == [True, False]
    assert "has been no_think" in said[1]


def test_state_round_trip_goes_on_as_if_never_stopped():
    whole, first = CollapseWatch(), CollapseWatch()
    shares = [shared_choice().probability * 0.8**step for step in range(30)]
    for share in shares[:4]:
        whole.see(share, None, False)
        first.see(share, None, False)
    second = CollapseWatch()
    second.load_state_dict(first.state_dict())
    said = [(whole.see(share, None, False), second.see(share, None, False)) for share in shares[4:]]
    assert all(one == two for one, two in said) and any(one for one, _ in said)
    assert whole.state_dict() == second.state_dict()


def test_shares_at_the_edge_and_steps_without_any():
    watch = CollapseWatch()
    assert watch.see([], SAMPLES, False) == []
    for share in (0.0, 1.0, 0.0, 1.0, 0.5, 0.0):
        watch.see([share] * PROMPTS, SAMPLES, False)
        watch.see([share] * PROMPTS, None, False)
    assert len(watch.logits) == WINDOW and all(math.isfinite(x) for x in watch.logits)
