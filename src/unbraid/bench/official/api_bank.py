"""API-Bank's own evaluation of one call: run by `Checker` in a clone of DAMO-ConvAI's `api-bank`.

As its `evaluator.py` does: a fresh `ToolManager`, the call executed on the databases of the clone, and the API's own
`check_api_call_correctness` against the annotated result. Unlike it, the arguments come as they were read from the
response, not through its regular expression, which ends a value at the first quote inside it.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAMPLES = "lv1-lv2-samples"


def load(clone: Path) -> Callable[[dict[str, Any]], str]:
    """The judge of calls, on the clone's tools and dialogues."""
    tools = importlib.import_module("tool_manager")
    if not (clone / SAMPLES).is_dir():
        raise FileNotFoundError(f"the clone has no {SAMPLES}: give its folder api-bank")

    def judge(question: dict[str, Any]) -> str:
        gold = annotated(clone, question["file"], int(question["sample"]))
        if question["name"] != gold["api_name"]:
            return "wrong_name"
        manager = tools.ToolManager()
        arguments = {key: as_text(value) for key, value in question["arguments"].items()}
        try:
            result = manager.api_call(question["name"], **arguments)
            correct = manager.init_tool(question["name"]).check_api_call_correctness(result, gold["result"])
        except Exception as problem:  # arguments that the API does not have, lacks, or cannot read
            return f"wrong_arguments ({type(problem).__name__})"
        return "right" if correct else "wrong_arguments"

    return judge


def annotated(clone: Path, file: str, sample: int) -> dict[str, Any]:
    """The gold call of a sample: every call of a dialogue makes two, itself and what comes after it."""
    found = sorted((clone / SAMPLES).glob(f"*/{file}"))
    if not found:
        raise FileNotFoundError(f"{SAMPLES} has no {file}")
    history = [json.loads(line) for line in found[0].read_text(encoding="utf-8").splitlines() if line.strip()]
    samples = [turn for i, one in enumerate(history) if one["role"] == "API" for turn in (one, *history[i + 1 : i + 2])]
    if sample >= len(samples) or samples[sample]["role"] != "API":
        raise LookupError(f"{file}: sample {sample} is no call")
    return samples[sample]


def as_text(value: Any) -> str:
    """A value as it is written in a call: the APIs read numbers, lists and truth values from text."""
    return value if isinstance(value, str) else str(value)
