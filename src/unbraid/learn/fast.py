"""Scores of a batch the fast way: logits only where it trains, what sequences share computed once, no padding.

Equal to `objective.score_tokens`, which stays the definition. Every model is held against it before the first use, by
scores and a gradient of two short sequences (`_fails`). A model that fails is scored the plain way from
then on, and a warning says so.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unbraid.errors import ModelError
from unbraid.learn.batch import TokenBatch
from unbraid.learn.forest import Forest, forest_hidden, plant
from unbraid.learn.head import Head, head_of, score_hidden
from unbraid.learn.objective import Scores, score_tokens, spread_scores
from unbraid.learn.profile import Profile
from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed
from unbraid.rollout.slot_cache import attention_windows

CALL = {"cpu": 5e-5 * 5e10, "cuda": 5e-5 * 2e14}
"""Operations that a machine could do while it starts the attention of one more segment. Choice: 50 µs, at an ordinary
speed of either (not measured on CUDA)."""
WORTH = 0.95
"""Choice: a forest is taken if it costs so much of the padded batch, by the estimate."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far fast and plain may be apart: scores in nats, gradients in parts of their norm. Choice: rounding stays far
below, a token that sees what it should not is far above. Norms of transformers are float32 in float64, too (3e-8)."""


@dataclass
class Fast:
    """What is known of one model.

    head: None for one that is scored the plain way. forests: whether it takes what `forest` makes.
    longest: tokens after which some layer forgets; None = never. weights: numbers that a token is multiplied with, head
    aside. width: numbers of all heads together, and of all layers.
    checked: what was held against the plain path, and whether in training mode.
    """

    head: Head | None
    forests: bool = True
    longest: int | None = None
    weights: int = 0
    layers: int = 0
    width: int = 0
    checked: set[tuple[str, bool]] = field(default_factory=set)

    @classmethod
    def of(cls, model: Any) -> Self:
        """Take a model apart; nothing is run."""
        head = head_of(model)
        fast = cls(head)
        if head is None:
            warnings.warn("learn.fast: the output layer is no plain linear one: the plain way", stacklevel=2)
            return fast
        config = head.backbone.config.get_text_config()
        windows: dict[str, int | None] = {}
        with suppress(ModelError):
            windows = attention_windows(model)
        fast.forests = bool(windows) and config._attn_implementation == "sdpa"
        fast.longest = min((w for w in windows.values() if w is not None), default=None)
        fast.weights = sum(p.numel() for n, p in head.backbone.named_parameters() if p.ndim == 2 and "embed" not in n)
        fast.layers = config.num_hidden_layers
        heads = config.num_attention_heads
        fast.width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        return fast

    def forest(self, batch: TokenBatch) -> Forest | None:
        """The batch as a forest where that costs less; None where it does not, or the model takes none."""
        rows, longest = batch.ids.shape
        if not self.forests or (self.longest is not None and longest > self.longest):
            return None
        forest = plant_batch(batch)
        # Where nothing is padded, attention needs no mask and leaves half of the pairs out.
        causal = 0.5 if bool(batch.attention.all()) else 1.0
        plain = self._cost(rows * longest, causal * rows * longest * longest)
        call = CALL.get(batch.ids.device.type, CALL["cuda"]) * self.layers * len(forest.segments)
        return forest if self._cost(forest.tokens, forest.pairs) + call < WORTH * plain else None

    def _cost(self, tokens: float, pairs: float) -> float:
        """Operations of a forward pass, heads aside."""
        return 2 * self.weights * tokens + 4 * self.width * self.layers * pairs


_KNOWN: "WeakKeyDictionary[nn.Module, Fast]" = WeakKeyDictionary()


def fast_of(model: Any) -> Fast:
    """What is known of a model; what was found so far stays with it."""
    if not isinstance(model, nn.Module):
        return Fast(None)
    if model not in _KNOWN:
        _KNOWN[model] = Fast.of(model)
    return _KNOWN[model]


def score(
    policy: Policy, batch: TokenBatch, temperature: float, fast: bool = True, profile: Profile | None = None
) -> Scores:
    """`objective.score_tokens` for a policy, the fast way where there is one.

    Args:
        fast: False is the plain way whatever is known of the model.
        profile: is told how many tokens went through the model.
    """
    model, choice_ids = policy.model, policy.format.modes.choice_ids
    known = fast_of(model) if fast else Fast(None)
    rows = (batch.ids, batch.attention, batch.routes)
    if known.head and _fails(model, known, rows, "head", temperature, choice_ids):
        known.head = None
    forest = known.forest(batch) if known.head else None
    if forest and _fails(model, known, rows, "forest", temperature, choice_ids):
        known.forests, forest = False, None
    if profile:
        profile.count(batch, forest, plain=fast and not known.head)
    if not known.head:
        return score_tokens(model, batch, temperature, choice_ids)
    return score_batch(model, known.head, batch, forest, temperature, choice_ids)


def head_for(model: Any, ids: Tensor, routes: Tensor | None = None) -> Head | None:
    """The head of a model, held against its own logits on a sequence like `ids` (T,); None for the plain way."""
    known = fast_of(model)
    whole = (ids[None], torch.ones_like(ids)[None], None if routes is None else routes[None])
    if known.head and _fails(model, known, whole, "head", 1.0, (0, 1)):
        known.head = None
    return known.head


def score_batch(
    model: Any, head: Head, batch: TokenBatch, forest: Forest | None, temperature: float, choice_ids: tuple[int, int]
) -> Scores:
    """The scores of a batch, by its forest or padded; nothing is checked."""
    device = batch.ids.device
    if forest:
        source = torch.from_numpy(forest.source).to(device)
        routes = None if batch.routes is None else batch.routes.flatten()[source][None]
        with routed(model, routes):
            hidden = forest_hidden(head.backbone, forest, batch.ids)
        hidden = hidden[torch.from_numpy(forest.place).to(device)[:, :-1][batch.sampled]]
    else:
        with routed(model, batch.routes):
            out = head.backbone(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)
        hidden = out.last_hidden_state[:, :-1][batch.sampled]
    targets = batch.ids[:, 1:][batch.sampled]
    chosen, entropy, pair = score_hidden(head, hidden, targets, temperature, choice_ids)
    return spread_scores(batch, chosen, entropy, pair[batch.choice[batch.sampled]])


def _fails(
    model: Any,
    known: Fast,
    rows: tuple[Tensor, Tensor, Tensor | None],
    what: Literal["head", "forest"],
    temperature: float,
    choice_ids: tuple[int, int],
) -> bool:
    """Whether the fast path gives something else than the plain one; asked once for each mode of the model.

    Args:
        rows: ids, attention and routes of a batch.
    """
    assert known.head
    asked = (what, model.training)
    if asked in known.checked or rows[0].shape[1] < 2:
        return False
    known.checked.add(asked)
    head, few = known.head, _example(*rows)
    forest = plant_batch(few) if what == "forest" else None
    plain = _probe(model, lambda: score_tokens(model, few, temperature, choice_ids))
    ours = _probe(model, lambda: score_batch(model, head, few, forest, temperature, choice_ids))
    tolerance = TOLERANCE.get(head.linear.weight.dtype, 0.1)
    scores = float((ours[0] - plain[0]).abs().max())
    gradient = float((ours[1] - plain[1]).norm() / plain[1].norm().clamp(min=1e-12))
    if scores <= tolerance and gradient <= tolerance:
        return False
    warnings.warn(
        f"learn.fast: with this model the {what} differs from the plain one, scores by {scores:.1e} nats, a gradient "
        f"by {gradient:.1e} of its norm, and {tolerance:g} is allowed: it is left out",
        stacklevel=2,
    )
    return True


def plant_batch(batch: TokenBatch) -> Forest:
    """The forest of a batch's sequences."""
    routes = None if batch.routes is None else batch.routes.cpu().numpy()
    return plant(batch.ids.cpu().numpy(), batch.attention.sum(1).tolist(), routes)


