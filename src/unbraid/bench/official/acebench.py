"""ACEBench's own evaluation of one answer: run by `Checker` in a clone of chenchen0103/ACEBench.

The functions of the clone's `eval_main.py` are called with one entry at a time. What they would write is kept from
them: the Excel pages (so pandas and openpyxl need not be there) and the score files, which are read here instead.
"""

import importlib
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

EXCEL = {"pandas": (), "openpyxl": ("Workbook",), "openpyxl.styles": ("Alignment",)}
"""Modules that the evaluation imports for its Excel pages alone, and the names it takes from them."""


def load(clone: Path) -> Callable[[dict[str, Any]], str]:
    """The judge of answers, by the functions of the clone's `eval_main`."""
    absent = [name for name in EXCEL if find_spec(name.partition(".")[0]) is None]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        for one in EXCEL[name]:
            setattr(sys.modules[name], one, None)
    evaluation: Any = importlib.import_module("eval_main")
    written: list[list[dict[str, Any]]] = []
    evaluation.OUTPUT_PATH = ""
    evaluation.save_score_as_json = lambda name, data, folder=None: written.append(data)
    evaluation.convert_result_to_excel = lambda *arguments, **named: None

    def judge(question: dict[str, Any]) -> str:
        try:
            return evaluated(question, question["result"])
        except Exception as problem:
            # The evaluation does not expect every answer a model can give. Where it cannot judge the gold one
            # either, it is broken, and that is raised.
            if not question["category"].startswith("special"):
                evaluated(question, in_brackets(question["answer"]))
            return f"evaluation_failed ({type(problem).__name__})"

    def evaluated(question: dict[str, Any], result: str) -> str:
        category = question["category"]
        if category.startswith("special"):
            evaluate = evaluation.special_eval
        elif "multi_turn" in category:
            evaluate = evaluation.normal_multi_turn_eval
        else:
            evaluate = evaluation.normal_single_turn_eval
        row, answer = question["row"], {"id": question["row"]["id"], "ground_truth": question["answer"]}
        given = [[{"id": row["id"], "result": result}], [row], [answer], category, "unbraid", {}]
        written.clear()
        right = evaluate(*given[: len(signature(evaluate).parameters)]) == 1
        wrong = written[-1][1:]
        return "right" if right else str(wrong[0].get("error_type", "wrong")) if wrong else "wrong"

    return judge


def in_brackets(answer: Any) -> str:
    """A gold answer, the first of several, as a model would write it."""
    first = answer[0] if isinstance(answer, list) else answer
    named = [(re.sub(r"_\d+$", "", name), arguments) for name, arguments in first.items()]
    calls = (f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in named)
    return f"[{', '.join(calls)}]"
