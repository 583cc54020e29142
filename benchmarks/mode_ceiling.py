"""How far a choice of mode at the first token can get in the calls world, and where the model knows better.

    python benchmarks/mode_ceiling.py                # base 0, the shipped one: under a minute on one core
    python benchmarks/mode_ceiling.py --bases 6      # others are built when they are not in the cache, minutes each

1. The ceiling of whoever sees only how long a chain is (k): by linear programming, at every share of known prompts.
2. What the base holds about whether a chain is known, within a level: probes (logistic regression and a small network)
   on all layers at one token, fitted on TRAIN chains and read on TEST chains. .5 is chance. Tokens: the last one of the
   prompt, from which the mode is chosen, and those of a direct answer up to the one before the value.
3. The same for a score that needs no fitting: how sure the base is of its direct answer.
4. What a choice by that score could reach on the test set, if thinking is always right.

The last line is one JSON object.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from unbraid.chat.types import Mode
from unbraid.lab.autotool.methods import KEPT, SAVED, SHARES
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import KNOWN, LEVELS, CallsWorld, Split
from unbraid.lab.measure import load_start
from unbraid.policy import Policy
from unbraid.tasks.task import Task

PROBE_TASKS = 3000
MIXED = range(2, LEVELS)
"""Levels with known and unknown chains."""
VALUE = 6
"""Tokens of a direct answer before its value: <no_think> <tool_call> t7 ( p7 = e5 ) </tool_call> <eos>."""


def level_ceiling(share: float, cost: np.ndarray) -> tuple[float, float]:
    """The most that a policy reaches whose think rate depends on k alone, where direct answers are right if known.

    Args:
        cost: (LEVELS,) tokens that thinking adds.

    Returns:
        Accuracy with `SAVED` of the oracle's saving, and the share of that saving with `KEPT` of the accuracy.
    """
    known, unknown = np.array(KNOWN) / sum(KNOWN), (1 - np.array(KNOWN)) / (LEVELS - sum(KNOWN))
    saving = (share * known + (1 - share) * unknown) * cost / (share * known @ cost)
    errors = (1 - share) * unknown
    most_right = linprog(errors, A_ub=[-saving], b_ub=[-SAVED], bounds=(0, 1))
    most_saved = linprog(-saving, A_ub=[errors], b_ub=[1 - KEPT], bounds=(0, 1))
    return 1 - float(most_right.fun), -float(most_saved.fun)


@torch.no_grad()
def seen_at(policy: Policy, tasks: Sequence[Task], written: int) -> Tensor:
    """(N, layers x width): hidden states at the token before response token `written` of a direct answer."""
    rows = []
    for task in tasks:
        ids = [*policy.format.prompt_ids(task.messages, task.tools), *_direct(policy, task)[:written]]
        out = policy.model(torch.tensor([ids]), output_hidden_states=True)
        rows.append(torch.cat([state[0, -1] for state in out.hidden_states]))
    return torch.stack(rows)


@torch.no_grad()
def doubt(policy: Policy, tasks: Sequence[Task]) -> np.ndarray:
    """(N,) nats: minus the log-prob of the likeliest token, where the value of a direct answer is due."""
    found = []
    for task in tasks:
        ids = [*policy.format.prompt_ids(task.messages, task.tools), *_direct(policy, task)[:VALUE]]
        found.append(-float(policy.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max()))
    return np.array(found)


def probe(train: Tensor, labels: np.ndarray, test: Tensor, hidden: int) -> np.ndarray:
    """(N,) scores of the test rows by a probe fitted to tell unknown chains; `hidden` 0 is logistic regression."""
    mean, spread = train.mean(0), train.std(0) + 1e-4
    train, test = (train - mean) / spread, (test - mean) / spread
    torch.manual_seed(0)
    wide = train.shape[1]
    deep = nn.Sequential(nn.Linear(wide, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, 1)) if hidden else None
    model = deep or nn.Linear(wide, 1)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.3)
    target = torch.tensor(labels, dtype=torch.float32)
    for _ in range(400):
        rows = torch.randint(len(train), (256,))
        loss = nn.functional.binary_cross_entropy_with_logits(model(train[rows])[:, 0], target[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()(test)[:, 0].detach().numpy()


def within_levels(scores: np.ndarray, unknown: np.ndarray, levels: np.ndarray) -> float:
    """Mean over levels of the probability that an unknown chain scores higher than a known one of its level."""
    found = []
    for k in MIXED:
        above, below = (scores[(levels == k) & (unknown == want)] for want in (True, False))
        found.append(mannwhitneyu(above, below).statistic / (len(above) * len(below)))
    return float(np.mean(found))


def reached_by(scores: np.ndarray, unknown: np.ndarray, cost: np.ndarray) -> float:
    """Accuracy on the test set of thinking above the best threshold that keeps `SAVED` of the oracle's saving."""
    oracle = cost[~unknown].sum()
    thinks = [scores >= threshold for threshold in scores]
    return max(1 - float((unknown & ~t).mean()) for t in thinks if cost[~t].sum() >= SAVED * oracle)


def _direct(policy: Policy, task: Task) -> list[int]:
    return policy.format.response_ids(next(a for a in task.answers if a.mode is Mode.NO_THINK))


def _cost(policy: Policy, task: Task) -> int:
    lengths = {a.mode: len(policy.format.response_ids(a)) for a in task.answers}
    return lengths[Mode.THINK] - lengths[Mode.NO_THINK]


def look(seed: int) -> dict[str, float]:
    """One base."""
    world, policy = CallsWorld(seed), load_start(base_path(seed))
    train = world.training_tasks(PROBE_TASKS, sum(KNOWN) / LEVELS, seed)
    test = world.evaluation_tasks(Split.TEST)
    labels = np.array([not t.extra["known"] for t in train])
    unknown, levels = np.array([not t.extra["known"] for t in test]), np.array([int(t.level) for t in test])
    found = {}
    for name, written in (("mode", 0), ("tool", 2), ("value", VALUE)):
        fitted, read = seen_at(policy, train, written), seen_at(policy, test, written)
        for kind, hidden in (("linear", 0), ("network", 64)):
            found[f"{name}_{kind}"] = within_levels(probe(fitted, labels, read, hidden), unknown, levels)
    sure = doubt(policy, test)
    found["doubt"] = within_levels(sure, unknown, levels)
    found["reached_by_doubt"] = reached_by(sure, unknown, np.array([_cost(policy, t) for t in test]))
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Print the ceilings, what each base knows where, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=1)
    bases = range(parser.parse_args().bases)
    tasks = CallsWorld(0).evaluation_tasks(Split.TEST)
    policy = load_start(base_path(0))
    cost = np.array([_cost(policy, next(t for t in tasks if t.level == str(k))) for k in range(LEVELS)], dtype=float)
    ceilings = {share: level_ceiling(share, cost) for share in SHARES}
    print(f"whoever sees only k          known share   right at {SAVED:.0%} saved   saved at {KEPT:.0%} right")
    for share, (right, saved) in ceilings.items():
        print(f"{share:40.2f} {right:20.3f} {saved:20.2f}")
    rows = [look(seed) for seed in bases]
    print("\nunknown against known chains of a level, area under the curve (.5 = chance); last: accuracy reached")
    for name in rows[0]:
        print(f"{name:20}", *(f"{row[name]:7.3f}" for row in rows))
    mean = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
    shown = {f"{share:g}": {"right": round(r, 3), "saved": round(s, 3)} for share, (r, s) in ceilings.items()}
    print(json.dumps({"bases": len(rows), "ceilings": shown, **mean}))


if __name__ == "__main__":
    main()
