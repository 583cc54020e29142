"""What the sampler and the trainer disagree about, and the weights that make up for it.

Both hold the same weights, but other kernels and number formats give other log-probs, so tokens are drawn from
π_sampler and learned from as if drawn from π. With

    π_old   the trainer before the update
    ρ       π_θ / π_old, what the PPO clip is about: how far this update has gone
    w       min(π_old / π_sampler, C), per token, no gradient

the policy term of a token becomes w · min(ρ A, clip(ρ) A). Without the correction the sampler's log-probs are taken
for those of π_old: ρ then holds the whole of π_θ / π_sampler. That too weighs tokens rightly, as long as the two are
closer than the clip range; beyond it the clip takes the mismatch for a step gone too far, and tokens whose advantage
and ratio go the same way lose their gradient. Which is biased: the others keep theirs.

Source: truncated importance sampling, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training"; in verl (`rollout_is`) and TRL (PR 3867, `token_truncate`). Choice: token level, because the ratio of a whole
response is a product over hundreds of tokens: its variance explodes where each token is almost right. The price: what
the sampler did earlier in a response is not made up for, so longer responses keep a bias of second order; a response
of one token has none (short of C).

What is not weighted, and why. Entropy constraints: the entropy at a position is computed over the whole vocabulary, not
estimated from the drawn token, so there is nothing to weigh; targets are also means that people read. KL: it holds the
policy back, and must not weaken where the sampler is off (verl and TRL leave it alone too). Advantages: rewards are of
whole responses, whose weight would be that product; a group's mean is a baseline, and any baseline leaves the expected
gradient as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.learn.batch import MODES, collate
from unbraid.learn.fast import score
from unbraid.policy import Policy
from unbraid.rollout.probe import Gap
from unbraid.rollout.trajectory import Trajectory


@dataclass(frozen=True)
class Seen:
    """What the trainer found of sampled tokens with the weights that sampled them, (n,) per micro-batch.

    gaps: its log-probs minus the sampler's. entropies: nats. modes: of the response, as in `TokenBatch.mode`.
    """

    gaps: list[torch.Tensor] = field(default_factory=list)
    entropies: list[torch.Tensor] = field(default_factory=list)
    modes: list[torch.Tensor] = field(default_factory=list)

    def metrics(self, cap: float | None) -> dict[str, float]:
        """The gap, and `learn/entropy`, a mean over tokens, by mode too, of all ranks; nothing if nothing was seen."""
        mine = [(g.cpu(), e.cpu(), m.cpu()) for g, e, m in zip(self.gaps, self.entropies, self.modes, strict=True)]
        every = [part for parts in ranks.gather(lambda: mine) for part in parts]
        if not every:
            return {}
        gaps, entropies, modes = (torch.cat(parts) for parts in zip(*every, strict=True))
        found = {"learn/entropy": float(entropies.mean())}
        for mode in (Mode.THINK, Mode.NO_THINK):
            own = entropies[modes == MODES.index(mode)]
            found[f"learn/entropy/{mode}"] = float(own.mean()) if len(own) else float("nan")
        return mismatch_metrics(gaps, cap) | found


@torch.no_grad()
def sequence_logprobs(
    policy: Policy, sequences: Sequence[Trajectory], micro_batch: int, temperature: float, fast: bool = True
) -> list[np.ndarray]:
    """Log-probs of the sampled tokens of every sequence under the weights that the policy holds now.

    Before an update these are the trainer's own; inside `Policy.reference()` they are the reference's.

    Args:
        sequences: trajectories of one sequence each (`Trajectory.split`).
        fast: as `learn.fast`.

    Returns:
        (T,) float64 each, as `Trajectory.logprobs`: nats, 0 where nothing was sampled.
    """
    found: list[np.ndarray] = []
    for first in range(0, len(sequences), micro_batch):
        part = sequences[first : first + micro_batch]
        batch = collate(part, np.zeros(len(part)), policy.format.modes.position, router=policy.router)
        batch = batch.to(policy.device)
        scores = score(policy, batch, temperature, fast)
        for row, sequence in enumerate(part):
            of_targets = scores.logprobs[row, : len(sequence.ids) - 1].cpu().numpy()
            found.append(np.concatenate([[0.0], of_targets]))
    return found


def to_targets(logprobs: Sequence[np.ndarray]) -> Tensor:
    """What `sequence_logprobs` found for the rows of a `TokenBatch`, aligned like it: (B, L) float64, padded with 0."""
    rows = [torch.as_tensor(values) for values in logprobs]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, 1:]


def importance_weights(trainer: Tensor, sampler: Tensor, cap: float) -> Tensor:
    """min(π_old / π_sampler, cap) per token, without gradient; 1 where nothing was sampled.

    Args:
        trainer, sampler: (B, L), log-probs of the trainer before the update and of the sampler; nats, 0 if not sampled.
    """
    return (trainer.detach() - sampler).exp().clamp(max=cap)


def mismatch_metrics(log_ratios: Tensor, cap: float | None) -> dict[str, float]:
    """What to log about n sampled tokens; nothing for n = 0.

    `sampler_gap/mean`, `sampler_gap/q99`: nats. With correction also `importance/mean`, the mean weight, and
    `importance/truncated`, the share of tokens at the cap.

    Args:
        log_ratios: (n,) log-probs of the trainer before the update minus the sampler's.
        cap: C, or None without correction.
    """
    if not len(log_ratios):
        return {}
    gap = Gap.of(log_ratios.detach().double().cpu().numpy())
    metrics = {"sampler_gap/mean": gap.mean, "sampler_gap/q99": gap.quantile}
    if cap is not None:
        weights = importance_weights(log_ratios.double(), torch.zeros_like(log_ratios, dtype=torch.float64), cap)
        metrics["importance/mean"] = float(weights.mean())
        metrics["importance/truncated"] = float((weights >= cap).double().mean())
    return metrics
