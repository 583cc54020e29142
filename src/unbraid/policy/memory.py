"""What a learning step takes of a device's memory, in bytes, before anything is loaded.

Everything is counted from the model's shape (parameters on the meta device, widths from its config) and the shape of a
micro-batch. The terms follow what autograd keeps of a decoder of transformers (RMSNorm, rotary attention, gated MLP)
and of `learn.objective.score_tokens`, or `learn.head`; `benchmarks/memory.py` holds them against real steps. Symbols: B
rows, T tokens of a row, N sampled tokens, K columns with logits, V vocabulary; h hidden, q = heads · head_dim, k =
kv_heads · head_dim, f inner width of the MLP; e bytes of a weight, a = max(4, e) where arithmetic is in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from unbraid.errors import ModelError
from unbraid.policy.batch_shape import BatchShape
from unbraid.policy.policy import AdapterConfig, ModelConfig, add_adapter

Device = Literal["cpu", "cuda"]

GIB = 1 << 30
CONTEXT = {"cpu": int(0.75 * GIB), "cuda": int(0.75 * GIB)}
"""Taken before the first weight: Python with its libraries in this process, or the CUDA context with cuBLAS. Choice:
measured on CPU (benchmarks/memory.py), taken from experience on CUDA."""
SLACK = {"cpu": 0.05, "cuda": 0.1}
"""Share of what comes and goes that the allocator cannot use again. Choice: on CUDA blocks of other sizes lie cached in
between (not measured)."""
HEAP = GIB // 2
"""On a CPU the C library keeps freed blocks below 32 MiB, two thirds of activations and gradients, up to this.
Choice: measured with glibc; MALLOC_MMAP_THRESHOLD_=1000000 in the environment makes it vanish."""
HEAD_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Most logits that `learn.head` makes at a time. Choice: on a CPU 8 MB in float32, which stay in its cache; on a GPU
256 MB, so that the matrix products are large (not measured)."""
TOKEN_BYTES = 150
"""Of one column of a `TokenBatch` with its scores and weights: nine tensors in, about ten out."""


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides its memory. Widths in elements, the rest in bytes where it says so.

    weights: bytes of all parameters, tied ones once, an adapter's included. trained: bytes of those with a gradient.
    largest: bytes of the largest trained parameter. tied: the embedding is the output matrix, and is trained.
    inner: width of the MLP, for experts that of all active ones together. query, key: heads · head_dim of queries and
    of keys. qk_norm: queries and keys are normalised. adapted: input widths of all adapted matrices, summed;
    ranks: their ranks, summed; both 0 without an adapter. routed: adapters are routed, so that every layer makes one
    matrix of theirs. itemsize: bytes of a weight of the base.
    """

    weights: int
    trained: int
    largest: int
    tied: bool
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    qk_norm: bool
    adapted: int
    ranks: int
    routed: bool
    itemsize: int
    attention: str
    checkpointing: bool
    fast: bool = False

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes at one time; `total` is the largest moment of a step.

    weights, gradients, moments, reference: there from the first step on (gradients stay until the next update).
    activations: kept by the forward pass for the backward pass. logits: what scoring adds at its largest.
    backward: what the backward pass adds at its largest, below the logits. optimiser: what AdamW adds while it steps.
    The last three come one after the other; activations are there with the first two. slack: what the allocator cannot
    use again of all that. overhead: of the process, or the CUDA context.
    """

    weights: int
    gradients: int
    moments: int
    reference: int
    activations: int
    logits: int
    backward: int
    optimiser: int
    slack: int
    overhead: int

    @property
    def resident(self) -> int:
        """What stays between steps, once cached blocks were given back."""
        return self.weights + self.gradients + self.moments + self.reference + self.overhead

    @property
    def working(self) -> int:
        """What comes and goes within a step, at its largest."""
        return max(self.activations + max(self.logits, self.backward), self.optimiser) + self.slack

    @property
    def total(self) -> int:
        return self.resident + self.working

    def always(self) -> dict[str, int]:
        """The parts of `resident`, named for people."""
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "moments of AdamW": self.moments,
            "reference of the KL term": self.reference,
            "context": self.overhead,
        }
        return {name: count for name, count in named.items() if count}

    def learning(self) -> dict[str, int]:
        """The parts of `working` at its largest moment, named for people."""
        if self.optimiser > self.activations + max(self.logits, self.backward):
            return {"step of AdamW": self.optimiser, "allocator": self.slack}
        last = ("logits", self.logits) if self.logits >= self.backward else ("backward pass", self.backward)
        return {"activations": self.activations, last[0]: last[1], "allocator": self.slack}


