"""What a vLLM server's log says, in one line: where its startup is, and why it ended."""

import re

MOST = 300
"""Most characters of a line."""
# (EngineCore pid=12) ERROR 11-21 12:39:27 [core.py:95] text
_PREFIX = re.compile(
    r"^(\([\w@. -]+ pid=\d+\) )*((DEBUG|INFO|WARNING|ERROR|CRITICAL)(:?\s+)([\d:. -]{14} )?(\[[^\]]+:\d+\] )?)?"
)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
# A traceback's last line, which has no indentation: `package.SomeError: text`.
_EXCEPTION = re.compile(
    r"^([A-Za-z_][\w.]*\.)?([A-Z]\w*(Error|Exception|Exit|Interrupt|Warning|Died))\b(: ?(?P<text>.*))?$"
)
_REFUSED = re.compile(r"^[\w. -]+: error: ")
# What vLLM's first process says when another one has ended: the reason is further up.
_CONSEQUENCE = re.compile(r"initialization failed|root cause|EngineDead|EngineCore encountered an issue", re.IGNORECASE)
_NOTHING = re.compile(r"^\W*$|^Route: |^warnings\.warn|UserWarning|DeprecationWarning|resource_tracker|nanobind")


def telling_line(log: str) -> str:
    """Why the server ended: the last exception that is not the consequence of another, or else the last line.

    A traceback ends with the exception; of pydantic's, which go on, the first complaint is added.
    """
    lines = _lines(log)
    consequence = ""
    for index in range(len(lines) - 1, -1, -1):
        line = lines[index]
        exception = _EXCEPTION.match(line)
        if exception and "Warning" not in exception[2]:
            if not _CONSEQUENCE.search(line):
                return _short(_with_complaint(line, exception, lines[index + 1 :]))
            consequence = consequence or line
        elif _REFUSED.match(line):
            return _short(line)
    return _short(consequence or last_phase(log))


def last_phase(log: str) -> str:
    """The last line that says something, without time and place."""
    return _short(next((line.strip() for line in reversed(_lines(log)) if not _NOTHING.search(line)), ""))


def _lines(log: str) -> list[str]:
    """Lines without colours and vLLM's prefixes; indentation stays."""
    return [_PREFIX.sub("", _COLOUR.sub("", line)).rstrip() for line in re.split(r"[\r\n]+", log)]


def _with_complaint(line: str, exception: "re.Match[str]", following: list[str]) -> str:
    if "validation error" not in (exception["text"] or ""):
        return line
    complaint = next((one.strip() for one in following if one.startswith(" ") and one.strip()), "")
    return f"{exception[2]}: {complaint}" if complaint else line


def _short(line: str) -> str:
    return line if len(line) <= MOST else f"{line[: MOST - 1]}…"
