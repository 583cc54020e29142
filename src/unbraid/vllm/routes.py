"""The route of every token of every request, in numpy: what `routing.py` puts into vLLM.

A request for a routed adapter names a folder: `routing.json`, and one PEFT folder for each adapter. Its prompt is
context, but for the stretches that it says the model wrote; all that is generated after it is the model's. So routes
are known for the whole prompt at once, and from there on one by one: `RequestRoutes` for what identifies a cached
block, `BatchRoutes` for what a step computes. Both ask the `Router` that training asks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unbraid.tokens import ROUTING_FILE, Router, written_mask

WRITTEN = "unbraid_written"
"""Key of a request's `extra_args`: [start, end) pairs of prompt positions that the model wrote."""
FURTHER = 1 << 32
"""vLLM's numbers of adapters are below; the second adapter of number i is i + FURTHER, the third i + 2 · FURTHER."""


@dataclass(frozen=True)
class Routed:
    """A routed adapter as vLLM knows it, by one number and one name, and the ordinary adapters that it consists of.

    folders, names, numbers: of each of the router's adapters. The first has the number of the whole. slots: numbers by
    route, with 0, vLLM's number for no adapter, at the end, where `NONE` finds it.
    """

    router: Router
    number: int
    names: tuple[str, ...]
    folders: tuple[str, ...]
    numbers: tuple[int, ...]
    slots: NDArray[np.int64]


@lru_cache(maxsize=256)
def open_routed(name: str, number: int, path: str) -> Routed | None:
    """As `read_routed`, remembered, for every request asks: a folder must not change once it is loaded."""
    return read_routed(name, number, path)


def read_routed(name: str, number: int, path: str) -> Routed | None:
    """The routed adapter in a folder; None if the folder holds an ordinary one.

    Raises:
        ValueError: its routing cannot be read, or an adapter is missing.
    """
    folder = Path(path).expanduser()
    if not (folder / ROUTING_FILE).is_file():
        return None
    try:
        router = Router.load(folder)
    except (OSError, ValueError, AttributeError, TypeError) as problem:
        raise ValueError(f"{folder / ROUTING_FILE}: cannot be read ({problem}): save the policy again") from problem
    if missing := [one for one in router.adapters if not (folder / one / "adapter_config.json").is_file()]:
        raise ValueError(f"{folder}: has no adapter {', '.join(missing)}, which {ROUTING_FILE} names: save it again")
    if number >= FURTHER:
        raise ValueError(f"adapter {name} has the number {number}: routed ones need numbers below {FURTHER}")
    numbers = tuple(number + index * FURTHER for index in range(len(router.adapters)))
    return Routed(
        router,
        number,
        tuple(f"{name}/{one}" for one in router.adapters),
        tuple(str(folder / one) for one in router.adapters),
        numbers,
        np.array([*numbers, 0], dtype=np.int64),
    )


def routed_of(request: Any) -> Routed | None:
    """The routed adapter that vLLM's `LoRARequest` names, if it is one; `request` may be None."""
    return None if request is None else open_routed(request.lora_name, request.lora_int_id, request.lora_path)


def told_by(request: Any) -> Any:
    """What a request tells of its prompt; it may be vLLM's of any of its processes."""
    extra = request.sampling_params.extra_args if request.sampling_params else None
    return (extra or {}).get(WRITTEN)


def prompt_written(router: Router, ids: Sequence[int], told: Any) -> NDArray[np.bool_]:
    """The mask, (T,), of what the model wrote in a prompt: as the request tells, or else by the router's turn markers.

    Args:
        told: a list of [start, end) pairs, the same as JSON, or None.

    Raises:
        ValueError: it is neither, or a pair lies outside the prompt.
    """
    if told is None:
        return router.turns.written(ids) if router.turns else np.zeros(len(ids), dtype=bool)
    try:
        spans = json.loads(told) if isinstance(told, str) else told
        if not isinstance(spans, list | tuple):
            raise TypeError
        for span in spans:
            start, end = span
            if type(start) is not int or type(end) is not int:
                raise TypeError
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{WRITTEN} is {told!r:.80}: give [[start, end), …], positions in the prompt") from problem
    return written_mask(len(ids), spans)


class RequestRoutes:
    """The routes of one request, position by position, for as many tokens as it has."""

    def __init__(self, router: Router, prompt: Sequence[int], told: Any):
        mask = prompt_written(router, prompt, told)
        self._router = router
        self._routes = bytearray(router.route(prompt, mask).tobytes())
        self._state = int(router.state(prompt, mask))

    def between(self, ids: Sequence[int], start: int, end: int) -> bytes:
        """The routes of positions [start, end) as bytes. ids: all tokens of the request so far."""
        known = len(self._routes)
        if end > known:
            self._state, routes = self._router.resume(self._state, ids[known:end])
            self._routes += routes.tobytes()
        return bytes(self._routes[start:end])