def _example(ids: Tensor, attention: Tensor, routes: Tensor | None) -> TokenBatch:
    """Two short sequences made of a batch's longest: they share a beginning and then part, and one is padded.

    What is sampled and what is a choice does not matter for what is compared.
    """
    row = int(attention.sum(1).argmax())
    length = int(attention[row].sum())
    shared = min(length // 2, 256)
    end = min(length, shared + 64)
    places = torch.arange(end, device=ids.device).repeat(2, 1)
    places[1, shared:] = places[0, shared:].flip(0)
    lengths = torch.tensor([end, max(end - 7, min(end, shared + 1))], device=places.device)
    inside = torch.arange(end, device=places.device) < lengths[:, None]
    sampled = (inside & (torch.arange(end, device=places.device) >= shared))[:, 1:]
    nothing = torch.zeros((2, end - 1), device=places.device)
    return TokenBatch(
        ids=ids[row][places] * inside,
        attention=inside.long(),
        sampled=sampled,
        roles=nothing.byte(),
        old_logprobs=nothing,
        reference_logprobs=nothing,
        advantages=nothing[:, 0],
        response=nothing.long(),
        mode=nothing.long(),
        choice=sampled & (torch.arange(end - 1, device=places.device) < shared + 2),
        tokens=nothing[:, 0],
        think_share=nothing[:, 0],
        routes=None if routes is None else routes[row][places],
    )


def _probe(model: nn.Module, score: Callable[[], Scores]) -> tuple[Tensor, Tensor]:
    """All scores (n,), and the gradient of a mixture of them in the first trained matrices, which lie deepest."""
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "embed" not in name][:2]
    with torch.enable_grad():
        values = torch.cat([part.flatten() for part in score().with_gradient])
        if not trained:
            return values, values.new_zeros(1)
        mixture = (values * torch.arange(len(values), device=values.device).cos()).sum()
        found = torch.autograd.grad(mixture, trained, allow_unused=True, materialize_grads=True)
    return values.detach(), torch.cat([part.flatten() for part in found])
