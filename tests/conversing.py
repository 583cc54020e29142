"""Scripted conversations with `unbraid chat`, for several test files."""

import io
import json
import re
from typing import Any

from rich.console import Console

from unbraid.serve.chat import ChatSettings, chat

SECONDS = re.compile(r"\d+\.\d s")


def converse(client, *lines: Any, colour: bool = False, interactive: bool = False, **settings: Any) -> tuple[bool, str]:
    """(all well, what was printed); a line may be an exception to raise instead."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=colour, width=40, color_system="standard" if colour else None)
    script = iter(lines)

    def read(prompt: str) -> str:
        line = next(script, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    well = chat(client, console, ChatSettings(**settings), read, interactive)
    return well, SECONDS.sub("? s", out.getvalue())


class Made:
    """A client whose answers are made up: per question a list of deltas, or exceptions between them."""

    name = "made"

    def __init__(self, *answers: list):
        self.answers, self.asked, self.closed = list(answers), [], 0

    def chunks(self, asked):
        self.asked.append(json.loads(json.dumps(asked)))
        try:
            for step in self.answers.pop(0):
                if isinstance(step, BaseException):
                    raise step
                finish = step.pop("finish", None)
                yield {"choices": [{"index": 0, "delta": step, "finish_reason": finish}]}
            yield {"choices": [], "usage": {"completion_tokens": 7}}
        finally:
            self.closed += 1


def call(name: str, arguments: str, index: int = 0, call_id: str = "c0") -> dict:
    return {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
