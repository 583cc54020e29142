"""One errand in BFCL's harness: `python inside PLAN.json`. The plan says which; its answer goes to standard output.

Runs in `.venv-bfcl`, by path. Whatever the harness prints goes to the plan's `log`, so that lines of JSON are all that
comes back.
"""

import contextlib
import csv
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from handler import (  # pyright: ignore[reportMissingImports] (beside this file, which is run by path)
    REFUSALS,
    Server,
    register,
)

Tell = Callable[[dict[str, Any]], None]
MOST_FAILURES = 5
"""Entries in a row that got no answer: then the server is taken for gone."""


def entries(plan: dict[str, Any], tell: Tell) -> None:
    """The ids of every category that is asked for, in the harness's order."""
    from bfcl_eval.utils import (  # pyright: ignore[reportMissingImports]
        load_dataset_entry,
        parse_test_category_argument,
    )

    for category in parse_test_category_argument(plan["categories"]):
        tell({"category": category, "ids": [one["id"] for one in load_dataset_entry(category, include_prereq=False)]})


def ask(plan: dict[str, Any], tell: Tell) -> None:
    """Play entries against a server; one line of `answers` each, as soon as it is finished.

    An entry whose conversation the server refuses is finished, with an error for its result, as in the harness; one
    that got no answer is not.
    """
    server = Server(**plan["server"])
    handler: Any = register(plan["row"], plan["model"], plan["prompting"], server)
    player = handler(plan["model"], server.temperature, plan["row"], not plan["prompting"])
    waiting = deque(_chosen(plan["ids"]))
    failed = 0
    with (
        ThreadPoolExecutor(plan["concurrency"]) as pool,
        Path(plan["answers"]).open("a", encoding="utf-8") as answers,
    ):
        running: set[Future[dict[str, Any]]] = set()
        while running or waiting:
            while waiting and len(running) < plan["concurrency"]:
                running.add(pool.submit(_play, player, waiting.popleft()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                found = future.result()
                failed = failed + 1 if "failed" in found else 0
                if "failed" not in found:
                    answers.write(json.dumps(found) + "\n")
                    answers.flush()
                tell({key: found[key] for key in ("id", "failed", "refused") if key in found})
            if failed >= MOST_FAILURES:
                waiting.clear()


def _chosen(ids: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    from bfcl_eval.utils import load_dataset_entry  # pyright: ignore[reportMissingImports]

    for category, wanted in ids.items():
        yield from (one for one in load_dataset_entry(category) if one["id"] in set(wanted))


def _play(player: Any, entry: dict[str, Any]) -> dict[str, Any]:
    """One entry as the harness writes its result, with the replies; or why there is none."""
    name = entry["id"]
    player.heard.id, player.heard.replies = name, []
    try:
        result, facts = player.inference(entry, include_input_log=False, exclude_state_log=True)
    except REFUSALS as problem:
        # The harness's own words for it: an error is an answer that nothing can be decoded from.
        found: dict[str, Any] = {"result": f"Error during inference: {problem}", "refused": _line(problem)}
    except Exception as problem:
        return {"id": name, "failed": f"{type(problem).__name__}: {_line(problem)}"}
    else:
        found = {"result": result, **{key: value for key, value in facts.items() if key != "inference_log"}}
    return {"id": name, **found, "replies": player.heard.replies}


def judge(plan: dict[str, Any], tell: Tell) -> None:
    """Write the harness's result files from `answers`, let it evaluate them, and tell every entry's verdict."""
    handler: Any = register(plan["row"], plan["model"], plan["prompting"])
    from bfcl_eval.constants.eval_config import RESULT_PATH, SCORE_PATH  # pyright: ignore[reportMissingImports]
    from bfcl_eval.eval_checker.eval_runner import runner  # pyright: ignore[reportMissingImports]
    from bfcl_eval.utils import extract_test_category_from_id  # pyright: ignore[reportMissingImports]

    results: list[dict[str, Any]] = []
    with Path(plan["answers"]).open(encoding="utf-8") as lines:
        for line in lines:
            answer = json.loads(line)
            results.append({key: value for key, value in answer.items() if key not in ("replies", "refused")})
    for old in (*RESULT_PATH.rglob("*.json"), *SCORE_PATH.rglob("*.*")):
        old.unlink()
    handler(plan["model"], 0.0, plan["row"], not plan["prompting"]).write(results, RESULT_PATH)
    categories = sorted({extract_test_category_from_id(one["id"]) for one in results})
    table = ""
    try:
        runner([plan["row"]], categories, RESULT_PATH, SCORE_PATH, allow_missing=True)
    except ValueError as problem:
        # Its tables need the deviation of two latencies; by then all score files are written.
        table = f"the harness wrote no tables: {problem}"
    wrong: dict[str, str] = {}
    scored = 0
    for path in SCORE_PATH.rglob("BFCL_*_score.json"):
        header, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scored += header["total_count"]
        wrong |= {one["id"]: _reason(one) for one in rest}
    if scored != len(results):
        raise RuntimeError(f"it scored {scored} of {len(results)} answers ({table})")
    for one in results:
        tell({"id": one["id"], "right": one["id"] not in wrong, "reason": wrong.get(one["id"], "")})
    tell({"table": _overall(SCORE_PATH / "data_overall.csv"), "note": table})


def _reason(failed: dict[str, Any]) -> str:
    error = failed.get("error")
    return str(failed.get("error_type") or (error.get("error_type") if isinstance(error, dict) else "") or "wrong")


def _overall(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.DictReader(file), {})


def check(plan: dict[str, Any], tell: Tell) -> None:
    """The verdict of the official AST checker on calls, given as lines of `{"id", "category", "calls"}`."""
    register("calls", "calls", prompting=True)
    from bfcl_eval.constants.enums import Language  # pyright: ignore[reportMissingImports]
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # pyright: ignore[reportMissingImports]
    from bfcl_eval.utils import load_dataset_entry, load_ground_truth_entry  # pyright: ignore[reportMissingImports]

    known: dict[str, tuple[Any, Any]] = {}
    for category in plan["categories"]:
        asked = load_dataset_entry(category, include_language_specific_hint=False)
        for question, answer in zip(asked, load_ground_truth_entry(category), strict=True):
            known[question["id"]] = (question["function"], answer["ground_truth"])
    languages = {"simple_java": Language.JAVA, "simple_javascript": Language.JAVASCRIPT}
    with Path(plan["calls"]).open(encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            functions, truth = known[one["id"]]
            language = languages.get(one["category"], Language.PYTHON)
            try:
                found = ast_checker(functions, one["calls"], truth, language, one["category"], "calls")
                tell({"right": found["valid"], "reason": found.get("error_type", "")})
            except Exception as problem:
                tell({"right": False, "raised": f"{type(problem).__name__}: {_line(problem)}"})


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:300]


def main(path: str) -> None:
    """Run the errand of a plan."""
    plan = json.loads(Path(path).read_text(encoding="utf-8"))
    out = sys.stdout

    def tell(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    errands = {"entries": entries, "ask": ask, "judge": judge, "check": check}
    with Path(plan["log"]).open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        errands[plan["errand"]](plan, tell)


if __name__ == "__main__":
    main(sys.argv[1])
