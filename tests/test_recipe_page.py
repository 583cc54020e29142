"""docs/recipes.md lists every field that a recipe has. `python tests/test_recipe_page.py` writes its tables anew."""

import ast
import inspect
import re
import textwrap
import types
import typing
from enum import Enum
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from unbraid.recipe import Recipe, field_count, shipped_recipes

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- fields: begin (python tests/test_recipe_page.py) -->", "<!-- fields: end -->"


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field → the string below it in the source, its lines joined; `clip_low` and `clip_high` share theirs."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    waiting: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            stem = waiting[-1].partition("_")[0] if waiting else ""
            sharing = [name for name in waiting if name == waiting[-1] or name.startswith(f"{stem}_")]
            found.update(dict.fromkeys(sharing, " ".join(node.value.value.split())))
            waiting = []
    return found


def models_of(annotation: object) -> list[type[BaseModel]]:
    """The pydantic models in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in models_of(part)]


def type_text(annotation: object) -> str:
    """A type as a person writes its values in YAML."""
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{value}`" for value in annotation)
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(part) for part in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is dict:
        return f"mapping to {type_text(arguments[1])}"
    if origin in (tuple, list):
        inner = list(dict.fromkeys(type_text(part) for part in arguments if part is not Ellipsis))
        return f"list of {' or '.join(inner)}"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, f"[{name}](#{name.lower()})" if models_of(annotation) else name.lower())


def default_text(field: FieldInfo) -> str:
    """The default as YAML; a section's own defaults are in its table."""
    if field.default is PydanticUndefined or isinstance(field.default, BaseModel):
        return "" if isinstance(field.default, BaseModel) else "**required**"
    value = field.default
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    text = yaml.safe_dump(value, width=10_000).removesuffix("\n").removesuffix("\n...")
    return f"`{text}`"


def summary(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring, in one line."""
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def table(model: type[BaseModel]) -> list[str]:
    """One row per field."""
    said = docstrings(model)
    rows = ["| field | values | default | |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        inner = models_of(field.annotation)
        text = (field.description or said.get(name) or (summary(inner[0]) if inner else "")).replace("|", "\\|")
        cells = (f"`{name}`", type_text(field.annotation), default_text(field), " ".join(text.split()))
        rows.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return rows


def all_models() -> dict[str, type[BaseModel]]:
    """Heading → model, the recipe first, each section followed by what it holds."""
    found: dict[str, type[BaseModel]] = {"Recipe": Recipe}

    def visit(model: type[BaseModel], path: str) -> None:
        for name, field in model.model_fields.items():
            for inner in models_of(field.annotation):
                if inner not in found.values():
                    found[f"{path}{name}: {inner.__name__}"] = inner
                    visit(inner, f"{path}{name}.")

    visit(Recipe, "")
    return found


def sections() -> str:
    """The generated part of the page."""
    parts = []
    for heading, model in all_models().items():
        path, _, _ = heading.rpartition(": ")
        title = f'### <a id="{model.__name__.lower()}"></a>`{path}`' if path else "### The recipe itself"
        parts.append("\n".join([title, "", summary(model), "", *table(model)]))
    return "\n\n".join(parts)


def split_page() -> tuple[str, str, str]:
    """(before, generated, after)."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside.strip(), after


def test_the_page_is_what_the_models_say():
    assert split_page()[1] == sections(), "run: python tests/test_recipe_page.py"


def test_every_field_is_on_the_page_and_explained():
    tables = {heading: table(model) for heading, model in all_models().items()}
    assert sum(len(rows) - 2 for rows in tables.values()) >= field_count()
    mute = [f"{heading}: {row}" for heading, rows in tables.items() for row in rows[2:] if row.endswith("| |")]
    assert mute == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_on_the_page(name):
    assert f"`{name}`" in split_page()[0]


def test_the_page_names_fields_that_exist():
    """Overrides in the text, such as `learn.steps=20`, are real."""
    known = {*_paths(Recipe, ""), "dotted.key"}
    named = set(re.findall(r"[\s`]([a-z_]+(?:\.[a-z_0-9]+)+)=", split_page()[0]))
    assert len(named) > 4
    assert {re.sub(r"\.\d+", "", name) for name in named} <= known


def _paths(model: type[BaseModel], start: str) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        found.append(f"{start}{name}")
        for inner in models_of(field.annotation):
            found += _paths(inner, f"{start}{name}.")
    return found


if __name__ == "__main__":
    head, _, tail = split_page()
    PAGE.write_text(f"{head}{BEGIN}\n\n{sections()}\n\n{END}{tail}")
