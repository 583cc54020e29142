"""A recipe says what to run: every module's own settings, composed. YAML in layers, overrides, no unknown keys."""

import hashlib
import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from unbraid.chat.format import ChatConfig
from unbraid.data.read import DataConfig
from unbraid.errors import RecipeError
from unbraid.evaluate.evaluate import EvaluateConfig
from unbraid.learn.checkpoint import CheckpointConfig
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig
from unbraid.learn.supervised import WarmupConfig
from unbraid.policy import ModelConfig
from unbraid.rollout.config import EnvironmentConfig, RolloutConfig, SamplerConfig
from unbraid.tasks.reward import RewardConfig

SHIPPED = Path(__file__).parent / "recipes"
SHORT = {"sampler": "engine"}
"""Sections that may be given by one of their keys alone: `sampler: vllm` is `sampler: {engine: vllm}`."""
_ALTERNATIVE = re.compile(r"[A-Z]|.*\[|(?:float|int|str|bool)$")
"""How pydantic names the alternatives of a union in the path of an error."""


class TasksConfig(BaseModel):
    """Where tasks come from (`data.read.read_tasks` lists what a source can be)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str
    """Source of the tasks to train on; `data.validation` of them are held out."""
    warmup: str | None = None
    """Source of the tasks to warm up on instead, with answers to learn from; for agents, single steps of episodes."""
    validation: str | None = None
    """Source of the validation tasks instead of held-out ones."""
    test: str | None = None
    """Source of the tasks of the final evaluation; without it the validation tasks serve."""


class Recipe(BaseModel):
    """One run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "run"
    """Names the run in logs, reports and its folder."""
    label: str = ""
    """In words, what it is: which configuration is a paper's, and which is ours."""
    seed: int = 0
    """Keys every random choice of the run."""
    model: ModelConfig
    chat: ChatConfig = ChatConfig()
    tasks: TasksConfig
    data: DataConfig = DataConfig()
    warmup: WarmupConfig | None = None
    """Supervised warm-up before RL; null starts RL from the model as it is."""
    environment: EnvironmentConfig | None = None
    """What an agent acts in, over several responses; null for tasks that one response answers."""
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    sampler: SamplerConfig = SamplerConfig()
    learn: LearnConfig = LearnConfig()
    constraints: tuple[ConstraintConfig, ...] = ()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def to_yaml(self) -> str:
        """The whole recipe, defaults included; loading it gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def fingerprint(self) -> str:
        """Changes when anything changes that a checkpoint depends on; the final evaluation is not among it."""
        kept = self.model_dump(mode="json", exclude={"label", "checkpoint"})
        kept["evaluate"] = kept["evaluate"]["every"]
        kept["sampler"] = kept["sampler"]["engine"]  # a run may go on with other servers
        if self.sampler.ahead:  # as it was before there was a choice: older runs keep their names
            kept["ahead"] = True
        del kept["learn"]["interference_every"]  # it looks on and changes nothing
        if self.learn.roles == "both":  # likewise
            del kept["learn"]["roles"]
        if not self.learn.off_role_kl:  # likewise
            del kept["learn"]["off_role_kl"]
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def load_recipe(layers: Sequence[str | Path], overrides: Sequence[str] = ()) -> Recipe:
    """Compose a recipe.

    Args:
        layers: files, or names of shipped recipes (`unbraid recipes` lists them). Later layers win: mappings
            are merged, everything else is replaced. A layer's own `extends:` (one name or a list) comes before it.
        overrides: `dotted.key=value`, the value read as YAML; list items by number (`constraints.0.target=0.3`).

    Raises:
        RecipeError: a layer does not exist, is no YAML mapping, or the result is no recipe; the message names the key.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, _read(layer, base=Path()))
    for override in overrides:
        _override(merged, override)
    where = " + ".join(map(str, layers))
    try:
        recipe = Recipe.model_validate(merged)
        for constraint in recipe.constraints:
            Constraint(constraint)
    except ValidationError as error:
        raise RecipeError(f"recipe {where}: {_explain(error)}") from error
    except ValueError as error:
        raise RecipeError(f"recipe {where}: {error}") from error
    return recipe


def shipped_recipes() -> dict[str, str]:
    """Name → first line of its leading comment, of every recipe that comes with the package."""
    found = sorted(SHIPPED.rglob("*.yaml"))
    return {
        str(path.relative_to(SHIPPED).with_suffix("")): path.read_text().splitlines()[0].lstrip("# ") for path in found
    }


