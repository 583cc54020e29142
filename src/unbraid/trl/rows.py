"""A batch of TRL's as ours: which tokens the model drew, in what role and mode, and where it chose the mode.

TRL knows prompts and completions. A completion is one response, or several with results of tools between them, which
`tool_mask` leaves out. A mode that was forced stands at the end of what came before: its prefix belongs to the response
(for roles and mode), and none of it was drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.learn.batch import MODES, TokenBatch
from unbraid.tokens import Role, written_spans

Inputs = Mapping[str, Tensor]
"""What TRL makes of its samples: prompt_ids, prompt_mask (B, P) padded on the left, completion_ids, completion_mask and
perhaps tool_mask (B, C) padded on the right, advantages (B,)."""


@dataclass(frozen=True)
class Part:
    """One response: tokens [start, end) of a completion. choice: where the model chose the mode, or −1."""

    start: int
    end: int
    roles: NDArray[np.uint8]
    mode: Mode
    forced: Mode
    choice: int


@dataclass(frozen=True)
class Counted:
    """Sums over sequences: how many they are, their responses, free choices of mode, and how many of these think."""

    sequences: float
    responses: float
    free: float
    think: float


def responses_of(before: NDArray[np.int64], ids: NDArray[np.int64], drawn: NDArray, format: ChatFormat) -> list[Part]:
    """The responses in one completion.

    Args:
        before: ids of the prompt. ids: of the completion, without padding. drawn: bool, the model drew this token.
    """
    found, modes = [], format.modes
    whole, offset = np.concatenate([before, ids]).tolist(), len(before)
    for start, end in written_spans(drawn):
        forced = _forced(whole[: offset + start], format)
        prefix = list(modes.of(forced))
        response = prefix + whole[offset + start : offset + end]
        roles = format.automaton.label(response)[len(prefix) :]
        # Choice, as in `ChatFormat.read`: a truncated response has no mode.
        mode = modes.read(response) if response[-1] in format.stop_ids else Mode.NONE
        at = modes.position
        chooses = not prefix and at < len(response) and tuple(response[:at]) == modes.shared
        found.append(Part(start, end, roles, mode, forced, start + at if chooses else -1))
    return found


def batch_of(inputs: Inputs, format: ChatFormat, think_share: float) -> TokenBatch:
    """The batch over the last token of each prompt and its completion: T = 1 + C, so column t is completion token t.

    Log-probs of sampler and reference are not in it: nothing here asks for them.
    """
    ids, mask = inputs["completion_ids"], inputs["completion_mask"]
    rows, length = ids.shape
    sampled, choice = np.zeros((2, rows, length), dtype=bool)
    roles = np.full((rows, length), Role.OBSERVATION, dtype=np.uint8)
    response = np.full((rows, length), -1, dtype=np.int64)
    mode = np.full((rows, length), MODES.index(Mode.NONE), dtype=np.int64)
    for row, parts in enumerate(rows_of(inputs, format)):
        for number, part in enumerate(parts):
            span = slice(part.start, part.end)
            sampled[row, span], roles[row, span] = True, part.roles
            response[row, span], mode[row, span] = number, MODES.index(part.mode)
            if part.choice >= 0:
                choice[row, part.choice] = True
    zeros = torch.zeros(rows, length)
    return TokenBatch(
        ids=torch.cat([inputs["prompt_ids"][:, -1:], ids], dim=1),
        attention=torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1),
        sampled=torch.from_numpy(sampled),
        roles=torch.from_numpy(roles),
        old_logprobs=zeros,
        reference_logprobs=zeros,
        advantages=inputs["advantages"].double(),
        response=torch.from_numpy(response),
        mode=torch.from_numpy(mode),
        choice=torch.from_numpy(choice),
        tokens=torch.from_numpy(sampled.sum(1).astype(np.float64)),
        think_share=torch.full((rows,), think_share, dtype=torch.float64),
    ).to(ids.device)


def rows_of(inputs: Inputs, format: ChatFormat) -> list[list[Part]]:
    """The responses in each sequence."""
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    prompts, seen, completions, there = (inputs[name].cpu().numpy() for name in names)
    drawn = inputs["tool_mask"].cpu().numpy().astype(bool) if "tool_mask" in inputs else np.ones_like(there, dtype=bool)
    found = []
    for row, mask in enumerate(there.astype(bool)):
        prompt = prompts[row][seen[row].astype(bool)]
        found.append(responses_of(prompt, completions[row][mask], drawn[row][mask], format))
    return found


def count(inputs: Inputs, format: ChatFormat) -> Counted:
    """What the loss of every part of a batch has to know of the whole batch."""
    rows = rows_of(inputs, format)
    free = [part.mode for parts in rows for part in parts if part.forced is Mode.AUTO and part.mode is not Mode.NONE]
    return Counted(len(rows), sum(map(len, rows)), len(free), sum(mode is Mode.THINK for mode in free))


def _forced(context: list[int], format: ChatFormat) -> Mode:
    """The mode whose whole prefix a context ends with, AUTO if none."""
    for mode in (Mode.THINK, Mode.NO_THINK):
        prefix = list(format.modes.of(mode))
        if context[-len(prefix) :] == prefix:
            return mode
    return Mode.AUTO
