"""What a recipe says about the RL step."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from unbraid.learn.advantages import Scale
from unbraid.learn.objective import Averaging
from unbraid.learn.schedule import Decay


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
    roles: Literal["both", "reasoning", "action"] = "both"
    """Whose tokens the policy term learns from: a single role for the models that interference is measured with
    (arXiv 2602.00994, Eq. 9). KL and entropy constraints act on all tokens all the same."""
    off_role_kl: float = Field(default=0.0, ge=0)
    """Coefficient of a further KL to the start (k3), on the tokens that `roles` leaves out: nothing teaches them, and
    what moves them is how the other role's loss pulls the weights they share. No effect with `both`."""
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
    """Samples per forward pass: memory only, never the result. With `fast`, more where they are short."""
    fast: bool = True
    """Make logits only where it trains, and compute once what samples begin with alike (docs/speed.md). The result is
    the same up to rounding; a model with which it is not is found out and learns the plain way."""
    skip_dead: bool = True
    """Leave samples without advantage out of the forward pass when no entropy or KL term needs them."""

    probe_every: int = Field(default=0, ge=0)
    """Steps between forced-mode probes of what thinking is worth; 0 = never. Costs two responses per prompt."""
    interference_every: int = Field(default=25, ge=0)
    """Steps between looks at how reasoning and action tokens pull the weights (docs/interference.md); 0 = never."""
    stop_on_collapse: bool = False
    """End the run when one mode has vanished for good."""

    @property
    def needs_reference(self) -> bool:
        """Some term asks what the start of training would say."""
        return self.kl > 0 or (self.off_role_kl > 0 and self.roles != "both")