def recipe_groups() -> dict[str, dict[str, str]]:
    """`shipped_recipes` by what a recipe brings: what to run as it is, tasks, a method, or a folder's layers."""
    titles = ("Ready to run", "Tasks: give a model, and what else the line says", "Methods: layer them after tasks")
    groups: dict[str, dict[str, str]] = {title: {} for title in titles}
    for name, line in shipped_recipes().items():
        if "/" in name:
            title = f"{name.partition('/')[0].capitalize()}: layers, after tasks and method"
        else:
            content = _read(name, SHIPPED)
            complete = "path" in content.get("model", {}) and "tasks" in content
            title = titles[0] if complete else titles[1] if "chat" in content else titles[2]
        groups.setdefault(title, {})[name] = line
    return groups


def _read(layer: str | Path, base: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One layer with everything it extends; `above` are the layers that lead here."""
    path = _find(layer, base).resolve()
    if path in above:
        circle = " → ".join(p.name for p in (*above[above.index(path) :], path))
        raise RecipeError(f"{path}: extends itself ({circle}): remove one `extends`")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text ({error}): give a YAML file in UTF-8") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise RecipeError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}): correct it") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: holds {type(content).__name__}, not a mapping: a recipe is `key: value` lines")
    for section, key in SHORT.items():
        if isinstance(content.get(section), str):
            content[section] = {key: content[section]}
    extends = content.pop("extends", None) or []
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise RecipeError(f"{path}: extends is {extends!r}: write the name of a recipe, or a list of names")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = _merge(merged, _read(parent, path.parent, (*above, path)))
    return _merge(merged, content)


def _find(layer: str | Path, base: Path) -> Path:
    for candidate in (Path(layer), base / layer, SHIPPED / f"{layer}.yaml"):
        if candidate.is_file():
            return candidate
    near = get_close_matches(str(layer), shipped_recipes(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped ones are {', '.join(shipped_recipes())}"
    raise RecipeError(f"no recipe '{layer}': give a YAML file or the name of a shipped recipe ({hint})")


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(recipe: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override '{override}': write key=value, for instance learn.steps=20")
    *parents, last = f"{key}.{SHORT[key]}".split(".") if key in SHORT and "{" not in text else key.split(".")
    place: Any = recipe
    for part in parents:
        if isinstance(place, list):
            place = place[_index(place, part, override)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise RecipeError(f"override '{override}': '{part}' holds {place!r}, which has no keys below it")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override '{override}': the value is not valid YAML: quote it") from error
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise RecipeError(f"override '{override}': '{part}' is not the number of one of {len(items)} items (from 0)")
    return int(part)


def _explain(error: ValidationError) -> str:
    """All problems in one line; an unknown key gets its nearest known one."""
    parts = []
    problems = [(problem, _union(problem["loc"])) for problem in error.errors()]
    # What fits no alternative of a union is reported for each of them; an unknown key says best what was meant.
    settled = {union for problem, union in problems if union and problem["type"] == "extra_forbidden"}
    for problem, union in problems:
        if union in settled and problem["type"] != "extra_forbidden":
            continue
        path = [str(p) for p in problem["loc"] if not _ALTERNATIVE.match(str(p))]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(path[:-1])
            near = get_close_matches(path[-1], known, n=1)
            message = "unknown key; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}")
        parts.append(f"{'.'.join(path)}: {message}")
    return "; ".join(dict.fromkeys(parts))


def _union(place: Sequence[int | str]) -> tuple[int | str, ...]:
    """The path to the union that `place` lies in; empty if it lies in none."""
    return next((tuple(place[:i]) for i, part in enumerate(place) if _ALTERNATIVE.match(str(part))), ())


def _known_keys(path: Sequence[str]) -> list[str]:
    """Field names of the model that `path` leads to."""
    model: type[BaseModel] = Recipe
    for part in path:
        if part.isdigit() or part not in model.model_fields:
            continue
        models = _models_in(model.model_fields[part].annotation)
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that a type annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


def field_count(model: type[BaseModel] = Recipe) -> int:
    """Settings that a recipe has, over all its parts: at most 120."""
    total = 0
    for field in model.model_fields.values():
        inner = _models_in(field.annotation)
        total += sum(field_count(m) for m in inner) if inner else 1
    return total
