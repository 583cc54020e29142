"""Do our own checker and BFCL's official one say the same of the same calls? On right answers and on mutated ones.

Ours is what training and evaluation use (`chat.accepted`), on tasks as our reader gives them; the official one runs in
the harness's environment, on the harness's own files.
"""

import copy
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbraid.bench.bfcl.installation import Installation, errand
from unbraid.bench.bfcl.literals import as_source
from unbraid.chat.accepted import OPTIONAL, accepted_match
from unbraid.chat.types import Call
from unbraid.data import DataConfig, collect
from unbraid.tasks.task import Task

Calls = list[dict[str, dict[str, Any]]]
"""As the harness writes them: `[{name: arguments}]`."""


@dataclass(frozen=True)
class Verdicts:
    """What both checkers said of some calls. reason: the official one's, where it is against them."""

    id: str
    category: str
    mutation: str
    calls: Calls
    ours: bool
    official: bool
    reason: str
    raised: str

    @property
    def cause(self) -> str:
        """Why they differ, as `docs/bfcl.md` explains it; `unexplained` where it does not."""
        if "java" in self.category and self.ours:
            return {"value_error:list/tuple": "quotes", "value_error:dict_value": "letters"}.get(
                self.reason, "unexplained"
            )
        if "java" in self.category:
            return "source text"
        if self.ours:
            return "pairing" if self.reason.endswith("cannot_find_match") else "unexplained"
        return "true or 1" if not self.raised and _holds_truth_or_unit(self.calls) else "unexplained"


@dataclass(frozen=True)
class Agreement:
    """Answers and mutated answers, judged twice. asked, right (officially): by mutation."""

    asked: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    differences: list[Verdicts] = field(default_factory=list)


def agreement(installation: Installation, each: int = 10, seed: int = 0) -> Agreement:
    """Compare the checkers on every question of BFCL whose answer is calls.

    Ours sees arguments as JSON everywhere; the official one wants Java's and JavaScript's as source text.

    Args:
        each: mutated answers per question, besides the expected one and a random right one.
    """
    tasks = ast_tasks(installation)
    functions = functions_of(installation.data)
    given = [(task, name, calls) for task in tasks for name, calls in answers(task, each, seed)]
    lines = [official_line(task, calls, functions[task.extra["id"]]) for task, _, calls in given]
    categories = sorted({task.extra["category"] for task in tasks})
    official = errand(installation, "check", {"categories": categories}, calls=lines)
    found = Agreement()
    for (task, name, calls), said in zip(given, official, strict=True):
        ours = accepted_match([Call(*one) for call in calls for one in call.items()], accepted_of(task), task.tools)
        found.asked[name] = found.asked.get(name, 0) + 1
        found.right[name] = found.right.get(name, 0) + said["right"]
        if ours != said["right"]:
            reason, raised = said.get("reason", ""), said.get("raised", "")
            id, category = task.extra["id"], task.extra["category"]
            found.differences.append(Verdicts(id, category, name, calls, ours, said["right"], reason, raised))
    return found


def ast_tasks(installation: Installation) -> list[Task]:
    """The questions whose answers are calls, as our reader gives them."""
    return [task for task in collect(str(installation.data), DataConfig()).tasks if task.extra.get("accepted")]


