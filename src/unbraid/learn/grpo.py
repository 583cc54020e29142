"""One GRPO update: a batch of scored trajectories in, optimiser steps and what to log out.

Departures from textbook GRPO, all of them switchable: entropy constraints act beside the policy term, advantages may be
scaled by the batch instead of the group, samples that can move nothing are left out of the forward pass, and a sampler
whose log-probs are not the trainer's is made up for (`importance`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.learn.advantages import group_advantages
from unbraid.learn.batch import MODES, TokenBatch, collate, think_share
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Constraint
from unbraid.learn.fast import score
from unbraid.learn.importance import Seen, importance_weights, sequence_logprobs, to_targets
from unbraid.learn.isolation import backward
from unbraid.learn.objective import Scores, kl_terms, policy_terms, token_weights
from unbraid.learn.profile import Profile
from unbraid.learn.reduce import clip_gradients, sum_counts, sum_gradients
from unbraid.learn.schedule import rate_at
from unbraid.learn.shares import minibatches, share_out
from unbraid.policy import Policy
from unbraid.policy.sharding import in_step, is_sharded
from unbraid.rollout.trajectory import Trajectory
from unbraid.tokens import Role

SUMS: tuple[str, ...] = ("loss", "grad_norm", "clip_share", "clip_share/think", "clip_share/no_think", "kl")
"""What an optimiser step adds up to be logged. Clip shares by mode are parts of the whole, of all sampled tokens."""


@dataclass
class Update:
    """What an update did: metrics to log, the reason if there was nothing to learn from, `Profile.metrics`."""

    metrics: dict[str, float]
    nothing: str = ""
    costs: dict[str, float] = field(default_factory=dict)


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
    """Learn from one batch, which every rank has whole; each learns from its share, and all take the same steps.

    The gap between sampler and trainer is logged wherever it costs nothing: in the first optimiser step, whose forward
    pass is made with the weights that sampled; with correction, over the whole batch. Tokens that `skip_dead` leaves
    out are not in it. Entropy constraints, KL and advantages are never reweighted; `importance` says why.

    Args:
        groups: (N,) int, which prompt each trajectory answers.
        step: iteration number from 0; orders the minibatches and places schedules.
        temperature: that of sampling: the policy that is trained is the one that was sampled.
        correct: the sampler was measured to be further from the trainer than rounding (`importance: auto`).
    """
    if is_sharded(policy.model):  # the fast way runs parts of the model by themselves, whose weights are elsewhere
        config = config.model_copy(update={"fast": False})
    rewards = np.array([t.reward for t in trajectories], dtype=np.float64)
    advantages = group_advantages(rewards, groups, config.advantage_scale)
    rounds = minibatches(groups, config, step)
    first_epoch = rounds[: len(rounds) // config.epochs]
    corrected = config.importance == "always" or (config.importance == "auto" and correct)
    cap = config.importance_cap if corrected else None
    lengths = np.array([len(t.ids) for t in trajectories])
    owners = share_out(first_epoch, groups, lengths, ranks.world())
    pieces = [
        p for p in _pieces(policy, trajectories, advantages, constraints, config) if owners[p.row] == ranks.rank()
    ]
    work = _Work(
        policy, trajectories, groups, advantages, pieces, constraints, config, temperature, cap, Profile(policy.device)
    )  # fmt: skip
    work = replace(work, pieces=_with_logprobs(work, first_epoch, before=corrected and len(rounds) > 1))
    rate = rate_at(step, config.steps, config.learning_rate, config.ramp_steps, config.decay)
    for setting in optimiser.param_groups:
        setting["lr"] = rate
    sums = dict.fromkeys(SUMS, 0.0)
    logged: dict[str, float] = {}
    seen = Seen()
    for turn, rows in enumerate(rounds):
        # After the first step the weights have moved; with correction those before are known all the same, and each
        # token is counted in the first epoch only.
        known = turn == 0 or (corrected and turn < len(first_epoch))
        part = _optimiser_step(work, rows, optimiser, seen if known else None)
        sums = {k: sums[k] + part[k] / len(rounds) for k in sums}
        for constraint in constraints:
            logged.update(constraint.update(progress=(step + (turn + 1) / len(rounds)) / config.steps))
    dead = [g for g in np.unique(groups) if not advantages[groups == g].any()]
    metrics = {**sums, "lr": rate, "dead_groups": len(dead) / len(np.unique(groups)), **logged}
    metrics |= seen.metrics(cap)
    if not config.needs_reference:
        del metrics["kl"]
    return Update(metrics, _why_nothing(rewards, advantages, constraints, config), work.profile.metrics(policy.model))


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
    groups: np.ndarray
    advantages: np.ndarray
    pieces: Sequence[_Piece]
    constraints: Sequence[Constraint]
    config: LearnConfig
    temperature: float
    cap: float | None
    profile: Profile


def _optimiser_step(
    work: _Work, rows: np.ndarray, optimiser: torch.optim.Optimizer, seen: Seen | None
) -> dict[str, float]:
    """Gradients over all micro-batches of one minibatch, then one step."""
    policy, config, modes = work.policy, work.config, work.policy.format.modes
    minibatch, members = [work.trajectories[i] for i in rows], set(rows.tolist())
    responses, tokens = sum(len(t.responses) for t in minibatch), sum(t.sampled.sum() for t in minibatch)
    totals = Totals(len(minibatch), responses, float(tokens))
    share = think_share(minibatch)
    pieces = [p for p in work.pieces if p.row in members]
    sums = dict.fromkeys(SUMS, 0.0)
    policy.model.train()
    optimiser.zero_grad(set_to_none=True)
    parts = list(_micro_batches(pieces, work.groups, config))
    with in_step(policy.model, len(parts)):
        for part in parts:
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
            with work.profile("forward"):
                scores = score(policy, batch, work.temperature, config.fast, work.profile)
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
            with work.profile("backward"):
                backward(policy.model, loss, scores.with_gradient, batch.owners)
            # What no loss used, the graph of entropies perhaps, would live through the next forward pass.
            del scores, loss
    parameters = [p for _, p in policy.trainable()]
    sum_gradients(parameters)
    sums = dict(zip(sums, sum_counts(list(sums.values())), strict=True))
    if any(p.grad is not None for p in parameters):
        with work.profile("optimiser"):
            sums["grad_norm"] = clip_gradients(parameters, config.max_grad_norm)
            optimiser.step()
    return sums


def _micro_batches(pieces: Sequence[_Piece], groups: np.ndarray, config: LearnConfig) -> Iterator[list[_Piece]]:
    """Sequences that go through the model together, in an order that is a function of the batch alone.

    Plain: short with short, for there is less padding then. Fast: whole groups, which have a prompt to share, short
    groups first; as many sequences as padded take no more than `config.micro_batch` of the longest.
    """
    lengths = [len(p.sequence.ids) for p in pieces]
    longest: dict[int, int] = {}
    for p, length in zip(pieces, lengths, strict=True):
        longest[groups[p.row]] = max(longest.get(groups[p.row], 0), length)
    order = sorted(range(len(pieces)), key=lambda i: lengths[i])
    if config.fast:
        order.sort(key=lambda i: (longest[groups[pieces[i].row]], groups[pieces[i].row]))
    room = config.micro_batch * max(lengths, default=0)
    part: list[_Piece] = []
    widest = 0
    for i in order:
        widest = max(widest, lengths[i])
        if part and (widest * (len(part) + 1) > room if config.fast else len(part) == config.micro_batch):
            yield part
            part, widest = [], lengths[i]
        part.append(pieces[i])
    if part:
        yield part


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
    seen: Seen | None = None,
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
    # Divided by all tokens all the same: the gradients of both roles add up to that of `both`.
    own = weights if config.roles == "both" else weights * (batch.roles == Role[config.roles.upper()])
    loss = (terms * own).sum()
    if config.needs_reference:
        divergences = kl_terms(scores.logprobs, batch.reference_logprobs)
        divergence, off_role = (divergences * weights).sum(), (divergences * (weights - own)).sum()
        sums["kl"] += float(divergence.detach())
        loss = loss + config.kl * divergence + config.off_role_kl * off_role
    for constraint in constraints:
        loss = loss - constraint.bonus(batch, scores, totals.responses)
    sums["loss"] += float(loss.detach())
    bound = clipped & batch.sampled
    sums["clip_share"] += float(bound.sum()) / max(totals.tokens, 1)
    for mode in (Mode.THINK, Mode.NO_THINK):
        sums[f"clip_share/{mode}"] += float((bound & (batch.mode == MODES.index(mode))).sum()) / max(totals.tokens, 1)
    return loss


def _needed(
    trajectory: Trajectory,
    advantage: float,
    constraints: Sequence[Constraint],
    config: LearnConfig,
    choice_position: int,
) -> Trajectory | None:
    """As much of a trajectory as can move anything: all of it, up to the choice of mode, or nothing."""
    active = [c for c in constraints if not c.is_idle()]
    whole = advantage != 0 or config.needs_reference or any(c.config.measure == "response" for c in active)
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


def _with_logprobs(work: _Work, rounds: Sequence[np.ndarray], *, before: bool) -> list[_Piece]:
    """The pieces with their log-probs under the reference if there is a KL term, and, if asked for, `before`.

    They are computed in the micro-batches of `rounds`, the first epoch, so that equal weights give equal bits. Else the
    KL term of a policy that has not moved would have a gradient of rounding errors, which AdamW makes a whole step of.
    """

    def logprobs() -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for rows in rounds:
            parts = list(_micro_batches([p for p in pieces if p.row in set(rows.tolist())], work.groups, config))
            with in_step(work.policy.model, len(parts), learn=False):
                for part in parts:
                    sequences = [p.sequence for p in part]
                    values = sequence_logprobs(work.policy, sequences, len(part), work.temperature, config.fast)
                    found |= {id(p): own for p, own in zip(part, values, strict=True)}
        return [found[id(p)] for p in pieces]

    pieces, config = list(work.pieces), work.config
    if config.needs_reference:
        with work.profile("reference"), work.policy.reference():
            values = logprobs()
        pieces = [replace(p, reference=own) for p, own in zip(pieces, values, strict=True)]
    if before:
        with work.profile("before"):
            values = logprobs()
        pieces = [replace(p, before=own) for p, own in zip(pieces, values, strict=True)]
    return pieces


def _why_nothing(
    rewards: np.ndarray, advantages: np.ndarray, constraints: Sequence[Constraint], config: LearnConfig
) -> str:
    """Why the loss is exactly zero, or "" when it is not."""
    if advantages.any() or config.needs_reference or not all(c.is_idle() for c in constraints):
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
