"""Users' own code by name: `module:function` or `file.py:function`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from unbraid.errors import UnbraidError


def load_function(name: str, error: type[UnbraidError], field: str) -> Callable[..., Any]:
    """The function that `name` ("package.module:function" or "path/to/file.py:function") names.

    Modules are also looked for in the current directory, as for `python -m`.

    Args:
        error: the class to raise, so that the message reaches the user as the kind of error it is.
        field: the recipe field that holds the name, for the message.
    """
    where, _, function = name.rpartition(":")
    if not where or not function:
        raise error(f"{field}: {name!r} names no function: write module:function or file.py:function")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_module(where)
    except Exception as problem:
        raise error(
            f"{field}: cannot import {where!r} ({type(problem).__name__}: {problem}): "
            "check the spelling, or run from the directory that holds it"
        ) from problem
    found = getattr(module, function, None)
    if not callable(found):
        have = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise error(f"{field}: {where!r} has no function {function!r}: it has {', '.join(have[:8]) or 'none'}")
    return found


def _from_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up by name.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
