"""Runs a checker in a clone: questions from standard input, verdicts to standard output, one a line.

python answering.py MODULE CLONE     MODULE, beside this file, has `load`: the clone's folder → a judge
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[dict[str, Any]], str]
"""A question → `right`, or why not. What it raises ends the run: then nothing can be judged."""


NEEDS = "install the clone's requirements.txt somewhere and name that interpreter by --python"


def serve(module: str, clone: Path) -> None:
    """Load a checker, with the clone as working directory and first in `sys.path`, and answer until the input ends."""
    load: Callable[[Path], Judge] = importlib.import_module(module).load
    os.chdir(clone)
    sys.path[0] = str(clone)
    answers, sys.stdout = sys.stdout, sys.stderr  # what the clone prints is no verdict

    def tell(verdict: dict[str, Any]) -> None:
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()

    try:
        judge = load(clone)
    except ImportError as problem:
        return tell({"error": f"{problem}: {NEEDS}"})
    except Exception as problem:
        return tell({"error": f"{type(problem).__name__}: {problem}"})
    tell({"ready": True})
    for line in sys.stdin:
        try:
            reason = judge(json.loads(line))
            tell({"right": reason == "right", "reason": reason})
        except Exception as problem:
            tell({"error": f"{type(problem).__name__}: {problem}"})


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
