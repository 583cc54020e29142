"""Gradients by role: against gradients taken another way, sketches against exact ones, and planted angles."""

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.interference.geometry import RANDOM, Key, RoleGradients, angle, geometry, role_gradients
from unbraid.interference.sketch import Sketcher
from unbraid.policy.routing import RoutingConfig
from unbraid.policy.two_agents import TwoAgents
from unbraid.tokens import Provenance, Role

ROLE = {"reasoning": Role.REASONING, "action": Role.ACTION}


@pytest.fixture(scope="module")
def batch():
    """A policy, episodes whose tokens were given roles by chance, and weights."""
    policy = tiny_policy(dtype=torch.float64)
    trajectories, _ = sampled_batch(policy, prompts=6, samples=2)
    rng = np.random.default_rng(0)
    for trajectory in trajectories:
        drawn = rng.choice([Role.REASONING, Role.ACTION], p=[0.6, 0.4], size=len(trajectory.ids))
        trajectory.roles = np.where(trajectory.sampled, drawn, trajectory.roles).astype(np.uint8)
    return policy, trajectories, rng.normal(size=len(trajectories))


def plain_gradient(policy, trajectory, weight, role):
    """Through the logits of the whole sequence, with a loop over its tokens: shares nothing with ours."""
    logits = policy.model(input_ids=torch.tensor(trajectory.ids[None])).logits[0]
    total = torch.zeros((), dtype=logits.dtype)
    for t in np.flatnonzero(trajectory.sampled & (trajectory.roles == role)):
        total = total + torch.log_softmax(logits[t - 1], -1)[trajectory.ids[t]]
    parameters = [p for _, p in policy.trainable()]
    grads = torch.autograd.grad(total * weight / trajectory.sampled.sum(), parameters, allow_unused=True)
    flat = [g.flatten() if g is not None else torch.zeros(p.numel()) for g, p in zip(grads, parameters, strict=True)]
    return torch.cat(flat).double()


def test_inner_products_are_those_of_the_gradients(batch):
    policy, trajectories, weights = batch
    found = role_gradients(policy, trajectories, weights, parts=2, width=None, micro_batch=3)
    assert {key.part for key in found.keys if key.role == "action"} == {0, 1}
    part_of = {}
    expected = {}
    for part in (0, 1):
        tasks = sorted({t.task_id for t in trajectories})
        own = [
            tasks[i] for number, i in enumerate(np.random.default_rng(0).permutation(len(tasks))) if number % 2 == part
        ]
        part_of |= dict.fromkeys(own, part)
    for trajectory, weight in zip(trajectories, weights, strict=True):
        for name, role in ROLE.items():
            key = Key(name, "", part_of[trajectory.task_id])
            expected[key] = expected.get(key, 0) + plain_gradient(policy, trajectory, weight, role)
    blocks = {(a, b): found.blocks(a, b)[0, :, 0, :] for a in ROLE for b in ROLE}
    for (a, b), block in blocks.items():
        for i in (0, 1):
            for j in (0, 1):
                exact = float(expected[Key(a, "", i)] @ expected[Key(b, "", j)])
                assert block[i, j] == pytest.approx(exact, rel=1e-4, abs=1e-6)


def test_nothing_is_left_behind(batch):
    policy, trajectories, weights = batch
    for _, parameter in policy.trainable():
        parameter.grad = torch.ones_like(parameter)
    role_gradients(policy, trajectories, weights, parts=2)
    assert all(bool((p.grad == 1).all()) for _, p in policy.trainable())
    for _, parameter in policy.trainable():
        parameter.grad = None


def test_sketched_angles_are_near_exact_ones(batch):
    policy, trajectories, weights = batch
    exact = geometry(role_gradients(policy, trajectories, weights, parts=4, width=None))
    sketched = geometry(role_gradients(policy, trajectories, weights, parts=4, width=512))
    assert max(p.numel() for _, p in policy.trainable()) > 4 * 512
    assert sketched.raw == pytest.approx(exact.raw, abs=0.04)
    assert sketched.same["action"] == pytest.approx(exact.same["action"], abs=0.04)
    assert sketched.norms["reasoning"] == pytest.approx(exact.norms["reasoning"], rel=0.03)
    assert sketched.paper["between"] == pytest.approx(exact.paper["between"], abs=2)


def test_sketches_are_unbiased_and_as_good_as_they_say():
    length, width = 20_000, 128
    x, y = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    y = 0.5 * x + y
    errors = []
    for name in map(str, range(300)):
        sketcher = Sketcher([(name, torch.nn.Parameter(torch.zeros(length)))], width)
        errors.append(float(sketcher(name, x) @ sketcher(name, y) - x @ y) / float(x.norm() * y.norm()))
    expected = np.sqrt(2 / width)
    assert abs(np.mean(errors)) < 3 * expected / np.sqrt(300)
    assert np.std(errors) < 1.1 * expected
    sketcher = Sketcher([("w", torch.nn.Parameter(torch.zeros(length)))], width)
    torch.testing.assert_close(sketcher("w", x) + sketcher("w", y), sketcher("w", x + y), rtol=1e-4, atol=1e-3)


