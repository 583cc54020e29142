"""Three ways to learn from completions of one prompt, against learning from every sequence by itself.

    OMP_NUM_THREADS=1 python benchmarks/shared_prefix.py --out docs/speed.png

    forest    what `learn.fast` does: one row, attention segment by segment
    mask      the same row with one mask over it, as transformers takes it
    cache     the prompt once into a cache, which is repeated for the completions, padded; gradients flow through it
    plain     `objective.score_tokens`: every sequence with its prompt, logits of all columns that train

A forward and a backward pass each over a random Qwen3 (17 M parameters, vocabulary 8,192, float32), CPU seconds of one
thread. First all gradients are compared (in float64; the norms of transformers round to float32). Then the cost against
length of the prompt, size of the group, length of completions, vocabulary, and turns: these are as a server shows them,
each with all before it as a sequence of its own. The last line is a JSON object; `--out` draws it.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from unbraid.learn.batch import TokenBatch
from unbraid.learn.fast import plant_batch, score_batch
from unbraid.learn.forest import Forest
from unbraid.learn.head import Head, head_of, score_hidden
from unbraid.learn.objective import Scores, score_tokens, spread_scores

BASE = {"prompt": 512, "group": 8, "new": 64, "vocabulary": 8192, "turns": 1}
SWEEPS: dict[str, Sequence[int]] = {
    "prompt": (32, 128, 512, 1024),
    "group": (2, 4, 8, 16),
    "new": (16, 64, 128),
    "vocabulary": (2048, 8192, 32768),
    "turns": (1, 2, 3),
}
CHOICE = (1, 2)
Way = Callable[[Any, TokenBatch], Scores]


def make_model(vocabulary: int, layers: int = 6, width: int = 384) -> Any:
    """A random Qwen3."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        head_dim=64,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config).train()


def make_batch(prompt: int, group: int, new: int, vocabulary: int, turns: int) -> TokenBatch:
    """One group. Of several turns, each is a sequence: what came before, 32 tokens observed, `new` sampled."""
    rng = np.random.default_rng(0)
    rows: list[tuple[list[int], int]] = []
    start = rng.integers(3, vocabulary, prompt).tolist()
    for _ in range(group):
        context = start
        for _ in range(turns):
            context = [*context, *rng.integers(3, vocabulary, new).tolist()]
            rows.append((context, len(context) - new))
            context = [*context, *rng.integers(3, vocabulary, 32).tolist()]
    ids = torch.zeros((len(rows), max(len(row) for row, _ in rows)), dtype=torch.long)
    sampled, attention = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros_like(ids)
    for b, (row, first) in enumerate(rows):
        ids[b, : len(row)], attention[b, : len(row)], sampled[b, first : len(row)] = torch.tensor(row), 1, True
    none = torch.zeros((len(rows), ids.shape[1] - 1))
    flat, whole = torch.ones(len(rows)), none.long()
    return TokenBatch(
        ids, attention, sampled[:, 1:], whole, none, none, flat, whole, whole, none.bool(), flat, flat
    )  # fmt: skip


def forest_way(model: Any, batch: TokenBatch) -> Scores:
    """What `learn.fast` does."""
    return score_batch(model, _head(model), batch, plant_batch(batch), 1.0, CHOICE)


def mask_way(model: Any, batch: TokenBatch) -> Scores:
    """The forest's row, with one mask that transformers hands to its own attention."""
    forest, head = plant_batch(batch), _head(model)
    row = batch.ids.flatten()[torch.from_numpy(forest.source)][None]
    hidden = head.backbone(
        input_ids=row,
        attention_mask=whole_mask(forest, head.linear.weight.dtype),
        position_ids=torch.from_numpy(forest.positions)[None],
        use_cache=False,
    ).last_hidden_state[0]
    return _scores(head, batch, hidden[torch.from_numpy(forest.place)[:, :-1][batch.sampled]])


def whole_mask(forest: Forest, dtype: torch.dtype) -> Tensor:
    """(1, 1, N, N): 0 where a token sees another one, −∞ elsewhere."""
    mask = torch.full((forest.tokens, forest.tokens), -torch.inf, dtype=dtype)
    for segment in forest.segments:
        rows = slice(segment.start, segment.end)
        for past in segment.past:
            mask[rows, forest.segments[past].start : forest.segments[past].end] = 0
        mask[rows, rows] = torch.full((len(segment), len(segment)), -torch.inf, dtype=dtype).triu(1)
    return mask[None, None]


def cache_way(model: Any, batch: TokenBatch) -> Scores:
    """Prefill with gradient, repeat the cache, feed the rest of every sequence. For one group of a common prompt."""
    head, shared = _head(model), int(batch.sampled.any(0).nonzero()[0])
    cache: Any = DynamicCache(config=model.config)
    rows = len(batch)
    head.backbone(input_ids=batch.ids[:1, :shared], past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, *layer.keys.shape[1:])
        layer.values = layer.values.expand(rows, *layer.values.shape[1:])
    hidden = head.backbone(
        input_ids=batch.ids[:, shared:], attention_mask=batch.attention, past_key_values=cache, use_cache=True
    ).last_hidden_state
    # The last token of the prompt is read again with each completion, so that its hidden state is there for the first.
    return _scores(head, batch, hidden[:, :-1][batch.sampled[:, shared:]])