def model_shape(source: Any, config: ModelConfig, fast: bool = False) -> ModelShape:
    """The shape of a model.

    Args:
        source: a configuration of transformers, whose model is then built without memory (meta device), or a causal
            language model, on any device; with `config.adapter` it may be wrapped already.
        fast: learn.fast; only models whose output layer is a plain linear one have that.

    Raises:
        ModelError: the adapter does not fit, or the configuration names no widths.
    """
    model: Any = source if isinstance(source, nn.Module) else _on_meta(source, config)
    if config.adapter and not _lora(model):
        model = add_adapter(model, _as_one(config.adapter))
    text = model.config.get_text_config()
    trained = [p for p in model.parameters() if p.requires_grad]
    bytes_of = [p.numel() * p.element_size() for p in trained]
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    tied = output is not None and output.weight is table.weight
    try:
        heads = text.num_attention_heads
        return ModelShape(
            weights=sum(p.numel() * p.element_size() for p in model.parameters()),
            trained=sum(bytes_of),
            largest=max(bytes_of, default=0),
            tied=bool(tied and table.weight.requires_grad),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            inner=_inner(text),
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=table.weight.shape[0],
            qk_norm=any(name.endswith("q_norm") for name, _ in model.named_modules()),
            adapted=sum({name.partition("lora_A")[0]: p.shape[1] for name, p in _lora(model).items()}.values()),
            ranks=sum(p.shape[0] for p in _lora(model).values()),
            routed=bool(config.adapter and config.adapter.routing),
            itemsize=getattr(torch, config.dtype).itemsize,
            attention=config.attention,
            checkpointing=config.gradient_checkpointing,
            fast=fast and type(output) is nn.Linear,
        )
    except AttributeError as error:
        raise ModelError(f"model.path '{config.path}': its config.json has no widths to go by ({error})") from error


