"""Are the calls right where the answer lists, for every argument, the values that are?

An accepted call is `{name: {argument: [value, …]}}`, one name; "" among the values says that the argument may be left
out. Such answers come with the Berkeley Function-Calling Leaderboard (BFCL) and with rows written after its fashion.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from unbraid.chat.compare import Tools, loose, properties_of, same_json, schema_of
from unbraid.chat.types import Call

Accepted = Sequence[Mapping[str, Mapping[str, Sequence[Any]]]]
OPTIONAL: Final = ""
# The names of JSON Schema, and those of BFCL's rows.
_TYPES: Final[Mapping[str, type]] = {
    "integer": int, "number": float, "float": float, "boolean": bool,
    "array": list, "tuple": list, "object": dict, "dict": dict,
}  # fmt: skip


def accepted_match(made: Sequence[Call], accepted: Accepted, tools: Tools) -> bool:
    """Whether the calls can be paired with the accepted ones, in any order, so that every call is accepted.

    Of a call all required arguments are there, and all others that may not be left out; none is there that its schema
    or the answer does not know; values have the types of the schema and are among those accepted. Strings are compared
    without case, spaces and the punctuation ``,./-_*^``, also right inside a list or an object, not deeper.

    Source: BFCL's AST checker for Python, with its particulars: an integer will do for a float by itself, not in a
    list; an argument that may be left out may also be an empty list; accepted values of another type than the
    schema's stand for variables, and are compared as they are. Choices where it differs: true is not 1 anywhere; any
    pairing will do, not only the one found by going through the answers in order (`docs/bfcl.md` counts both).
    """
    if len(made) != len(accepted):
        return False
    schemas = {name: schema for name, schema in map(schema_of, tools) if name}
    fits = [[_is_accepted(call, answer, schemas) for call in made] for answer in accepted]
    return _can_be_paired(fits)


def _can_be_paired(fits: Sequence[Sequence[bool]]) -> bool:
    """Whether every row can have a column of its own in which it is true."""
    row_of: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in seen:
                seen.add(column)
                if column not in row_of or place(row_of[column], seen):
                    row_of[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


def _is_accepted(call: Call, answer: Mapping[str, Mapping[str, Any]], schemas: Mapping[str, Mapping[str, Any]]) -> bool:
    name, given = next(iter(answer.items()), ("", {}))
    values = {key: _listed(some) for key, some in given.items()}
    schema = schemas.get(name, {})
    properties = properties_of(schema)
    if call.name != name or not set(schema.get("required") or ()) <= call.arguments.keys():
        return False
    if not call.arguments.keys() <= (properties.keys() & values.keys()):
        return False
    if any(OPTIONAL not in values[key] for key in values.keys() - call.arguments.keys()):
        return False
    return all(_value_is_accepted(value, values[key], properties[key]) for key, value in call.arguments.items())


def _value_is_accepted(value: Any, accepted: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    wanted = _type(schema)
    if wanted is float and type(value) is int:
        value = float(value)
    example = _example(accepted)
    is_variable = example not in (None, wanted)
    if type(value) is not wanted:
        # A variable, perhaps: text in the place of a number.
        return type(value) is example and _among(value, accepted)
    if is_variable:
        return _among(value, accepted)
    if wanted is dict:
        return any(_is_accepted_object(value, one) for one in accepted if isinstance(one, Mapping))
    if wanted is not list:
        return _among(loose(value), [loose(one) for one in accepted])
    inner = _type(schema.get("items") or {})
    if not any(_fits_items(value, one, inner) for one in accepted):
        return False
    choices = [[] if one == OPTIONAL else one for one in accepted]
    if inner is dict:
        return any(_are_accepted_objects(value, one) for one in choices)
    return _among(_loose_items(value), [_loose_items(one) for one in choices if isinstance(one, list)])


def _fits_items(value: Sequence[Any], accepted: Any, inner: type) -> bool:
    """Whether items have the type of the schema, or that of the first accepted one; all do where none are listed."""
    example = _example(accepted) if isinstance(accepted, list) else None
    return not isinstance(accepted, list) or all(type(item) in (inner, example) for item in value)


def _are_accepted_objects(value: Sequence[Any], accepted: Any) -> bool:
    return isinstance(accepted, list) and len(value) == len(accepted) and all(map(_is_accepted_object, value, accepted))


def _is_accepted_object(value: Any, accepted: Any) -> bool:
    """An object of accepted values by key. No type is asked for here: the schema's own says too little."""
    if not isinstance(value, Mapping) or not isinstance(accepted, Mapping) or not value.keys() <= accepted.keys():
        return False
    if any(OPTIONAL not in _listed(accepted[key]) for key in accepted.keys() - value.keys()):
        return False
    return all(_among(_loose_text(inner), map(_loose_text, _listed(accepted[key]))) for key, inner in value.items())


def _listed(accepted: Any) -> list[Any]:
    """The accepted values; one that a row gives without a list stands alone."""
    return accepted if isinstance(accepted, list) else [accepted]


def _example(accepted: Sequence[Any]) -> type | None:
    return next((type(one) for one in accepted if one != OPTIONAL), None)


def _type(schema: Mapping[str, Any]) -> type:
    """The type that a value must have; text where the schema leaves it open."""
    name = schema.get("type")
    return _TYPES.get(name, str) if isinstance(name, str) else str


def _among(value: Any, accepted: Iterable[Any]) -> bool:
    return any(same_json(value, one) for one in accepted)


def _loose_text(value: Any) -> Any:
    return loose(value) if isinstance(value, str) else value


def _loose_items(value: Sequence[Any]) -> list[Any]:
    return [_loose_text(item) for item in value]
