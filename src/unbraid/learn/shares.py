"""Which samples an optimiser step learns from, and which rank learns from which of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unbraid.learn.config import LearnConfig


def minibatches(groups: NDArray[np.int64], config: LearnConfig, step: int) -> list[NDArray[np.int64]]:
    """Row indices of every optimiser step, whole groups together, in an order keyed by the step."""
    names, rounds = np.unique(groups), []
    for epoch in range(config.epochs):
        shuffled = np.random.default_rng((step, epoch)).permutation(names) if config.minibatches > 1 else names
        for part in np.array_split(shuffled, min(config.minibatches, len(names))):
            rounds.append(np.flatnonzero(np.isin(groups, part)))
    return rounds


def share_out(
    rounds: Sequence[NDArray[np.int64]], groups: NDArray[np.int64], tokens: NDArray[np.int64], world: int
) -> NDArray[np.int64]:
    """The rank that learns from each row, (N,): whole groups, so that prompts stay shared.

    Args:
        rounds: rows of the optimiser steps of one epoch. tokens: (N,) of each row.

    Choice: in every step the largest group goes to whoever has least, since all wait for the last. A function of the
    batch alone, which every rank has.
    """
    owners = np.zeros(len(groups), dtype=np.int64)
    for rows in rounds:
        sizes = {group: int(tokens[rows][groups[rows] == group].sum()) for group in np.unique(groups[rows])}
        load = np.zeros(world, dtype=np.int64)
        for group in sorted(sizes, key=lambda group: -sizes[group]):
            owner = int(load.argmin())
            owners[rows[groups[rows] == group]] = owner
            load[owner] += sizes[group]
    return owners
