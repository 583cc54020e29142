"""What the scripts for official checkers share: questions from standard input, verdicts to standard output."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[dict[str, Any]], str]
"""A question → `right`, or why not. What it raises ends the run: then nothing can be judged."""


def serve(load: Callable[[Path], Judge], needs: str) -> None:
    """Load a checker in the clone that the first argument names, and answer until the input ends.

    Args:
        load: changes nothing in the clone, which is the working directory and first in `sys.path`.
        needs: what to do where something cannot be imported.
    """
    clone = Path(sys.argv[1])
    os.chdir(clone)
    sys.path.insert(0, str(clone))
    answers, sys.stdout = sys.stdout, sys.stderr  # what the clone prints is no verdict

    def tell(verdict: dict[str, Any]) -> None:
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()

    try:
        judge = load(clone)
    except ImportError as problem:
        return tell({"error": f"{problem}: {needs}"})
    except Exception as problem:
        return tell({"error": f"{type(problem).__name__}: {problem}"})
    tell({"ready": True})
    for line in sys.stdin:
        try:
            reason = judge(json.loads(line))
            tell({"right": reason == "right", "reason": reason})
        except Exception as problem:
            tell({"error": f"{type(problem).__name__}: {problem}"})
