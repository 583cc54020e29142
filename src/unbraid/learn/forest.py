"""A batch as one row without padding, in which what sequences begin with alike is there once.

The sequences of a batch are cut where they part: a *segment* is a run of tokens that the same sequences have in common,
its *past* the segments before it on its path. All segments lie behind each other in one row,

    prompt │ completion 1 │ completion 2 │ … │ another prompt │ its completion 1 │ …

and a token attends to its own segment up to itself and to its past, at the positions it has in its own sequence. So
every hidden state is the one of its sequence by itself, and the gradients of all that follows a token add up in it.

A row has no cache: gradient checkpointing recomputes it as it recomputes any other, while transformers drops a cache
there with no more than a warning. Attention goes segment by segment, for one mask over the whole row would make every
token look at every other; `benchmarks/shared_prefix.py` compares both with a repeated cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

WORTH_SHARING = 8
"""Choice: sequences share a beginning if that spares so many tokens; shorter ones only cut attention into pieces."""


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `end` of the row, which stand at places `depth`, `depth` + 1, … of their sequences.

    past: numbers of the segments before it in its sequences, the first one first.
    """

    start: int
    end: int
    depth: int
    past: tuple[int, ...]

    def __len__(self) -> int:
        return self.end - self.start


@dataclass
class Forest:
    """What `plant` makes of B sequences: a row of N tokens.

    segments: in the order in which they lie in the row. source: (N,) where each token is in the flattened (B, T) batch
    (in one of the sequences that share it). place: (B, T) where each token of the batch is in the row; 0 for padding.
    """

    segments: tuple[Segment, ...]
    source: NDArray[np.int64]
    place: NDArray[np.int64]
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        return len(self.source)

    @property
    def pairs(self) -> float:
        """Pairs of tokens that attention computes: half of them where it is causal and knows it."""
        return sum(len(s) * (s.depth + len(s) if s.past else len(s) / 2) for s in self.segments)

    @property
    def positions(self) -> NDArray[np.int64]:
        """(N,) the place of every token of the row in its sequence."""
        return np.concatenate([np.arange(s.depth, s.depth + len(s)) for s in self.segments])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of every token to what comes before it; all (1, heads, N, size)."""
        sizes = [len(s) for s in self.segments]
        keys, values = key.split(sizes, dim=2), value.split(sizes, dim=2)
        found = []
        for number, (segment, q) in enumerate(zip(self.segments, query.split(sizes, dim=2), strict=True)):
            path = (*segment.past, number)
            k = torch.cat([keys[i] for i in path], dim=2) if segment.past else keys[number]
            v = torch.cat([values[i] for i in path], dim=2) if segment.past else values[number]
            mask = self._mask(len(segment), segment.depth, q) if segment.past else None
            found.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not segment.past, scale=scale))
        return torch.cat(found, dim=2)

    def _mask(self, own: int, past: int, like: Tensor) -> Tensor | None:
        """0 where one of the last `own` tokens of `past` + `own` sees a token, −∞ elsewhere; None for a single one."""
        if own == 1:
            return None
        name = (own, past, like.dtype, like.device)
        if name not in self._masks:
            hidden = torch.full((own, past + own), -torch.inf, dtype=like.dtype, device=like.device)
            self._masks[name] = hidden.triu_(past + 1)
        return self._masks[name]


def plant(ids: NDArray[np.int64], lengths: Sequence[int], routes: NDArray[np.int8] | None = None) -> Forest:
    """The forest of the sequences `ids[b, :lengths[b]]`.

    Args:
        ids: (B, T). routes: (B, T), the adapter of every token: tokens of different routes are not shared, for their
            hidden states differ.
    """
    # One number per token tells ids and routes; as big-endian bytes, sequences sort like lists of numbers.
    names = ids if routes is None else ids * 256 + (routes.astype(np.int64) + 128)
    rows = [names[b, :length] for b, length in enumerate(lengths)]
    order = sorted(range(len(rows)), key=lambda b: rows[b].astype(">i8").tobytes())
    segments: list[Segment] = []
    source: list[NDArray[np.int64]] = []
    place = np.zeros(ids.shape, dtype=np.int64)
    for segment, members in _cut(rows, order, 0, 0, ()):
        start = segments[-1].end if segments else 0
        segments.append(Segment(start, start + segment.end - segment.start, segment.depth, segment.past))
        own = slice(segment.start, segment.end)
        source.append(np.arange(own.start, own.stop) + members[0] * ids.shape[1])
        for b in members:
            place[b, own] = np.arange(start, segments[-1].end)
    return Forest(tuple(segments), np.concatenate(source), place)


def _cut(
    rows: Sequence[NDArray[np.int64]], members: list[int], start: int, number: int, past: tuple[int, ...]
) -> Iterator[tuple[Segment, list[int]]]:
    """Segments of sorted sequences that are alike up to `start`, parents first, with the sequences that have each.

    `number` is that of the next segment. Here segments say where they lie in their sequences, not in the row.
    """
    first, last = rows[members[0]], rows[members[-1]]
    shared = _common(first, last, start)  # of sorted sequences, the first and the last differ most
    if len(members) == 1 or shared - start >= WORTH_SHARING:
        if shared > start:
            yield Segment(start, shared, start, past), members
            past, number, start = (*past, number), number + 1, shared
        members = [b for b in members if len(rows[b]) > shared]
    for part in _alike(rows, members, start):
        for segment, owners in _cut(rows, part, start, number, past):
            yield segment, owners
            number += 1


def _alike(rows: Sequence[NDArray[np.int64]], members: list[int], start: int) -> Iterator[list[int]]:
    """Sorted sequences in runs that are worth a segment of their own from `start` on; the others one by one."""
    run: list[int] = []
    for b in members:
        if run and _common(rows[run[0]], rows[b], start) - start < WORTH_SHARING:
            yield run
            run = []
        run.append(b)
    if run:
        yield run


def _common(ours: NDArray[np.int64], theirs: NDArray[np.int64], start: int) -> int:
    """Where two sequences that are alike up to `start` part."""
    length = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[start:length] != theirs[start:length])
    return start + int(differs[0]) if len(differs) else length


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """sdpa of transformers, and, where a forest comes with the forward pass, attention within it."""
    forest: Forest | None = kwargs.pop("forest", None)
    if forest is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    groups = query.shape[1] // key.shape[1]
    out = forest.attend(query, repeat_kv(key, groups), repeat_kv(value, groups), kwargs.get("scaling"))
    return out.transpose(1, 2).contiguous(), None


# Under another name it would have to be chosen in the configuration, also while the backward pass recomputes a layer.
# Instead the forest comes as an argument, which a checkpointed layer keeps; without one nothing changes.
AttentionInterface.register("sdpa", _attention)


def forest_hidden(backbone: Any, forest: Forest, ids: Tensor) -> Tensor:
    """Hidden states of the row, (N, H).

    Args:
        ids: (B, T), as `plant` got them.
    """
    row = ids.flatten()[torch.from_numpy(forest.source).to(ids.device)][None]
    return backbone(
        input_ids=row,
        # Four dimensions: taken for a finished mask, and handed on as it is. Nobody reads it.
        attention_mask=torch.zeros((1, 1, 1, 1), device=ids.device),
        position_ids=torch.from_numpy(forest.positions).to(ids.device)[None],
        use_cache=False,
        forest=forest,
    ).last_hidden_state[0]
