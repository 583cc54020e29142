"""Made-up rows in the formats of ToolACE, xLAM and Hermes: to try a build at its real size, without the sets.

Their shapes are those of the public sets (tools in words or tags, calls in brackets or JSON, turns, refusals), and some
rows have the faults that real ones have. There is nothing to learn in them, so a sampler that knows the answers goes
with them: `KnowsSome`.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from unbraid.chat.types import Mode, Reading
from unbraid.label.local import judge
from unbraid.label.tries import Failure, Spent, Try, Want
from unbraid.tasks.reward import RewardFunction

_DEEDS = ("find", "list", "compare", "book", "track", "rate", "convert", "check", "cancel", "plan")
_THINGS = (
    "flights",
    "recipes",
    "stocks",
    "songs",
    "parcels",
    "rooms",
    "trails",
    "patents",
    "matches",
    "tickets",
    "stars",
)
_PLACES = ("Lima", "Oslo", "Zürich", "Nairobi", "東京", "Quito", "Perth", "Hanoi", "Turin", "Cairo", "Riga", "Accra")
_MANNERS = (
    "cheaply",
    "today",
    "for a friend",
    "as a table",
    "without delay",
    "in the evening",
    "for my report",
    "again",
)
_KINDS: dict[str, tuple[str, Callable[[random.Random], Any]]] = {
    "city": ("str", lambda rng: rng.choice(_PLACES)),
    "limit": ("int", lambda rng: rng.randrange(1, 500)),
    "price": ("float", lambda rng: rng.randrange(100, 90_000) / 100),
    "code": ("str", lambda rng: f"{rng.choice('ABCDEFGH')}{rng.randrange(10_000, 99_999)}"),
    "days": ("List[int]", lambda rng: sorted(rng.sample(range(1, 31), 3))),
    "open": ("bool", lambda rng: rng.random() < 0.5),
}
_JSON = {"str": "string", "int": "integer", "float": "number", "List[int]": "array", "bool": "boolean"}
FAULTS = 0.05
"""Share of rows with a fault."""


def xlam_rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows as in `Salesforce/xlam-function-calling-60k`: one question, one to three calls, Python's type names."""
    rng = random.Random(f"xlam {seed}")
    last: dict[str, Any] = {}
    for id in range(count):
        tools = _tools(rng, rng.randint(1, 5))
        calls = [_call(rng, tool) for tool in rng.sample(tools, min(len(tools), rng.choice((1, 1, 2, 3))))]
        fault = rng.choice(("twice", "text", "cut", "repeat")) if rng.random() < FAULTS else ""
        if fault == "twice":
            calls.append(calls[0])
        question = _question(rng, calls)
        if fault == "text":
            calls = [(name, {**given, "limit": str(given.get("limit", 1))}) for name, given in calls]
        answers = json.dumps([{"name": name, "arguments": given} for name, given in calls], ensure_ascii=False)
        described = [
            {
                "name": name,
                "description": f"{name.replace('_', ' ').capitalize()}.",
                "parameters": {
                    p: {"description": f"The {p}.", "type": f"{_KINDS[p][0]}, optional"} for p in parameters
                },
            }
            for name, parameters in tools
        ]
        row = {
            "query": question,
            "answers": answers[:-1] if fault == "cut" else answers,
            "tools": json.dumps(described),
        }
        last = last if fault == "repeat" and last else row
        yield {"id": id, **last}


