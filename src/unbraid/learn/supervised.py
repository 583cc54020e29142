"""Supervised training on responses: the warm-up before RL, and what pre-trains the lab's models.

Several examples share one row (packing); positions restart and an explicit mask keeps each from seeing the others,
so that the loss is the one of unpacked rows. The loss of a step is one weighted mean over its whole
batch, whatever the micro-batches.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from unbraid import ranks
from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Answer, Mode
from unbraid.errors import ChatError, ModelError
from unbraid.learn.fast import head_for
from unbraid.learn.head import Head, score_hidden
from unbraid.learn.isolation import backward
from unbraid.learn.reduce import clip_gradients, sum_counts, sum_gradients
from unbraid.learn.schedule import Decay, rate_at
from unbraid.policy import sharding
from unbraid.policy.memory import HEAD_LOGITS
from unbraid.policy.routed_lora import Binding, Routes, routed
from unbraid.tasks.task import Task
from unbraid.tokens import NONE


class WarmupConfig(BaseModel):
    """The supervised warm-up. Choice: every value; the paper gives only the rule behind `labels`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=60, ge=0)
    """Optimiser steps."""
    batch_examples: int = Field(default=64, ge=1)
    """Examples per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak of AdamW's rate. The default suits the lab's models; 1e-5 to 1e-4 suits large ones."""
    ramp_steps: int = Field(default=5, ge=0)
    """Steps of linear rise to the peak."""
    decay: Decay = "cosine"
    """What the rate does after the rise: held, or down to 5 % of the peak."""
    mode_weight: float = Field(default=10.0, ge=0)
    """Loss weight of the tokens up to the choice of mode; every other response token has 1."""
    labels: Literal["mixed", "long", "short"] = "mixed"
    """Which answer to learn. mixed (arXiv 2603.13348): the short one unless the task needs thinking."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm at which clipping starts."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens per forward pass, padding included. It decides memory, never the result."""


