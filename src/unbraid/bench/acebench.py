"""ACEBench: calls in ordinary requests (normal), and requests that no call can answer as they are (special).

Source: arXiv 2501.12851 and its repository (chenchen0103/ACEBench), whose own evaluation judges every answer
(`official.acebench`). Not covered: the two `agent` categories, which take its simulated phone and travel desk and a
strong model that plays the user.

`prompt="official"` asks as the repository does: its system prompt with the APIs in it, answered in text. `"tools"`
shows the APIs as tools of the chat template, as a model trained here knows them; for special requests a system message
says the three sentences that the evaluation looks for. In both, calls in the run's own format are written in brackets.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unbraid.bench.ask import Benchmark
from unbraid.bench.official import Checker
from unbraid.bench.score import Entry, by_category
from unbraid.chat.types import Call, Problem, Reading
from unbraid.data.benchmarks import acebench as read_row
from unbraid.data.read import make_task
from unbraid.data.row import RowError
from unbraid.data.sources import file_rows
from unbraid.errors import DataError
from unbraid.tasks.reward import Reward, RewardFunction
from unbraid.tasks.task import Task

Prompt = Literal["official", "tools"]
Language = Literal["en", "zh"]
SUMMARY = {"normal": 0.578, "special": 0.2676}
"""Weights of the official summary; the rest, 0.1545, is the agent's. Source: `generate_result_csv` there."""
SPECIAL = (
    "Call tools where they can do what is asked. Where they cannot, call none and say only one of these sentences, "
    "filled in. If the value of a parameter is not as the tool wants it: There is incorrect value (value) for the "
    "parameters (name) in the conversation history. If the request lacks what a tool requires: Missing necessary "
    "parameters (name, name) for the api (tool). If no tool can do it: Due to the limitations of the function, I "
    "cannot solve this problem."
)


def acebench(clone: str, checker: Checker, language: Language = "en", prompt: Prompt = "official") -> Benchmark:
    """The benchmark from a clone.

    Raises:
        DataError: the folder is no clone, or holds no questions.
    """
    folder, prompts = _data(Path(clone), language), _prompts(Path(clone), language) if prompt == "official" else {}
    tasks: dict[str, list[Task]] = {}
    notes: list[str] = []
    for file in sorted(folder.glob("data_*.json")):
        category = file.stem.removeprefix("data_")
        if category.startswith("agent"):
            notes.append(f"{category} is not covered: it needs a simulated user")
            continue
        rows = [row.value for row in file_rows(str(file), "") if row.value and "ground_truth" in row.value]
        made = [_task(row, category, prompts) for row in rows]
        tasks[category] = [task for task in made if isinstance(task, Task)]
        notes += [f"{category}: left out: {reason}" for reason in made if isinstance(reason, str)]
    tasks = {category: found for category, found in tasks.items() if found}
    if not tasks:
        raise DataError(f"{folder}: no questions with answers: give a complete clone of chenchen0103/ACEBench")
    return Benchmark(
        name="acebench",
        checker="official: eval_main of the clone",
        tasks=tasks,
        reward=official_reward(checker),
        totals=totals,
        other={"prompt": prompt, "language": language},
        notes="; ".join(notes),
    )


def _data(clone: Path, language: Language) -> Path:
    places = (clone / "data_all" / f"data_{language}", clone / "data" / language)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(f"{clone}: there is no {places[0].relative_to(clone)}: give a clone of chenchen0103/ACEBench")


def _prompts(clone: Path, language: Language) -> dict[str, str]:
    """The prompts of the clone, read without running it."""
    name = f"prompt_{language}.py"
    file = next((p for p in (clone / "model_inference").rglob(name) if p.is_file()), None)
    if file is None:
        raise DataError(f"{clone}: there is no model_inference/{name}: give a complete clone, or --prompt tools")
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    kinds = {"NORMAL", "SPECIAL", "PREFERENCE"}
    named = {kind: found.get(f"SYSTEM_PROMPT_FOR_{kind}_DATA_{language.upper()}") for kind in kinds}
    named["USER"] = found.get(f"USER_PROMPT_{language.upper()}")
    if absent := [kind for kind, text in named.items() if text is None]:
        raise DataError(f"{file}: has no prompt for {absent[0].lower()}: give another clone, or --prompt tools")
    return {kind: text for kind, text in named.items() if text is not None}


def _task(row: Mapping[str, Any], category: str, prompts: Mapping[str, str]) -> Task | str:
    try:
        example = next(read_row({**row, "ground_truth": {}} if category.startswith("special") else row))
    except (RowError, StopIteration) as problem:
        return f"{row.get('id')}: {problem}"
    task = make_task(str(row["id"]), "acebench", example)
    messages, tools = list(task.messages), task.tools
    if prompts:
        kind = "SPECIAL" if "special" in category else "PREFERENCE" if "preference" in category else "NORMAL"
        functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
        facts = {"time": row.get("time", ""), "profile": row.get("profile", ""), "function": functions}
        messages = [
            {"role": "system", "content": prompts[kind].format(**facts)},
            {"role": "user", "content": prompts["USER"].format(question=row["question"])},
        ]
        tools = ()
    elif category.startswith("special"):
        facts = [m["content"] for m in messages if m["role"] == "system"]
        rest = [m for m in messages if m["role"] != "system"]
        messages = [{"role": "system", "content": "\n\n".join([*facts, SPECIAL])}, *rest]
    extra = {"eval_only": True, "category": category, "row": json.dumps(row, ensure_ascii=False)}
    return Task(task.id, tuple(messages), tools, task.expected, (), category, "acebench", extra)


def official_reward(checker: Checker) -> RewardFunction:
    """The clone's evaluation decides, on the text that it would have been given."""

    def reward(task: Task, reading: Reading) -> Reward:
        if Problem.TRUNCATED in reading.problems:
            return Reward(0.0, {}, False, Problem.TRUNCATED.value)
        row = json.loads(task.extra["row"])
        asked = {
            "category": task.extra["category"],
            "row": row,
            "answer": row["ground_truth"],
            "result": in_brackets(reading.calls) if reading.calls else reading.content,
        }
        reason = checker.ask(asked)
        right = reason == "right"
        return Reward(float(right), {}, right, reason)

    return reward


def in_brackets(calls: Sequence[Call]) -> str:
    """`[name(argument='value', …), …]`, as ACEBench wants calls written."""
    written = (f"{c.name}({', '.join(f'{key}={value!r}' for key, value in c.arguments.items())})" for c in calls)
    return f"[{', '.join(written)}]"


def totals(entries: Sequence[Entry]) -> dict[str, float]:
    """The official totals: means over categories, in which a dialogue of several turns is right as a whole."""
    found, by_name = {}, {}
    for name, group in by_category(entries).items():
        if "multi_turn" in name:
            dialogues: dict[str, list[float]] = {}
            for entry in group:
                dialogues.setdefault(entry.id.rpartition("_")[0], []).append(entry.score)
            by_name[name] = sum(min(turns) for turns in dialogues.values()) / len(dialogues)
            found[f"{name}, whole dialogues"] = by_name[name]
        else:
            by_name[name] = sum(entry.score for entry in group) / len(group)
    for kind in SUMMARY:
        if values := [value for name, value in by_name.items() if name.startswith(kind)]:
            found[kind] = sum(values) / len(values)
    if SUMMARY.keys() <= found.keys():
        found["summary without agent"] = sum(w * found[k] for k, w in SUMMARY.items()) / sum(SUMMARY.values())
    return found
