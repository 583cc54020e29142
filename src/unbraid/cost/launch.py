"""How a run is started, which its recipe does not say: on how many ranks, and whether weights are spread over them."""

import math
from dataclasses import dataclass, replace

from unbraid.cost.machines import Machine
from unbraid.cost.work import StepTokens, micro_batches
from unbraid.errors import RecipeError
from unbraid.policy.memory import ModelShape
from unbraid.policy.sharded_memory import Shards, all_weights, computed_shape
from unbraid.recipe import Recipe


@dataclass(frozen=True)
class Launch:
    """ranks: processes that share the work, each with a device of its own. sharded: FSDP2 spreads weights, gradients
    and moments over them, and passes are computed in bfloat16 (`accelerate launch --use_fsdp --mixed_precision bf16`).
    """

    ranks: int = 1
    sharded: bool = False

    @property
    def shards(self) -> Shards | None:
        return Shards(self.ranks, 2) if self.sharded else None

    def check(self, recipe: Recipe) -> None:
        """Raises RecipeError where a run with that recipe would be refused."""
        if self.ranks > 1 and ":" in recipe.model.device:
            raise RecipeError(
                f"model.device is {recipe.model.device}, and so for every rank: set auto or cuda, each takes its own"
            )
        if self.ranks > 1 and recipe.sampler.engine != "local" and recipe.sampler.ahead:
            raise RecipeError("sampler.ahead is for one rank: set it to false, or leave --ranks out")
        if not self.sharded:
            return
        if self.ranks == 1:
            raise RecipeError("--sharded spreads weights over ranks: give --ranks 2 or more")
        if recipe.model.adapter or recipe.model.dtype not in ("float32", "float64"):
            raise RecipeError("--sharded is for all weights in float32: add the layer all_weights, or leave it out")

    def share(self, recipe: Recipe) -> Recipe:
        """The recipe with one rank's part of a step's prompts, the largest one: groups stay whole."""
        prompts = math.ceil(recipe.rollout.prompts / self.ranks)
        return recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"prompts": prompts})})

    def own(self, tokens: StepTokens) -> StepTokens:
        """Such a part of what is drawn or learned."""
        return replace(tokens, prompts=math.ceil(tokens.prompts / self.ranks))

    def computed(self, shape: ModelShape) -> ModelShape:
        """The model as its passes are computed."""
        return computed_shape(shape, self.shards) if self.shards else shape


def between_ranks(launch: Launch, recipe: Recipe, shape: ModelShape, own: StepTokens, machine: Machine) -> float:
    """Seconds that ranks spend telling each other, a step; nothing is assumed to hide behind computation.

    Replicated: gradients are summed once an optimiser step, each byte out and in. Sharded: in every micro-batch weights
    come together for the forward and again for the backward pass, and gradients are summed to their parts.

    Args:
        own: one rank's part of the step.
    """
    if launch.ranks == 1:
        return 0.0
    others = (launch.ranks - 1) / launch.ranks
    if not launch.shards:
        steps = recipe.learn.epochs * recipe.learn.minibatches
        return 2 * others * shape.trained * steps / machine.link
    passes = micro_batches(own, recipe.learn.micro_batch, False) * recipe.learn.epochs
    moved = all_weights(shape) * (2 * launch.shards.itemsize + shape.itemsize)
    return others * moved * passes / machine.link
