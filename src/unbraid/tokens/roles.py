"""The two enumerations that everything else reads: who put a token there, and what it is for."""

from enum import IntEnum


class Provenance(IntEnum):
    """Who put a token into the context. Known to whoever put it there; never guessed from ids."""

    PROMPT = 0
    MODEL = 1
    OBSERVATION = 2


class Role(IntEnum):
    """What a token is for. PROMPT and OBSERVATION follow from provenance, the other two from the automaton."""

    PROMPT = 0
    REASONING = 1
    ACTION = 2
    OBSERVATION = 3
