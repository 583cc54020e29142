"""The formats that are read, and how a row's format is told from its keys."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unbraid.data.api_bank import api_bank, api_bank_dialogue, api_bank_toolrl
from unbraid.data.benchmarks import acebench, bfcl, hotpotqa
from unbraid.data.conversations import messages, sharegpt
from unbraid.data.row import Example
from unbraid.data.task_rows import tasks
from unbraid.data.toolrl import toolrl
from unbraid.data.verl import verl
from unbraid.data.xlam import xlam
from unbraid.tasks.task import Task


def _anything(row: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Format:
    """A format: a row that has all `keys` and that `fits` is taken for it.

    `read` makes examples of one row, or gives tasks that are in it as they are, or raises RowError.
    """

    keys: frozenset[str]
    read: Callable[[Mapping[str, Any]], Iterator[Example] | Iterator[Task]]
    fits: Callable[[Mapping[str, Any]], bool] = _anything


_BRACKETS = re.compile(r"\[\s*(?:func\w*\(|\{)")
_TAGS = re.compile(r"<tools>|<tool_call>|<tool_response>")


def _is_acebench(row: Mapping[str, Any]) -> bool:
    return isinstance(row["question"], str) and row["question"].startswith(("user:", "system:"))


def _is_toolace(row: Mapping[str, Any]) -> bool:
    return not row.get("tools") and isinstance(row["system"], str) and _BRACKETS.search(row["system"]) is not None


def _is_hermes(row: Mapping[str, Any]) -> bool:
    said = row["conversations"] if isinstance(row["conversations"], list) else []
    texts = [message.get("value") for message in said if isinstance(message, Mapping)]
    return any(isinstance(text, str) and _TAGS.search(text) for text in texts)


# To add a format, write its `read` and put it here. The first that fits is taken: most specific first.
FORMATS: dict[str, Format] = {
    "tasks": Format(frozenset({"id", "messages", "tools", "expected", "answers"}), tasks),
    "toolrl": Format(frozenset({"instruction", "input", "output"}), toolrl),
    "api-bank": Format(frozenset({"instruction", "input", "expected_output"}), api_bank),
    "api-bank-toolrl": Format(frozenset({"system", "user", "answer"}), api_bank_toolrl),
    "xlam": Format(frozenset({"query", "answers", "tools"}), xlam),
    "verl": Format(frozenset({"prompt", "reward_model"}), verl),
    "acebench": Format(frozenset({"id", "question", "function"}), acebench, _is_acebench),
    "bfcl": Format(frozenset({"id", "question", "function"}), bfcl),
    "bfcl-agentic": Format(frozenset({"id", "question", "involved_classes"}), bfcl),
    "hotpotqa": Format(frozenset({"question", "answer", "supporting_facts"}), hotpotqa),
    # One reader for conversations: what is told apart here is decided again row by row, since files mix them.
    "toolace": Format(frozenset({"conversations", "system"}), sharegpt, _is_toolace),
    "hermes": Format(frozenset({"conversations"}), sharegpt, _is_hermes),
    "sharegpt": Format(frozenset({"conversations"}), sharegpt),
    "messages": Format(frozenset({"messages"}), messages),
    "api-bank-dialogue": Format(frozenset({"role", "text"}), api_bank_dialogue),
}


def detect(row: Mapping[str, Any]) -> str:
    """The name of the first format whose keys `row` has and that it fits, or ""."""
    return next((name for name, one in FORMATS.items() if one.keys <= row.keys() and one.fits(row)), "")