def training_memory(
    shape: ModelShape, batch: BatchShape, *, kl: bool = False, device: Device = "cpu"
) -> TrainingMemory:
    """What learning takes, term by term.

    * weights: their bytes. An adapter's are float32 over a base of any type.
    * gradients: the trained weights' bytes. Moments of AdamW: twice these, in the weights' own type.
    * reference: the trained weights' bytes, with a KL term only (`Policy.freeze_reference`).
    * activations, logits, backward: see `activation_bytes`, `logit_bytes` or `head_bytes`, `backward_bytes`.
    * optimiser: AdamW's denominators: of all trained weights at once on CUDA (foreach), else two of the largest.
    * slack: `SLACK` of what comes and goes, on a CPU also two thirds of activations and backward, up to `HEAP`.

    Args:
        kl: there is a KL term. device: type of model.device.
    """
    kept = activation_bytes(shape, batch)
    logits = head_bytes(shape, batch, device) if shape.fast else logit_bytes(shape, batch)
    backward = backward_bytes(shape, batch)
    optimiser = shape.trained if device == "cuda" else 2 * shape.largest
    working = max(kept + max(logits, backward), optimiser)
    heap = min((kept + backward) * 2 // 3, HEAP) if device == "cpu" else 0
    return TrainingMemory(
        weights=shape.weights,
        gradients=shape.trained,
        moments=2 * shape.trained,
        reference=shape.trained if kl else 0,
        activations=kept,
        logits=logits,
        backward=backward,
        optimiser=optimiser,
        slack=int(SLACK[device] * working) + heap,
        overhead=CONTEXT[device],
    )


def activation_bytes(shape: ModelShape, batch: BatchShape) -> int:
    """Kept from the forward to the backward pass, logits aside.

    layers · `layer_bytes`, or with checkpointing layers · B T h e (the inputs of layers) and the boolean mask B T²;
    the final norm, B T h (a + e) + B K h e; cosines and sines of positions, 2 B T head_dim e; the batch itself, B T
    `TOKEN_BYTES`.
    """
    tokens, e = computed(shape, batch), shape.itemsize
    if shape.checkpointing:
        layers = shape.layers * tokens * shape.hidden * e + (tokens * batch.tokens if _padded(shape, batch) else 0)
    else:
        layers = shape.layers * layer_bytes(shape, batch)
    norm = tokens * shape.hidden * (max(4, e) + e) + batch.rows * batch.columns * shape.hidden * e
    return layers + norm + tokens * (2 * shape.head_dim * e + TOKEN_BYTES)


def layer_bytes(shape: ModelShape, batch: BatchShape) -> int:
    """What one decoder layer keeps, per token, times B T.

    * a norm of width n: n (a + 2 e) when its weight is trained (input, normalised, output); else n a, and n e for the
      output where the adapter reads it as it is. Two of width h; with qk_norm those of q and k, whose output is not
      kept.
    * attention: query and output, 2 q e; keys and values, 2 k e, or 2 q e where repeated over the heads (with a
      mask, or eager); a float32 a head for the softmax; sdpa turns the boolean mask into an additive one in every
      layer, T e. Eager attention keeps the probabilities instead, heads T (4 + e) (float32: 4).
    * the gated MLP: gate, its activation, up, product, 4 f e; without the product where an adapter keeps it in float32.
    * the adapter: its inputs, widened to float32 where e < 4, and r float32 of every adapted matrix. Routed ones: also,
      once for all tokens, the matrices that all adapters' are copied into.
    """
    e, a, q = shape.itemsize, max(4, shape.itemsize), shape.query
    whole = not shape.ranks
    qk = q + shape.key if shape.qk_norm else 0
    if whole:
        norms = 2 * shape.hidden * (a + 2 * e) + qk * (a + e)
        if e >= 4:  # nothing is widened, so that input and copy are one tensor
            norms = 2 * shape.hidden * 3 * e + qk * 2 * e
    else:
        norms = 2 * shape.hidden * (a + (e if e >= 4 else 0)) + qk * a
    attention = 2 * q * e + 4 * shape.heads
    repeated = shape.attention == "eager" or (
        shape.attention == "sdpa" and (_padded(shape, batch) or _planted(shape, batch))
    )
    attention += 2 * e * (q if repeated else shape.key)
    if shape.attention == "eager":
        attention += shape.heads * batch.tokens * (4 + e if e != 4 else 4)
    elif shape.attention == "sdpa" and _padded(shape, batch):
        attention += batch.tokens * e
    mlp = shape.inner * e * (4 if whole or e >= 4 else 3)
    adapter = (shape.adapted * (4 if e < 4 else 0) + shape.ranks * 4) // max(1, shape.layers)
    copies = shape.trained // max(1, shape.layers) if shape.routed else 0
    if _planted(shape, batch):  # keys and values of each row's whole past, put together
        copies += batch.rows * batch.tokens * 2 * q * e
    return computed(shape, batch) * (norms + attention + mlp + adapter) + copies


def logit_bytes(shape: ModelShape, batch: BatchShape) -> int:
    """What `score_tokens` adds at its largest, forward or backward.

    Forward: the model's logits, B K V e; those of sampled targets, N V e; their log-probs, probabilities, the clamped
    log-probs and the product of the last two, 4 N V a. Backward: three of these, their three gradients, and one byte
    each for where the clamp acts, N V (6 a + 1).
    """
    a, sampled = max(4, shape.itemsize), batch.rows * batch.sampled * shape.vocabulary
    made = batch.rows * batch.columns * shape.vocabulary * shape.itemsize
    return max(made + sampled * (shape.itemsize + 4 * a), sampled * (6 * a + 1))


def head_bytes(shape: ModelShape, batch: BatchShape, device: Device = "cpu") -> int:
    """What `learn.head.score_hidden` adds at its largest, which is backward.

    Hidden states of sampled targets and their gradient, 2 N h e; of c = min(N V, `HEAD_LOGITS`) logits: as they are,
    log-probs, probabilities, their gradient as it goes back, c (2 e + 2 a); the gradient of a trained matrix, V h e.
    """
    e, sampled = shape.itemsize, batch.rows * batch.sampled
    made = min(sampled * shape.vocabulary, HEAD_LOGITS[device])
    own = 0 if shape.ranks else shape.vocabulary * shape.hidden * e
    return 2 * sampled * shape.hidden * e + made * (2 * e + 2 * max(4, e)) + own


def backward_bytes(shape: ModelShape, batch: BatchShape) -> int:
    """What the backward pass through the layers adds at its largest.

    Gradients within a layer, B T e max(2 f, 4 q) (eager: and of the probabilities, 3 B T² heads a); with checkpointing
    also what the layer keeps, made again; one more gradient of the largest matrix, which is then added to the first;
    where output and embedding are tied another two, for theirs meet only at the end.
    """
    tokens = computed(shape, batch)
    layer = tokens * shape.itemsize * max(2 * shape.inner, 4 * shape.query)
    if shape.attention == "eager":
        layer += 3 * tokens * batch.tokens * shape.heads * max(4, shape.itemsize)
    again = layer_bytes(shape, batch) if shape.checkpointing else 0
    return layer + again + shape.largest * (3 if shape.tied else 1)


def smaller(
    shape: ModelShape, batch: BatchShape, *, kl: bool = False, device: Device = "cpu"
) -> Iterator[tuple[str, TrainingMemory]]:
    """Settings that take less and leave the result as it is, the cheapest first, and what training takes with each."""
    tried = [shape] if shape.checkpointing else [shape, replace(shape, checkpointing=True)]
    for form in tried:
        also = "model.gradient_checkpointing: true" if form is not shape else ""
        if also:
            yield also, training_memory(form, batch, kl=kl, device=device)
        rows = batch.rows // 2
        while rows:
            setting = ", ".join(filter(None, [f"learn.micro_batch: {rows}", also]))
            yield setting, training_memory(form, replace(batch, rows=rows), kl=kl, device=device)
            rows //= 2


def computed(shape: ModelShape, batch: BatchShape) -> int:
    """Tokens of a micro-batch that go through the model: B T, or, planted as a forest, every prompt once."""
    if not _planted(shape, batch):
        return batch.rows * batch.tokens
    return batch.prompts * batch.shared + batch.rows * (batch.tokens - batch.shared)


def _planted(shape: ModelShape, batch: BatchShape) -> bool:
    """Rows that begin alike are computed once up to there (`learn.forest`)."""
    return shape.fast and shape.attention == "sdpa" and batch.prompts < batch.rows and batch.shared > 0


def _padded(shape: ModelShape, batch: BatchShape) -> bool:
    """Rows differ in length, so that attention needs a mask; a single row does not, nor a forest."""
    return batch.rows > 1 and not _planted(shape, batch)


def _on_meta(config: Any, model: ModelConfig) -> nn.Module:
    """The model of a configuration, without any memory."""
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, model.dtype))


def _lora(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices A (rank, input width) of all adapters, by name."""
    return {name: p for name, p in model.named_parameters() if "lora_A" in name}


def _as_one(adapter: AdapterConfig) -> AdapterConfig:
    """One adapter as large as all that are routed together."""
    if adapter.routing is None:
        return adapter
    owners = len(set(adapter.routing.owners.values()))
    return adapter.model_copy(update={"rank": adapter.rank * owners, "routing": None})


def _inner(text: Any) -> int:
    """Width of the MLP that a token goes through; of experts, all active ones and the shared one."""
    active = getattr(text, "num_experts_per_tok", None)
    if active and getattr(text, "moe_intermediate_size", None):
        return active * text.moe_intermediate_size + (getattr(text, "shared_expert_intermediate_size", None) or 0)
    return (getattr(text, "intermediate_size", None) or 4 * text.hidden_size) * (active or 1)
