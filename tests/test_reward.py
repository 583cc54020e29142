"""The reward: the published table, the incentive that follows from it, reasons, and users' own functions."""

import itertools

import numpy as np
import pytest

from unbraid.chat.types import Call, Mode, Problem, Reading
from unbraid.errors import ChatError, RewardError
from unbraid.tasks.reward import Reward, RewardConfig, reward_function, score
from unbraid.tasks.task import Task

TASK = Task("t1", ({"role": "user", "content": "?"},), expected=(Call("f", {"x": 1}), Call("g", {"y": [1, 2]})))
GOLD = TASK.expected


def reading(mode: Mode, calls=GOLD, problems=()) -> Reading:
    return Reading(mode, "", tuple(calls), "", tuple(problems))


@pytest.mark.parametrize(
    ("mode", "right", "answer"),
    [(Mode.NO_THINK, True, 1.0), (Mode.THINK, True, 0.5), (Mode.NO_THINK, False, -1.0), (Mode.THINK, False, -0.5)],
)
def test_published_table(mode, right, answer):
    reward = score(TASK, reading(mode, GOLD if right else ()), RewardConfig())
    assert reward.correct is right
    assert reward.parts == {"format": 0.2, "answer": answer}
    assert reward.total == pytest.approx(answer + 0.2)


def test_malformed_counts_as_wrong_in_its_mode_and_no_mode_as_wrong_no_think():
    for mode, answer in ((Mode.THINK, -0.5), (Mode.NO_THINK, -1.0), (Mode.NONE, -1.0)):
        problem = Problem.NO_MODE if mode is Mode.NONE else Problem.UNCLOSED
        reward = score(TASK, reading(mode, GOLD, [problem]), RewardConfig())
        assert not reward.correct
        assert reward.parts == {"format": 0.0, "answer": answer}
        assert reward.reason == problem.value
    assert score(TASK, reading(Mode.NONE), RewardConfig()).reason == "no_mode"


def test_format_term_does_not_flip_the_order_of_the_table():
    """Every response of a better cell of Eq. 5 is worth more than every response of a worse one, malformed or not."""
    worth: dict[float, list[float]] = {}
    for mode, calls, problems in itertools.product((Mode.THINK, Mode.NO_THINK), (GOLD, ()), ((), (Problem.NOT_JSON,))):
        reward = score(TASK, reading(mode, calls, problems), RewardConfig())
        worth.setdefault(reward.parts["answer"], []).append(reward.total)
    cells = sorted(worth)
    assert cells == [-1.0, -0.5, 0.5, 1.0]
    for worse, better in itertools.pairwise(cells):
        assert max(worth[worse]) < min(worth[better])


def test_thinking_pays_iff_p_t_above_2_p_s_minus_half():
    """The incentive that follows from the table, by expectation over outcomes, without the format term."""
    config = RewardConfig(format=0.0)
    modes = (Mode.THINK, Mode.NO_THINK)
    value = {
        (m, right): score(TASK, reading(m, GOLD if right else ()), config).total
        for m in modes
        for right in (True, False)
    }

    def expected(mode: Mode, p: float) -> float:
        return p * value[mode, True] + (1 - p) * value[mode, False]

    for p_s, p_t in itertools.product(np.linspace(0, 1, 41), np.linspace(0.003, 0.997, 41)):
        think, short = expected(Mode.THINK, p_t), expected(Mode.NO_THINK, p_s)
        assert think == pytest.approx(p_t - 0.5)
        assert short == pytest.approx(2 * p_s - 1)
        assert (think > short) == (p_t > 2 * p_s - 0.5)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        (GOLD, "right"),
        (GOLD[::-1], "right"),
        ((), "missing_call"),
        (GOLD[:1], "missing_call"),
        ((*GOLD, GOLD[0]), "extra_call"),
        ((GOLD[0], Call("h", {"y": [1, 2]})), "wrong_name"),
        ((GOLD[0], GOLD[0]), "wrong_name"),
        ((GOLD[0], Call("g", {"y": [2, 1]})), "wrong_arguments"),
    ],
)
def test_reasons(calls, reason):
    reward = score(TASK, reading(Mode.NO_THINK, calls), RewardConfig())
    assert reward.reason == reason
    assert reward.correct == (reason == "right")


def test_no_call_expected():
    task = Task("t2", TASK.messages)
    assert score(task, reading(Mode.NO_THINK, ()), RewardConfig()).correct
    assert score(task, reading(Mode.NO_THINK, GOLD), RewardConfig()).reason == "extra_call"


def test_compare_is_a_recipe_field():
    with pytest.raises(ChatError, match=r"reward\.compare"):
        reward_function(RewardConfig(compare="nearly"))
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    one = Task("t3", TASK.messages, (tool,), (Call("f", {"city": "New York"}),))
    made = reading(Mode.THINK, [Call("f", {"city": "new york."})])
    assert not reward_function(RewardConfig())(one, made).correct
    assert reward_function(RewardConfig(compare="ast_match"))(one, made).correct


def test_our_reward_through_the_config():
    reward = reward_function(RewardConfig(right=(2.0, 1.0), format=0.0))(TASK, reading(Mode.THINK))
    assert reward == Reward(1.0, {"format": 0.0, "answer": 1.0}, True, "right")


USER_CODE = """
from unbraid.tasks import Reward

def short(task, reading):
    return Reward(-float(len(reading.thought)), {"length": -1.0}, True, "right")

def crash(task, reading):
    return 1 / 0

def number(task, reading):
    return 1.0

def infinite(task, reading):
    return Reward(float("nan"), {}, True, "right")

def vague(task, reading):
    return Reward(1.0, {}, "yes", "right")
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(USER_CODE)
    return path


def test_user_function_from_a_file_and_from_a_module(user_file, monkeypatch):
    thought = Reading(Mode.THINK, "abc", (), "", ())
    assert reward_function(RewardConfig(function=f"{user_file}:short"))(TASK, thought).total == -3.0
    monkeypatch.chdir(user_file.parent)
    monkeypatch.syspath_prepend(user_file.parent)
    assert reward_function(RewardConfig(function="my_reward:short"))(TASK, thought).total == -3.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("crash", "raised ZeroDivisionError on task t1"),
        ("number", "returned a float for task t1"),
        ("infinite", "returned total = nan for task t1"),
        ("vague", "returned correct = 'yes' for task t1"),
    ],
)
def test_broken_user_function_is_named_with_the_task(user_file, function, words):
    theirs = reward_function(RewardConfig(function=f"{user_file}:{function}"))
    with pytest.raises(RewardError, match=words) as caught:
        theirs(TASK, reading(Mode.THINK))
    assert "\n" not in str(caught.value)
    assert f":{function}" in str(caught.value)
    assert "return" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_colon", "write module:name"),
        ("absent.py:f", "no such file"),
        ("no_such_module_here:f", "cannot import"),
        ("math:no_such", "has no .no_such."),
    ],
)
def test_function_that_cannot_be_loaded(name, words):
    with pytest.raises(RewardError, match=words):
        reward_function(RewardConfig(function=name))
