"""One GRPO update: a batch of scored trajectories in, optimiser steps and what to log out.

Departures from textbook GRPO, all of them switchable: entropy constraints act beside the policy term, advantages may be
scaled by the batch instead of the group, samples that can move nothing are left out of the forward pass, and a sampler
whose log-probs are not the trainer's is made up for (`importance`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from unbraid.chat.types import Mode
from unbraid.learn.advantages import Scale, group_advantages
from unbraid.learn.batch import MODES, TokenBatch, collate, think_share
from unbraid.learn.constraint import Constraint
from unbraid.learn.importance import importance_weights, mismatch_metrics, sequence_logprobs, to_targets
from unbraid.learn.isolation import backward
from unbraid.learn.objective import Averaging, Scores, kl_terms, policy_terms, score_tokens, token_weights
from unbraid.learn.schedule import Decay, rate_at
from unbraid.policy import Policy
from unbraid.rollout.trajectory import Trajectory


class LearnConfig(BaseModel):
    """The RL step. Unpublished for AutoTool unless marked; defaults are what the lab supports."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=100, ge=1)
    """Rollout-and-update iterations."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak of AdamW's rate (peers' value for full fine-tuning of 7B models)."""
    ramp_steps: int = Field(default=0, ge=0)
    """Steps of linear rise to the peak."""
    decay: Decay = "constant"
    """What the rate does after the rise: held, or down to 5 % of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm at which clipping starts."""
    advantage_scale: Scale = "batch"
    """`group` is GRPO (and the paper); `batch` keeps what is at stake in a prompt, see docs/concepts.md."""
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.2, gt=0)
    """PPO clip: ratios beyond [1 − low, 1 + high] get no gradient."""
    averaging: Averaging = "sample"
    """Mean over each response and then over samples (paper), or over all tokens."""
    mode_weight: float = Field(default=1.0, gt=0)
    """Weight of the choice of mode in the policy term; every other token has 1. It is one token among dozens and is
    learned slowly without. Source of the idea: the separate control-token loss of Thinkless (arXiv 2505.13379)."""
    kl: float = Field(default=0.0, ge=0)
    """Coefficient of KL to the start of training (k3). The paper quotes none."""
    importance: Literal["auto", "always", "never"] = "auto"
    """Weights on sampled tokens where the sampler's log-probs are not the trainer's (truncated importance sampling).
    `auto`: in the steps whose sampler was measured to be further off than rounding. Choice: a sampler that agrees
    needs no second old policy."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest such weight. Source: verl's and ms-swift's default."""
    epochs: int = Field(default=1, ge=1)
    """Passes over each batch of trajectories."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps per pass."""
    micro_batch: int = Field(default=16, ge=1)
    """Samples per forward pass: memory only, never the result."""
    skip_dead: bool = True
    """Leave samples without advantage out of the forward pass when no entropy or KL term needs them."""

    probe_every: int = Field(default=0, ge=0)
    """Steps between forced-mode probes of what thinking is worth; 0 = never. Costs two responses per prompt."""
    stop_on_collapse: bool = False
    """End the run when one mode has vanished for good."""


SUMS: tuple[str, ...] = ("loss", "grad_norm", "clip_share", "clip_share/think", "clip_share/no_think", "kl")
"""What an optimiser step adds up to be logged. Clip shares by mode are parts of the whole, of all sampled tokens."""


@dataclass
class Update:
    """What an update did: metrics to log, and the reason if there was nothing to learn from."""

    metrics: dict[str, float]
    nothing: str = ""


