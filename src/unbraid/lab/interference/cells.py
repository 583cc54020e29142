"""One cell of the validation: a base of the conflict world at one dose, all models trained from it, all measures taken.

    OUT/cells/NAME-FINGERPRINT.json

A cell is there whole or not at all; the fingerprint is of everything that decides it. Success is computed, not sampled.
Models learn from right episodes (supervised) or from rewards alone (GRPO).
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from unbraid.interference.attribution import COMPOSED
from unbraid.interference.diagnosis import COMPOSED_ROUTED
from unbraid.interference.geometry import Geometry, geometry, role_gradients
from unbraid.interference.sharing import TWO_AGENTS, UNIFIED, WIDE
from unbraid.interference.variants import OffRole, only_role, route_together, take_turns
from unbraid.lab import conflict_base
from unbraid.lab.calls_world import Split
from unbraid.lab.conflict_base import conflict_example
from unbraid.lab.conflict_measure import Forcing
from unbraid.lab.conflict_world import CONFLICT_WORLD_VERSION, Question, tasks_of
from unbraid.lab.dart.conflict import reinforce
from unbraid.lab.dart.methods import Learner
from unbraid.learn.importance import sequence_logprobs
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import Batches, SupervisedTrainer, WarmupConfig
from unbraid.policy import Policy, load_policy
from unbraid.recipe import Recipe, load_recipe
from unbraid.tokens import Role


class Sharing(StrEnum):
    """Where adapters sit, and so how much one of them can tell its two jobs apart."""

    TIGHT = "tight"
    LOOSE = "loose"


TARGETS = {
    Sharing.TIGHT: "[layers.0.mlp.gate_proj, layers.0.mlp.up_proj, layers.0.mlp.down_proj]",
    Sharing.LOOSE: "all-linear",
}
"""TIGHT: the first layer's MLP, which sees little of where in an episode it is. LOOSE: everywhere."""


@dataclass(frozen=True)
class Series:
    """What is run at several doses.

    off_role_kl: weight of the KL to the start on the tokens that a single-role model is not taught (`OffRole`); the
        models that learn both roles have no such tokens, and are those of the series without it.
    """

    sharing: Sharing
    learner: Learner = Learner.SUPERVISED
    off_role_kl: float = 0.0

    @property
    def name(self) -> str:
        """Of tables and options: tight, loose, tight-grpo, tight-held."""
        held = "-held" * (self.off_role_kl > 0)
        return f"{self.sharing}{'-grpo' * (self.learner is Learner.GRPO)}{held}"

    @property
    def label(self) -> str:
        """For people."""
        held = ", other role held" * (self.off_role_kl > 0)
        return f"{self.sharing} sharing{', GRPO' * (self.learner is Learner.GRPO)}{held}"


TUNING_BASE = 0
"""The base on whose dev set learning rates are chosen; no result is from it."""
RANK = 4
"""Of every adapter but the wide one's, which has as many weights as two of them. Choice: low, so that tight sharing is
tight for the wide one too; with rank 8 some bases find room in it for both forms."""
STEPS, EXAMPLES = 200, 16
"""Choice: as long as two agents need. With three times the examples some bases learn both skills in tight sharing too:
what sharing costs, it costs at a budget."""
GRPO_STEPS, GRPO_RATE = 40, 1e-2
"""Of the shipped recipe, shortened to where a joint model of base 0 at rho = 1 learned most of what it learned in 60.
Choice: one rate for every arm, as in `lab.dart`: a grid takes too long."""
OFF_ROLE_KL = 1.0
"""Choice: the mean divergence on the other role's tokens weighs as much as the mean loss on one's own."""
PARTS = 4
ARMS = (UNIFIED, WIDE, TWO_AGENTS)
"""What has a learning rate of its own; single-role models have that of the two agents, whose halves they are."""
RATES = (5e-3, 1e-2, 2e-2)
LEAST = 1e-12
"""Rates are kept this far from 0 and 1, so that every scale is finite."""


@dataclass(frozen=True)
class Cell:
    """What is run. rates: arm → learning rate."""

    series: Series
    base: int
    rho: float
    rates: Mapping[str, float] = field(hash=False)
    rank: int = RANK
    seed: int = 0

    @property
    def sharing(self) -> Sharing:
        return self.series.sharing

    @property
    def name(self) -> str:
        return f"{self.series.name}-rank-{self.rank}-base-{self.base}-rho-{self.rho:g}-seed-{self.seed}"

    @property
    def key(self) -> str:
        """The cell's name with what else decides its result."""
        more: dict[str, Any] = dict(self.rates)
        if self.series.learner is Learner.GRPO:
            kept = reward_recipe(self, 1.0).model_dump(mode="json", include={"rollout", "learn"}, exclude_defaults=True)
            more |= {"recipe": kept}
        if self.series.off_role_kl:
            more |= {"off_role_kl": self.series.off_role_kl}
        return f"{self.name}-{fingerprint(more)}"

    @property
    def unheld(self) -> "Cell":
        """The cell that has the models which learn both roles."""
        return replace(self, series=replace(self.series, off_role_kl=0.0))


