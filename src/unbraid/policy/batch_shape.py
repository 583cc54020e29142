"""The largest micro-batch that a recipe can ask for, as what decides its memory."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchShape:
    """A micro-batch at its largest: `rows` of at most `tokens` tokens, of which `sampled` in each row carry loss.

    columns: from the first column in which any row has a sampled target to the last: those get logits.
    prompts, shared: so many different prompts, and tokens of each, are in the rows; 0 if rows have nothing in common.
    """

    rows: int
    tokens: int
    sampled: int
    columns: int
    prompts: int = 0
    shared: int = 0


def batch_shape(
    rows: int, new_tokens: int, longest_prompt: int, shortest_prompt: int = 1, samples: int = 1
) -> BatchShape:
    """The largest micro-batch of single responses: `rows` (learn.micro_batch) of the longest prompt and response.

    Prompts of other lengths lie in one batch, so logits are made from the end of the shortest on: K = T − shortest.
    Groups of `samples` rows share a prompt; where rows and samples do not divide, one group more is begun.
    """
    tokens = longest_prompt + new_tokens
    prompts = min(rows, -(-rows // samples) + bool(rows % samples and samples % rows))
    columns = max(new_tokens, tokens - shortest_prompt + 1)
    return BatchShape(rows, tokens, new_tokens, columns, prompts, longest_prompt)


def episode_shape(rows: int, tokens: int, sampled: int | None = None) -> BatchShape:
    """The largest micro-batch of episodes: contexts of `tokens` (environment.tokens), of which `sampled` were drawn."""
    return BatchShape(rows, tokens, min(tokens, sampled or tokens), tokens)
