"""Trajectories as tensors. Everything is aligned to targets: column t speaks of predicting ids[:, t + 1]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from unbraid.chat.types import Mode
from unbraid.policy.policy import written_by_model
from unbraid.policy.routed_lora import Routes
from unbraid.rollout.trajectory import Trajectory

MODES = (Mode.NO_THINK, Mode.THINK, Mode.NONE)
"""Order of the integer codes in `TokenBatch.mode`."""


@dataclass
class TokenBatch:
    """B sequences, padded on the right to T tokens; L = T − 1 targets.

    ids: (B, T) long. attention: (B, T) long, 1 where a token is.
    sampled: (B, L) bool, the target was drawn by the policy: it carries loss.
    roles: (B, L) uint8, role of the target. old_logprobs: (B, L) float32, of the sampler.
    reference_logprobs: (B, L) float32, of the reference; zeros when there is no KL term.
    advantages: (B,) float64.
    response: (B, L) long, number of the response that the target belongs to, from 0; −1 outside responses.
    mode: (B, L) long, index into MODES: the mode of that response.
    choice: (B, L) bool, targets that are a free choice of mode: at most one per response.
    tokens: (B,) float64, sampled tokens of the whole trajectory (the normaliser of the sample mean).
    think_share: (B,) float64, the mean probability of think over the free choices of the whole minibatch.
    routes: (B, T) int8, the route of every input position, and owners: (B, L) int8, the adapter that the loss of a
        target is meant for; None for policies that do not route.
    """

    ids: Tensor
    attention: Tensor
    sampled: Tensor
    roles: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    advantages: Tensor
    response: Tensor
    mode: Tensor
    choice: Tensor
    tokens: Tensor
    think_share: Tensor
    routes: Tensor | None = None
    owners: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "TokenBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return TokenBatch(**{name: tensor.to(device) for name, tensor in tensors.items()})


def collate(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[float] | np.ndarray,
    choice_position: int,
    reference_logprobs: Sequence[np.ndarray] | None = None,
    think_share: float = math.nan,
    before_choice: tuple[int, ...] = (),
    tokens: Sequence[float] | None = None,
    router: Routes | None = None,
) -> TokenBatch:
    """Pad trajectories of one sequence each (`Trajectory.split`) on the right.

    Args:
        choice_position: index of the mode token in a response (`ModePrefixes.position`).
        before_choice: what both modes start with (`ModePrefixes.shared`): after other ids that token chooses no mode.
        reference_logprobs: per trajectory (T,), as `Trajectory.logprobs`; None for no KL term.
        think_share: `think_share` of the whole minibatch that this is a part of.
        tokens: sampled tokens of the whole trajectories that these are sequences of; None where these are whole.
        router: of the policy that is to learn, if it routes.
    """
    rows, longest = len(trajectories), max(len(t.ids) for t in trajectories)

    def pad(values: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        out = torch.zeros((rows, longest), dtype=dtype)
        for row, value in enumerate(values):
            out[row, : len(value)] = torch.as_tensor(value, dtype=dtype)
        return out

    choice = torch.zeros((rows, longest), dtype=torch.bool)
    response = torch.full((rows, longest), -1)
    mode = torch.full((rows, longest), MODES.index(Mode.NONE))
    for row, t in enumerate(trajectories):
        for number, part in enumerate(t.responses):
            response[row, part.start : part.end] = number
            mode[row, part.start : part.end] = MODES.index(part.mode)
            at = part.start + choice_position
            chosen = tuple(t.ids[at - len(before_choice) : at].tolist()) == before_choice
            choice[row, at : at + 1] = bool(at < part.end and t.sampled[at] and chosen)
    routes = owners = None
    if router:
        written = [written_by_model(t.roles) for t in trajectories]
        routes = pad([router.route(t.ids, w) for t, w in zip(trajectories, written, strict=True)], torch.int8)
        owners = pad([router.owners(t.ids, w) for t, w in zip(trajectories, written, strict=True)], torch.int8)[:, :-1]
    reference = reference_logprobs or [np.zeros(1, dtype=np.float32)] * rows
    return TokenBatch(
        ids=pad([t.ids for t in trajectories], torch.long),
        attention=pad([np.ones(len(t.ids)) for t in trajectories], torch.long),
        sampled=pad([t.sampled for t in trajectories], torch.bool)[:, 1:],
        roles=pad([t.roles for t in trajectories], torch.uint8)[:, 1:],
        old_logprobs=pad([t.logprobs for t in trajectories], torch.float32)[:, 1:],
        reference_logprobs=pad(reference, torch.float32)[:, 1:],
        advantages=torch.as_tensor(np.asarray(advantages), dtype=torch.float64),
        response=response[:, 1:],
        mode=mode[:, 1:],
        choice=choice[:, 1:],
        tokens=torch.tensor(tokens or [float(t.sampled.sum()) for t in trajectories], dtype=torch.float64),
        think_share=torch.full((rows,), think_share, dtype=torch.float64),
        routes=routes,
        owners=owners,
    )


def think_share(trajectories: Sequence[Trajectory]) -> float:
    """Mean two-way probability of think over the free choices, at the weights that sampled; NaN without any.

    Responses that never come to the choice take no part. A sampler that gives no choice probabilities leaves the
    observed modes as the estimate.
    """
    free = [r for t in trajectories for r in t.responses if r.forced is Mode.AUTO]
    pairs = np.array([r.choice_probs for r in free], dtype=float).reshape(-1, 2)
    pairs = pairs[pairs.sum(-1) > 0]  # neither NaN nor two probabilities that underflowed
    if len(pairs):
        return float((pairs[:, 0] / pairs.sum(-1)).mean())
    read = [r.mode is Mode.THINK for r in free if r.mode is not Mode.NONE]
    return float(np.mean(read)) if read else math.nan
