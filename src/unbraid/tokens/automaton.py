"""Role = f(provenance, ids): a small automaton over token ids, with two faces that agree.

In tokens that the model wrote, delimiters open and close spans; in prompts and observations they are
ordinary tokens and switch nothing. The rules, all of them:

* Outside a span, an opening delimiter opens its span. Everything outside has the role `outside`.
* A token has the role of the state *before* it: the opening delimiter is still written by whoever was
  writing, the closing delimiter by the span it closes (arXiv 2602.00994, Eq. 2).
* Inside a span only that span's own closing delimiter acts. Any other delimiter is content: an opening one
  is the fault `NESTED`, a foreign closing one is `STRAY`.
* Outside, a closing delimiter is `STRAY` and does nothing.
* A span still open where the model stops writing is `UNCLOSED`. The next tokens that the model writes
  after a prompt or an observation start outside: a truncated span never leaks into the next turn.

Source: design decision of this project; the paper leaves all but the first two open.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unbraid.tokens.roles import Provenance, Role


@dataclass(frozen=True)
class Delimiter:
    """A pair of ids that encloses a span, and the role of what it encloses."""

    name: str
    open: int
    close: int
    role: Role


class Fault(StrEnum):
    """What can be wrong with the delimiters of one stretch of model tokens."""

    NESTED = "nested"
    STRAY = "stray"
    UNCLOSED = "unclosed"


@dataclass(frozen=True)
class Span:
    """One enclosed stretch: `ids[start:end]` is its content, without the delimiters."""

    name: str
    role: Role
    start: int
    end: int
    closed: bool


@dataclass(frozen=True)
class Scan:
    """The spans of one stretch of model tokens, and its faults as (fault, position)."""

    spans: tuple[Span, ...]
    faults: tuple[tuple[Fault, int], ...]


class RoleAutomaton:
    """The automaton itself: immutable tables, no state.

    Args:
        delimiters: the spans to know. State 0 is "outside", state k is "inside delimiters[k - 1]".
        outside: the role of what the model writes outside all spans.

    Raises:
        ValueError: if one id is used twice; every delimiter needs an id of its own.
    """

    def __init__(self, delimiters: Iterable[Delimiter], outside: Role = Role.REASONING):
        self.delimiters = tuple(delimiters)
        self.outside = outside
        used = [i for d in self.delimiters for i in (d.open, d.close)]
        if len(set(used)) != len(used):
            raise ValueError(f"delimiter ids {used} repeat: give every delimiter an id of its own")
        states, symbols = len(self.delimiters) + 1, len(used) + 2
        # Symbols: 0 = ordinary, 1 = not written by the model (reset), then open/close of each delimiter.
        table = np.repeat(np.arange(states, dtype=np.uint8)[:, None], symbols, axis=1)
        table[:, 1] = 0
        for k in range(len(self.delimiters)):
            table[0, 2 + 2 * k] = k + 1
            table[k + 1, 3 + 2 * k] = 0
        self._table = table
        self._state_role = np.array([outside, *(d.role for d in self.delimiters)], dtype=np.uint8)
        order = np.argsort(used) if used else np.zeros(0, dtype=np.int64)
        self._sorted_ids = np.array(used, dtype=np.int64)[order]
        self._sorted_symbols = (order + 2).astype(np.uint8)
        self._symbol_of = {i: s + 2 for s, i in enumerate(used)}

    def label(self, ids: ArrayLike, provenance: ArrayLike | None = None) -> NDArray[np.uint8]:
        """Roles of whole sequences at once (the vectorised face).

        Args:
            ids: token ids, shape (T,) or (B, T).
            provenance: `Provenance` values of the same shape; None means that the model wrote everything.

        Returns:
            `Role` values, uint8, of the same shape.
        """
        ids = np.asarray(ids)
        origin = np.full(ids.shape, Provenance.MODEL) if provenance is None else np.asarray(provenance)
        before = np.zeros(ids.shape, dtype=np.uint8)
        before[..., 1:] = self.states(ids, origin)[..., :-1]
        roles = self._state_role[before]
        roles = np.where(origin == Provenance.PROMPT, np.uint8(Role.PROMPT), roles)
        return np.where(origin == Provenance.OBSERVATION, np.uint8(Role.OBSERVATION), roles)

    def states(self, ids: ArrayLike, provenance: ArrayLike, start: int = 0) -> NDArray[np.uint8]:
        """The state after every token, uint8, of the shape of `ids`, (T,) or (B, T); 0 is outside all spans.

        Args:
            start: the state before the first token.
        """
        ids, origin = np.asarray(ids), np.asarray(provenance)
        if origin.shape != ids.shape:
            raise ValueError(f"provenance has shape {origin.shape}, ids have {ids.shape}: give one per token")
        symbols = self._symbols(ids, origin)
        if symbols.ndim == 1:
            return self._walk(symbols, start)
        # One step is a function state -> state; composition is associative, so a prefix scan by doubling
        # gives every prefix's function in log2(T) vectorised steps.
        step = self._table.T[symbols]  # (..., T, states)
        length, shift = ids.shape[-1], 1
        while shift < length:
            later, earlier = step[..., shift:, :], step[..., :-shift, :]
            step = np.concatenate([step[..., :shift, :], np.take_along_axis(later, earlier, axis=-1)], axis=-2)
            shift *= 2
        return step[..., start]

    def _walk(self, symbols: NDArray[np.uint8], start: int) -> NDArray[np.uint8]:
        """The states after one sequence, from delimiter to delimiter: several times faster than a scan of one row."""
        places, table, state, after = np.flatnonzero(symbols), self._table.tolist(), start, [start]
        for symbol in symbols[places].tolist():
            state = table[state][symbol]
            after.append(state)
        ends, starts = np.append(places, len(symbols)), np.append(0, places)
        return np.repeat(np.array(after, dtype=np.uint8), ends - starts)

    def step(self, states: NDArray[np.uint8], ids: ArrayLike) -> NDArray[np.uint8]:
        """The states of B rows, (B,), after each got one more token that the model wrote."""
        ids = np.asarray(ids)
        return self._table[states, self._symbols(ids, np.full(ids.shape, Provenance.MODEL))]

    def reader(self) -> "RoleReader":
        """A fresh incremental reader (the face for sampling)."""
        return RoleReader(self)

    def scan(self, ids: Sequence[int]) -> Scan:
        """Spans and faults of one stretch that the model wrote (a response or one turn of it)."""
        spans: list[Span] = []
        faults: list[tuple[Fault, int]] = []
        state, start = 0, 0
        for position, token in enumerate(ids):
            symbol = self._symbol_of.get(int(token), 0)
            if not symbol:
                continue
            after = int(self._table[state, symbol])
            if after == state:
                opens = symbol % 2 == 0
                faults.append((Fault.NESTED if opens else Fault.STRAY, position))
            elif after:
                start = position + 1
            else:
                inside = self.delimiters[state - 1]
                spans.append(Span(inside.name, inside.role, start, position, closed=True))
            state = after
        if state:
            inside = self.delimiters[state - 1]
            spans.append(Span(inside.name, inside.role, start, len(ids), closed=False))
            faults.append((Fault.UNCLOSED, start - 1))
        return Scan(tuple(spans), tuple(faults))

    def _symbols(self, ids: NDArray, origin: NDArray) -> NDArray[np.uint8]:
        symbols = np.zeros(ids.shape, dtype=np.uint8)
        if len(self._sorted_ids):
            slot = np.searchsorted(self._sorted_ids, ids).clip(max=len(self._sorted_ids) - 1)
            symbols = np.where(self._sorted_ids[slot] == ids, self._sorted_symbols[slot], symbols)
        return np.where(origin == Provenance.MODEL, symbols, np.uint8(1))


class RoleReader:
    """The incremental face: feed tokens in any chunks, get the roles `RoleAutomaton.label` would give.

    `state` is a plain integer: it can be saved, compared and handed to another process.
    """

    def __init__(self, automaton: RoleAutomaton, state: int = 0):
        self.automaton = automaton
        self.state = state

    @property
    def next_role(self) -> Role:
        """The role of the next token, if the model writes it. It picks the adapter of the last input."""
        return Role(int(self.automaton._state_role[self.state]))

    def push(self, ids: Iterable[int], provenance: Provenance = Provenance.MODEL) -> list[Role]:
        """Read one chunk of tokens of one provenance; returns their roles."""
        if provenance != Provenance.MODEL:
            roles = [Role.PROMPT if provenance == Provenance.PROMPT else Role.OBSERVATION for _ in ids]
            self.state = 0 if roles else self.state
            return roles
        table, symbol_of, roles = self.automaton._table, self.automaton._symbol_of, []
        for token in ids:
            roles.append(self.next_role)
            self.state = int(table[self.state, symbol_of.get(int(token), 0)])
        return roles