@dataclass(frozen=True)
class SupervisedExample:
    """One prompt and the response to learn. `weights` has one loss weight per response token; 0 = no loss.

    observed: [start, end) stretches of the response that the model did not write (tool results).
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    weights: tuple[float, ...]
    observed: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if not self.prompt_ids:
            raise ValueError("an example needs a prompt token: nothing else predicts its first response token")
        if len(self.weights) != len(self.response_ids):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.response_ids)} response tokens: give one per token"
            )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def written(self) -> np.ndarray:
        """Which tokens the model is to write, (T,) bool; those without loss too, tool results not."""
        mask = np.arange(len(self)) >= len(self.prompt_ids)
        for start, end in self.observed:
            mask[len(self.prompt_ids) + start : len(self.prompt_ids) + end] = False
        return mask


def response_example(
    task: Task, answer: Answer, chat: ChatFormat, mode_weight: float, mode_only: bool = False
) -> SupervisedExample:
    """The example that teaches one answer to one task.

    Args:
        mode_weight: loss weight of the tokens up to the choice of mode; the rest of the response has 1.
        mode_only: train the choice of mode and nothing else.

    Raises:
        ChatError: if the chat format cannot write the task or the answer.
    """
    prompt, response = chat.prompt_ids(task.messages, task.tools), chat.response_ids(answer)
    weights = [0.0 if mode_only else 1.0] * len(response)
    # The tokens before the choice are the same in both modes; a response that misses them has no mode at all.
    weights[: chat.modes.position + 1] = [mode_weight] * (chat.modes.position + 1)
    return SupervisedExample(tuple(prompt), tuple(response), tuple(weights))


def labels_to_examples(
    tasks: Iterable[Task], chat: ChatFormat, config: WarmupConfig, max_tokens: int | None = None
) -> tuple[list[SupervisedExample], Counter[str]]:
    """Picks one answer of each task by `config.labels` and turns it into an example.

    `mixed` takes the short answer where `task.extra["needs_thinking"]` is False and the long one where it is True. A
    task with an answer in one mode only teaches that one, whatever the labels.

    Source: arXiv 2603.13348, warm-up: the short label where no-think is right, the long one otherwise. Choice: where
    nobody measured that (no `needs_thinking`), half of the tasks, picked by a hash of their id, take either: the start
    then uses both modes, and RL finds out which pays.

    Args:
        max_tokens: longest prompt and response together; None = any.

    Returns:
        The examples, and how many tasks were left out for which reason.
    """
    examples: list[SupervisedExample] = []
    left_out: Counter[str] = Counter()
    for task in tasks:
        answer = _pick(task, config.labels)
        if answer is None:
            left_out["no answer to learn from"] += 1
            continue
        try:
            example = response_example(task, answer, chat, config.mode_weight)
        except ChatError as error:
            left_out[str(error).partition(":")[0]] += 1
            continue
        if max_tokens is not None and len(example) > max_tokens:
            left_out[f"longer than {max_tokens} tokens"] += 1
        else:
            examples.append(example)
    return examples, left_out


def _pick(task: Task, labels: str) -> Answer | None:
    by_hash = bool(crc32(task.id.encode()) & 1)
    thinks = labels == "long" or (labels == "mixed" and bool(task.extra.get("needs_thinking", by_hash)))
    preferred = [a for a in task.answers if (a.mode is Mode.THINK) == thinks]
    return next(iter([*preferred, *task.answers]), None)


WORTH_CHUNKS = 4
"""Choice: logits that fill fewer chunks of `learn.head` are made at once and kept, as memory is not what they cost."""

Batches = Callable[[int], Sequence[SupervisedExample]]
"""The batch of a step. A pure function of the step, so that a resumed run sees what the unbroken one saw."""


@dataclass(frozen=True)
class PackedRows:
    """Packed examples. `segments` numbers the example of each token, -1 is padding. All (B, T).

    `weights[b, t]` is the loss weight of predicting `ids[b, t]` from the tokens before it. `routes` are those of input
    positions, `owners[b, t]` the adapter that the loss at `ids[b, t]` is meant for; −1 everywhere without a router.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    weights: Tensor
    routes: Tensor
    owners: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, 1, T, T) bool: True where query token i may see key token j: the same example, and not later."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return torch.tril(same)[:, None]

    def share(self, rank: int, world: int) -> "PackedRows":
        """Every `world`-th row, from row `rank` on: as full as those of others, for rows come longest first."""
        return PackedRows(*(getattr(self, f.name)[rank::world] for f in fields(self)))

    def split(self, max_tokens: int) -> Iterator["PackedRows"]:
        """Micro-batches of whole rows, at most `max_tokens` each (a single longer row stays one)."""
        rows = max(1, max_tokens // self.ids.shape[1])
        for start in range(0, len(self.ids), rows):
            part = slice(start, start + rows)
            yield PackedRows(*(getattr(self, f.name)[part] for f in fields(self)))


def pack(
    examples: Sequence[SupervisedExample], row_tokens: int | None = None, router: Routes | None = None
) -> PackedRows:
    """Packs examples into rows of equal length, first fit, longest first.

    Args:
        row_tokens: length of a row in tokens; default: that of the longest example.
        router: of the model that is to learn, if it routes.

    Raises:
        ValueError: if an example is longer than a row.
    """
    longest = max(map(len, examples))
    length = longest if row_tokens is None else row_tokens
    if longest > length:
        raise ValueError(f"an example has {longest} tokens, a row {length}: raise row_tokens or drop the example")
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(examples)), key=lambda i: -len(examples[i])):
        size = len(examples[index])
        row = next((r for r, room in enumerate(free) if room >= size), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(length)
        rows[row].append(index)
        free[row] -= size

    shape = (len(rows), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, weights = np.full(shape, -1, np.int64), np.zeros(shape)
    routes, owners = np.full(shape, NONE, np.int8), np.full(shape, NONE, np.int8)
    for row, members in enumerate(rows):
        end = 0
        for index in members:
            example = examples[index]
            start, end = end, end + len(example)
            ids[row, start:end] = example.prompt_ids + example.response_ids
            positions[row, start:end] = np.arange(len(example))
            segments[row, start:end] = index
            weights[row, start + len(example.prompt_ids) : end] = example.weights
            if router:
                routes[row, start:end] = router.route(ids[row, start:end], example.written)
                owners[row, start + 1 : end] = router.owners(ids[row, start:end], example.written)
    return PackedRows(*(torch.from_numpy(a) for a in (ids, positions, segments, weights, routes, owners)))


def weighted_losses(model: nn.Module, rows: PackedRows, fast: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood in nats, its weight, and its owner, (N,) each, of targets: all that have a weight.

    Args:
        fast: make logits a few at a time where they are many, if the model's head can be taken apart (`learn.fast`).
    """
    columns = rows.weights[:, 1:].ne(0).any(0)
    if head := _head_worth_it(model, rows, int(columns.sum())) if fast else None:
        where = rows.weights[:, 1:].ne(0)
        with routed(model, rows.routes[:, :-1]):
            hidden = head.backbone(**_inputs(model, rows), use_cache=False).last_hidden_state
        targets = rows.ids[:, 1:][where].to(hidden.device)
        nll = -score_hidden(head, hidden[where.to(hidden.device)], targets, 1.0)[0]
    else:
        where = columns.expand(len(rows.ids), -1)
        logits, _ = target_logits(model, rows)
        targets = rows.ids[:, 1:][where].to(logits.device)
        nll = functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    weights, owners = (x[:, 1:][where] for x in (rows.weights, rows.owners))
    return nll, weights.to(nll), owners.to(nll.device)


def _head_worth_it(model: nn.Module, rows: PackedRows, columns: int) -> Head | None:
    """The model's head where its logits would not fit into a few chunks; else making them twice only takes time."""
    known: Any = model
    device = known.get_input_embeddings().weight.device
    vocabulary = known.config.get_text_config().vocab_size
    most = WORTH_CHUNKS * HEAD_LOGITS.get(device.type, HEAD_LOGITS["cuda"])
    if len(rows.ids) * columns * vocabulary <= most:
        return None
    first = int((rows.segments[0] == rows.segments[0, 0]).sum())
    routes = rows.routes[0, :first] if (rows.routes != NONE).any() else None
    return head_for(model, rows.ids[0, :first].to(device), routes)


def target_logits(model: nn.Module, rows: PackedRows) -> tuple[Tensor, Tensor]:
    """What the model says of the targets in the C columns in which some row has a weight, (B, C, V), and which columns.

    Columns count targets: column c is predicted from position c and stands at position c + 1.
    """
    columns = rows.weights[:, 1:].ne(0).any(0).nonzero().squeeze(-1)
    with routed(model, rows.routes[:, :-1]):
        inputs = _inputs(model, rows)
        logits = model(**inputs, logits_to_keep=columns.to(inputs["input_ids"].device), use_cache=False).logits
    # Softmax in at least float32: half-precision models round log-likelihoods too coarsely.
    return logits.float() if logits.dtype.itemsize < 4 else logits, columns


def _inputs(model: nn.Module, rows: PackedRows) -> dict[str, Tensor]:
    """What the model is given of packed rows: all but the last token, at their positions, each example by itself."""
    embedding = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue]
    device, dtype = embedding.device, embedding.dtype
    # Additive, not boolean: eager attention adds whatever mask it is given.
    mask = torch.zeros(rows.mask.shape, dtype=dtype).masked_fill(~rows.mask, torch.finfo(dtype).min)
    return {
        "input_ids": rows.ids[:, :-1].to(device),
        "position_ids": rows.positions[:, :-1].to(device),
        "attention_mask": mask[:, :, :-1, :-1].to(device),
    }


def weighted_loss_sum(model: nn.Module, rows: PackedRows, fast: bool = True) -> Tensor:
    """Sum over all tokens of weight * negative log-likelihood, in nats; `fast` as for `weighted_losses`."""
    nll, weights, _ = weighted_losses(model, rows, fast)
    return (nll * weights).sum()


class SupervisedTrainer:
    """AdamW on weighted likelihood. Everything that `resume` needs is in `state_dict`.

    Args:
        model: a causal language model of transformers, or a PEFT model around one. Parameters without
            `requires_grad` stay as they are.
        batches: the examples of each step.
        beside: called with the number of each step, adds gradients of its own to those of the likelihood and returns
            the loss that they are of.
        fast: as for `weighted_losses`.

    Raises:
        ModelError: if the model's attention takes no explicit mask; examples in one row would see each other.
    """

    def __init__(
        self,
        model: nn.Module,
        config: WarmupConfig,
        batches: Batches,
        beside: Callable[[int], float] | None = None,
        fast: bool = True,
    ):
        attention = str(getattr(model.config, "_attn_implementation", "sdpa"))
        if attention not in ("sdpa", "eager"):
            raise ModelError(
                f"model.attention '{attention}' cannot keep packed examples apart: use sdpa for the warm-up"
            )
        self.model, self.config, self.batches, self.beside, self.fast = model, config, batches, beside, fast
        self.step = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )

    def train_step(self) -> dict[str, float]:
        """One optimiser step, shared out over the ranks; returns its loss (nats per unit of weight), gradient norm and
        learning rate."""
        batch = self.batches(self.step)
        binding: Binding | None = getattr(self.model, "routing", None)
        rows = pack(batch, router=binding.router if binding else None)
        total = rows.weights.sum().item()
        config = self.config
        rate = rate_at(self.step, config.steps, config.learning_rate, config.ramp_steps, config.decay)
        loss = 0.0
        mine = rows.share(ranks.rank(), ranks.world())
        parts = [part for part in mine.split(config.micro_batch_tokens) if part.weights.any()]
        fast = self.fast and not sharding.is_sharded(self.model)
        with sharding.in_step(self.model, len(parts)):
            for part in parts:
                nll, weights, owners = weighted_losses(self.model, part, fast)
                part_loss = (nll * weights).sum() / total
                backward(self.model, part_loss, [nll], owners)
                loss += part_loss.item()
        sum_gradients(self.parameters)
        (loss,) = sum_counts([loss])
        loss += self.beside(self.step) if self.beside else 0.0
        norm = clip_gradients(self.parameters, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": loss, "grad_norm": norm, "learning_rate": rate}

    def run(self, on_step: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """Trains up to `config.steps`; `on_step(steps done, metrics)` is called after each."""
        self.model.train()
        while self.step < self.config.steps:
            metrics = self.train_step()
            if on_step is not None:
                on_step(self.step, metrics)
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Trained weights, optimiser and step: all there is, for a model without dropout draws nothing at random.

        Sharded ones are whole in it, on rank 0; every rank calls this at once.
        """
        weights, moments = sharding.whole_parameters(self.model), sharding.whole_state(self.optimizer)
        return {"model": weights, "optimizer": moments, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        sharding.take_parameters(self.model, state["model"])
        self.optimizer.load_state_dict(sharding.shares_of(state["optimizer"], self.parameters))
        self.step = state["step"]
