"""Which way reasoning tokens and action tokens pull the same weights: angles between gradients, with their noise.

For each role the gradient of   Σ weight · log p   of its tokens, summed over many episodes, in `parts` that share no
question. From inner products of *different* parts noise drops out, as no episode is on both sides:

    cosine = ⟨R, A⟩ / √(⟨R, R⟩ ⟨A, A⟩),   each ⟨X, Y⟩ the mean of ⟨X_i, Y_j⟩ over parts i ≠ j

The cosine of two gradients as they come is smaller the noisier they are: with few episodes it is near 0 whatever the
truth, for two gradients of one role as well. Both are reported, as are two controls: one role against itself on other
questions, and the tokens of each episode parted at random into two sets of the same sizes.

A common wish of both roles (write the format) can hide that they disagree about each kind of task. So with strata:

    within     sums over strata s of ⟨R_s, A_s⟩ and the like
    specific   the same, of what a stratum's gradient has beyond the mean over strata

Opposed gradients show opposed *targets*. Whether sharing weights then costs anything is another question (`sharing`).

Source: arXiv 2602.00994, §4.4, compares gradients of single episodes and corrects nothing. Choice: the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unbraid.interference.sketch import WIDTH, Sketch, Sketcher, inner_products
from unbraid.learn.batch import collate
from unbraid.learn.fast import score
from unbraid.learn.objective import Averaging, token_weights
from unbraid.policy import Policy
from unbraid.rollout.trajectory import Trajectory
from unbraid.tokens import Role

ROLES = (Role.REASONING, Role.ACTION)
RANDOM = ("random_reasoning", "random_action")
"""Sets of tokens as large as the two roles in every episode, drawn at random."""
PARTS = 8
MOST_SIGNS = 10
"""Parts up to which all exchanges of labels are tried; of more parts the first so many are exchanged."""


class Key(NamedTuple):
    """Whose gradient: a role's name or one of `RANDOM`, the kind of task, the part of the questions."""

    role: str
    stratum: str
    part: int


@dataclass(frozen=True)
class RoleGradients:
    """Inner products of all gradients that were taken.

    products: tensor name → (K, K), as `keys`. tokens: role → tokens that were summed over.
    """

    keys: tuple[Key, ...]
    products: Mapping[str, NDArray[np.float64]]
    tokens: Mapping[str, int]

    @property
    def strata(self) -> list[str]:
        return sorted({key.stratum for key in self.keys})

    @property
    def parts(self) -> int:
        return 1 + max(key.part for key in self.keys)

    def blocks(self, first: str, second: str, mark: str = "") -> NDArray[np.float64]:
        """⟨first of (s, i), second of (u, j)⟩, (S, P, S, P), over all tensors whose name contains `mark`."""
        place = {key: k for k, key in enumerate(self.keys)}
        total = sum((g for name, g in self.products.items() if mark in f".{name}."), np.zeros((len(self.keys),) * 2))
        shape = (len(self.strata), self.parts)
        padded = np.pad(total, (0, 1))  # what was never seen is 0
        rows, columns = (
            [place.get(Key(role, s, i), len(self.keys)) for s in self.strata for i in range(self.parts)]
            for role in (first, second)
        )
        return padded[np.ix_(rows, columns)].reshape(*shape, *shape)


