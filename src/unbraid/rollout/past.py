"""What decoding has behind it, and a step from there: one more token for every row."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from unbraid.policy.routed_lora import routed
from unbraid.rollout.prefix import Prefix, prefix_attention


class Past:
    """Keys and values of the rows that are decoded.

    Args:
        cache: of what each row has to itself, made by `growing_cache`.
        padding: (rows,) places of padding before each row; None if no row has any.
        prefix: the prompts, if rows share them: the cache then holds what follows.
    """

    keep_share = 0.9
    """Choice: finished rows leave once live ones fall to this share: seldom, so that moving rows costs little."""

    def __init__(self, model: Any, cache: Cache, padding: Tensor | None, prefix: Prefix | None):
        self.model, self.cache, self.padding, self.prefix = model, cache, padding, prefix

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.cache.batch_select_indices(rows)
        self.padding = None if self.padding is None else self.padding[rows]
        if self.prefix:
            self.prefix.select(rows)

    def positions(self, rows: int) -> Tensor:
        """Of the next token of every row, (rows, 1)."""
        tokens = self.tokens()
        if self.padding is None:
            return torch.full((rows, 1), tokens, device=self.model.device)
        return tokens - self.padding[:, None]

    def tokens(self) -> int:
        """Places behind each row, padding included."""
        return self.cache.get_seq_length() + (self.prefix.tokens if self.prefix else 0)

    def step(self, ids: Tensor, routes: Tensor | None) -> Tensor:
        """Feed one token per row, (rows, 1), with its route; returns next-token logits (rows, V)."""
        mask, positions = None, self.positions(len(ids))
        if self.padding is not None and not self.prefix:
            mask = (torch.arange(self.tokens() + 1, device=ids.device) >= self.padding[:, None]).long()
        inputs = {"input_ids": ids, "position_ids": positions, "past_key_values": self.cache, "use_cache": True}
        with routed(self.model, routes):
            if self.prefix:
                with prefix_attention(self.model):
                    out = self.model(**inputs, prefix=self.prefix)
            else:
                out = self.model(**inputs, attention_mask=mask)
        return out.logits[:, -1]
