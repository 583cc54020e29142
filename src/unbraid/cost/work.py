"""What a step of training computes: operations, bytes moved and calls, counted from the shape of a model.

A product of a matrix of n weights with a token is 2 n operations; its gradients are as much again for the input, and
for the matrix if it is trained. Bytes are those of what lies between the products, which takes its time too.
"""

from dataclasses import dataclass, replace

from unbraid.policy.memory import BatchShape, ModelShape, layer_bytes

HEAD_PASSES = 14
"""Times that learning reads or writes a logit in float32, forward and backward. Counted in `learn.head`."""
DRAW_PASSES = 14
"""Times that drawing a token does: softmax, float64 sums, entropy. Counted in `rollout.drawing`."""
BACKWARD_BYTES = 3.0
"""Traffic of a forward and a backward pass, in what the forward pass keeps. Choice: written once, read once, and
gradients of the same sizes written and read by half."""
ADAMW_BYTES = 60
"""Of one weight, a step: norm and clipping, then weight, gradient and two moments, each read and written in turn."""


@dataclass(frozen=True)
class Work:
    """flops: operations of matrix products. bytes: read or written. calls: of layers, one after another."""

    flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.calls + other.calls)

    def times(self, factor: float) -> "Work":
        """The same, so many times."""
        return Work(self.flops * factor, self.bytes * factor, self.calls * factor)


@dataclass(frozen=True)
class StepTokens:
    """One step, in tokens on average: `prompts` x `samples` episodes.

    prompt: before the first response. drawn: by the model, over all responses of an episode. observed: results of tools
    in between. longest: of what one episode draws, at the most. turns: responses of an episode.
    """

    prompts: int
    samples: int
    prompt: float
    drawn: float
    observed: float = 0.0
    longest: float = 0.0
    turns: float = 1.0

    @property
    def episodes(self) -> int:
        return self.prompts * self.samples

    @property
    def context(self) -> float:
        """Tokens of an episode, at its end."""
        return self.prompt + self.drawn + self.observed


def matrices(shape: ModelShape) -> int:
    """Weights of the matrices of all layers, the tables and adapters left out."""
    attention = shape.hidden * 2 * (shape.query + shape.key)
    return shape.layers * (attention + 3 * shape.hidden * shape.inner)


def adapter_weights(shape: ModelShape) -> int:
    """Weights of all adapters; 0 where every weight is trained."""
    return shape.trained // 4 if shape.ranks else 0


def learning_work(shape: ModelShape, step: StepTokens, rows: int, kl: bool = False) -> dict[str, Work]:
    """By stage: `forward and backward`, `reference` with a KL term, `optimiser`.

    With `shape.fast` a prompt is computed once for its group, and logits are made at drawn tokens only, twice.

    Args:
        rows: learn.micro_batch.
    """
    tail, drawn = step.drawn + step.observed, step.episodes * step.drawn
    if shape.fast:
        tokens = step.prompts * step.prompt + step.episodes * tail
        pairs = step.prompts * step.prompt**2 / 2 + step.episodes * tail * (step.prompt + tail)
        columns = drawn
    else:
        tokens = step.episodes * step.context
        pairs = tokens * step.context
        columns = step.episodes * (step.context if step.turns > 1 else step.drawn)
    base, lora, head = matrices(shape), adapter_weights(shape), shape.vocabulary * shape.hidden
    backward = 1 if shape.ranks else 2
    attention = 4 * shape.query * shape.layers * pairs
    again = shape.checkpointing  # the forward pass of every layer is made twice
    layers = (2 * base * (1 + backward + again) + lora * 2 * (3 + again)) * tokens + attention * (3 + again)
    heads = 2 * head * columns * ((2 if shape.fast else 1) + backward)
    calls = shape.layers * micro_batches(step, rows, shape.fast) * (3 + again)
    kept = layer_bytes(shape, BatchShape(1, 1, 1, 1)) * shape.layers
    moved = kept * tokens * (BACKWARD_BYTES + again) + columns * shape.vocabulary * 4 * HEAD_PASSES
    stages = {"forward and backward": Work(layers + heads, moved, calls)}
    if kl:
        own = 2 * (base + lora) * tokens + attention + 2 * head * columns
        seen = kept * tokens + columns * shape.vocabulary * 4 * HEAD_PASSES / 3
        stages["reference"] = Work(own, seen, calls / (3 + again))
    weights = shape.trained / (4 if shape.ranks else shape.itemsize)
    return stages | {"optimiser": Work(0, weights * ADAMW_BYTES, 0)}


def micro_batches(step: StepTokens, rows: int, fast: bool) -> float:
    """Forward passes of one step, at least one a group of prompts that fit together."""
    if not fast:
        return max(1.0, step.episodes / rows)
    return max(1.0, step.episodes / max(rows, step.samples if rows >= step.samples else rows))


def sampling_work(shape: ModelShape, step: StepTokens, steps: float = 0.0) -> dict[str, Work]:
    """`prompts`: read once for each group, tool results once for each episode. `drawing`: token by token.

    In every step of drawing all weights are read once, and keys and values of every episode that is still going on, its
    prompt's once a group.

    Args:
        steps: of drawing, one after another; 0 draws all episodes together.
    """
    base, lora, head = matrices(shape), adapter_weights(shape), shape.vocabulary * shape.hidden
    e = shape.itemsize
    read = step.prompts * step.prompt + step.episodes * step.observed
    pairs = step.prompts * step.prompt**2 / 2 + step.episodes * step.observed * step.context / 2
    kept = layer_bytes(replace(shape, checkpointing=False), BatchShape(1, 1, 1, 1)) * shape.layers
    prompts = Work(
        2 * (base + lora) * read + 4 * shape.query * shape.layers * pairs + 2 * head * step.prompts,
        kept * read,
        shape.layers * step.turns,
    )
    drawn, steps = step.episodes * step.drawn, steps or max(step.longest, step.drawn)
    passed = step.prompt / step.samples + (step.drawn + step.observed) / 2
    keys = 2 * shape.layers * shape.key * e * passed
    own = 2 * (base + lora + head) + 4 * shape.query * shape.layers * (step.prompt + step.drawn / 2)
    drawing = Work(
        own * drawn,
        steps * ((base + head) * e + lora * 4) + drawn * (keys + shape.vocabulary * 4 * DRAW_PASSES + kept),
        shape.layers * steps,
    )
    return {"prompts": prompts, "drawing": drawing}
