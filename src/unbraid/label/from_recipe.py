"""From a recipe to labels: which tasks, which two samplers, what counts as right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unbraid.chat.format import ChatFormat
from unbraid.data import fit_prompts, read_tasks, split_tasks
from unbraid.data.select import can_write
from unbraid.errors import DataError, ModelError, RecipeError
from unbraid.label.endpoint import EndpointConfig, EndpointTries
from unbraid.label.label import Labelled, Progress, label, silent
from unbraid.label.local import LocalTries, weights_mark
from unbraid.label.rule import LabelConfig
from unbraid.label.tries import TrySampler
from unbraid.plugins import call, names_code
from unbraid.policy import Policy, load_policy
from unbraid.prepare import refuse_benchmarks
from unbraid.recipe import Recipe
from unbraid.tasks.reward import reward_function
from unbraid.tasks.task import Task

Settings = TypeVar("Settings", bound=BaseModel)


def settings_of(model: type[Settings], **values: Any) -> Settings:
    """Settings from what was typed; what is left out or None keeps its default.

    Raises:
        DataError: a value is none that `model` takes; one line that says which.
    """
    try:
        return model.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{where} is {first['input']!r}: {first['msg'].removeprefix('Input ')}") from error


@dataclass(frozen=True)
class TrainingTasks:
    """The tasks that a recipe trains on, without the ones it validates on; `books` says what was read and left out."""

    tasks: list[Task]
    books: str


def chat_format(recipe: Recipe) -> ChatFormat:
    """The chat format of the recipe's model, without loading its weights.

    Raises:
        ModelError: its tokenizer cannot be loaded. ChatError: the format does not fit it.
    """
    import transformers

    spec = recipe.model.path
    path = str(call(spec, ModelError, "model.path") if names_code(spec) else spec)
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"model.path '{path}' has no tokenizer that can be loaded ({str(error).strip().splitlines()[0]}): give a "
            "Hugging Face folder or name"
        ) from error
    return ChatFormat.build(tokenizer, recipe.chat)


def training_tasks(recipe: Recipe, chat: ChatFormat, everything: bool = False) -> TrainingTasks:
    """The tasks that `train` would train on: what it holds out for validation gets no label to learn from.

    Args:
        everything: those that it holds out as well.

    Raises:
        DataError: no usable task, or a benchmark's. RecipeError: the recipe is about episodes.
    """
    if recipe.environment is not None:
        raise RecipeError(
            f"recipe {recipe.name}: its tasks are episodes in environment '{recipe.environment.name}', and labels are "
            "for single steps: set environment: null"
        )
    read = read_tasks(recipe.tasks.train, recipe.data)
    fitted = fit_prompts(read.tasks, chat, recipe.data.max_prompt_tokens)
    lines = [read.summary()]
    lines += [f"  dropped {n} x {reason}" for reason, n in fitted.dropped.most_common()]
    lines += [f"  answers taken out {n} x {reason}" for reason, n in fitted.dropped_answers.most_common()]
    refuse_benchmarks(recipe.tasks.train, fitted.kept)
    tasks = fitted.kept
    if not everything and not recipe.tasks.validation:
        tasks, held = split_tasks(fitted.kept, recipe.data.validation, recipe.seed)
        lines.append(f"  held out {len(held)} for validation (data.validation)")
    if not tasks:
        raise DataError(f"{recipe.tasks.train}: no task to label; {'; '.join(lines)}")
    return TrainingTasks(tasks, "\n".join(lines))


def label_recipe(
    recipe: Recipe,
    out: str | Path,
    config: LabelConfig | None = None,
    *,
    no_think: str = "",
    think: str = "",
    settings: Mapping[str, Any] | None = None,
    everything: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> Labelled:
    """Label the training tasks of a recipe.

    The recipe says which tasks (`tasks.train`, `data`), how they are written (`chat`), what is right (`reward`), how
    long and how hot to sample (`rollout`), and the model of both samplers (`model`) unless others are named.

    Args:
        no_think, think: another sampler: a model's folder or hub name, `URL#MODEL` of an endpoint, or a YAML file of
            its settings (`EndpointConfig`).
        settings: of the endpoints, over those in their files: key_env, concurrency, max_requests, ...
        everything: label the tasks held out for validation as well.
        say: told in lines what was read and left out.

    Raises:
        RecipeError, DataError, ModelError, ChatError, CheckpointError: as `training_tasks` and `label`.
    """
    chat = chat_format(recipe)
    found = training_tasks(recipe, chat, everything)
    say(found.books)

    first = sampler(recipe, chat, no_think, settings)
    second = first if think == no_think else sampler(recipe, chat, think, settings)
    return label(found.tasks, first, second, out, config, partial(can_write, chat), progress)


def sampler(recipe: Recipe, chat: ChatFormat, spec: str = "", settings: Mapping[str, Any] | None = None) -> TrySampler:
    """The sampler that `spec` names; the recipe's model if it is empty.

    Raises:
        ModelError: an endpoint is not described as it should be, or its key is missing.
    """
    rollout, reward = recipe.rollout, reward_function(recipe.reward)
    judged = {"compare": recipe.reward.compare, "function": recipe.reward.function}
    common: dict[str, Any] = {
        "temperature": rollout.temperature, "max_new_tokens": rollout.max_new_tokens, "seed": recipe.seed,
    }  # fmt: skip
    if spec.startswith(("http://", "https://")) or spec.endswith((".yaml", ".yml")):
        endpoint = EndpointConfig.read(spec, **(settings or {}))
        return EndpointTries(endpoint, chat, reward, {"reward": judged}, **common)
    model = recipe.model.model_copy(update={"path": spec}) if spec else recipe.model
    identity = {
        "path": model.path, "weights": weights_mark(model.path), "dtype": model.dtype,
        "chat": recipe.chat.model_dump(mode="json"), "reward": judged,
    }  # fmt: skip

    def load() -> Policy:
        return load_policy(model, recipe.chat)

    return LocalTries(load, identity, reward, max_batch=rollout.max_batch, **common)
