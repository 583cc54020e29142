"""Choosing among tasks that have been read: a stable split, and prompts that fit."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Protocol

from unbraid.chat.types import Answer
from unbraid.errors import ChatError
from unbraid.tasks.task import Task


class PromptFormat(Protocol):
    """The part of `chat.format.ChatFormat` that is needed here."""

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """Ids of the prompt."""
        ...

    def response_ids(self, answer: Answer) -> Sequence[int]:
        """Ids of the response that says `answer`; raises ChatError where it cannot be written."""
        ...


@dataclass(frozen=True)
class Fitted:
    """Tasks whose prompts fit; reason → count for tasks that do not, and for single answers taken out."""

    kept: list[Task]
    dropped: Counter[str]
    dropped_answers: Counter[str]


def fit_prompts(tasks: Sequence[Task], chat_format: PromptFormat, max_tokens: int) -> Fitted:
    """Tasks whose prompt has at most `max_tokens` tokens and that the chat template can render at all.

    Templates refuse conversations in their own ways and with errors of any kind: such a task is counted, not raised.
    A gold answer that cannot be written in this format (special tokens in its text) is taken out of its task.
    """
    kept: list[Task] = []
    dropped: Counter[str] = Counter()
    dropped_answers: Counter[str] = Counter()
    for task in tasks:
        try:
            length = len(chat_format.prompt_ids(task.messages, task.tools))
        except Exception as problem:
            dropped[f"template refuses it: {type(problem).__name__}: {problem}"] += 1
            continue
        if length > max_tokens:
            dropped[f"prompt longer than {max_tokens} tokens"] += 1
        else:
            answers = tuple(a for a in task.answers if can_write(chat_format, a))
            dropped_answers["special tokens in its text"] += len(task.answers) - len(answers)
            kept.append(task if len(answers) == len(task.answers) else replace(task, answers=answers))
    return Fitted(kept, dropped, +dropped_answers)


def can_write(chat_format: PromptFormat, answer: Answer) -> bool:
    """Whether an answer can be written in a chat format, and so be learned."""
    try:
        chat_format.response_ids(answer)
    except ChatError:
        return False
    return True


def split_tasks(tasks: Sequence[Task], validation: int, seed: int) -> tuple[list[Task], list[Task]]:
    """(train, validation), each in the given order, with at least `validation` tasks in the second if there are enough.

    Tasks that start from the same user message and tools (turns of one conversation, repeated rows) stay together.
    The side of such a group depends on its content and the seed alone, not on file names or the order of rows.
    """
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[_opening(task, seed)].append(task)
    held: set[str] = set()
    for key in sorted(groups):
        if len(held) >= validation:
            break
        held.update(t.id for t in groups[key])
    return [t for t in tasks if t.id not in held], [t for t in tasks if t.id in held]


def _opening(task: Task, seed: int) -> str:
    first = next((m.get("content") for m in task.messages if m.get("role") == "user"), "")
    text = json.dumps([seed, first, [dict(t) for t in task.tools]], sort_keys=True)
    return sha256(text.encode()).hexdigest()
