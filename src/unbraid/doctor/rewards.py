"""Checks of the reward: gold answers must be right, spoiled ones must be wrong and worth less."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unbraid.chat.checks import Finding
from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Answer, Call, Mode, Reading
from unbraid.errors import ChatError
from unbraid.evaluate.evaluate import spread
from unbraid.policy import Policy
from unbraid.recipe import Recipe
from unbraid.tasks.reward import Reward, reward_function
from unbraid.tasks.task import Task

SAMPLE = 96
"""Tasks that the reward is tried on."""


@dataclass(frozen=True)
class Graded:
    """A gold answer on its way through: written as ids, read back, rewarded."""

    task: Task
    ids: list[int]
    reading: Reading
    reward: Reward


def check_reward(recipe: Recipe, policy: Policy, tasks: Sequence[Task]) -> list[Finding]:
    """Gold answers in both modes, then the same spoiled in every way that a model spoils them."""
    reward, format = reward_function(recipe.reward), policy.format
    gold: list[Graded] = []
    unwritten: list[str] = []
    for task in spread(tasks, SAMPLE):
        for mode in (Mode.NO_THINK, Mode.THINK):
            try:
                ids = format.response_ids(gold_answer(task, mode))
            except ChatError as error:
                unwritten.append(f"{task.id}: {error}")
                continue
            reading = format.read(ids)
            gold.append(Graded(task, ids, reading, reward(task, reading)))
    findings = []
    if unwritten:
        said = f"{len(unwritten)} gold answers cannot be written, the first is {unwritten[0]}"
        advice = "clean or drop these rows: no response of the model can be right on them"
        findings.append(Finding("warning" if gold else "error", "reward on gold", said, advice))
    return [*findings, *check_gold(recipe, gold), *check_spoiled(format, gold, reward)]


def gold_answer(task: Task, mode: Mode) -> Answer:
    """The task's own answer in `mode`, or one made of what is right."""
    for answer in task.answers:
        if answer.mode is mode:
            return answer
    content = task.answers[0].content if task.answers else ""
    return Answer(mode, "", task.expected, content)


def check_gold(recipe: Recipe, gold: Sequence[Graded]) -> list[Finding]:
    """Every gold answer is right; with the built-in reward it is worth exactly format + right."""
    findings = []
    own = recipe.reward
    for mode in (Mode.NO_THINK, Mode.THINK):
        graded = [g for g in gold if g.reading.mode is mode]
        wrong = [g for g in graded if not g.reward.correct]
        expected = own.format + own.right[mode is Mode.THINK]
        off = [] if own.function else [g for g in graded if abs(g.reward.total - expected) > 1e-9]
        if wrong or off:
            first = (wrong or off)[0]
            said = (
                f"{len(wrong or off)} of {len(graded)} gold {mode} answers are not right, the first is {first.task.id} "
                f"({first.reward.reason}, reward {first.reward.total:g})"
            )
            advice = "correct expected or answers of these rows, reward.compare, or the reward function"
            findings.append(Finding("error", "reward on gold", said, advice))
        elif graded:
            worth = sorted({round(g.reward.total, 6) for g in graded})
            said = f"all {len(graded)} gold {mode} answers are right, worth {', '.join(f'{w:g}' for w in worth[:4])}"
            findings.append(Finding("ok", "reward on gold", said))
    return findings


def check_spoiled(
    format: ChatFormat, gold: Sequence[Graded], reward: Callable[[Task, Reading], Reward]
) -> list[Finding]:
    """Nothing that is wrong may count as right, or be worth as much as what is right."""
    tried: dict[str, int] = defaultdict(int)
    paid: dict[str, list[str]] = defaultdict(list)
    for one in gold:
        for name, reading in spoiled(format, one):
            found = reward(one.task, reading)
            tried[name] += 1
            if found.correct or found.total >= one.reward.total:
                said = "right" if found.correct else "wrong"
                paid[name].append(f"{one.task.id}: {said}, reward {found.total:g}, gold {one.reward.total:g}")
    findings = []
    for name, failures in paid.items():
        said = f"{name}: {len(failures)} of {tried[name]} are paid like gold, the first is {failures[0]}"
        advice = "make the reward look at it (reward.compare, reward.function): a model finds every such gap"
        findings.append(Finding("error", "reward on corrupted", said, advice))
    clean = [f"{name} {n}" for name, n in tried.items() if name not in paid]
    if clean:
        findings.append(Finding("ok", "reward on corrupted", f"all are wrong and worth less: {', '.join(clean)}"))
    return findings


def spoiled(format: ChatFormat, gold: Graded) -> Iterator[tuple[str, Reading]]:
    """(what was done, what is then read) for every way that applies to a gold answer."""
    reading, prefix = gold.reading, len(format.modes.of(gold.reading.mode))
    yield "no mode tag", format.read(gold.ids[prefix:])
    yield "truncated", format.read(gold.ids[:-1], truncated=True)
    yield "extra call", replace(reading, calls=(*reading.calls, Call("unbraid_extra", {})))
    if not reading.calls:
        return
    first, rest = reading.calls[0], reading.calls[1:]
    yield "dropped call", replace(reading, calls=rest)
    yield "renamed call", replace(reading, calls=(replace(first, name=f"{first.name}_2"), *rest))
    key = next(iter(first.arguments), "unbraid_extra")
    changed = {**first.arguments, key: _other(first.arguments.get(key))}
    yield "changed argument", replace(reading, calls=(replace(first, arguments=changed), *rest))


def _other(value: Any) -> Any:
    """A value of the same type that is not `value`."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [*value, "changed"]
        case dict():
            return {**value, "changed": 1}
        case _:
            return f"{value or ''} changed"