def planted(cosine, noise, parts=8, size=400, seed=0):
    """(P, P) products of gradients with a known angle, each part with its own noise."""
    rng = np.random.default_rng(seed)
    common, own = np.linalg.qr(rng.normal(size=(size, 2)))[0].T
    second = cosine * common + np.sqrt(1 - cosine**2) * own
    r = common + noise * rng.normal(size=(parts, size)) / np.sqrt(size)
    a = second + noise * rng.normal(size=(parts, size)) / np.sqrt(size)
    return r @ r.T, a @ a.T, r @ a.T


@pytest.mark.parametrize("cosine", [0.9, 0.0, -0.8])
def test_noise_is_taken_out(cosine):
    found = [angle(*planted(cosine, 4.0, seed=s)) for s in range(60)]
    values = np.array([f.cosine for f in found])
    assert values.mean() == pytest.approx(cosine, abs=0.08)
    held = np.mean([f.interval[0] <= cosine <= f.interval[1] for f in found])
    assert held > 0.8
    rr, aa, ra = planted(cosine, 4.0)
    noisy = ra.sum() / np.sqrt(rr.sum() * aa.sum())
    assert abs(noisy) < 0.5  # what the uncorrected one says, whatever the truth


def test_what_cannot_be_told_from_noise_is_nan():
    found = [angle(*planted(0.5, 300.0, seed=s)).cosine for s in range(20)]
    assert np.isnan(found).any()


def made_up(vectors, parts=4):
    """Gradients from vectors: (role, stratum, part) → vector; random sets are a role's own."""
    full = dict(vectors)
    for (role, stratum, part), v in vectors.items():
        full[(f"random_{role}", stratum, part)] = v
    keys = tuple(Key(*key) for key in full)
    stacked = np.stack(list(full.values()))
    return RoleGradients(keys, {"w": stacked @ stacked.T}, {"reasoning": 1, "action": 1})


def test_a_common_wish_hides_opposed_targets():
    """Both roles learn a format, each kind of task pulls them apart: pooled says aligned, specific opposed."""
    rng = np.random.default_rng(0)
    wish, kinds = 5 * np.eye(40)[0], {s: np.eye(40)[1 + i] for i, s in enumerate("abcd")}
    vectors = {}
    for stratum, direction in kinds.items():
        for part in range(4):
            vectors["reasoning", stratum, part] = wish + direction + 0.1 * rng.normal(size=40)
            vectors["action", stratum, part] = wish - direction + 0.1 * rng.normal(size=40)
    found = geometry(made_up(vectors))
    assert found.pooled.cosine > 0.9
    assert found.specific is not None
    assert found.specific.cosine < -0.8
    assert found.decisive is found.specific
    assert found.specific.transfer[0] == pytest.approx(-1, abs=0.2)
    assert found.strata["a"].cosine > 0.8  # the wish is in each of them: only the comparison of kinds shows it


def test_exchanging_labels():
    apart = {("reasoning", "", i): np.array([1.0, 0]) for i in range(8)}
    apart |= {("action", "", i): np.array([0, 1.0]) for i in range(8)}
    assert geometry(made_up(apart)).exchange_p == 1 / 2**7
    rng = np.random.default_rng(1)
    alike = {(role, "", i): rng.normal(size=30) for i in range(8) for role in ROLE}
    assert geometry(made_up(alike)).exchange_p > 0.02


def test_random_sets_have_the_roles_sizes(batch):
    policy, trajectories, _ = batch
    same = role_gradients(policy, trajectories, np.ones(len(trajectories)), parts=2, width=None)
    # What is summed over is the same whichever way it is parted in two.
    whole = [sum(same.blocks(a, b).sum() for a in pair for b in pair) for pair in (("reasoning", "action"), RANDOM)]
    assert whole[0] == pytest.approx(whole[1], rel=1e-6)
    assert same.tokens["action"] == sum(int((t.sampled & (t.roles == Role.ACTION)).sum()) for t in trajectories)


def test_leak_of_routed_adapters():
    """Attention carries a role's loss into the other's adapter, and nothing carries it into another agent."""
    owners = {"reasoning": "reasoning", "action": "action"}
    routed = tiny_policy(routing=RoutingConfig(), sharp=0.5)
    call = routed.format.automaton.delimiters[-1]
    trajectories, _ = sampled_batch(routed, prompts=4, samples=2)
    for t in trajectories:
        start = t.prompt_length + 1
        t.ids[start], t.ids[start + 5] = call.open, call.close
        written = np.where(t.sampled, Provenance.MODEL, Provenance.PROMPT)
        t.roles = routed.format.automaton.label(t.ids, written)
    weights = np.ones(len(trajectories))
    found = geometry(role_gradients(routed, trajectories, weights, parts=2, width=None), owners)
    assert set(found.leak) == {"reasoning", "action"}
    assert min(found.leak.values()) > 1e-3
    apart = tiny_policy(sharp=0.5)
    assert routed.router
    apart.model = TwoAgents.of(apart.model, routed.router)
    found = geometry(role_gradients(apart, trajectories, weights, parts=2, width=None), owners)
    assert found.leak == {"reasoning": 0.0, "action": 0.0}
    assert min(found.norms.values()) > 0