def plain_way(model: Any, batch: TokenBatch) -> Scores:
    """The definition."""
    return score_tokens(model, batch, 1.0, CHOICE)


WAYS: dict[str, Way] = {"forest": forest_way, "mask": mask_way, "cache": cache_way, "plain": plain_way}


def _head(model: Any) -> Head:
    head = head_of(model)
    assert head
    return head


def _scores(head: Head, batch: TokenBatch, hidden: Tensor) -> Scores:
    targets = batch.ids[:, 1:][batch.sampled]
    chosen, entropy, pair = score_hidden(head, hidden, targets, 1.0, CHOICE)
    return spread_scores(batch, chosen, entropy, pair[batch.choice[batch.sampled]])


def learn(way: Way, model: Any, batch: TokenBatch) -> float:
    """CPU seconds of a forward and a backward pass; the gradients are in the model."""
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    scores = way(model, batch)
    (scores.logprobs.sum() + 0.01 * scores.entropy.sum()).backward()
    return time.process_time() - began


def differences(turns: int) -> dict[str, float]:
    """Largest difference of a gradient's element from the plain way's, in parts of the largest element."""
    batch = make_batch(40, 3, 12, 300, turns)
    model = make_model(300, layers=2, width=128).double()
    learn(plain_way, model, batch)
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    largest, found = max(float(g.abs().max()) for g in wanted), {}
    for name, way in WAYS.items():
        learn(way, model, batch)
        apart = [(p.grad - g).abs().max() for p, g in zip(model.parameters(), wanted, strict=True)]
        found[name] = float(max(apart)) / largest
    return found


def sweep(name: str, rounds: int) -> dict[str, list[float]]:
    """Best of `rounds` seconds of every way along one of `SWEEPS`."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for value in SWEEPS[name]:
        setting = BASE | {name: value}
        model, batch = make_model(setting["vocabulary"]), make_batch(**setting)
        for way, run in WAYS.items():
            found[way].append(min(learn(run, model, batch) for _ in range(rounds)))
    return found


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel a sweep: seconds, and dotted what operations alone would make of the forest's last point."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, panels = plt.subplots(1, len(found), figsize=(4 * len(found), 3.4), squeeze=False)
    for panel, (name, ways) in zip(panels[0], found.items(), strict=True):
        for way, seconds in ways.items():
            panel.plot(SWEEPS[name], seconds, marker="o", label=way)
        expected = [expected_cost(BASE | {name: value}) for value in SWEEPS[name]]
        scaled = [cost * ways["forest"][-1] / expected[-1] for cost in expected]
        panel.plot(SWEEPS[name], scaled, "k:", label="forest, by operations")
        panel.set(xlabel=name, ylabel="CPU seconds", xscale="log", yscale="log")
        panel.set_xticks(SWEEPS[name], [str(value) for value in SWEEPS[name]])
        panel.xaxis.set_minor_locator(NullLocator())
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def slopes(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """d log cost / d log value over a whole sweep of the forest: as measured, and by operations."""
    values = SWEEPS[name]
    costs = {"measured": seconds, "by operations": [expected_cost(BASE | {name: value}) for value in values]}
    wide = np.log(values[-1] / values[0])
    return {kind: round(float(np.log(cost[-1] / cost[0]) / wide), 2) for kind, cost in costs.items()}


def expected_cost(setting: dict[str, int]) -> float:
    """Operations of the forest way, up to a constant: matrices of the layers, attention, the head."""
    batch = make_batch(**setting)
    forest = plant_batch(batch)
    layers = 6 * (2 * 384 * 384 + 2 * 192 * 384 + 3 * 384 * 1152)
    head = 4 * 2 * 384 * setting["vocabulary"] * float(batch.sampled.sum())
    return 6 * layers * forest.tokens + 14 * 384 * 6 * forest.pairs + head


def main() -> None:
    """Compare, measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), choices=SWEEPS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a picture of the costs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    apart = {f"{turns} turns": differences(turns) for turns in (1, 3)}
    console.print(apart)
    found = {}
    for name in asked.sweeps:
        found[name] = sweep(name, asked.rounds)
        table = Table(name, *WAYS, "plain / forest")
        for i, value in enumerate(SWEEPS[name]):
            at = [found[name][way][i] for way in WAYS]
            table.add_row(str(value), *(f"{s:.2f}" for s in at), f"{at[-1] / at[0]:.1f}")
        console.print(table)
    if asked.out:
        draw(found, asked.out)
    rounded = {name: {way: [round(s, 3) for s in at] for way, at in ways.items()} for name, ways in found.items()}
    told = {"values": {k: list(v) for k, v in SWEEPS.items()}, "seconds": rounded}
    told |= {"slopes": {name: slopes(name, ways["forest"]) for name, ways in found.items()}}
    worst = max(apart[turns][way] for turns in apart for way in ("forest", "mask", "cache"))
    print(json.dumps({"gradient_max_relative": worst} | told))


if __name__ == "__main__":
    main()
