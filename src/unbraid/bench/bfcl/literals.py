"""Arguments as source text of Java or JavaScript, the form in which BFCL wants them in those categories."""

from collections.abc import Mapping
from typing import Any


def as_source(arguments: Mapping[str, Any], properties: Mapping[str, Mapping[str, Any]], java: bool) -> dict[str, str]:
    """Every argument as a programmer would write it, by the type that the question's function gives it.

    Args:
        properties: of the function as BFCL's file has it, with the types of the language.
    """
    write = _java if java else _javascript
    return {
        name: write(value, str(schema.get("type", "any")), str((schema.get("items") or {}).get("type", "any")))
        for name, value in arguments.items()
        for schema in (properties.get(name, {}),)
    }


def _java(value: Any, kind: str, inner: str) -> str:
    if isinstance(value, str):  # text stands for itself, and for the name of a variable
        return f'"{value}"' if kind == "inside" else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}{_SUFFIX.get(kind, '')}"
    if isinstance(value, list):
        items = ", ".join(_java(item, "inside" if isinstance(item, str) else inner, "any") for item in value)
        if kind == "ArrayList":
            return f"new ArrayList<>(Arrays.asList({items}))" if value else "new ArrayList<>()"
        return f"new {_ARRAYS.get(inner, inner)}[]{{{items}}}"
    if isinstance(value, dict):
        puts = " ".join(f'put("{key}", {_java(item, "inside", "any")});' for key, item in value.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return "null"


_SUFFIX = {"long": "L", "float": "f"}
_ARRAYS = {"any": "Object", "integer": "int"}


def _javascript(value: Any, kind: str, inner: str) -> str:
    if isinstance(value, str):
        return f"'{value}'" if kind == "inside" else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}{'n' if kind == 'Bigint' else ''}"
    if isinstance(value, list):
        return "[" + ", ".join(_javascript(item, "inside", inner) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"'{key}': {_javascript(item, 'inside', 'any')}" for key, item in value.items()) + "}"
    return "null"
