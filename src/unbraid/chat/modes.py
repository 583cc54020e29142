"""Modes as token prefixes: what a forced mode puts first, and how a free choice is read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from unbraid.chat.types import Mode
from unbraid.errors import ChatError


@dataclass(frozen=True)
class ModePrefixes:
    """The response prefixes of the two modes, as ids.

    Raises:
        ChatError: if one prefix starts with the other; then no single position tells the modes apart.
    """

    think: tuple[int, ...]
    no_think: tuple[int, ...]

    def __post_init__(self):
        if self.position >= min(len(self.think), len(self.no_think)):
            raise ChatError(
                f"mode prefixes {list(self.think)} (think) and {list(self.no_think)} (no_think) are not told apart "
                "by any one token: pick another chat.preset, or add the tags to the tokenizer as special tokens"
            )

    @cached_property
    def position(self) -> int:
        """First index where the two prefixes differ: the token there *is* the choice of mode."""
        pairs = zip(self.think, self.no_think, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.think), len(self.no_think)))

    @property
    def shared(self) -> tuple[int, ...]:
        """The ids before `position`: a response that starts with others makes no choice of mode there."""
        return self.think[: self.position]

    @property
    def choice_ids(self) -> tuple[int, int]:
        """(think id, no_think id) at `position`."""
        return self.think[self.position], self.no_think[self.position]

    def of(self, mode: Mode) -> tuple[int, ...]:
        """The ids that force `mode`; empty for AUTO."""
        if mode is Mode.AUTO:
            return ()
        if mode is Mode.NONE:
            raise ChatError("mode 'none' can be read but not forced: ask for auto, think or no_think")
        return self.think if mode is Mode.THINK else self.no_think

    def read(self, response: Sequence[int]) -> Mode:
        """The mode of a response: the one whose whole prefix it starts with, else NONE."""
        for mode, prefix in ((Mode.THINK, self.think), (Mode.NO_THINK, self.no_think)):
            if tuple(response[: len(prefix)]) == prefix:
                return mode
        return Mode.NONE