@dataclass(frozen=True)
class _Known:
    """A request in a batch. cell: its place in the arrays of states. routes: of all tokens that it came with."""

    routed: Routed
    cell: int
    routes: NDArray[np.int8]


@dataclass(frozen=True)
class _Group:
    """The rows of a batch that run through one routed adapter, and their cells."""

    routed: Routed
    rows: NDArray[np.intp]
    cells: NDArray[np.intp]
    known: tuple[_Known, ...]


class BatchRoutes:
    """The routed requests of a batch, whose rows vLLM fills, swaps and moves as it likes.

    What a request came with, its prompt and, after a preemption, what it had generated, is routed when it is added.
    From there on a state per request goes one step per token. States stand in cells that do not move; which row is in
    which cell is looked up again whenever the rows are other ones than in the step before.
    """

    def __init__(self, rows: int):
        self._requests: dict[str, _Known] = {}
        self._free = list(range(rows))
        self._state = np.zeros(rows, dtype=np.uint8)
        self._done = np.zeros(rows, dtype=np.int64)
        """Tokens that the state is after."""
        self._order: list[str] = []
        self._groups: list[_Group] = []

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: str, routed: Routed, prompt: Sequence[int], output: Sequence[int], told: Any) -> None:
        """A request joins, or comes back, with the tokens that it has. told: as for `prompt_written`."""
        self.drop(request)
        mask = prompt_written(routed.router, prompt, told)
        mask = np.concatenate([mask, np.ones(len(output), dtype=bool)])
        ids = np.array([*prompt, *output], dtype=np.int64)
        cell = self._free.pop()
        self._requests[request] = _Known(routed, cell, routed.router.route(ids, mask))
        self._state[cell], self._done[cell] = routed.router.state(ids, mask), len(ids)
        self._order = []

    def drop(self, request: str) -> Routed | None:
        """A request leaves, for good or for now. Returns its adapter; None if it is none of ours."""
        known = self._requests.pop(request, None)
        if known is None:
            return None
        self._free.append(known.cell)
        self._order = []
        return known.routed

    def numbers(
        self,
        order: list[str],
        plain: NDArray[np.int64],
        scheduled: NDArray[np.integer],
        computed: NDArray[np.integer],
        tokens: NDArray[np.integer],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The adapter of every token of a step, row after row: vLLM's numbers, 0 for none.

        Args:
            order: the request in each of R rows. plain: (R,), its adapter as vLLM has it, kept for all that are not
                ours. scheduled: (R,), tokens of the step. computed: (R,), tokens before them. tokens: (≥ R, L), ids.

        Returns:
            (sum of scheduled,), and (R,): of every row's last token, whose output is sampled from.

        Raises:
            RuntimeError: vLLM skips or repeats positions that were never seen: its scheduler is none that we know.
        """
        if order != self._order:
            self._arrange(order)
        ends = np.cumsum(scheduled)
        found = np.repeat(plain, scheduled)
        for group in self._groups:
            slots, rows, cells = group.routed.slots, group.rows, group.cells
            at = computed[rows]
            steps = (at == self._done[cells]) & (scheduled[rows] == 1)
            if not steps.all():
                for row, start, known in zip(
                    rows[~steps].tolist(),
                    at[~steps].tolist(),
                    (group.known[index] for index in np.flatnonzero(~steps)),
                    strict=True,
                ):
                    many, end = int(scheduled[row]), int(ends[row])
                    if start + many > len(known.routes):
                        raise RuntimeError(
                            f"request {order[row]}: tokens {start} to {start + many} are computed, and the last one "
                            f"that was routed is {self._done[known.cell] - 1}: run vLLM with --no-async-scheduling"
                        )
                    found[end - many : end] = slots[known.routes[start : start + many]]
                rows, cells, at = rows[steps], cells[steps], at[steps]
            if len(rows):
                self._state[cells], routes = group.routed.router.step(self._state[cells], tokens[rows, at])
                self._done[cells] = at + 1
                found[ends[rows] - 1] = slots[routes]
        return found, found[ends - 1]

    def _arrange(self, order: list[str]) -> None:
        """Find the routed requests among the rows."""
        groups: dict[int, list[tuple[int, _Known]]] = {}
        for row, request in enumerate(order):
            if known := self._requests.get(request):
                groups.setdefault(known.routed.number, []).append((row, known))
        self._groups = [
            _Group(
                members[0][1].routed,
                np.array([row for row, _ in members]),
                np.array([known.cell for _, known in members]),
                tuple(known for _, known in members),
            )
            for members in groups.values()
        ]
        self._order = list(order)
