"""The shapes of well-known models, so that what a run takes can be told before anything is downloaded."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from unbraid.errors import ModelError
from unbraid.plugins import names_code
from unbraid.policy.memory import ModelShape, model_shape
from unbraid.policy.policy import ModelConfig, resolve_path

FEW = 4
"""Layers up to which a model is counted whole."""
MAKES_FOLDER = "unbraid.policy.new_tokens:with_delimiters"


def _qwen2(hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int = 152064, tied: bool = False):
    return ("qwen2", hidden, inner, layers, heads, kv, hidden // heads, vocabulary, tied)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool = False):
    return ("qwen3", hidden, inner, layers, heads, 8, 128, 151936, tied)


KNOWN: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen2.5-3B": _qwen2(2048, 11008, 36, 16, 2, 151936, tied=True),
    "Qwen2.5-7B": _qwen2(3584, 18944, 28, 28, 4),
    "Qwen2.5-14B": _qwen2(5120, 13824, 48, 40, 8),
    "Qwen2.5-32B": _qwen2(5120, 27648, 64, 40, 8),
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32),
    "Llama-3.1-8B": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
}
"""Source: config.json of each: type, hidden, inner, layers, heads, heads of keys, size of a head, vocabulary, tied."""
_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "tie_word_embeddings"),
)


def architecture(config: ModelConfig) -> Any:
    """The configuration of transformers that `model.path` leads to; a well-known model's without asking anybody.

    Raises:
        ModelError: there is none.
    """
    import transformers

    path = config.path
    if path.partition("?")[0] == MAKES_FOLDER:
        path = parse_qs(path.partition("?")[2]).get("model", [""])[0]
    elif names_code(path):
        path = resolve_path(config)
    name = Path(path).name.removesuffix("-Instruct").removesuffix("-Base")
    if name in KNOWN and not Path(path).is_dir():
        kind, *values = KNOWN[name]
        return transformers.AutoConfig.for_model(kind, **dict(zip(_FIELDS, values, strict=True)))
    try:
        return transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.path '{path}' has no config.json here ({reason}): give a folder, or one of {', '.join(KNOWN)}"
        ) from error


def shape_of(config: ModelConfig, fast: bool) -> ModelShape:
    """The shape of a recipe's model, adapter included; nothing is loaded.

    Raises:
        ModelError: it is not known, or the adapter does not fit.
    """
    return _shape(config.model_dump_json(), fast)


@cache
def _shape(config: str, fast: bool) -> ModelShape:
    """From two models of few layers: all layers of one model are alike, and what each adds is the same."""
    read = ModelConfig.model_validate_json(config)
    whole = architecture(read)
    layers = whole.get_text_config().num_hidden_layers
    if layers <= FEW or getattr(whole.get_text_config(), "num_experts_per_tok", None):
        return model_shape(whole, read, fast)
    one, two = (model_shape(_cut(whole, count), read, fast) for count in (1, 2))
    grown = {
        name: getattr(one, name) + (layers - 1) * (getattr(two, name) - getattr(one, name))
        for name in ("weights", "trained", "adapted", "ranks")
    }
    return replace(one, layers=layers, **grown)


def _cut(config: Any, layers: int) -> Any:
    """The configuration with so many layers."""
    cut = deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return cut
