"""The nouns of a conversation: a mode, a call, an answer, and what was read from a response."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Mode(StrEnum):
    """How a response was (or is to be) written.

    AUTO is only ever asked for: the model chooses. NONE is only ever found: no mode could be read.
    """

    AUTO = "auto"
    THINK = "think"
    NO_THINK = "no_think"
    NONE = "none"


@dataclass(frozen=True)
class Call:
    """One tool call. `arguments` is a JSON object; equality is structural (see `chat.compare` for scoring)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What an assistant turn says, before it is rendered to tokens: the target of supervised training."""

    mode: Mode
    thought: str = ""
    calls: tuple[Call, ...] = ()
    content: str = ""


class Problem(StrEnum):
    """Why a response is malformed. The first that applies, in this order, is the reason of the response."""

    NO_MODE = "no_mode"  # starts with neither mode prefix
    TRUNCATED = "truncated"  # the token budget ended before the stop token
    UNCLOSED = "unclosed"  # a span was opened and never closed
    NESTED = "nested"  # an opening delimiter inside a span
    STRAY = "stray"  # a closing delimiter that closes nothing
    REPEATED_THOUGHT = "repeated_thought"  # a second thinking span, or one in no_think mode
    EMPTY = "empty"  # a call span with nothing in it
    NOT_JSON = "not_json"  # a call is not valid JSON (or repeats a key)
    NOT_OBJECT = "not_object"  # valid JSON, but not the object (or list of objects) the format asks for
    NO_NAME = "no_name"  # no name, or one that is not a non-empty string
    BAD_ARGUMENTS = "bad_arguments"  # arguments missing or not an object


@dataclass(frozen=True)
class Reading:
    """A response as read back: the parts that could be read, and every problem met (none = well-formed)."""

    mode: Mode
    thought: str
    calls: tuple[Call, ...]
    content: str
    problems: tuple[Problem, ...]

    @property
    def reason(self) -> Problem | None:
        """The first problem in the order of `Problem`, or None if the response is well-formed."""
        return min(self.problems, key=list(Problem).index) if self.problems else None
