"""Delimiters as token ids: each must be exactly one, for the role of a token hangs on it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from unbraid.errors import ChatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Resizable(Protocol):
    """What is needed of a model: its input embedding, and a way to make it larger."""

    def get_input_embeddings(self) -> Any: ...
    def resize_token_embeddings(self, new_num_tokens: int) -> Any: ...


def single_id(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """The id of `text` if the tokenizer writes it as one known token, else None."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return int(ids[0]) if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def require_single_id(tokenizer: "PreTrainedTokenizerBase", text: str) -> int:
    """The id of a delimiter.

    Raises:
        ChatError: if it is not one id; the message says how to make it one.
    """
    found = single_id(tokenizer, text)
    if found is None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        raise ChatError(
            f"delimiter '{text}' is {len(ids)} tokens {ids} in this tokenizer, but roles need one id: choose a preset "
            "or call format whose delimiters the tokenizer has, or make a base that has it: "
            f"unbraid add-delimiters MODEL '{text}' … --out DIR"
        )
    return found


def add_delimiters(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], model: Resizable | None = None) -> int:
    """Give every text that has no id of its own one, as a special token, and the model rows for them.

    Ids that exist are used as they are. The embedding grows only if the tokenizer has outgrown it: many models pad
    their vocabulary, and resizing to the tokenizer's length would cut that padding off.

    Returns:
        The number of tokens added.
    """
    missing = [text for text in dict.fromkeys(texts) if single_id(tokenizer, text) is None]
    from transformers import AddedToken  # here, not above: importing it costs a second that reading text need not pay

    tokens: list[str | AddedToken] = [AddedToken(text, normalized=False, special=True) for text in missing]
    added = tokenizer.add_tokens(tokens, special_tokens=True)
    if model is not None and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    return added
