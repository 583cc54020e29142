"""A trajectory is token-exact: the ids that were sampled, and everything the trainer needs about them."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.tasks.episode import Episode
from unbraid.tasks.task import Task


class Finish(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Request:
    """One response to draw. `mode` AUTO lets the model choose; another is forced as a response prefix."""

    task: Task
    prompt_ids: tuple[int, ...]
    sample: int = 0
    mode: Mode = Mode.AUTO


PER_TOKEN = ("ids", "roles", "sampled", "logprobs", "entropies")
"""The fields of `Trajectory` that have one entry per token."""


@dataclass(frozen=True)
class Response:
    """One response inside a trajectory: `ids[start:end]`, drawn after `ids[context:start]`.

    context: where the sequence begins that it continues. 0 while the context only grows; a server that shows the past
        otherwise than it was sampled (`history: as_served`) begins a new sequence behind the old one.
    mode, forced, choice_probs, finish: as in `Trajectory`.
    """

    start: int
    end: int
    context: int
    mode: Mode
    forced: Mode
    choice_probs: tuple[float, float]
    finish: Finish


@dataclass
class Trajectory:
    """One episode as sampled: a prompt and a response, or several with observations between them.

    Text is for people; nothing is ever re-tokenised.

    ids: (T,) int64, prompt then response (a forced mode's prefix belongs to the response). With several responses:
        one or more sequences, each complete by itself, one behind the other (`sequences`).
    prompt_length: tokens before the first response.
    roles: (T,) uint8, `tokens.Role`.
    sampled: (T,) bool, True where the model drew the token: only these carry loss.
    logprobs: (T,) float32, log-prob in nats under the sampling distribution (temperature included); 0 if not sampled.
    entropies: (T,) float32, entropy in nats of the distribution each sampled token was drawn from; NaN elsewhere, and
        everywhere if the sampler does not know it.
    choice_probs: probabilities of the (think, no_think) id at the mode position; NaN if the sampler does not know them,
        or if the response starts otherwise than both modes do and never comes to the choice.
        With several responses: of the first.
    mode: as read from the response, NONE if untagged or truncated. forced: the mode asked for (AUTO: a free choice).
        With several responses: `Episode.mode`.
    finish: why the (last) response ended.
    parts: the responses of an episode; empty where there is one, which the fields above describe: read `responses`.
    episode: what was said and done, as text; None for single-step tasks.
    """

    task_id: str
    sample: int
    ids: NDArray[np.int64]
    prompt_length: int
    roles: NDArray[np.uint8]
    sampled: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    entropies: NDArray[np.float32]
    choice_probs: tuple[float, float]
    mode: Mode
    forced: Mode
    finish: Finish
    level: str = ""
    source: str = ""
    reward: float = 0.0
    reward_parts: dict[str, float] = field(default_factory=dict)
    correct: bool = False
    reason: str = ""
    parts: tuple[Response, ...] = ()
    episode: Episode | None = None

    @property
    def responses(self) -> tuple[Response, ...]:
        """Every response, in order; at least one."""
        if self.parts:
            return self.parts
        whole = Response(
            self.prompt_length, len(self.ids), 0, self.mode, self.forced, self.choice_probs, self.finish
        )  # fmt: skip
        return (whole,)

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """(start, end) in `ids` of every sequence that the model saw as one: no token attends across."""
        ends = {response.context: response.end for response in self.responses}
        return list(ends.items())

    def split(self) -> list["Trajectory"]:
        """One trajectory per sequence, each with its own responses; token for token this one again."""
        pieces = []
        for start, end in self.sequences:
            own = [response for response in self.responses if response.context == start]
            parts = [replace(r, start=r.start - start, end=r.end - start, context=0) for r in own]
            arrays = {name: getattr(self, name)[start:end] for name in PER_TOKEN}
            pieces.append(replace(self, prompt_length=parts[0].start, parts=tuple(parts), **arrays))
        return pieces if self.parts else [self]

    @property
    def response_ids(self) -> NDArray[np.int64]:
        """The ids after the (first) prompt."""
        return self.ids[self.prompt_length :]

    @property
    def response_tokens(self) -> int:
        """Tokens that the model wrote, over all responses; stop tokens and forced prefixes included.

        What a response was given of an earlier one is not: tokens that were not drawn, behind the first that was.
        """
        drawn = [self.sampled[response.start : response.end] for response in self.responses]
        given = sum(int((~part[part.argmax() :]).sum()) for part in drawn if part.any())
        return sum(map(len, drawn)) - given
