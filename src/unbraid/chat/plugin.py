"""Objects of the user's own, named `module:name` in a recipe."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from unbraid.errors import ChatError, UnbraidError


def resolve(spec: str, known: Mapping[str, Any], field: str, error: type[UnbraidError] = ChatError) -> Any:
    """What `spec` names: a key of `known`, or `module:name` (imported; dots reach into it).

    Args:
        field: the recipe field, for the message.

    Raises:
        error: if `spec` is neither.
    """
    if spec in known:
        return known[spec]
    module, colon, name = spec.partition(":")
    if not colon:
        raise error(f"{field}: '{spec}' is unknown; use one of {', '.join(known)}, or module:name for your own")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as cause:  # a module of the user's can fail in any way while it is imported
        told = f"{type(cause).__name__}: {cause}"
        raise error(f"{field}: cannot load '{spec}' ({told}); is the module on PYTHONPATH?") from cause
    return found
