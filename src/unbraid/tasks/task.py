"""A task: what the model is asked, the tools it may call, and what counts as right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unbraid.chat.types import Answer, Call


@dataclass(frozen=True)
class Task:
    """One single-step task.

    `messages` and `tools` are plain chat dicts as every Hugging Face template takes them. `expected` is the set of
    calls that is right (order-free); an empty tuple means that no call should be made. `answers` are
    gold answers to learn from, at most one per mode. `level` and `source` only group results.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    expected: tuple[Call, ...] = ()
    answers: tuple[Answer, ...] = ()
    level: str = ""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
