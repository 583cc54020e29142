"""Controls for routing: what the adapters themselves do, as against giving them to roles.

A gain of routed adapters over one shared adapter may come from having two of them, from being switched at all, or from
being switched by role. Each control keeps the first or the first two and breaks the last. They are for experiments:
trained and sampled here, never saved with a routing file and never served.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unbraid.tokens import NONE, Router

Control = Literal["swapped", "all", "position", "prompt", "only"]
CONTROLS: dict[str, Control] = {"swapped": "swapped", "all": "all", "random": "position", "placebo": "prompt"}


@dataclass(frozen=True)
class ControlRouter:
    """A router that decides by something else than the role.

    control:
        swapped   the roles' adapters change places (of two; of more, each is the next one's).
        all       every token runs through all adapters.
        position  a hash of the position: every token's adapter is drawn, with no regard to its role.
        prompt    a hash of the prompt: all tokens of an episode run through one adapter. It separates questions, as
                  routing separates roles, and says nothing of the role at any position.
        only      as `router`, but tokens of adapters not in `kept` run through the bare base (the paper's study of
                  each adapter by itself).
    """

    router: Router
    control: Control
    kept: Sequence[str] = ()

    @property
    def adapters(self) -> tuple[str, ...]:
        return self.router.adapters

    def route(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.int8]:
        """As `Router.route`."""
        ids, written = np.asarray(ids), np.asarray(written, dtype=bool)
        if self.control == "position":
            return np.broadcast_to(self._drawn(np.arange(ids.shape[-1])), ids.shape).copy()
        if self.control == "prompt":
            return np.broadcast_to(self._drawn(_prompt_hash(ids, written))[..., None], ids.shape).copy()
        return self._changed(self.router.route(ids, written))

    def owners(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.int8]:
        """As `Router.owners`: the role's own where the control keeps it, else the route that writes the token."""
        if self.control in ("all", "only"):
            return self.router.owners(ids, written)
        if self.control == "swapped":
            return self._changed(self.router.owners(ids, written))
        return self.route(ids, written)[..., :-1]

    def state(self, ids: ArrayLike, written: ArrayLike) -> NDArray[Any]:
        """As `Router.state`; what the router knows and what the control adds, in one integer."""
        ids, written = np.asarray(ids), np.asarray(written, dtype=bool)
        inner = self.router.state(ids, written).astype(np.int64)
        if self.control == "position":
            return inner + 256 * ids.shape[-1]
        if self.control == "prompt":
            return inner + 256 * self._drawn(_prompt_hash(ids, written)).astype(np.int64)
        return inner

    def step(self, states: NDArray[Any], ids: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int8]]:
        """As `Router.step`."""
        inner, added = states % 256, states // 256
        after, routes = self.router.step(inner.astype(np.uint8), ids)
        if self.control == "position":
            return after.astype(np.int64) + 256 * (added + 1), self._drawn(added)
        if self.control == "prompt":
            return after.astype(np.int64) + 256 * added, added.astype(np.int8)
        return after.astype(np.int64), self._changed(routes)

    def _changed(self, routes: NDArray[np.int8]) -> NDArray[np.int8]:
        if self.control == "swapped":
            return np.where(routes == NONE, NONE, (routes + 1) % len(self.adapters)).astype(np.int8)
        if self.control == "all":
            return np.where(routes == NONE, NONE, len(self.adapters)).astype(np.int8)
        kept = [self.adapters.index(name) for name in self.kept]
        return np.where(np.isin(routes, kept), routes, NONE).astype(np.int8)

    def _drawn(self, keys: NDArray[Any]) -> NDArray[np.int8]:
        """An adapter per key, each as likely as any other."""
        return (_mixed(keys) % np.uint64(len(self.adapters))).astype(np.int8)


@contextmanager
def controlled(model: Any, control: Control, kept: Sequence[str] = ()) -> Iterator[None]:
    """Within, a model that routes its tokens by role (`model.routing`) does so by a control; `kept` as there."""
    binding, router = model.routing, model.routing.router
    assert isinstance(router, Router)
    binding.router = ControlRouter(router, control, kept)
    try:
        yield
    finally:
        binding.router = router


def _mixed(keys: NDArray[Any]) -> NDArray[np.uint64]:
    """Bits that depend on all bits of the keys. Source: the finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        x = np.asarray(keys).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _prompt_hash(ids: NDArray[Any], written: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """A hash of the tokens before the first one that the model wrote, one per row."""
    before = ~np.logical_or.accumulate(written, axis=-1)
    places = np.arange(ids.shape[-1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        return np.where(before, _mixed(ids.astype(np.uint64) + _mixed(places)), np.uint64(0)).sum(-1, dtype=np.uint64)
