"""A KV cache with room to grow: a decoding step writes its own token and copies nothing else.

The cache of transformers concatenates in every step, which copies all keys and values: at a few hundred rows that
takes longer than the model's own arithmetic.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def growing_cache() -> Cache:
    """An empty cache, for any number of layers."""
    return Cache(layer_class_to_replicate=GrowingLayer)


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, tokens, head size): views into larger buffers with free places.

    For appending and selecting rows, which is all that decoding does; not for cropping or repeating.
    """

    key_room: Tensor
    value_room: Tensor
    filled = 0
    place: Tensor | None = None
    """Where the next token goes, (1,), within `fixed`."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_room, self.value_room = key_states[..., :0, :], value_states[..., :0, :]
        if self.place is not None:
            self.key_room.index_copy_(2, self.place, key_states)
            self.value_room.index_copy_(2, self.place, value_states)
            return self.key_room, self.value_room
        past, filled = self.filled, self.filled + key_states.shape[-2]
        if filled > self.key_room.shape[-2]:
            # A quarter more than needed: few copies in all, and never much memory for nothing.
            self._grow(filled + max(32, filled // 4))
        self.filled = filled
        self.key_room[..., past : self.filled, :] = key_states
        self.value_room[..., past : self.filled, :] = value_states
        return self._show()

    def _grow(self, capacity: int) -> None:
        self.key_room = _roomy(self.key_room[..., : self.filled, :], capacity)
        self.value_room = _roomy(self.value_room[..., : self.filled, :], capacity)

    def reserve(self, tokens: int) -> None:
        """Make room for so many more. Free places then hold zeros: masked, they must still be numbers."""
        if self.filled + tokens > self.key_room.shape[-2]:
            self._grow(self.filled + tokens)
        for room in (self.key_room, self.value_room):
            room[..., self.filled :, :] = 0

    @contextmanager
    def fixed(self, place: Tensor) -> Iterator[None]:
        """Within, one token at a time goes to `place`, and all the room is shown; `filled` does not count it."""
        self.place = place
        try:
            yield
        finally:
            self.place = None

    def fill(self, tokens: int) -> None:
        """Say how many places are filled, after tokens went to places of their own."""
        self.filled = tokens
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; a row may be repeated. Rows that keep their place are not copied."""
        self.key_room, self.value_room = (self._select(room, indices) for room in (self.key_room, self.value_room))
        self._show()

    def _select(self, room: Tensor, indices: Tensor) -> Tensor:
        states, rows = room[..., : self.filled, :], len(indices)
        if rows > len(room):
            return _roomy(states[indices], room.shape[-2])
        moved = indices != torch.arange(rows, device=indices.device)
        states[:rows][moved] = states[indices[moved]]
        return room[:rows]

    def _show(self) -> tuple[Tensor, Tensor]:
        """Set, and return, what the rest of transformers takes for the cache: the filled part."""
        keys, values = self.key_room[..., : self.filled, :], self.value_room[..., : self.filled, :]
        self.keys, self.values = keys, values
        return keys, values


def _roomy(states: Tensor, capacity: int) -> Tensor:
    """A copy of `states` at the front of a buffer for `capacity` tokens."""
    rows, heads, tokens, size = states.shape
    room = states.new_empty((rows, heads, capacity, size))
    room[:, :, :tokens] = states
    return room