def functions_of(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Id → the functions of a question, as the harness's files have them."""
    rows = [json.loads(line) for file in data.glob("BFCL_*.json") for line in _lines(file) if line.startswith('{"id"')]
    return {row["id"]: row["function"] for row in rows if "function" in row}


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def official_line(task: Task, calls: Calls, functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the errand `check` is asked."""
    category = task.extra["category"]
    if "java" in category:
        properties = functions[0]["parameters"]["properties"]
        java = category == "simple_java"
        calls = [{name: as_source(one, properties, java) for name, one in call.items()} for call in calls]
    return {"id": task.extra["id"], "category": category, "calls": calls}


def accepted_of(task: Task) -> Sequence[Mapping[str, Any]]:
    """The answer of a task, with its lists of accepted values."""
    return task.extra["accepted"]


def answers(task: Task, each: int, seed: int) -> Iterator[tuple[str, Calls]]:
    """(name, calls): the answer that training would take, a random right one, and mutated ones.

    Mutations are small, so that what they make is as often right as wrong. Deterministic in the task's id and `seed`.
    """
    draw = random.Random(f"{seed}/{task.extra['id']}")
    yield "expected", [{call.name: call.arguments} for call in task.expected]
    yield "accepted", _some_right(accepted_of(task), draw)
    for _ in range(each):
        name = draw.choice(list(_MUTATIONS))
        calls = copy.deepcopy(_some_right(accepted_of(task), draw))
        _MUTATIONS[name](calls, draw)
        yield name, calls


def _holds_truth_or_unit(value: Any) -> bool:
    """Whether true, false, 1 or 0 is in it, at any depth."""
    if isinstance(value, dict | list):
        return any(map(_holds_truth_or_unit, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool | int | float) and value in (0, 1)


def _some_right(accepted: Sequence[Mapping[str, Any]], draw: random.Random) -> Calls:
    made = []
    for answer in accepted:
        name, values = next(iter(answer.items()))
        made.append({name: _some_object(values, draw)})
    return made


def _some_object(values: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
    chosen = {key: draw.choice(some) if isinstance(some, list) and some else some for key, some in values.items()}
    return {key: _plain(one, draw) for key, one in chosen.items() if one != OPTIONAL}


def _plain(value: Any, draw: random.Random) -> Any:
    if isinstance(value, Mapping):
        return _some_object(value, draw)
    return [_plain(inner, draw) for inner in value] if isinstance(value, list) else value


def _of_calls(calls: Calls, draw: random.Random) -> None:
    """A call too few, one too many, or another order."""
    what = draw.choice(["drop", "double", "shuffle", "reverse"])
    if what == "drop":
        del calls[draw.randrange(len(calls))]
    elif what == "double":
        calls.append(copy.deepcopy(draw.choice(calls)))
    elif what == "shuffle":
        draw.shuffle(calls)
    else:
        calls.reverse()


def _of_names(calls: Calls, draw: random.Random) -> None:
    """Another function's name, or another argument's."""
    place = draw.randrange(len(calls))
    ((name, arguments),) = calls[place].items()
    if draw.random() < 0.5 or not arguments:
        calls[place] = {draw.choice([name.upper(), name + "_", name.replace(".", "_")]): arguments}
    else:
        key = draw.choice(list(arguments))
        arguments[draw.choice([key.upper(), key + "_"])] = arguments.pop(key)


def _of_arguments(calls: Calls, draw: random.Random) -> None:
    """An argument that is left out, or one that nobody asked for."""
    arguments = _arguments(calls, draw)
    if arguments and draw.random() < 0.6:
        del arguments[draw.choice(list(arguments))]
    else:
        arguments["unasked"] = draw.choice([1, "", None])


def _of_spelling(calls: Calls, draw: random.Random) -> None:
    """Strings in another case, with other spaces and punctuation, at any depth."""
    spell = draw.choice([str.upper, str.title, lambda t: t.replace(" ", "-"), lambda t: f" {t}.", lambda t: t + "!"])
    _change(calls, draw, lambda value: _respelt(value, spell))


def _of_types(calls: Calls, draw: random.Random) -> None:
    """A value of another type, as near as can be."""
    _change(calls, draw, lambda value: draw.choice(_neighbours(value)))


def _of_values(calls: Calls, draw: random.Random) -> None:
    """Another value: of another argument, an empty one, or one that is a little off."""
    arguments = _arguments(calls, draw)
    others = list(arguments.values())
    _change(calls, draw, lambda value: draw.choice([*others, "", [], {}, None, 0, True, *_off(value)]))


def _of_insides(calls: Calls, draw: random.Random) -> None:
    """Something within a list or an object."""
    nested = [(a, key) for call in calls for a in call.values() for key in a if isinstance(a[key], list | dict)]
    if not nested:
        return _of_values(calls, draw)
    arguments, key = draw.choice(nested)
    arguments[key] = _stirred(arguments[key], draw)


_MUTATIONS = {
    "calls": _of_calls, "names": _of_names, "arguments": _of_arguments, "spelling": _of_spelling, "types": _of_types,
    "values": _of_values, "insides": _of_insides,
}  # fmt: skip


def _arguments(calls: Calls, draw: random.Random) -> dict[str, Any]:
    return next(iter(draw.choice(calls).values()))


def _change(calls: Calls, draw: random.Random, change: Any) -> None:
    arguments = _arguments(calls, draw)
    if arguments:
        key = draw.choice(list(arguments))
        arguments[key] = change(arguments[key])


def _respelt(value: Any, spell: Any) -> Any:
    if isinstance(value, str):
        return spell(value)
    if isinstance(value, dict):
        return {key: _respelt(inner, spell) for key, inner in value.items()}
    return [_respelt(inner, spell) for inner in value] if isinstance(value, list) else value


def _neighbours(value: Any) -> list[Any]:
    match value:
        case bool():
            return [int(value), str(value), str(value).lower()]
        case int():
            return [float(value), str(value), [value], bool(value)]
        case float():
            return [int(value), str(value), round(value)]
        case str():
            return [[value], {"value": value}, len(value)]
        case list():
            return [value[0] if value else "", str(value), {"values": value}]
    return [[value], str(value), list(value) if isinstance(value, dict) else value]


def _off(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, -value, value * 10]
        case str():
            return [value[1:], value + "s", value[::-1], f"'{value}'"]
        case list():
            return [value[1:], value[::-1], value + value[:1]]
    return [value]


def _stirred(value: Any, draw: random.Random) -> Any:
    """A list or an object with one thing in it changed, taken out, or put in."""
    if isinstance(value, list):
        if not value:
            return draw.choice([[1], [""], [{}], [[]]])
        place = draw.randrange(len(value))
        item = value[place]
        inner = (
            _stirred(item, draw) if isinstance(item, list | dict) else draw.choice([*_neighbours(item), *_off(item)])
        )
        return draw.choice([value[::-1], value[1:], [*value, item], [*value[:place], inner, *value[place + 1 :]]])
    if not value:
        return {"unasked": 1}
    key = draw.choice(list(value))
    item = value[key]
    inner = _stirred(item, draw) if isinstance(item, list | dict) else draw.choice([*_neighbours(item), *_off(item)])
    less = {name: one for name, one in value.items() if name != key}
    return draw.choice([less, {**value, "unasked": item}, {**value, key: inner}, {**less, key: item}])
