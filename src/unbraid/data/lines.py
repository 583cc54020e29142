"""Files of JSON lines, written whole or not at all."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def json_line(value: Any) -> bytes:
    """One line of UTF-8 JSON; escapes are used only where a text has lone surrogates, which UTF-8 has not."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"


def write_whole(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