def toolace_rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows as in `Team-ACE/ToolACE`: tools as a JSON list in the system text, calls in brackets, one to three turns."""
    rng = random.Random(f"toolace {seed}")
    for _ in range(count):
        tools = _tools(rng, rng.randint(1, 6))
        system = (
            "You are an expert in composing functions. Here is a list of functions in JSON format:\n"
            f"{json.dumps([_described(tool, 'dict') for tool in tools], ensure_ascii=False)}.\n"
            "Put it in the format of [func1(params_name=params_value), func2(params)]"
        )
        said: list[dict[str, str]] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            calls = [_call(rng, tool) for tool in rng.sample(tools, min(len(tools), rng.choice((1, 1, 2))))]
            written = ", ".join(f"{name}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for name, a in calls)
            said += [
                {"from": "user", "value": _question(rng, calls)},
                {"from": "assistant", "value": f"[{written}" if rng.random() < FAULTS / 2 else f"[{written}]"},
                {"from": "tool", "value": json.dumps([{"name": name, "results": "done"} for name, _ in calls])},
                {"from": "assistant", "value": "It is done."},
            ]
        if rng.random() < 0.1:
            said = [{"from": "user", "value": f"Can you {rng.choice(_MANNERS)} sing number {rng.randrange(10**6)}?"}]
            said += [{"from": "assistant", "value": "None of the functions can do that."}]
        yield {"system": system, "conversations": said}


def hermes_rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows as in `NousResearch/hermes-function-calling-v1`: tools, calls and results in tags."""
    rng = random.Random(f"hermes {seed}")
    for id in range(count):
        tools = _tools(rng, rng.randint(1, 3))
        listed = json.dumps([{"type": "function", "function": _described(tool, "object")} for tool in tools])
        calls = [_call(rng, tool) for tool in rng.sample(tools, min(len(tools), rng.choice((1, 1, 2))))]
        written = "\n".join(f"<tool_call>\n{ {'name': n, 'arguments': a} }\n</tool_call>" for n, a in calls)
        results = "\n".join(f"<tool_response>\n{ {'name': n, 'content': 'done'} }\n</tool_response>" for n, _ in calls)
        system = (
            f"You are a function calling AI model. <tools>{listed}</tools> For each function call return a json object."
        )
        said = [("system", system), ("human", _question(rng, calls)), ("gpt", written), ("tool", results)]
        yield {
            "id": f"{id}",
            "conversations": [{"from": who, "value": text} for who, text in (*said, ("gpt", "It is done."))],
            "category": "Made up",
        }


_Tool = tuple[str, tuple[str, ...]]
"""(name, parameters)."""


def _tools(rng: random.Random, count: int) -> list[_Tool]:
    names = {f"{rng.choice(_DEEDS)}_{rng.choice(_THINGS)}_{rng.randrange(300)}" for _ in range(count)}
    return [(name, tuple(rng.sample(sorted(_KINDS), rng.randint(1, 4)))) for name in sorted(names)]


def _described(tool: _Tool, outer: str) -> dict[str, Any]:
    name, parameters = tool
    inner = {p: {"type": _JSON[_KINDS[p][0]], "description": f"The {p}."} for p in parameters}
    whole = {"type": outer, "properties": inner, "required": list(parameters[:1])}
    return {"name": name, "description": f"{name.replace('_', ' ').capitalize()}.", "parameters": whole}


def _call(rng: random.Random, tool: _Tool) -> tuple[str, dict[str, Any]]:
    name, parameters = tool
    return name, {p: _KINDS[p][1](rng) for p in parameters}


def _question(rng: random.Random, calls: list[tuple[str, dict[str, Any]]]) -> str:
    parts = [
        f"{name.rpartition('_')[0].replace('_', ' ')} with {', '.join(f'{k} {v}' for k, v in given.items())}"
        for name, given in calls
    ]
    return f"Please {', then '.join(parts)}, {rng.choice(_MANNERS)}."


class KnowsSome:
    """A sampler without a model: right by chance, more often on easy tasks and where it thinks.

    What it says depends on the task, the mode and the number of the try alone. A sixth of the tasks is too hard for it.
    """

    def __init__(self, reward: RewardFunction, seed: int = 0, part: int = 256):
        self.identity: Mapping[str, Any] = {"model": "made up", "seed": seed}
        self._reward, self._seed, self._part = reward, seed, part

    def draw(self, wants: Sequence[Want], spent: Spent) -> Iterator[Sequence[Try | Failure]]:
        """A part at a time, in the order of what is wanted."""
        for start in range(0, len(wants), self._part):
            yield [self._try(want) for want in wants[start : start + self._part]]

    def _try(self, want: Want) -> Try:
        thinks = want.mode is Mode.THINK
        ease = 6 * self._chance(want.task.id) - 1  # nobody knows below 0, and nobody without thinking below 2
        sure = (0.9 if ease > 0 else 0.0) if thinks else (ease - 2) / 2
        knows = self._chance(f"{want.task.id} {want.mode} {want.number}") < sure
        answer = want.task.answers[-1] if want.task.answers else None
        content = answer.content if answer else ""
        said = (want.task.expected, content) if knows else ((), "I do not know.") if want.task.expected else ((), "")
        thought = f"This is try {want.number}." if thinks else ""
        reading = Reading(want.mode, thought, *said, ())
        return judge(self._reward, want, reading, tokens=40 if thinks else 15, prompt_tokens=200)

    def _chance(self, text: str) -> float:
        return int(sha256(f"{self._seed} {text}".encode()).hexdigest()[:8], 16) / 2**32
