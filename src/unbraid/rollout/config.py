"""How a training batch is sampled."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RolloutConfig(BaseModel):
    """One step's sampling. Unpublished for AutoTool; defaults follow its closest peers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: int = Field(default=32, ge=1)
    """Prompts per step."""
    samples: int = Field(default=8, ge=2)
    """Responses per prompt: the group that advantages compare."""
    temperature: float = Field(default=1.0, gt=0)
    """Log-probs, ratios and entropies are all of softmax(logits / temperature), in sampler and trainer alike."""
    max_new_tokens: int = Field(default=512, ge=2)
    """Budget of a response in tokens, stop token included."""
    max_batch: int = Field(default=512, ge=1)
    """Most rows that the local sampler decodes together."""

    @model_validator(mode="before")
    @classmethod
    def _no_truncated_sampling(cls, data: Any) -> Any:
        for key in ("top_p", "top_k", "min_p"):
            if isinstance(data, dict) and key in data:
                raise ValueError(
                    f"{key} is refused in RL: tokens outside the cut have probability 0 for the sampler and not for "
                    "the trainer, which biases every ratio; remove it and lower rollout.temperature instead"
                )
        return data
