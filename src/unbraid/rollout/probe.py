"""Whether a server draws from the policy that is trained: its log-probs against the trainer's own, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed

PROBE_PROMPTS = 8
PROBE_TOKENS = 24
MEAN_LIMITS = {"float64": 5e-4, "float32": 5e-4, "bfloat16": 3e-2, "float16": 1e-2}
"""Choice: mean |Δ log-prob| in nats up to which rounding explains a gap, by dtype. In float32 the same weights give
about 1e-6 and one step of learning some 1e-3; in bfloat16 different kernels alone give about 1e-2."""
QUANTILE_FACTOR = 10
"""Choice: the 99 % quantile may be so many times the limit of the mean."""
HARD_FACTOR = 10
"""Choice: so many times the limit, another policy is being sampled, and no weight makes up for that."""


@dataclass(frozen=True)
class Gap:
    """|Δ log-prob| between server and trainer over `tokens` drawn tokens, in nats."""

    mean: float
    quantile: float
    largest: float
    tokens: int

    @classmethod
    def of(cls, differences: NDArray[np.float64]) -> "Gap":
        """Of differences of either sign, (N,)."""
        size = np.abs(differences)
        return cls(float(size.mean()), float(np.quantile(size, 0.99)), float(size.max()), len(size))

    def over(self, limit: float) -> float:
        """How many times the limit this is: up to 1 is rounding."""
        found = max(self.mean, self.quantile / QUANTILE_FACTOR) / limit
        return found if np.isfinite(found) else float("inf")

    def __str__(self) -> str:
        return f"mean {self.mean:.2g}, 99 % quantile {self.quantile:.2g} nats over {self.tokens} tokens"


@torch.no_grad()
def own_logprobs(policy: Policy, ids: Sequence[int], start: int, temperature: float) -> NDArray[np.float64]:
    """The trainer's log-probs of `ids[start:]` under softmax(logits / T), (N − start,), each given all before it."""
    model: Any = policy.model
    was_training = model.training
    model.eval()
    row = torch.tensor([list(ids)], device=policy.device)
    routes = (
        policy.router.route([list(ids)], [[place >= start for place in range(len(ids))]]) if policy.router else None
    )
    with routed(model, routes):
        logits = model(input_ids=row, use_cache=False, logits_to_keep=len(ids) - start + 1).logits[0, :-1]
    model.train(was_training)
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    return logp.gather(-1, row[0, start:, None])[:, 0].double().cpu().numpy()


def probe_prompts(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[tuple[int, ...]]:
    """The longest of `prompts` that leave room: the longer, the more rests on remembered keys and values."""
    fitting = {tuple(prompt) for prompt in prompts if len(prompt) + PROBE_TOKENS <= max_tokens}
    return sorted(fitting, key=lambda prompt: (-len(prompt), prompt))[:PROBE_PROMPTS]
