"""What a step of training computes: operations, bytes moved and calls, counted from the shape of a model.

A product of a matrix of n weights with a token is 2 n operations; its gradients are as much again for the input, and
for the matrix if it is trained. Bytes are those of what lies between the products, which takes its time too.
"""

from dataclasses import astuple, dataclass, replace
from typing import Literal

from unbraid.policy.batch_shape import BatchShape
from unbraid.policy.memory import HEAD_LOGITS, ModelShape, layer_bytes

ADAMW_BYTES = 60
"""Of one weight, a step: norm and clipping, then weight, gradient and two moments, each read and written in turn."""
GRADIENT_PASSES = 4
"""Times that a micro-batch reads or writes every gradient: made, and added to those of the others."""

ADAPTED_FORWARD, ADAPTED_BACKWARD = 1.5, 1.1
"""Times that a call of a layer (`Speed.call`) takes as long where all its matrices are adapted, for what that adds.
Measured on layers so narrow that nothing but calls counts (`Small(hidden=64, inner=64)`, one token, rank 8): an
adapter adds .50 to .60 ms to a layer without a graph, where `CPU` has 1.13 ms, .7 to 1.05 ms to one with a graph, where
it has 1.35, and .2 ms to its backward pass, which is two calls."""


@dataclass(frozen=True)
class Work:
    """products, attention: operations. moved: bytes between operations. weights: bytes of weights and their gradients.

    logits: how many are made, softmax and all. calls: of layers, one after another.
    """

    products: float = 0.0
    attention: float = 0.0
    moved: float = 0.0
    weights: float = 0.0
    logits: float = 0.0
    calls: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(own + more for own, more in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> "Work":
        """The same, so many times."""
        return Work(*(factor * own for own in astuple(self)))


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


def call_factors(shape: ModelShape) -> tuple[float, float]:
    """(forward, backward): how much longer a call of a layer takes for its adapters, by the share that is adapted."""
    widths = shape.layers * (5 * shape.hidden + shape.query + shape.inner)
    share = min(1.0, shape.adapted / widths)
    return 1 + share * (ADAPTED_FORWARD - 1), 1 + share * (ADAPTED_BACKWARD - 1)


def learning_work(shape: ModelShape, step: StepTokens, rows: int, kl: bool = False) -> dict[str, Work]:
    """By stage: `forward and backward`, `reference` with a KL term, `optimiser`.

    With `shape.fast` a prompt is computed once for its group, and logits are made at drawn tokens only, twice.

    Args:
        rows: learn.micro_batch.
    """
    forward = _forward(shape, step)
    parts = micro_batches(step, rows, shape.fast)
    frozen, again = bool(shape.ranks), shape.checkpointing  # then the forward pass of every layer is made twice
    base, lora = 2 * matrices(shape) * forward.tokens, 2 * adapter_weights(shape) * forward.tokens
    head = 2 * shape.vocabulary * shape.hidden * forward.columns
    backward, made = (1 if frozen else 2), (2 if shape.fast else 1)
    ahead, back = call_factors(shape)
    chunks = max(parts, forward.columns * shape.vocabulary / HEAD_LOGITS[_device(shape)]) if shape.fast else parts
    table = shape.vocabulary * shape.hidden * shape.itemsize
    stages = {
        "forward and backward": Work(
            products=base * (1 + backward + again) + lora * (3 + again) + head * (made + backward),
            attention=forward.attention * (3 + again),
            moved=forward.kept * (3 + again),
            # The output matrix is read, and its gradient written, for every few positions.
            weights=chunks * table * (3 if frozen else 5) + parts * shape.trained * GRADIENT_PASSES,
            logits=forward.columns * shape.vocabulary,
            calls=shape.layers * parts * ((1 + again) * ahead + 2 * back),
        )
    }
    if kl:
        stages["reference"] = Work(
            products=base + lora + head,
            attention=forward.attention,
            moved=forward.kept,
            weights=chunks * table,
            logits=forward.columns * shape.vocabulary / 3,
            calls=shape.layers * parts * ahead,
        )
    weights = shape.trained / (4 if frozen else shape.itemsize)
    return stages | {"optimiser": Work(weights=weights * ADAMW_BYTES)}


@dataclass(frozen=True)
class _Forward:
    """One pass over a step's tokens: how many, positions with logits, operations of attention, bytes kept."""

    tokens: float
    columns: float
    attention: float
    kept: float


def _forward(shape: ModelShape, step: StepTokens) -> _Forward:
    tail, own = step.drawn + step.observed, 0.0
    if shape.fast:
        tokens = step.prompts * step.prompt + step.episodes * tail
        pairs = step.prompts * step.prompt**2 / 2 + step.episodes * tail * (step.prompt + tail)
        columns = step.episodes * step.drawn
        own = step.episodes * step.context * 2 * shape.query * shape.itemsize * shape.layers  # pasts, put together
    else:
        tokens = step.episodes * step.context
        pairs = tokens * step.context
        columns = step.episodes * (step.context if step.turns > 1 else step.drawn)
    kept = layer_bytes(replace(shape, checkpointing=False), BatchShape(1, 1, 1, 1)) * shape.layers * tokens
    lora = 2 * shape.adapted * 4 * tokens  # read for it, and what it adds
    return _Forward(tokens, columns, 4 * shape.query * shape.layers * pairs, kept + own + lora)


def _device(shape: ModelShape) -> Literal["cpu", "cuda"]:
    """Where a model of this kind is: choice, for logits are made in other portions there."""
    return "cpu" if shape.itemsize >= 4 else "cuda"


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
    read = step.prompts * step.prompt + step.episodes * step.observed
    pairs = step.prompts * step.prompt**2 / 2 + step.episodes * step.observed * step.context / 2
    kept = layer_bytes(replace(shape, checkpointing=False), BatchShape(1, 1, 1, 1)) * shape.layers
    ahead, _ = call_factors(shape)
    prompts = Work(
        products=2 * (base + lora) * read + 2 * head * step.prompts,
        attention=4 * shape.query * shape.layers * pairs,
        moved=2 * (kept + 4 * shape.adapted) * read,  # an adapter reads its inputs once more, and adds what it makes
        calls=shape.layers * step.turns * ahead,
    )
    drawn, steps = step.episodes * step.drawn, steps or max(step.longest, step.drawn)
    passed = step.prompt / step.samples + (step.drawn + step.observed) / 2
    drawing = Work(
        products=2 * (base + lora + head) * drawn,
        attention=4 * shape.query * shape.layers * (step.prompt + step.drawn / 2) * drawn,
        moved=drawn * (2 * shape.layers * shape.key * shape.itemsize * passed + kept),
        weights=steps * ((base + head) * shape.itemsize + lora * 4),
        logits=drawn * shape.vocabulary,
        calls=shape.layers * steps * ahead,
    )
    return {"prompts": prompts, "drawing": drawing}
