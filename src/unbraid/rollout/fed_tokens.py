"""Tokens as they are fed: id and route in one integer, which is what must agree where keys and values are used again.

The same id through another adapter has other keys and values, so a beginning is shared only as far as both agree.
"""

import numpy as np
from numpy.typing import NDArray


def with_routes(ids: NDArray[np.int64], routes: NDArray[np.int8]) -> NDArray[np.int64]:
    """Ids (below 2³²) and their routes, in one integer each. Where nothing is routed, ids serve as they are."""
    return ids + ((routes.astype(np.int64) + 1) << 32)


def ids_of(fed: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids."""
    return fed & 0xFFFFFFFF


def routes_of(fed: NDArray[np.int64]) -> NDArray[np.int8]:
    """The routes."""
    return ((fed >> 32) - 1).astype(np.int8)


def common_length(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> int:
    """Length of the common beginning."""
    length = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[:length] != theirs[:length])
    return int(differs[0]) if len(differs) else length


def start_alike(ours: NDArray[np.int64], theirs: NDArray[np.int64], length: int) -> bool:
    """Whether the first `length` ids are there and the same; most often one look tells."""
    enough = min(len(ours), len(theirs)) >= length
    return enough and ours[length - 1] == theirs[length - 1] and np.array_equal(ours[:length], theirs[:length])