def role_gradients(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    weights: Sequence[float] | NDArray[np.float64],
    *,
    strata: Sequence[str] | None = None,
    parts: int = PARTS,
    averaging: Averaging = "sample",
    temperature: float = 1.0,
    micro_batch: int = 16,
    fast: bool = True,
    width: int | None = WIDTH,
    seed: int = 0,
) -> RoleGradients:
    """Gradients by role, stratum and part; one forward pass per episode and a backward pass per set of tokens.

    Args:
        weights: (N,), of each trajectory: its advantage, or 1 for the gradient of log-likelihood. Those with 0 are
            left out.
        strata: (N,), the kind of task; None is one kind.
        averaging: as `learn.averaging`.
        width: of the sketches (`sketch`); None keeps gradients exactly.
    """
    weights = np.asarray(weights, dtype=np.float64)
    kinds = list(strata) if strata is not None else [""] * len(trajectories)
    part_of = _parts([t.task_id for t in trajectories], kinds, parts, seed)
    places: dict[tuple[str, int], list[int]] = {}
    for i, (kind, part) in enumerate(zip(kinds, part_of, strict=True)):
        if weights[i] and trajectories[i].sampled.any():
            places.setdefault((kind, part), []).append(i)
    sketcher = Sketcher(policy.trainable(), width)
    sketches: dict[Key, Sketch] = {}
    tokens = dict.fromkeys((role.name.lower() for role in ROLES), 0)
    generator = torch.Generator().manual_seed(seed)
    training = policy.model.training
    policy.model.train()
    for (kind, part), rows in sorted(places.items()):
        pieces = [(i, piece) for i in rows for piece in trajectories[i].split()]
        for first in range(0, len(pieces), micro_batch):
            some = pieces[first : first + micro_batch]
            sampled = [float(trajectories[i].sampled.sum()) for i, _ in some]
            batch = collate(
                [piece for _, piece in some], weights[[i for i, _ in some]], policy.format.modes.position,
                tokens=sampled, router=policy.router,
            ).to(policy.device)  # fmt: skip
            scores = score(policy, batch, temperature, fast)
            terms = scores.logprobs * token_weights(batch, averaging, 1.0, 1.0) * batch.advantages[:, None]
            masks = {role.name.lower(): batch.sampled & (batch.roles == role) for role in ROLES}
            for name, mask in masks.items():
                tokens[name] += int(mask.sum())
            masks |= _random_partition(batch.sampled, masks["action"], generator)
            wanted = {name: mask for name, mask in masks.items() if bool(mask.any())}
            for name, mask in wanted.items():
                with sketcher.into(sketches.setdefault(Key(name, kind, part), {})):
                    (terms * mask).sum().backward(retain_graph=name != list(wanted)[-1])
    policy.model.train(training)
    keys = tuple(sketches)
    products = inner_products([sketches[key] for key in keys])
    return RoleGradients(keys, {name: g.numpy() for name, g in products.items()}, tokens)


def _parts(tasks: Sequence[str], kinds: Sequence[str], parts: int, seed: int) -> list[int]:
    """The part of each trajectory: all of one task in one part, the tasks of every kind spread evenly."""
    rng, place = np.random.default_rng(seed), {}
    for kind in sorted(set(kinds)):
        own = sorted({task for task, k in zip(tasks, kinds, strict=True) if k == kind})
        for number, at in enumerate(rng.permutation(len(own))):
            place[kind, own[at]] = number % parts
    return [place[kind, task] for kind, task in zip(kinds, tasks, strict=True)]


