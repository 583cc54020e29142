"""A base that knows more delimiters: their ids in the tokenizer, and rows for them in both embeddings, made once.

Roles hang on single ids, and many models have none for `<search>` or `<sql>`. Adapters leave the base as it is, so new
rows belong into a base of their own: every adapter trained on it, and every server, then starts from the same files.

Source: the released code of arXiv 2602.00994 copies the row of a word (`search`, `end`, …) and adds noise of 2 % of the
matrix's deviation, so that a new token starts as something the model knows and no two are the same.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from unbraid.chat.delimiters import add_delimiters, single_id
from unbraid.errors import ModelError
from unbraid.policy.policy import ModelConfig, load_pair, load_tokenizer
from unbraid.tasks.cache import cache_folder

NOISE = 0.02
"""Of the matrix's deviation."""
WANTED = "<think>,</think>,<tool_call>,</tool_call>,<search>,</search>,<sql>,</sql>"
"""Delimiters of the shipped presets and call formats."""


def with_delimiters(model: str, delimiters: str = WANTED) -> str:
    """A folder with the model in which each delimiter is one id, made once and kept in the cache: for `model.path`.

    Args:
        model: folder or hub name; it is returned as it is if nothing is missing. delimiters: texts, between commas.

    Raises:
        ModelError: the model cannot be loaded.
    """
    texts = [text.strip() for text in delimiters.split(",") if text.strip()]
    tokenizer = load_tokenizer(ModelConfig(path=model))
    if all(single_id(tokenizer, text) is not None for text in texts):
        return model
    name = f"{Path(model).name}-{hashlib.sha256(f'{model} {texts}'.encode()).hexdigest()[:8]}"
    place = cache_folder() / "models" / name
    if not place.is_dir():
        unfinished = place.with_name(f"{name}.{os.getpid()}")
        save_with_delimiters(model, unfinished, texts)
        try:
            unfinished.rename(place)
        except OSError:  # another process was faster, and made the same
            shutil.rmtree(unfinished)
    return str(place)


@torch.no_grad()
def save_with_delimiters(path: str, out: str | Path, texts: Sequence[str], seed: int = 0) -> list[str]:
    """Write a folder with the model, its tokenizer, and one id for each text; returns the texts that had none.

    Args:
        path: folder or hub name of the base. texts: such as `<search>`, `</search>`.

    Raises:
        ModelError: the base cannot be loaded, or it has an id for every text already.
    """
    tokenizer, model = load_pair(path)
    new = [text for text in dict.fromkeys(texts) if single_id(tokenizer, text) is None]
    if not new:
        raise ModelError(f"{path} has one id for each of {', '.join(texts)}: use it as it is")
    words = {text: tokenizer.encode(_word(text), add_special_tokens=False)[0] for text in new}
    add_delimiters(tokenizer, new, model)
    generator = torch.Generator().manual_seed(seed)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m}
    for weight in matrices.values():
        deviation = float(weight.float().std())
        for text, word in words.items():
            noise = torch.randn(weight.shape[1], generator=generator) * NOISE * deviation
            weight[single_id(tokenizer, text)] = (weight[word].float() + noise).to(weight.dtype)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return new


def _word(text: str) -> str:
    """What a delimiter starts as: its own name, and `end` for one that closes."""
    name = re.sub(r"[^0-9A-Za-z]+", " ", text).strip()
    return "end" if "/" in text or not name else name
