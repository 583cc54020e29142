"""What a learning step takes of one rank's device where weights are spread over the ranks (`policy.sharding`)."""

from dataclasses import dataclass, replace

from unbraid.policy.batch_shape import BatchShape
from unbraid.policy.memory import (
    CONTEXT,
    SLACK,
    Device,
    ModelShape,
    TrainingMemory,
    activation_bytes,
    backward_bytes,
    logit_bytes,
)


@dataclass(frozen=True)
class Shards:
    """Over how many ranks weights are spread, and the bytes of an element of what is computed in."""

    ranks: int
    itemsize: int


def computed_shape(shape: ModelShape, shards: Shards) -> ModelShape:
    """The model as a pass computes it: in another type, and the plain way."""
    return replace(shape, itemsize=shards.itemsize, fast=False)


def layer_weights(shape: ModelShape) -> int:
    """Weights of the matrices of one layer."""
    return shape.hidden * 2 * (shape.query + shape.key) + 3 * shape.hidden * shape.inner


def all_weights(shape: ModelShape) -> int:
    """How many weights there are."""
    return shape.weights // shape.itemsize


def sharded_memory(
    shape: ModelShape, batch: BatchShape, shards: Shards, *, kl: bool = False, device: Device = "cuda"
) -> TrainingMemory:
    """As `training_memory`, of one of the ranks; counted, not measured.

    * weights: a rank's part of them, and those that are together in a pass: what belongs to no layer (the tables) from
      its beginning to its end, a layer, and the next one, which is on its way.
    * gradients, moments, reference, and what AdamW adds while it steps: a rank's part.
    * activations, logits: as on one device, in the type that is computed in, without the fast path.
    * backward: also the gradients of two layers and of the tables before they are summed, as they are computed and as
      they are summed.
    """
    inner = computed_shape(shape, shards)
    tables = max(0, all_weights(shape) - shape.layers * layer_weights(shape))
    together = tables + 2 * layer_weights(shape)
    kept, logits = activation_bytes(inner, batch), logit_bytes(inner, batch)
    backward = backward_bytes(replace(inner, largest=0), batch) + together * (shards.itemsize + shape.itemsize)
    part = shape.trained // shards.ranks
    working = max(kept + max(logits, backward), part)
    return TrainingMemory(
        weights=shape.weights // shards.ranks + together * shards.itemsize,
        gradients=part,
        moments=2 * part,
        reference=part if kl else 0,
        activations=kept,
        logits=logits,
        backward=backward,
        optimiser=part,
        slack=int(SLACK[device] * working),
        overhead=CONTEXT[device],
    )