def make_optimiser(policy: Policy, config: LearnConfig) -> torch.optim.Optimizer:
    """AdamW over everything trainable; the learning rate is set at each update."""
    parameters = [p for _, p in policy.trainable()]
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def update(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    groups: np.ndarray,
    optimiser: torch.optim.Optimizer,
    constraints: Sequence[Constraint],
    config: LearnConfig,
    *,
    step: int,
    temperature: float,
    correct: bool = False,
) -> Update:
    """Learn from one batch.

    The gap between sampler and trainer is logged wherever it costs nothing: in the first optimiser step, whose forward
    pass is made with the weights that sampled; with correction, over the whole batch. Tokens that `skip_dead` leaves
    out are not in it. Entropy constraints, KL and advantages are never reweighted; `importance` says why.

    Args:
        groups: (N,) int, which prompt each trajectory answers.
        step: iteration number from 0; orders the minibatches and places schedules.
        temperature: that of sampling: the policy that is trained is the one that was sampled.
        correct: the sampler was measured to be further from the trainer than rounding (`importance: auto`).
    """
    rewards = np.array([t.reward for t in trajectories], dtype=np.float64)
    advantages = group_advantages(rewards, groups, config.advantage_scale)
    rounds = _minibatches(groups, config, step)
    corrected = config.importance == "always" or (config.importance == "auto" and correct)
    cap = config.importance_cap if corrected else None
    pieces = _pieces(policy, trajectories, advantages, constraints, config)
    pieces = _with_logprobs(policy, pieces, config, temperature, before=corrected and len(rounds) > 1)
    work = _Work(policy, trajectories, advantages, pieces, constraints, config, temperature, cap)
    rate = rate_at(step, config.steps, config.learning_rate, config.ramp_steps, config.decay)
    for setting in optimiser.param_groups:
        setting["lr"] = rate
    sums = dict.fromkeys(SUMS, 0.0)
    logged: dict[str, float] = {}
    seen = Seen()
    for turn, rows in enumerate(rounds):
        # After the first step the weights have moved; with correction those before are known all the same, and each
        # token is counted in the first epoch only.
        known = turn == 0 or (corrected and turn < len(rounds) // config.epochs)
        part = _optimiser_step(work, rows, optimiser, seen if known else None)
        sums = {k: sums[k] + part[k] / len(rounds) for k in sums}
        for constraint in constraints:
            logged.update(constraint.update(progress=(step + (turn + 1) / len(rounds)) / config.steps))
    dead = [g for g in np.unique(groups) if not advantages[groups == g].any()]
    metrics = {**sums, "lr": rate, "dead_groups": len(dead) / len(np.unique(groups)), **logged}
    metrics |= seen.metrics(cap)
    if not config.kl:
        del metrics["kl"]
    return Update(metrics, _why_nothing(rewards, advantages, constraints, config))


@dataclass(frozen=True)
class Seen:
    """What the trainer found of sampled tokens with the weights that sampled them, (n,) per micro-batch.

    gaps: its log-probs minus the sampler's. entropies: nats. modes: of the response, as in `TokenBatch.mode`.
    """

    gaps: list[torch.Tensor] = field(default_factory=list)
    entropies: list[torch.Tensor] = field(default_factory=list)
    modes: list[torch.Tensor] = field(default_factory=list)

    def metrics(self, cap: float | None) -> dict[str, float]:
        """The gap, and `learn/entropy`, a mean over tokens, by mode too; nothing if nothing was seen."""
        if not self.gaps:
            return {}
        entropies, modes = torch.cat(self.entropies), torch.cat(self.modes)
        found = {"learn/entropy": float(entropies.mean())}
        for mode in (Mode.THINK, Mode.NO_THINK):
            own = entropies[modes == MODES.index(mode)]
            found[f"learn/entropy/{mode}"] = float(own.mean()) if len(own) else float("nan")
        return mismatch_metrics(torch.cat(self.gaps), cap) | found


@dataclass(frozen=True)
class _Piece:
    """One sequence that the model saw as one, as much of it as the loss needs.

    row: the trajectory it belongs to. tokens: sampled tokens of that whole trajectory.
    reference, before: (T,) log-probs under the reference, and the trainer's before the update; None = not asked for.
    """

    row: int
    sequence: Trajectory
    tokens: float
    reference: np.ndarray | None = None
    before: np.ndarray | None = None


@dataclass(frozen=True)
class _Work:
    """What all optimiser steps of one update share. cap: of the importance weights; None = no correction."""

    policy: Policy
    trajectories: Sequence[Trajectory]
    advantages: np.ndarray
    pieces: Sequence[_Piece]
    constraints: Sequence[Constraint]
    config: LearnConfig
    temperature: float
    cap: float | None


def _optimiser_step(
    work: _Work, rows: np.ndarray, optimiser: torch.optim.Optimizer, seen: "Seen | None"
) -> dict[str, float]:
    """Gradients over all micro-batches of one minibatch, then one step."""
    policy, config, modes = work.policy, work.config, work.policy.format.modes
    minibatch, members = [work.trajectories[i] for i in rows], set(rows.tolist())
    totals = Totals(
        samples=len(minibatch),
        responses=sum(len(t.responses) for t in minibatch),
        tokens=float(sum(t.sampled.sum() for t in minibatch)),
    )
    share = think_share(minibatch)
    # Short with short: less padding. Ties keep their order, so that it is a function of the batch alone.
    pieces = sorted((p for p in work.pieces if p.row in members), key=lambda p: len(p.sequence.ids))
    sums = dict.fromkeys(SUMS, 0.0)
    policy.model.train()
    optimiser.zero_grad(set_to_none=True)
    for first in range(0, len(pieces), config.micro_batch):
        part = pieces[first : first + config.micro_batch]
        references, before = [p.reference for p in part], [p.before for p in part if p.before is not None]
        batch = collate(
            [p.sequence for p in part],
            work.advantages[[p.row for p in part]],
            modes.position,
            [r for r in references if r is not None] or None,
            share,
            modes.shared,
            [p.tokens for p in part],
            policy.router,
        ).to(policy.device)
        scores = score_tokens(policy.model, batch, work.temperature, modes.choice_ids)
        loss = micro_batch_loss(
            scores,
            batch,
            work.constraints,
            config,
            totals,
            sums,
            cap=work.cap,
            before=to_targets(before).to(policy.device) if before else None,
            seen=seen,
        )
        backward(policy.model, loss, scores.with_gradient, batch.owners)
    if pieces:
        parameters = [p for _, p in policy.trainable()]
        sums["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        optimiser.step()
    return sums


@dataclass(frozen=True)
class Totals:
    """Counts over a whole minibatch (all micro-batches and ranks), so that shares add up however it is split."""

    samples: float
    responses: float
    tokens: float


def micro_batch_loss(
    scores: Scores,
    batch: TokenBatch,
    constraints: Sequence[Constraint],
    config: LearnConfig,
    totals: Totals,
    sums: dict[str, float],
    *,
    cap: float | None = None,
    before: torch.Tensor | None = None,
    seen: "Seen | None" = None,
) -> torch.Tensor:
    """This micro-batch's share of the loss: policy term + KL − entropy bonuses; adds what to log to `sums`.

    Args:
        scores: what the policy says of the batch.
        cap: of the importance weights on the policy term; None takes the sampler's log-probs for the old policy's.
        before: (B, L), the trainer's log-probs before the update; None if no weight has moved since: then they are
            those of this forward pass.
        seen: gets what a forward pass with the weights that sampled says of the sampled tokens.
    """
    weights = token_weights(batch, config.averaging, totals.samples, totals.tokens, config.mode_weight)
    before = scores.logprobs.detach() if before is None else before.to(scores.logprobs.dtype)
    if seen is not None:
        seen.gaps.append((before - batch.old_logprobs)[batch.sampled])
        seen.entropies.append(scores.entropy.detach()[batch.sampled])
        seen.modes.append(batch.mode[batch.sampled])
    old = batch.old_logprobs if cap is None else before
    terms, clipped = policy_terms(scores.logprobs, old, batch.advantages, config.clip_low, config.clip_high)
    if cap is not None:
        terms = terms * importance_weights(before, batch.old_logprobs, cap)
    loss = (terms * weights).sum()
    if config.kl:
        divergence = (kl_terms(scores.logprobs, batch.reference_logprobs) * weights).sum()
        sums["kl"] += float(divergence.detach())
        loss = loss + config.kl * divergence
    for constraint in constraints:
        loss = loss - constraint.bonus(batch, scores, totals.responses)
    sums["loss"] += float(loss.detach())
    bound = clipped & batch.sampled
    sums["clip_share"] += float(bound.sum()) / max(totals.tokens, 1)
    for mode in (Mode.THINK, Mode.NO_THINK):
        sums[f"clip_share/{mode}"] += float((bound & (batch.mode == MODES.index(mode))).sum()) / max(totals.tokens, 1)
    return loss


def _minibatches(groups: np.ndarray, config: LearnConfig, step: int) -> list[np.ndarray]:
    """Row indices of every optimiser step, whole groups together, in an order keyed by the step."""
    names, rounds = np.unique(groups), []
    for epoch in range(config.epochs):
        shuffled = np.random.default_rng((step, epoch)).permutation(names) if config.minibatches > 1 else names
        for part in np.array_split(shuffled, min(config.minibatches, len(names))):
            rounds.append(np.flatnonzero(np.isin(groups, part)))
    return rounds


def _needed(
    trajectory: Trajectory,
    advantage: float,
    constraints: Sequence[Constraint],
    config: LearnConfig,
    choice_position: int,
) -> Trajectory | None:
    """As much of a trajectory as can move anything: all of it, up to the choice of mode, or nothing."""
    active = [c for c in constraints if not c.is_idle()]
    whole = advantage != 0 or config.kl or any(c.config.measure == "response" for c in active)
    if not trajectory.sampled.any():
        return None
    if whole or not config.skip_dead:
        return trajectory
    if trajectory.parts:
        return trajectory if active else None
    end = trajectory.prompt_length + choice_position + 1
    if active and end <= len(trajectory.ids):
        return replace(
            trajectory,
            ids=trajectory.ids[:end],
            roles=trajectory.roles[:end],
            sampled=trajectory.sampled[:end],
            logprobs=trajectory.logprobs[:end],
            entropies=trajectory.entropies[:end],
        )
    return None


def _pieces(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    advantages: np.ndarray,
    constraints: Sequence[Constraint],
    config: LearnConfig,
) -> list[_Piece]:
    """The sequences that can move anything, in the order of their trajectories."""
    found: list[_Piece] = []
    for row, trajectory in enumerate(trajectories):
        kept = _needed(trajectory, float(advantages[row]), constraints, config, policy.format.modes.position)
        if kept:
            found += [_Piece(row, sequence, float(kept.sampled.sum())) for sequence in kept.split()]
    return found


def _with_logprobs(
    policy: Policy, pieces: list[_Piece], config: LearnConfig, temperature: float, *, before: bool
) -> list[_Piece]:
    """The pieces with their log-probs under the reference if there is a KL term, and, if asked for, `before`."""
    sequences = [p.sequence for p in pieces]
    if config.kl:
        with policy.reference():
            found = sequence_logprobs(policy, sequences, config.micro_batch, temperature)
        pieces = [replace(p, reference=values) for p, values in zip(pieces, found, strict=True)]
    if before:
        found = sequence_logprobs(policy, sequences, config.micro_batch, temperature)
        pieces = [replace(p, before=values) for p, values in zip(pieces, found, strict=True)]
    return pieces


def _why_nothing(
    rewards: np.ndarray, advantages: np.ndarray, constraints: Sequence[Constraint], config: LearnConfig
) -> str:
    """Why the loss is exactly zero, or "" when it is not."""
    if advantages.any() or config.kl or not all(c.is_idle() for c in constraints):
        return ""
    best, worst = float(rewards.max()), float(rewards.min())
    detail = f"every reward is {best:g}" if best == worst else f"rewards lie in [{worst:g}, {best:g}]"
    return (
        f"the loss is exactly 0: within every group all rewards are equal ({detail}), so no sample has an advantage; "
        "give the step tasks of other difficulty, more samples per prompt, or a higher temperature"
    )


def mode_flags(trajectories: Sequence[Trajectory]) -> tuple[np.ndarray, np.ndarray]:
    """What `mode_votes` needs: the share of think in each trajectory's free responses, and which have any; (N,)."""
    free = [[r.mode for r in t.responses if r.forced is Mode.AUTO and r.mode is not Mode.NONE] for t in trajectories]
    think = np.array([np.mean([mode is Mode.THINK for mode in modes]) if modes else 0.0 for modes in free])
    return think, np.array([bool(modes) for modes in free])
