"""A trajectory is token-exact: the ids that were sampled, and everything the trainer needs about them."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode


class Finish(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass
class Trajectory:
    """One prompt and one response, as sampled. Text is for people; nothing is ever re-tokenised.

    ids: (T,) int64, prompt then response (a forced mode's prefix belongs to the response).
    prompt_length: tokens before the response.
    roles: (T,) uint8, `tokens.Role`.
    sampled: (T,) bool, True where the model drew the token: only these carry loss.
    logprobs: (T,) float32, log-prob in nats under the sampling distribution (temperature included); 0 if not sampled.
    entropies: (T,) float32, entropy in nats of the distribution each sampled token was drawn from; NaN elsewhere, and
        everywhere if the sampler does not know it.
    choice_probs: probabilities of the (think, no_think) id at the mode position; NaN if the sampler does not know them,
        or if the response starts otherwise than both modes do and never comes to the choice.
    mode: as read from the response, NONE if untagged or truncated. forced: the mode asked for (AUTO: a free choice).
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

    @property
    def response_ids(self) -> NDArray[np.int64]:
        return self.ids[self.prompt_length :]

    @property
    def response_tokens(self) -> int:
        """Length of the response in tokens, the stop token and a forced prefix included."""
        return len(self.ids) - self.prompt_length
