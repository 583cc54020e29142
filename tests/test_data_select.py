"""Choosing among tasks: a stable split that keeps conversations together, and prompts that fit."""

import random
from typing import Any

from rows import SHAREGPT, mixed, write

from unbraid.chat.types import Answer, Call, Mode
from unbraid.data import DataConfig, Fitted, fit_prompts, read_tasks, split_tasks
from unbraid.errors import ChatError
from unbraid.tasks.task import Task

ALL = DataConfig(no_call=1.0)


def test_split_is_stable_and_keeps_conversations_together(tmp_path):
    tasks = read_tasks(mixed(tmp_path, 40, 0), ALL).tasks
    train, validation = split_tasks(tasks, 10, seed=1)
    assert len(validation) == 10
    assert sorted(t.id for t in train + validation) == sorted(t.id for t in tasks)
    shuffled = random.Random(0).sample(tasks, len(tasks))
    assert {t.id for t in split_tasks(shuffled, 10, seed=1)[1]} == {t.id for t in validation}
    assert {t.id for t in split_tasks(tasks, 10, seed=2)[1]} != {t.id for t in validation}
    assert split_tasks(tasks, 0, seed=1)[1] == []
    assert split_tasks(tasks, 99, seed=1)[0] == []
    turns = read_tasks(str(write(tmp_path / "one.json", SHAREGPT)), ALL).tasks
    assert len(turns) == 4
    for seed in range(5):
        train, validation = split_tasks(turns, 1, seed)
        assert (len(train), len(validation)) == (0, 4)


class Words:
    """A chat format of words, which refuses what templates and formats refuse."""

    def prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        if messages[0]["role"] != "user":
            raise KeyError("conversations must start with a user message")
        return [0] * sum(len(m["content"].split()) for m in messages)

    def response_ids(self, answer: Answer) -> list[int]:
        if "<|" in answer.thought:
            raise ChatError("does not read back")
        return [1]


def test_fit_prompts():
    def task(id: str, text: str, role: str = "user", thought: str = "x") -> Task:
        answers = (Answer(Mode.THINK, thought, (Call("f"),)), Answer(Mode.NO_THINK, "", (Call("f"),)))
        return Task(id, ({"role": role, "content": text},), answers=answers)

    tasks = [
        task("fits", "a b c"),
        task("long", "a b c d"),
        task("odd", "a", role="tool"),
        task("special", "a", thought="<|im_end|>"),
    ]
    fitted = fit_prompts(tasks, Words(), 3)
    assert isinstance(fitted, Fitted)
    assert [t.id for t in fitted.kept] == ["fits", "special"]
    assert [a.mode for a in fitted.kept[1].answers] == [Mode.NO_THINK]
    assert dict(fitted.dropped_answers) == {"special tokens in its text": 1}
    assert fitted.dropped["prompt longer than 3 tokens"] == 1
    assert sum(n for reason, n in fitted.dropped.items() if "must start with a user message" in reason) == 1