@dataclass(frozen=True)
class Tuning:
    """One arm at one rate, at one end of the dose, on the dev questions of the base for tuning."""

    sharing: Sharing
    arm: str
    rate: float
    rho: float
    rank: int = RANK

    @property
    def key(self) -> str:
        return (
            f"tuning-{self.sharing}-rank-{self.rank}-{self.arm}-rate-{self.rate:g}-rho-{self.rho:g}-{fingerprint({})}"
        )


@dataclass(frozen=True)
class Result:
    """What came out of a cell.

    rates: model → probability of a right episode, for every test question. geometry: at the start, on training
    questions, by field. seconds: of what.
    """

    rates: dict[str, list[float]]
    geometry: Geometry
    seconds: dict[str, float] = field(default_factory=dict)


def fingerprint(more: Mapping[str, Any]) -> str:
    """Of all that decides a cell and is not in its name."""
    pretraining = conflict_base.PRETRAINING.model_dump()
    parts = [CONFLICT_WORLD_VERSION, pretraining, TARGETS, STEPS, EXAMPLES, PARTS, dict(more)]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def load(cell: Cell | Tuning, times: int = 1, two_agents: bool = False, routed: bool = False) -> Policy:
    """A new policy at the cell's start; adapters begin with the same numbers wherever their rank is the same.

    Args:
        times: of the cell's rank; 0 for the base without an adapter.
    """
    rank = times * cell.rank
    base, seed = (TUNING_BASE, 0) if isinstance(cell, Tuning) else (cell.base, cell.seed)
    routing = ", routing: {}" if routed else ""
    adapter = f"{{rank: {rank}, alpha: {2 * rank}, targets: {TARGETS[cell.sharing]}{routing}}}"
    recipe = load_recipe(
        ["conflict-world"],
        [
            f"model.path=unbraid.lab.conflict_base:conflict_base_path?world={base}",
            *([f"model.adapter={adapter}"] if rank else []),
            f"model.two_agents={str(two_agents).lower()}",
        ],
    )
    torch.manual_seed(seed)
    return load_policy(recipe.model, recipe.chat)


def learn(policy: Policy, cell: Cell | Tuning, rate: float, role: Role | None = None) -> Policy:
    """Training in place, on both roles' tokens or on one role's; returns the policy."""
    if isinstance(cell, Cell) and cell.series.learner is Learner.GRPO:
        tasks = tasks_of(cell.base, cell.rho, Split.TRAIN)
        reinforce(policy, reward_recipe(cell, rate, role), tasks)
    else:
        _imitate(policy, cell, rate, role)
    return policy


def reward_recipe(cell: Cell, rate: float, role: Role | None = None) -> Recipe:
    """How a GRPO cell learns."""
    return load_recipe(
        ["conflict-world"],
        [
            f"seed={cell.seed}",
            f"learn.learning_rate={rate}",
            f"learn.steps={GRPO_STEPS}",
            f"learn.roles={role.name.lower() if role is not None else 'both'}",
            f"learn.off_role_kl={cell.series.off_role_kl}",
            "learn.interference_every=0",
        ],
    )


def _imitate(policy: Policy, cell: Cell | Tuning, rate: float, role: Role | None) -> None:
    """Supervised training on right episodes."""
    base, seed = (TUNING_BASE, 0) if isinstance(cell, Tuning) else (cell.base, cell.seed)
    vocabulary, automaton = policy.tokenizer.get_vocab(), policy.format.automaton
    examples = [conflict_example(Question.of(t), vocabulary) for t in tasks_of(base, cell.rho, Split.TRAIN)]

    def batches(of: Role | None) -> Batches:
        own = examples if of is None else [only_role(example, automaton, of) for example in examples]
        return epochs(own, EXAMPLES, seed)

    hold = None
    if isinstance(cell, Cell) and cell.series.off_role_kl and role is not None:
        other = Role.ACTION if role is Role.REASONING else Role.REASONING
        hold = OffRole(policy, batches(other), cell.series.off_role_kl)
    config = WarmupConfig(steps=STEPS, batch_examples=EXAMPLES, learning_rate=rate, ramp_steps=5, decay="cosine")
    SupervisedTrainer(policy.model, config, batches(role), hold).run()


