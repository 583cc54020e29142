"""Decoding after prompts that several rows share: the keys and values of a prompt are there, and are read, once.

A row's attention is over the prompt of its group and what it has drawn itself. The rows of a group ask the prompt
together, which is one product instead of one per row; softmax is over both parts at once, so nothing is approximated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_utils import AttentionInterface

from unbraid.errors import ModelError
from unbraid.rollout.slot_cache import attention_windows

WORTH = {"cpu": 4096, "cuda": 1 << 20}
"""Tokens whose keys each step spares to read. Choice: fewer do not make up for a dozen more calls in every layer (on
CUDA not measured)."""


class Prefix:
    """What U prompts left in a cache, and which row goes on from which.

    Args:
        cache: as the prompts were read into it, padded on the left; not needed afterwards.
        prompts: (rows,) the prompt of each row. padding: (U,) tokens of padding before each prompt.
    """

    def __init__(self, cache: Cache, prompts: Tensor, padding: Tensor):
        layers: Any = cache.layers
        self.keys = [layer.keys.contiguous() for layer in layers]
        self.values = [layer.values.contiguous() for layer in layers]
        self.tokens = int(self.keys[0].shape[2])
        places = torch.arange(self.tokens, device=padding.device)
        hidden = places < padding[:, None]
        self.mask = hidden[:, None, None] if bool(hidden.any()) else None
        self.prompts = prompts
        self._place()

    @classmethod
    def worth(cls, model: Any, cache: Cache, prompts: Tensor, padding: Tensor) -> Self | None:
        """None where rows share too little, or the model attends otherwise than this does."""
        spared = (len(prompts) - len(padding)) * cache.get_seq_length()
        if spared < WORTH.get(prompts.device.type, WORTH["cuda"]):
            return None
        return cls(cache, prompts, padding) if plain_attention(model) else None

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.prompts = self.prompts[rows]
        self._place()

    def _place(self) -> None:
        """Find every row a place of its own among those of its prompt, (rows,) in U · `most`."""
        same = self.prompts[:, None] == self.prompts
        rank = torch.tril(same, -1).sum(1)
        self.most = int(rank.max()) + 1
        self.places = self.prompts * self.most + rank
        everywhere = torch.arange(len(self.keys[0]) * self.most, device=rank.device)
        self.regular = bool(torch.equal(self.places, everywhere))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor | None = None
    ) -> Tensor:
        """(rows, heads, size) of queries like that, over a prompt and the row's own keys (rows, key heads, n, size).

        Args:
            seen: which of its own keys a row sees, (rows, 1, 1, n); None is all of them.
        """
        rows, heads, size = query.shape
        q = query.reshape(rows, key.shape[1], heads // key.shape[1], size) * scale
        at_prompt = self._together(q) @ self.keys[layer].transpose(-1, -2)
        if self.mask is not None:
            at_prompt = at_prompt.masked_fill(self.mask, -torch.inf)
        at_own = q @ key.transpose(-1, -2)
        if seen is not None:
            at_own = at_own.masked_fill(~seen, -torch.inf)
        scores = torch.cat([self._apart(at_prompt, q), at_own], dim=-1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
        own = weights[..., self.tokens :] @ value
        of_prompt = self._together(weights[..., : self.tokens]) @ self.values[layer]
        return (own + self._apart(of_prompt, q)).reshape(rows, heads, size)

    def _together(self, rows: Tensor) -> Tensor:
        """(rows, key heads, group, x) by prompt: (U, key heads, most · group, x)."""
        count = len(self.keys[0])
        if not self.regular:
            spread = rows.new_zeros((count * self.most, *rows.shape[1:]))
            spread[self.places] = rows
            rows = spread
        return rows.unflatten(0, (count, self.most)).transpose(1, 2).flatten(2, 3)

    def _apart(self, by_prompt: Tensor, like: Tensor) -> Tensor:
        """`_together` undone; `like` has the rows' shape up to the last dimension."""
        rows = by_prompt.unflatten(2, (self.most, like.shape[2])).transpose(1, 2).flatten(0, 1)
        return rows if self.regular else rows[self.places]


@contextmanager
def prefix_attention(model: Any) -> Iterator[None]:
    """Within, the model's layers attend to the `prefix` that a forward pass is given."""
    config = _config(model)
    usual = config._attn_implementation
    config._attn_implementation_internal = _NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = usual


def plain_attention(model: Any) -> bool:
    """Whether every layer attends to everything before it, by sdpa."""
    try:
        return not any(attention_windows(model).values()) and _config(model)._attn_implementation == "sdpa"
    except ModelError:
        return False


def _config(model: Any) -> Any:
    return model.config.get_text_config()


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    prefix: Prefix = kwargs["prefix"]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out = prefix.attend(module.layer_idx, query[:, :, 0], key, value, scale, attention_mask)
    return out[:, None], None


_NAME = "unbraid_prefix"
AttentionInterface.register(_NAME, _attention)
