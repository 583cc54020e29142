"""What a build of a training set is told: sources, sizes, rules, and who tries the tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from unbraid.data.pool import PoolConfig
from unbraid.data.refine import RefineConfig
from unbraid.data.select import PromptFormat
from unbraid.errors import RecipeError
from unbraid.label.from_recipe import chat_format, sampler
from unbraid.label.rule import LabelConfig
from unbraid.label.tries import TrySampler
from unbraid.recipe import Recipe

UNTIL = ("read", "pool", "label", "sample", "refine")
Named = tuple[str, str]
"""(name, source): a file, a folder, a data set on the hub, or a function."""


class BuildConfig(PoolConfig):
    """A build: sources, sizes and rules. What a model does is in `Samplers`."""

    sources: tuple[Named, ...] = Field(min_length=1)
    """What is read, first to last: of repeats the first stays. A name may have several sources."""
    benchmarks: tuple[Named, ...] = ()
    """What must not be trained on: their questions are looked for, and taken out."""
    licences: tuple[Named, ...] = ()
    """(name of a source, licence): for sources that the card does not know, in the hub's spelling."""
    format: str = "auto"
    """As `data.format`."""
    split: str = "train"
    """As `data.split`."""
    warmup: int = Field(default=8200, ge=0)
    """Tasks in the warm-up set, at most. Source: arXiv 2603.13348, 8.2k."""
    rl: int = Field(default=7000, ge=1)
    """Tasks in the RL set, at most. Source: arXiv 2603.13348, 7k."""
    labels: LabelConfig = LabelConfig()
    refine: RefineConfig = RefineConfig()
    """`keep` is not asked: `rl` says how many."""
    refine_mode: Literal["no_think", "think"] | None = None
    """Whose tries of the RL pool count for refining; None takes both."""

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, values: Any) -> Any:
        """Pools that are not given follow from the sizes that are, in the proportions of the defaults."""
        given = {key: value for key, value in dict(values).items() if value is not None}
        if isinstance(given.get("warmup"), int):
            given.setdefault("candidates", round(1.25 * given["warmup"]))
        if isinstance(given.get("rl"), int):
            given.setdefault("pool", 3 * given["rl"])
        return given


@dataclass(frozen=True)
class Samplers:
    """Who tries the tasks, and the chat format that will learn the answers."""

    chat: PromptFormat
    max_prompt_tokens: int
    no_think: TrySampler
    think: TrySampler

    @classmethod
    def of(
        cls, recipe: Recipe, no_think: str = "", think: str = "", settings: Mapping[str, Any] | None = None
    ) -> "Samplers":
        """As for `label_recipe`: the recipe's model, unless others are named.

        Raises:
            ModelError, ChatError: a model or an endpoint cannot be used. RecipeError: the recipe is about episodes.
        """
        if recipe.environment is not None:
            raise RecipeError(
                f"recipe {recipe.name} is about episodes, labels are for single steps: set environment: null"
            )
        chat = chat_format(recipe)
        first = sampler(recipe, chat, no_think, settings)
        second = first if think == no_think else sampler(recipe, chat, think, settings)
        return cls(chat, recipe.data.max_prompt_tokens, first, second)
