"""Which adapter a token runs through: the automaton's roles, turned into one adapter per input position.

A model reads token i at position i and says there what token i + 1 is to be. So the adapter at position i is that of
whoever *writes* token i + 1:

    tokens     question  .  <think>  so  </think>  <search>  e21  </search>  result  <answer>
    written by prompt       the model, as far as `</search>`                 a tool  the model
    role       -            R        R   R         R         A    A          -       R
    adapter    context   R  R        R   R         A         A    context    R       R

`<search>` opens the span: the reasoning adapter decides to write it, and at its own position the action adapter
writes the first word of the query. The position before a token that nobody sampled belongs to the context.

Source: arXiv 2602.00994, Eq. 2 and Eq. 10. Its released code trains with a mask that is one position later
(`boundary: shifted`): there the adapter at position i is that of the role of token i itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unbraid.tokens.automaton import Delimiter, RoleAutomaton
from unbraid.tokens.roles import Provenance, Role

Boundary = Literal["eq2", "shifted"]
NONE = -1
"""The route of a position that runs through no adapter."""
ROUTING_FILE = "routing.json"
"""Beside the folders of its adapters, each named as its adapter is."""
_VERSION = 1


@dataclass(frozen=True)
class Turns:
    """How to see in a prompt alone what the model wrote there: after `open`, ids in a row, up to and with a `close` id.

    For clients that send messages and no stretches. It believes the ids: who can put `open` into a prompt can have what
    follows routed as the model's. An opened turn that is not closed reaches to the end of the prompt.
    """

    open: tuple[int, ...]
    close: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.open or not self.close:
            raise ValueError("turns need ids that open them and ids that close them: give both, or leave turns out")

    def written(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """The mask, (T,), of what the model wrote in a prompt, (T,)."""
        ids = np.asarray(ids)
        mask, width = np.zeros(len(ids), dtype=bool), len(self.open)
        if len(ids) < width:
            return mask
        windows = np.lib.stride_tricks.sliding_window_view(ids, width)
        closes = np.flatnonzero(np.isin(ids, self.close)) + 1
        end = 0
        for start in np.flatnonzero((windows == self.open).all(-1)) + width:
            if start < end:  # inside the turn before, where it is content
                continue
            after = np.searchsorted(closes, start, side="right")
            end = int(closes[after]) if after < len(closes) else len(ids)
            mask[start:end] = True
        return mask


@dataclass(frozen=True)
class Router:
    """Adapters, and what each of them owns. Immutable; routes are indices into `adapters`, `NONE` for none.

    automaton: decides where spans are. outside: the adapter of what the model writes outside all spans.
    spans: the adapter of each of the automaton's delimiters. context: that of prompts and observations, or None.
    boundary: see above. turns: how servers see what the model wrote in prompts of clients that do not tell, or None.

    Raises:
        ValueError: an adapter is named that is not among `adapters`, or is never used, or names repeat.
    """

    automaton: RoleAutomaton
    adapters: tuple[str, ...]
    outside: str
    spans: tuple[str, ...]
    context: str | None
    boundary: Boundary = "eq2"
    turns: Turns | None = None

    def __post_init__(self) -> None:
        used = {self.outside, *self.spans} | ({self.context} if self.context else set())
        if len(set(self.adapters)) != len(self.adapters) or used != set(self.adapters):
            raise ValueError(
                f"adapters {list(self.adapters)} and those that own something {sorted(used)} differ: "
                "name each adapter once and give it something to own"
            )
        if len(self.spans) != len(self.automaton.delimiters):
            raise ValueError(f"{len(self.spans)} adapters for {len(self.automaton.delimiters)} kinds of span")
        number = {name: index for index, name in enumerate(self.adapters)}
        owners = [number[name] for name in (self.outside, *self.spans)]
        object.__setattr__(self, "_of_state", np.array(owners, dtype=np.int8))
        object.__setattr__(self, "_of_context", np.int8(number[self.context] if self.context else NONE))

    def route(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.int8]:
        """Routes of whole sequences at once (the vectorised face).

        Args:
            ids: token ids, (T,) or (B, T).
            written: bool of the same shape: the model wrote this token. All else is prompt or observation.

        Returns:
            The route at every input position, same shape. At the last one the model is taken to write on.
        """
        written = np.asarray(written, dtype=bool)
        after = self.automaton.states(ids, _provenance(written))
        if self.boundary == "shifted":
            before = np.zeros_like(after)
            before[..., 1:] = after[..., :-1]
            return np.where(written, self._of_state[before], self._of_context)  # type: ignore[attr-defined]
        routes = self._of_state[after]  # type: ignore[attr-defined]
        routes[..., :-1] = np.where(written[..., 1:], routes[..., :-1], self._of_context)  # type: ignore[attr-defined]
        return routes

    def owners(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.int8]:
        """Whose loss each target is, (…, T − 1): column t speaks of token t + 1, as in `TokenBatch`.

        The adapter of the role that writes the token, whatever the boundary: under Eq. 2 the route at its position.
        """
        eq2 = self if self.boundary == "eq2" else Router(
            self.automaton, self.adapters, self.outside, self.spans, self.context
        )  # fmt: skip
        return eq2.route(ids, written)[..., :-1]

    def state(self, ids: ArrayLike, written: ArrayLike) -> NDArray[np.uint8]:
        """The automaton's state after whole sequences, (…): where `step` goes on."""
        return self.automaton.states(ids, _provenance(np.asarray(written, dtype=bool)))[..., -1]

    def step(self, states: NDArray[np.uint8], ids: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
        """One token that the model wrote in each of B rows, which it goes on from (the incremental face).

        Returns:
            The states after it, (B,), and the route at its position, (B,).
        """
        after = self.automaton.step(states, ids)
        return after, self._of_state[after if self.boundary == "eq2" else states]  # type: ignore[attr-defined]

    def resume(self, state: int, ids: ArrayLike) -> tuple[int, NDArray[np.int8]]:
        """Several tokens, (T,), that the model wrote in one row, which it goes on from.

        Returns:
            The state after them, and the route at each of their positions, (T,).
        """
        ids = np.asarray(ids)
        if not len(ids):
            return state, np.zeros(0, dtype=np.int8)
        after = self.automaton.states(ids, np.full(len(ids), Provenance.MODEL), state)
        at = after if self.boundary == "eq2" else np.concatenate([[np.uint8(state)], after[:-1]])
        return int(after[-1]), self._of_state[at]  # type: ignore[attr-defined]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "version": _VERSION,
            "adapters": list(self.adapters),
            "outside": {"role": self.automaton.outside.name, "adapter": self.outside},
            "spans": [
                {"name": d.name, "open": d.open, "close": d.close, "role": d.role.name, "adapter": adapter}
                for d, adapter in zip(self.automaton.delimiters, self.spans, strict=True)
            ],
            "context": self.context,
            "boundary": self.boundary,
            **({"turns": {"open": list(self.turns.open), "close": list(self.turns.close)}} if self.turns else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Router":
        """The router that `to_json` describes.

        Raises:
            ValueError: it is none, or one of a later version.
        """
        if data.get("version") != _VERSION:
            raise ValueError(f"routing of version {data.get('version')!r}: this unbraid reads version {_VERSION}")
        try:
            delimiters = [Delimiter(s["name"], s["open"], s["close"], Role[s["role"]]) for s in data["spans"]]
            turns = data.get("turns")
            return cls(
                RoleAutomaton(delimiters, Role[data["outside"]["role"]]),
                tuple(data["adapters"]),
                data["outside"]["adapter"],
                tuple(s["adapter"] for s in data["spans"]),
                data["context"],
                data["boundary"],
                Turns(tuple(turns["open"]), tuple(turns["close"])) if turns else None,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"routing without {error}: write it with unbraid, or by docs/routed-lora.md") from error

    def save(self, folder: str | Path) -> None:
        """Write `ROUTING_FILE` into a folder."""
        (Path(folder) / ROUTING_FILE).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Router":
        """The router that `save` wrote.

        Raises:
            OSError: there is no such file. ValueError: it holds no routing.
        """
        return cls.from_json(json.loads((Path(folder) / ROUTING_FILE).read_text(encoding="utf-8")))


def written_mask(length: int, spans: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """The bool mask (T,) of tokens that the model wrote, from [start, end) pairs: how requests to servers tell it.

    Raises:
        ValueError: a pair is no stretch of a sequence of that length.
    """
    mask = np.zeros(length, dtype=bool)
    for span in spans:
        start, end = (int(span[0]), int(span[1])) if len(span) == 2 else (-1, -1)
        if not 0 <= start <= end <= length:
            raise ValueError(f"written stretch {list(span)} of {length} tokens: give [start, end) pairs inside")
        mask[start:end] = True
    return mask


def written_spans(written: ArrayLike) -> list[tuple[int, int]]:
    """The [start, end) pairs that `written_mask` turns back into this mask (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.asarray(written, dtype=bool), [False]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _provenance(written: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(written, Provenance.MODEL, Provenance.OBSERVATION)
