"""A KV cache with room to grow: a decoding step writes its own token and copies nothing else.

The cache of transformers concatenates in every step, which copies all keys and values: at a few hundred rows that
takes longer than the model's own arithmetic.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def growing_cache() -> Cache:
    """An empty cache, for any number of layers."""
    return Cache(layer_class_to_replicate=GrowingLayer)


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, tokens, head size): views into larger buffers with free places."""

    key_room: Tensor
    value_room: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
            self.key_room, self.value_room = self.keys, self.values
        past = self.keys.shape[-2]
        total = past + key_states.shape[-2]
        if total > self.key_room.shape[-2]:
            # A quarter more than needed: few copies in all, and never much memory for nothing.
            capacity = total + max(32, total // 4)
            self.key_room, self.value_room = _roomy(self.keys, capacity), _roomy(self.values, capacity)
        self.key_room[..., past:total, :] = key_states
        self.value_room[..., past:total, :] = value_states
        self.keys, self.values = self.key_room[..., :total, :], self.value_room[..., :total, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be repeated. Rows that keep their place are not copied."""
        rows, tokens = len(indices), self.keys.shape[-2]
        if rows > len(self.key_room):
            capacity = self.key_room.shape[-2]
            self.key_room = _roomy(self.keys[indices], capacity)
            self.value_room = _roomy(self.values[indices], capacity)
        else:
            moved = indices != torch.arange(rows, device=indices.device)
            self.key_room[:rows][moved, :, :tokens] = self.keys[indices[moved]]
            self.value_room[:rows][moved, :, :tokens] = self.values[indices[moved]]
            self.key_room, self.value_room = self.key_room[:rows], self.value_room[:rows]
        self.keys, self.values = self.key_room[..., :tokens, :], self.value_room[..., :tokens, :]


def _roomy(states: Tensor, capacity: int) -> Tensor:
    """A copy of `states` at the front of a buffer for `capacity` tokens."""
    rows, heads, tokens, size = states.shape
    room = states.new_empty((rows, heads, capacity, size))
    room[:, :, :tokens] = states
    return room
