"""Why strict isolation can collapse: what a step of each adapter does to the probability of what each role writes.

    python benchmarks/strict_isolation.py                        # supervised, about two minutes on one core
    python benchmarks/strict_isolation.py --learner grpo --sharing middle

Trains in the conflict world, and every few steps takes the step of one adapter alone: `nats[adapter][role]` is what all
its steps together did to the mean log-prob of the right words of a role per episode, `points` to the probability of
them, in percent (sampled steps, scaled up; what both do at once is in neither). Under positional routing each adapter
is told of both; under strict routing it is told of its own role only, and what it does to the other one is nobody's
loss. The last line is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unbraid.lab.calls_world import Split
from unbraid.lab.conflict_measure import SKILLS, Forcing
from unbraid.lab.conflict_world import tasks_of
from unbraid.lab.dart.cells import Cell, recipe_of
from unbraid.lab.dart.conflict import reinforce, supervise
from unbraid.lab.dart.methods import Learner, Sharing, World
from unbraid.policy import Policy, load_policy
from unbraid.policy.routed_lora import adapter_parameters

METHODS = ("dart", "dart_strict", "dart_no_context", "dart_strict_no_context")
EVERY = 4
"""Steps from one that is looked at to the next."""
ADAPTERS = tuple(role.name.lower() for role in SKILLS)


class Moves:
    """Watches a run: what the last step of each adapter did, for one step in `EVERY`."""

    def __init__(self, policy: Policy, forcing: Forcing):
        self.policy, self.forcing = policy, forcing
        self.parameters = {name: adapter_parameters(policy.model, name) for name in ADAPTERS}
        self.before = self.weights()
        self.seen: list[np.ndarray] = []
        self.curve = [self.forcing.success(policy)]

    def weights(self) -> dict[str, list[Tensor]]:
        return {name: [p.detach().clone() for p in own] for name, own in self.parameters.items()}

    @torch.no_grad()
    def put(self, weights: dict[str, list[Tensor]]) -> None:
        for name, own in self.parameters.items():
            for parameter, value in zip(own, weights[name], strict=True):
                parameter.copy_(value)

    def levels(self) -> np.ndarray:
        """(2, 2) of what each role writes: mean log-prob in nats, mean probability in percent."""
        found = self.forcing.measure(self.policy)
        return np.stack([found.logprobs.mean(0), 100 * found.skill.mean(0)])

    def on_step(self, step: int) -> None:
        after = self.weights()
        if step % EVERY == 0:
            self.put(self.before)
            start, rows = self.levels(), []
            for name in ADAPTERS:
                self.put({**self.before, name: after[name]})
                rows.append(self.levels() - start)
            self.put(after)
            self.seen.append(np.stack(rows))
            self.curve.append(self.forcing.success(self.policy))
        self.before = after

    def total(self, unit: int) -> dict[str, dict[str, float]]:
        """Adapter → role → what it moved, in the unit of that row of `levels`."""
        moved = EVERY * np.sum(self.seen, axis=0)[:, unit]
        return {a: {r: round(float(moved[i, j]), 2) for j, r in enumerate(ADAPTERS)} for i, a in enumerate(ADAPTERS)}


def run(cell: Cell) -> dict[str, object]:
    """Train one cell and say what moved what."""
    recipe = recipe_of(cell)
    torch.manual_seed(cell.seed)
    policy = load_policy(recipe.model, recipe.chat)
    moves = Moves(policy, Forcing(policy, tasks_of(cell.base, cell.rho, Split.DEV)))
    if cell.learner is Learner.SUPERVISED:
        supervise(cell, policy, lambda step, _: moves.on_step(step))
    else:
        tasks = tasks_of(cell.base, cell.rho, Split.TRAIN)
        reinforce(policy, recipe, tasks, on_step=lambda step, _: moves.on_step(step))
    found = moves.forcing.measure(policy)
    return {
        "method": cell.method,
        "rho": cell.rho,
        "seed": cell.seed,
        "final": round(float(found.success.mean()), 4),
        "skills": {name: round(float(s), 4) for name, s in zip(ADAPTERS, found.skill.mean(0), strict=True)},
        "nats": moves.total(0),
        "points": moves.total(1),
        "curve": [round(value, 3) for value in moves.curve[:: max(1, len(moves.curve) // 10)]],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per run, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner", choices=list(Learner), default=Learner.SUPERVISED)
    parser.add_argument("--sharing", choices=list(Sharing), default=Sharing.TIGHT)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--rho", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--base", type=int, default=0)
    parser.add_argument("--rate", type=float, default=5e-3)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for rho in asked.rho:
        for seed in range(asked.seeds):
            for method in asked.methods:
                place = (World.CONFLICT, Sharing(asked.sharing), asked.base, rho, Learner(asked.learner))
                rows.append(run(Cell(*place, method, asked.rate, seed)))
                print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
    print(json.dumps({"learner": asked.learner, "sharing": asked.sharing, "rate": asked.rate, "runs": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