def rates_of(policy: Policy, forcing: Forcing) -> list[float]:
    """Probability of every right episode."""
    found = sequence_logprobs(policy, forcing.right, 128, 1.0)
    return np.clip([np.exp(values.sum()) for values in found], LEAST, 1 - LEAST).tolist()


def run_tuning(tuning: Tuning, out: Path, tell: Callable[..., None]) -> float:
    """Keep the mean log-probability of right dev episodes at the end; returns seconds."""
    began = time.perf_counter()
    policy = load(tuning, 2 if tuning.arm == WIDE else 1, two_agents=tuning.arm == TWO_AGENTS)
    learn(policy, tuning, tuning.rate)
    forcing = Forcing(policy, tasks_of(TUNING_BASE, tuning.rho, Split.DEV))
    keep(out, tuning.key, float(np.log(rates_of(policy, forcing)).mean()))
    return time.perf_counter() - began


def run_cell(cell: Cell, out: Path, tell: Callable[..., None]) -> float:
    """Train and measure everything; returns seconds. Where one role is held, the other models must be there."""
    began = time.perf_counter()
    models = single_role_models(cell)
    known = read_result(out, cell.unheld) if cell.series.off_role_kl else None
    if known is None:
        models |= joint_models(cell)
    trained = time.perf_counter()
    forcing = Forcing(models["base"], tasks_of(cell.base, cell.rho, Split.TEST))
    rates = (known.rates if known else {}) | {name: rates_of(policy, forcing) for name, policy in models.items()}
    measured = time.perf_counter()
    found = known.geometry if known else start_geometry(cell)
    seconds = {
        "training": trained - began,
        "success": measured - trained,
        "geometry": time.perf_counter() - measured,
    }
    keep(out, cell.key, asdict(Result(rates, found, seconds)))
    return time.perf_counter() - began


def single_role_models(cell: Cell) -> dict[str, Policy]:
    """The base, the two models that each learn one role, and what is put together from them."""
    base, rate = load(cell, times=0), cell.rates[TWO_AGENTS]
    reasoning, tool = (learn(load(cell), cell, rate, role) for role in (Role.REASONING, Role.ACTION))
    return {
        "base": base,
        "reasoning": reasoning,
        "tool": tool,
        "hybrid_tool": take_turns(base, tool),
        "hybrid_reasoning": take_turns(reasoning, base),
        COMPOSED: take_turns(reasoning, tool),
        COMPOSED_ROUTED: route_together(load(cell, routed=True), {"reasoning": reasoning, "action": tool}),
    }


def joint_models(cell: Cell) -> dict[str, Policy]:
    """The models that learn both roles: one, one with twice the rank, two agents."""
    joint, wide, apart = (cell.rates[arm] for arm in ARMS)
    return {
        UNIFIED: learn(load(cell), cell, joint),
        TWO_AGENTS: learn(load(cell, two_agents=True), cell, apart),
        WIDE: learn(load(cell, times=2), cell, wide),
    }


def start_geometry(cell: Cell) -> Geometry:
    """Gradients of the log-probability of right training episodes, before anything is learned.

    For GRPO each times that probability: the gradient of the expected reward, computed instead of sampled.
    """
    policy = load(cell)
    tasks = tasks_of(cell.base, cell.rho, Split.TRAIN)
    forcing = Forcing(policy, tasks)
    episodes = [replace(e, task_id=t.id) for e, t in zip(forcing.right, tasks, strict=True)]
    weights = rates_of(policy, forcing) if cell.series.learner is Learner.GRPO else np.ones(len(tasks))
    strata = [str(task.extra["field"]) for task in tasks]
    return geometry(role_gradients(policy, episodes, weights, strata=strata, parts=PARTS, micro_batch=64))


def keep(out: Path, key: str, found: Any) -> None:
    """Write a result, whole or not at all."""
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{key}.{os.getpid()}"
    partial.write_text(json.dumps(found))
    partial.rename(folder / f"{key}.json")


def read(out: Path, key: str) -> Any | None:
    """What `keep` wrote; None if it is not there."""
    path = out / "cells" / f"{key}.json"
    return json.loads(path.read_text()) if path.exists() else None


def read_result(out: Path, cell: Cell) -> Result | None:
    """The result of a cell; None if it was not run."""
    found = read(out, cell.key)
    return TypeAdapter(Result).validate_python(found) if found is not None else None