def _random_partition(
    sampled: torch.Tensor, action: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """In every row as many sampled targets as have the action role, drawn anew; and the others. (B, L) bool each."""
    keys = torch.rand(sampled.shape, generator=generator).to(sampled.device).masked_fill(~sampled, 2.0)
    rank = keys.argsort(dim=1).argsort(dim=1)
    chosen = sampled & (rank < action.sum(1, keepdim=True))
    return dict(zip(RANDOM, (sampled & ~chosen, chosen), strict=True))


@dataclass(frozen=True)
class Angle:
    """Two gradients compared without their noise.

    cosine: NaN where one of them cannot be told from noise; beyond ±1 by chance, or where questions of one role compete
        (who learns one answer unlearns others) and so have less in common than the roles have on one question.
    deviation: standard error of the cosine, jackknife over parts; NaN with fewer than three.
    transfer: what a step that would lift the first by one nat does to the second, and the converse, nats.
    """

    cosine: float
    deviation: float
    transfer: tuple[float, float]

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, normal."""
        return self.cosine - 1.96 * self.deviation, self.cosine + 1.96 * self.deviation


def angle(first: NDArray[np.float64], second: NDArray[np.float64], both: NDArray[np.float64]) -> Angle:
    """From (P, P) inner products of parts: of the first with itself, of the second with itself, of both."""

    def cosine(kept: NDArray[np.int64]) -> tuple[float, float, float, float]:
        one, two, cross = (_across(x[np.ix_(kept, kept)]) for x in (first, second, both))
        value = cross / np.sqrt(one * two) if one > 0 and two > 0 else np.nan
        return float(value), one, two, cross

    count = len(both)
    value, one, two, cross = cosine(np.arange(count))
    deviation = float("nan")
    if count >= 3 and np.isfinite(value):
        left = np.array([cosine(np.delete(np.arange(count), i))[0] for i in range(count)])
        deviation = float(np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum()))
    return Angle(value, deviation, (cross / one if one > 0 else np.nan, cross / two if two > 0 else np.nan))


def _across(products: NDArray[np.float64]) -> float:
    """The mean over different parts."""
    count = len(products)
    return float((products.sum() - np.trace(products)) / (count * (count - 1))) if count > 1 else float("nan")


@dataclass(frozen=True)
class Geometry:
    """What gradients say.

    pooled, within, specific: reasoning against action (see above); the latter two are None without strata.
    strata: the same of each kind of task. tensors: pooled cosine of every tensor.
    paper: mean angles in degrees between gradients as they come, one for each part of each kind of task: `between` the
        roles on the same episodes, and of each role with itself on other questions.
    raw: cosine of the two on different halves of the questions, noise included; same: so of each role with itself.
    random: the two random sets against each other, noise-corrected; random_raw: with it, as `raw`.
    exchange_p: how often exchanging the roles within parts sets them as far apart. norms: of the whole gradients.
    leak: adapter → norm of what other roles' tokens do to it, over what its own do; routed models only.
    """

    pooled: Angle
    within: Angle | None
    specific: Angle | None
    strata: Mapping[str, Angle]
    tensors: Mapping[str, float]
    paper: Mapping[str, float]
    raw: float
    same: Mapping[str, float]
    random: Angle
    random_raw: float
    exchange_p: float
    norms: Mapping[str, float]
    leak: Mapping[str, float]
    tokens: Mapping[str, int]

    @property
    def decisive(self) -> Angle:
        """The one to judge by: what is specific to kinds of tasks where there are kinds, else the pooled one."""
        return self.specific or self.pooled


def geometry(gradients: RoleGradients, owners: Mapping[str, str] | None = None) -> Geometry:
    """All angles of a set of gradients.

    Args:
        owners: of a routed model, role → its adapter.
    """
    names = tuple(role.name.lower() for role in ROLES)
    rr, aa, ra = (gradients.blocks(*pair) for pair in ((names[0],) * 2, (names[1],) * 2, names))
    strata = gradients.strata
    count = len(strata)
    pooled = [x.sum(axis=(0, 2)) for x in (rr, aa, ra)]
    within = [np.einsum("sisj->ij", x) for x in (rr, aa, ra)]
    specific = [w - p / count for w, p in zip(within, pooled, strict=True)]
    pp, qq, pq = (gradients.blocks(*pair).sum(axis=(0, 2)) for pair in ((RANDOM[0],) * 2, (RANDOM[1],) * 2, RANDOM))
    several = count > 1
    return Geometry(
        pooled=angle(*pooled),
        within=angle(*within) if several else None,
        specific=angle(*specific) if several else None,
        strata={s: angle(*(x[k, :, k, :] for x in (rr, aa, ra))) for k, s in enumerate(strata)} if several else {},
        tensors=_of_tensors(gradients, names),
        paper=_paper_angles(names, rr, aa, ra),
        raw=_halves(*pooled),
        same={name: _halves(x, x, x) for name, x in zip(names, pooled, strict=False)},
        random=angle(pp, qq, pq),
        random_raw=_halves(pp, qq, pq),
        exchange_p=_exchange_p(*pooled),
        norms={name: float(np.sqrt(max(x.sum(), 0.0))) for name, x in zip(names, pooled, strict=False)},
        leak=_leaks(gradients, owners or {}),
        tokens=gradients.tokens,
    )


def _paper_angles(
    names: tuple[str, ...], rr: NDArray[np.float64], aa: NDArray[np.float64], ra: NDArray[np.float64]
) -> dict[str, float]:
    """Source: arXiv 2602.00994, §4.4, whose unit is an episode; its released code's is a group of them, as here."""
    count = rr.shape[0] * rr.shape[1]
    rr, aa, ra = (x.reshape(count, count) for x in (rr, aa, ra))

    def mean(cosines: NDArray[np.float64]) -> float:
        found = cosines[np.isfinite(cosines)]
        return float(np.degrees(np.arccos(np.clip(found, -1, 1))).mean()) if len(found) else float("nan")

    with np.errstate(invalid="ignore", divide="ignore"):
        norms = [np.sqrt(np.diag(x)) for x in (rr, aa)]
        between = mean(np.diag(ra) / (norms[0] * norms[1]))
        others = ~np.eye(count, dtype=bool)
        same = [mean((x / np.outer(n, n))[others]) for x, n in zip((rr, aa), norms, strict=True)]
    return {"between": between, **dict(zip(names, same, strict=True))}


def _halves(first: NDArray[np.float64], second: NDArray[np.float64], both: NDArray[np.float64]) -> float:
    """Cosine of the first on even parts and the second on odd ones, averaged with the converse; noise and all."""
    even, odd = np.arange(0, len(both), 2), np.arange(1, len(both), 2)

    def one_way(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
        norms = first[np.ix_(a, a)].sum() * second[np.ix_(b, b)].sum()
        return float(both[np.ix_(a, b)].sum() / np.sqrt(norms)) if norms > 0 else float("nan")

    return (one_way(even, odd) + one_way(odd, even)) / 2


def _of_tensors(gradients: RoleGradients, names: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for name in gradients.products:
        only = RoleGradients(gradients.keys, {name: gradients.products[name]}, gradients.tokens)
        rr, aa, ra = (only.blocks(*pair).sum(axis=(0, 2)) for pair in ((names[0],) * 2, (names[1],) * 2, names))
        one, two = _across(rr), _across(aa)
        found[name] = _across(ra) / np.sqrt(one * two) if one > 0 and two > 0 else float("nan")
    return found


def _exchange_p(rr: NDArray[np.float64], aa: NDArray[np.float64], ra: NDArray[np.float64]) -> float:
    """Share of exchanges of the roles' labels within parts that set them as far apart as they are, or further."""
    apart = rr + aa - ra - ra.T  # ⟨R_i − A_i, R_j − A_j⟩
    count = len(apart)
    free = min(count, MOST_SIGNS) - 1
    signs = np.array([(1.0, *flips, *[1.0] * (count - free - 1)) for flips in product((1.0, -1.0), repeat=free)])
    # Squares do not depend on signs: only products of different parts count.
    spread = np.einsum("ni,ij,nj->n", signs, apart, signs) - np.trace(apart)
    return float(np.mean(spread >= spread[0] - 1e-9 * abs(spread[0])))


def _leaks(gradients: RoleGradients, owners: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for role, adapter in owners.items():
        norms = {name: gradients.blocks(name, name, f".{adapter}.").sum() for name in owners}
        others = sum(value for name, value in norms.items() if owners[name] != adapter)
        if norms[role] > 0:
            found[adapter] = float(np.sqrt(max(others, 0.0) / norms[role]))
    return found
