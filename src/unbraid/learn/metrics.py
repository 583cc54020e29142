"""What is logged of one step's rollout: plain numbers from trajectories, no model needed."""

from collections.abc import Sequence

import numpy as np

from unbraid.chat.types import Mode
from unbraid.rollout.trajectory import Finish, Trajectory


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Accuracy, mode rates, lengths (tokens), entropies (nats) and reward parts of a batch, overall and by mode.

    Entropies are means over responses of the token mean, at the weights that sampled; NaN where the sampler gave none.
    """
    modes = np.array([t.mode.value for t in trajectories])
    correct = np.array([t.correct for t in trajectories], dtype=float)
    tokens = np.array([t.response_tokens for t in trajectories], dtype=float)
    entropy = np.array([_token_mean(t.entropies) for t in trajectories])
    levels = np.array([t.level for t in trajectories])
    read = modes != Mode.NONE.value
    rows: dict[str, float] = {
        "reward": float(np.mean([t.reward for t in trajectories])),
        "accuracy": float(correct.mean()),
        "tokens": float(tokens.mean()),
        "entropy": _mean(entropy),
        "think_rate": _mean(modes[read] == Mode.THINK.value),
        "none_rate": float((~read).mean()),
        "truncated_rate": float(np.mean([t.finish is Finish.LENGTH for t in trajectories])),
    }
    for mode in (Mode.THINK.value, Mode.NO_THINK.value):
        rows[f"accuracy/{mode}"] = _mean(correct[modes == mode])
        rows[f"tokens/{mode}"] = _mean(tokens[modes == mode])
        rows[f"entropy/{mode}"] = _mean(entropy[modes == mode])
    for level in sorted(set(levels) - {""}):
        rows[f"accuracy_level/{level}"] = _mean(correct[levels == level])
        rows[f"think_rate_level/{level}"] = _mean(modes[read & (levels == level)] == Mode.THINK.value)
    parts = sorted({name for t in trajectories for name in t.reward_parts})
    for part in parts:
        values = np.array([t.reward_parts.get(part, 0.0) for t in trajectories])
        rows[f"reward_part/{part}"] = _mean(values)
        for mode in (Mode.THINK.value, Mode.NO_THINK.value):
            rows[f"reward_part/{part}/{mode}"] = _mean(values[modes == mode])
    return rows | choice_metrics(trajectories)


def choice_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Two-way entropy of the free mode choice, and the probability mass outside the two mode ids there."""
    pairs = np.array([t.choice_probs for t in trajectories if t.forced is Mode.AUTO], dtype=float).reshape(-1, 2)
    if not np.isfinite(pairs).any():
        return {"entropy/mode": float("nan"), "mode_outside": float("nan")}
    share = pairs / pairs.sum(-1, keepdims=True).clip(min=1e-30)
    two_way = -(share * np.log(share.clip(min=1e-30))).sum(-1)
    return {"entropy/mode": _mean(two_way), "mode_outside": _mean(1 - pairs.sum(-1))}


def _token_mean(entropies: np.ndarray) -> float:
    known = entropies[np.isfinite(entropies)]
    return float(known.mean()) if len(known) else float("nan")


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
