"""Comparing calls: as JSON, and as a function would see them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbraid.chat import Call
from unbraid.chat.compare import COMPARATORS, ast_match, comparator, same_calls
from unbraid.errors import ChatError

SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 0.0, -0.0, 2.5, "", "1", "true", "a", 2**60, float(2**60)])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


def equal(a, b) -> bool:
    """Equality of JSON values, case by case."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def some_pairing(made, expected) -> bool:
    """Multiset equality by trying every order."""
    return len(made) == len(expected) and any(
        all(a.name == b.name and equal(a.arguments, b.arguments) for a, b in zip(order, expected, strict=True))
        for order in itertools.permutations(made)
    )


CALLS = st.lists(
    st.builds(Call, st.sampled_from("fg"), st.dictionaries(st.sampled_from("xy"), VALUES, max_size=2)), max_size=3
)


@given(CALLS, CALLS, st.data())
def test_same_calls_against_every_order(made, expected, data):
    assert same_calls(made, expected) == some_pairing(made, expected)
    assert same_calls(data.draw(st.permutations(made)), made)


@given(VALUES, VALUES)
def test_values_are_compared_as_json(a, b):
    assert same_calls([Call("f", {"x": a})], [Call("f", {"x": b})]) == equal(a, b)


def test_counts_matter():
    f, g = Call("f", {"a": 1}), Call("g")
    assert same_calls([f, g, f], [f, f, g])
    assert not same_calls([f, g, g], [f, f, g])
    assert not same_calls([f], [])
    assert same_calls([], [])


def tool(name="f", required=("city",), **properties):
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOL = tool(
    city={"type": "string"},
    days={"type": "integer", "default": 1},
    limit={"type": "number"},
    tags={"type": "array", "items": {"type": "string"}},
    place={"type": "object", "properties": {"x": {"type": "number"}}},
    flag={"type": ["boolean", "null"]},
)
GOLD = {"city": "New York"}


@pytest.mark.parametrize(
    ("made", "expected", "right"),
    [
        ({"city": "new-york."}, GOLD, True),  # case, spaces and punctuation of strings
        ({"city": "Newark"}, GOLD, False),
        ({"city": "new york", "days": 1}, GOLD, True),  # the default, said aloud
        ({"city": "new york", "days": 2}, GOLD, False),
        ({"city": "new york"}, {**GOLD, "days": 1}, True),
        ({}, GOLD, False),  # a required argument is absent
        ({"city": "New York", "when": 3}, GOLD, False),  # one that the schema does not have
        ({"city": "new york", "limit": 3}, {**GOLD, "limit": 3.0}, True),  # an integer for a number
        ({"city": "new york", "days": 2.0}, {**GOLD, "days": 2}, False),  # not the other way round
        ({"city": "new york", "days": True}, {**GOLD, "days": 1}, False),
        ({"city": "new york", "limit": "3"}, {**GOLD, "limit": 3}, False),
        ({"city": "NY", "tags": ["A b", "c"]}, {"city": "ny", "tags": ["ab", "C"]}, True),
        ({"city": "NY", "tags": ["c", "ab"]}, {"city": "ny", "tags": ["ab", "c"]}, False),  # lists in order
        ({"city": "NY", "tags": "ab"}, {"city": "ny", "tags": ["ab"]}, False),
        ({"city": "NY", "place": {"x": 1}}, {"city": "ny", "place": {"x": 1.0}}, True),
        ({"city": "NY", "flag": None}, {"city": "ny", "flag": None}, True),
        ({"city": "NY", "flag": 0}, {"city": "ny", "flag": False}, False),
    ],
)
def test_ast_match(made, expected, right):
    assert ast_match([Call("f", made)], [Call("f", expected)], [TOOL]) is right


def test_ast_match_types_bind_where_values_would_pass():
    """2.0 equals 2, and would be right by `same_calls` alone; a loosely equal call must also fit the schema."""
    assert same_calls([Call("f", {"city": "a", "days": 2.0})], [Call("f", {"city": "a", "days": 2})])
    assert not ast_match([Call("f", {"city": "A", "days": 2.0})], [Call("f", {"city": "a", "days": 2})], [TOOL])
    # What equals the gold answer is right even where the row breaks its own schema.
    odd = [Call("f", {"city": 3, "unknown": 1})]
    assert ast_match(odd, odd, [TOOL])


def test_ast_match_takes_the_schemas_of_public_rows():
    flat = {"name": "f", "parameters": {"x": {"type": "int, optional", "default": 5}, "y": {"type": "List[str]"}}}
    assert ast_match([Call("f", {"y": ["A"]})], [Call("f", {"x": 5, "y": ["a"]})], [flat])
    assert not ast_match([Call("f", {"x": "5", "y": ["A"]})], [Call("f", {"x": 5, "y": ["a"]})], [flat])
    for odd in ({}, {"name": "f"}, {"name": "f", "parameters": None}, {"name": "f", "parameters": {"type": "object"}}):
        assert ast_match([Call("f", {"y": "A"})], [Call("f", {"y": "a"})], [odd])


def test_ast_match_is_order_free_and_counts():
    f, g = Call("f", {"city": "A"}), Call("g", {"z": "B c"})
    assert ast_match([Call("g", {"z": "b-C"}), Call("f", {"city": "a"})], [f, g], [TOOL])
    assert not ast_match([f, f], [f], [TOOL])
    assert not ast_match([Call("h", {"city": "a"})], [f], [TOOL])


def test_comparators_are_pluggable():
    assert comparator("same_calls") is same_calls
    assert comparator("unbraid.chat.compare:ast_match") is ast_match
    assert set(COMPARATORS) == {"same_calls", "ast_match", "accepted"}
    with pytest.raises(ChatError, match=r"reward\.compare: 'exact' is unknown; use one of same_calls, ast_match"):
        comparator("exact", "reward.compare")
