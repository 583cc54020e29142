"""Calls against lists of accepted values: what BFCL's checker takes for right, case by case."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbraid.chat.accepted import accepted_match
from unbraid.chat.types import Call, Mode, Reading
from unbraid.data.benchmarks import bfcl
from unbraid.tasks.reward import RewardConfig, reward_function
from unbraid.tasks.task import Task

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "limit": {"type": "float"},
    "flag": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "sizes": {"type": "array", "items": {"type": "float"}},
    "place": {"type": "dict", "properties": {"x": {"type": "float"}}},
    "stops": {"type": "array", "items": {"type": "dict"}},
    "free": {"type": "any"},
}
TOOLS = [{"name": "f", "parameters": {"type": "dict", "properties": PROPERTIES, "required": ["city"]}}]
CITY = {"city": ["Rome", "Roma"]}


def right(arguments, values, name="f"):
    """Whether one call is right where one is accepted. The city is taken care of."""
    made = [Call(name, {"city": "Rome", **arguments})]
    return accepted_match(made, [{"f": {**CITY, **values}}], TOOLS)


@pytest.mark.parametrize(
    ("arguments", "values", "verdict"),
    [
        ({}, {}, True),
        ({"city": "roma."}, {}, True),  # any of the accepted, loosely
        ({"city": "Milano"}, {}, False),
        ({"city": ["Rome"]}, {}, False),
        ({}, {"days": [2]}, False),  # not there, and not marked as optional
        ({}, {"days": [2, ""]}, True),
        ({"days": 2}, {"days": [2, ""]}, True),
        ({"days": 2}, {}, False),  # the answer does not know it
        ({"when": 2}, {"when": [2]}, False),  # the function does not know it
        ({"days": 2.0}, {"days": [2]}, False),
        ({"days": True}, {"days": [1]}, False),
        ({"days": "2"}, {"days": [2]}, False),
        ({"days": "n"}, {"days": ["n"]}, True),  # a variable
        ({"days": "N"}, {"days": ["n"]}, False),  # is spelt as it is
        ({"limit": 2}, {"limit": [2.0]}, True),  # an integer will do for a float
        ({"limit": 2.0}, {"limit": [2]}, True),
        ({"sizes": [1, 2]}, {"sizes": [[1.0, 2.0]]}, False),  # not in a list
        ({"sizes": [1.0, 2]}, {"sizes": [[1, 2]]}, True),  # unless the answer has them there
        ({"flag": 1}, {"flag": [True]}, False),
        ({"flag": True}, {"flag": [True, False]}, True),
        ({"tags": ["A b", "c"]}, {"tags": [["c"], ["ab", "C"]]}, True),
        ({"tags": ["c", "ab"]}, {"tags": [["ab", "C"]]}, False),  # lists keep their order
        ({"tags": []}, {"tags": [["a"], ""]}, True),  # as good as left out
        ({"tags": []}, {"tags": [["a"]]}, False),
        ({"tags": [1]}, {"tags": [["1"]]}, False),
        ({"tags": "a"}, {"tags": [["a"]]}, False),
        ({"place": {"x": 1}}, {"place": [{"x": [1.0, 2.0]}]}, True),
        ({"place": {"x": 3}}, {"place": [{"x": [1.0, 2.0]}]}, False),
        ({"place": {}}, {"place": [{"x": [1.0]}]}, False),
        ({"place": {}}, {"place": [{"x": [1.0, ""]}]}, True),
        ({"place": {"x": 1, "y": 1}}, {"place": [{"x": [1]}]}, False),
        ({"place": {"x": "A"}}, {"place": [{"x": ["b"]}, {"x": ["a"]}]}, True),
        ({"place": {"x": {"y": "a"}}}, {"place": [{"x": [{"y": "A"}]}]}, False),  # not deeper
        ({"stops": [{"x": "a"}, {"x": 2}]}, {"stops": [[{"x": ["A"]}, {"x": [2]}]]}, True),
        ({"stops": [{"x": 2}, {"x": "a"}]}, {"stops": [[{"x": ["A"]}, {"x": [2]}]]}, False),
        ({"stops": [{"x": "a"}]}, {"stops": [[{"x": ["A"]}, {"x": [2]}]]}, False),
        ({"stops": ["x"]}, {"stops": [[{"x": ["A"]}], ""]}, False),  # the official checker raises
        ({"free": "Any Text"}, {"free": ["anytext"]}, True),
        ({"free": 2}, {"free": [2, 3]}, True),
        ({"place": {"x": True}}, {"place": [{"x": [1]}]}, False),  # the official checker says right
    ],
)
def test_one_call(arguments, values, verdict):
    assert right(arguments, values) is verdict


def test_the_name_and_the_required_arguments_count():
    assert not right({}, {}, name="F")
    assert not accepted_match([Call("f")], [{"f": {"city": ["Rome", ""]}}], TOOLS)
    assert accepted_match([], [], TOOLS)
    assert not accepted_match([], [{"f": CITY}], TOOLS)
    assert not accepted_match([Call("f", {"city": "Rome"})] * 2, [{"f": CITY}], TOOLS)


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_any_pairing_will_do(accepted, made):
    """Against trying every order."""
    calls = [Call("f", {"city": "Rome", "days": days}) for days in made]
    answers = [{"f": {"city": ["Rome"], "days": sorted(days)}} for days in accepted]
    found = len(made) == len(accepted) and any(
        all(days in some for days, some in zip(order, accepted, strict=True)) for order in itertools.permutations(made)
    )
    assert accepted_match(calls, answers, TOOLS) == found


VALUES = st.recursive(
    st.sampled_from([None, True, 0, 1, 1.5, "", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=5,
)


@given(st.sampled_from(sorted(PROPERTIES)), VALUES, VALUES)
def test_it_never_raises(key, made, accepted):
    """Rows of anybody's making: an answer need not list values."""
    assert right({key: made}, {key: accepted}) in (True, False)
    assert right({key: made}, {key: [accepted]}) in (True, False)


def test_a_reward_can_ask_for_it():
    row = {
        "id": "simple_0", "question": [[{"role": "user", "content": "Weather in Rome?"}]], "function": TOOLS,
        "ground_truth": [{"f": {"city": ["Rome", "Roma"], "days": [1, ""]}}],
    }  # fmt: skip
    (example,) = bfcl(row)
    task = Task("1", ({"role": "user", "content": "?"},), example.tools, example.calls, extra=dict(example.extra))

    def judged(compare, **arguments):
        reading = Reading(Mode.NO_THINK, "", (Call("f", arguments),), "", ())
        return reward_function(RewardConfig(compare=compare))(task, reading).correct

    assert judged("accepted", city="roma") and judged("accepted", city="Rome", days=1)
    assert not judged("accepted", city="Paris") and not judged("accepted", city="Rome", days=2)
    assert not judged("same_calls", city="Roma") and judged("same_calls", city="Rome")
    # Where a task lists nothing, its one answer stands.
    task = Task("2", task.messages, task.tools, task.expected)
    assert judged("accepted", city="rome") and not judged("accepted", city="Roma")
