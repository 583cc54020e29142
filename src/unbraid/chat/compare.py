"""Are the calls that were made the calls that were expected? Two answers, and a place for your own."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from unbraid.chat.types import Call
from unbraid.errors import ChatError
from unbraid.plugins import choose

Tools = Sequence[Mapping[str, Any]]
Comparator = Callable[[Sequence[Call], Sequence[Call], Tools], bool]
"""(made, expected, tools) -> whether `made` is right."""


def same_calls(made: Sequence[Call], expected: Sequence[Call], tools: Tools = ()) -> bool:
    """Equal as multisets of (name, arguments); the order of calls and of keys does not matter.

    Values are compared as JSON: 1 equals 1.0, true is not 1, strings are equal to the letter, lists keep their order.

    Source: Tool-N1 and ToolRL check answers this way. Choice: structural equality instead of equal JSON text.
    """
    return _multiset(made) == _multiset(expected)


def ast_match(made: Sequence[Call], expected: Sequence[Call], tools: Tools = ()) -> bool:
    """Equal up to what a function would not notice, as far as the tools' schemas tell.

    Every call made must fit its tool: required arguments present, none that the schema does not have, values of
    the schema's types (an integer will do for a number). Then calls are compared as by `same_calls`, with strings
    stripped of case, spaces and the punctuation ``,./-_*^``, and with absent arguments set to their defaults.

    Source: the AST checker of the Berkeley Function-Calling Leaderboard (type rules, string normalisation, lists
    in order). Choices: one expected value per argument, not a list of them; an optional argument may be left out
    exactly where the schema's default says the same; calls equal by `same_calls` are right whatever the schema
    says, because public rows break their own schemas; a tool without a schema is not checked.
    """
    if same_calls(made, expected):
        return True
    schemas = {name: schema for name, schema in map(schema_of, tools) if name}
    if not all(_fits_tool(call, schemas.get(call.name)) for call in made):
        return False
    return _multiset(_loosen(made, schemas)) == _multiset(_loosen(expected, schemas))


# `accepted` is for tasks that list what they accept (`chat.accepted`); where one does not, its answer stands loosely.
COMPARATORS: dict[str, Comparator] = {"same_calls": same_calls, "ast_match": ast_match, "accepted": ast_match}


def comparator(spec: str, field: str = "comparator") -> Comparator:
    """A comparator by name, or your own function as `module:function`."""
    return choose(spec, COMPARATORS, ChatError, field)


def _multiset(calls: Sequence[Call]) -> Counter[Hashable]:
    return Counter((call.name, _key(call.arguments)) for call in calls)


def _key(value: Any) -> Hashable:
    """A hashable stand-in: equal for equal JSON values, different for different ones."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, Mapping):
        return ("object", frozenset((name, _key(inner)) for name, inner in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(_key(inner) for inner in value))
    return value


_IGNORED: Final = re.compile(r"[ ,./\-_*^]")


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 equals 1.0, true is not 1."""
    return _key(one) == _key(other)


def loose(value: Any) -> Any:
    """Strings, at any depth, without case, spaces and the punctuation ``,./-_*^``; other values as they are."""
    if isinstance(value, str):
        return _IGNORED.sub("", value).lower().replace("'", '"')
    if isinstance(value, Mapping):
        return {name: loose(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [loose(inner) for inner in value]
    return value


def _loosen(calls: Sequence[Call], schemas: Mapping[str, Mapping[str, Any]]) -> list[Call]:
    defaults = {
        name: {key: one["default"] for key, one in properties_of(schema).items() if "default" in one}
        for name, schema in schemas.items()
    }
    return [Call(call.name, loose({**defaults.get(call.name, {}), **call.arguments})) for call in calls]


def schema_of(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(name, parameters) of a tool in OpenAI's form or as the bare function."""
    inner = tool.get("function")
    function = inner if isinstance(inner, Mapping) else tool
    parameters = function.get("parameters")
    return str(function.get("name") or ""), parameters if isinstance(parameters, Mapping) else {}


def properties_of(schema: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Arguments and their schemas; some data sets write them without the level `properties`."""
    properties = schema.get("properties", {} if isinstance(schema.get("type"), str) else schema)
    named = properties.items() if isinstance(properties, Mapping) else ()
    return {str(name): one for name, one in named if isinstance(one, Mapping)}


def _fits_tool(call: Call, schema: Mapping[str, Any] | None) -> bool:
    properties = properties_of(schema or {})
    if not properties:
        return True
    required = (schema or {}).get("required")
    if isinstance(required, list) and not set(required) <= call.arguments.keys():
        return False
    return call.arguments.keys() <= properties.keys() and all(
        _fits(value, properties[name]) for name, value in call.arguments.items()
    )


# The names of JSON Schema, and the Python names that BFCL and ToolRL rows use.
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,), "str": (str,),
    "integer": (int,), "int": (int,),
    "number": (int, float), "float": (int, float),
    "boolean": (bool,), "bool": (bool,),
    "array": (list, tuple), "list": (list, tuple), "tuple": (list, tuple),
    "object": (dict,), "dict": (dict,),
    "null": (type(None),), "none": (type(None),),
}  # fmt: skip


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Type check, into lists and objects. Types that are absent or unknown fit anything."""
    declared = schema.get("type")
    names = [name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)]
    # "str, optional" and "List[int]" are met in the wild: the first word is the type.
    kinds = [_TYPES.get(re.split(r"\W", name.strip().lower(), maxsplit=1)[0]) for name in names]
    wanted = [one for kind in kinds if kind is not None for one in kind]
    if len(wanted) and None not in kinds and type(value) not in wanted:
        return False
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, Mapping):
        return all(_fits(inner, items) for inner in value)
    inner_schemas = schema.get("properties")
    if isinstance(value, dict) and isinstance(inner_schemas, Mapping):
        return all(_fits(value[name], one) for name, one in properties_of(schema).items() if name in value)
    return True
