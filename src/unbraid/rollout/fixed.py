"""Decoding in steps of fixed shapes at fixed addresses, which a GPU can record once and repeat.

An ordinary step is some thousand small kernels, and on a GPU Python takes longer to start them than they take to run.
CUDA records what a step starts, and starts it all at once again, if shapes and addresses stay. So for a stretch of
steps tokens come from one place, keys and values go into room that is there already, and what is not there yet is
masked. A stretch ends where its room does, or where half of its rows have finished; the next one is recorded anew.

The arithmetic is that of an ordinary step, added up in another order. A sampler holds its first steps against ordinary
ones, and takes ordinary ones from then on if they differ or cannot be recorded: a model may look at its tensors from
Python. Where there is nothing to record, a stretch can be taken all the same: tests do.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed
from unbraid.policy.sharding import is_sharded
from unbraid.rollout.cache import GrowingLayer
from unbraid.rollout.past import Past
from unbraid.rollout.prefix import plain_attention, prefix_attention
from unbraid.rollout.slot_cache import row_attention

STRETCH = 256
"""Choice: most steps of a stretch. Recording costs about as much as a few ordinary steps, and every step reads all the
room of its stretch."""
CHECKED = 3
"""Steps held against ordinary ones: the first of a stretch, which only runs, one that is recorded, one repeated."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""How far log-probs of the likely tokens may be apart, in nats. Choice: rounding stays far below, and a row that sees
what it should not, or a place that does not move on, is far above."""
LIKELY = 8
"""Choice: tokens of each row that are compared."""


class FixedSteps:
    """Whether a sampler takes steps of fixed shapes, and what is known of them.

    Args:
        record: as CUDA graphs; otherwise they only run.
    """

    def __init__(self, policy: Policy, record: bool):
        self.recorder, self.unchecked = Recorder(policy.device) if record else None, CHECKED
        # Sharded weights are whole while a batch is drawn, and somewhere else for the next.
        self.usable = plain_attention(policy.model) and not is_sharded(policy.model)

    def give_up(self, cause: str) -> None:
        """Ordinary steps from now on."""
        self.usable = False
        warnings.warn(f"sampling: steps of fixed shapes are left out, {cause}: ordinary ones, slower", stacklevel=2)

    def compare(self, found: Tensor, expected: Tensor) -> None:
        """Hold logits (rows, V) against those of an ordinary step."""
        self.unchecked -= 1
        likely = expected.float().topk(min(LIKELY, expected.shape[-1])).indices
        ours, theirs = (torch.log_softmax(x.float(), -1).gather(-1, likely) for x in (found, expected))
        apart = float((ours - theirs).abs().max())
        if not apart <= TOLERANCE.get(expected.dtype, 0.5):
            self.give_up(f"their log-probs are off by {apart:.1e}")


class FixedPast(Past):
    """A past from which stretches of fixed steps are taken, with an ordinary step before each: it makes the room.

    Args:
        past: an ordinary one, which this takes over.
        budget: steps that may still come.
    """

    def __init__(self, past: Past, steps: FixedSteps, budget: int):
        super().__init__(past.model, past.cache, past.padding, past.prefix)
        self.steps, self.budget = steps, budget
        # Choice: a stretch is worth finished rows that come along, up to as many as live.
        self.keep_share = 0.5
        self.stretch: Stretch | None = None

    def select(self, rows: Tensor) -> None:
        self._end()
        super().select(rows)

    def step(self, ids: Tensor, routes: Tensor | None) -> Tensor:
        self.budget -= 1
        if self.stretch and not self.stretch.left:
            self._end()
        if not (self.stretch and self.steps.usable):
            self._end()
            logits = super().step(ids, routes)
            if self.steps.usable and self.budget:
                self._begin(len(ids), routes is not None)
            return logits
        try:
            before = self.stretch.keys_and_values() if self.steps.unchecked else None
            found = self.stretch.step(ids, routes, self.steps.recorder)
        except RuntimeError as error:
            self.steps.give_up(f"one failed ({str(error).splitlines()[0]})")
            self._end()
            return super().step(ids, routes)
        if before is None:
            return found
        self.stretch.restore(before)
        expected = super().step(ids, routes)
        self.steps.compare(found, expected)
        return expected

    def _begin(self, rows: int, has_routes: bool) -> None:
        try:
            self.stretch = Stretch(self, rows, min(self.budget, STRETCH), has_routes)
        except torch.OutOfMemoryError:
            self.steps.give_up("there is no memory for their room")

    def _end(self) -> None:
        if self.stretch:
            self.stretch.end()
        self.stretch = None


class Stretch:
    """Steps whose tensors stay where they are.

    Args:
        past: after an ordinary step of `rows` rows.
        steps: how many there must be room for.
    """

    def __init__(self, past: Past, rows: int, steps: int, has_routes: bool):
        self.past, self.layers = past, growing_layers(past.cache)
        for layer in self.layers:
            layer.reserve(steps)
        device, start, room = past.model.device, self.layers[0].filled, self.layers[0].key_room.shape[-2]
        self.start, self.taken, self.left = start, 0, room - start
        self.ids = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.routes = torch.zeros_like(self.ids) if has_routes else None
        self.place, self.positions = torch.tensor([start], device=device), past.positions(rows)
        self.places = torch.arange(room, device=device)
        padding = None if past.prefix else past.padding
        there = (
            torch.ones((1, 1), dtype=torch.bool, device=device) if padding is None else self.places >= padding[:, None]
        )
        self.there = there.expand(rows, room)[:, None, None]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits = torch.empty(0)

    def step(self, ids: Tensor, routes: Tensor | None, recorder: "Recorder | None") -> Tensor:
        """As `Past.step`; what it returns is overwritten by the next one."""
        self.ids.copy_(ids)
        if self.routes is not None and routes is not None:
            self.routes.copy_(routes)
        if recorder is None:
            self.logits = self._advance()
        elif not self.taken:
            self.logits = recorder.run(self._advance)
        else:
            if self.graph is None:
                self.graph, self.logits = recorder.record(self._advance)
            self.graph.replay()
        self.taken, self.left = self.taken + 1, self.left - 1
        return self.logits

    def _advance(self) -> Tensor:
        """Read everything from where it always is, and move on: nothing here may depend on Python's numbers."""
        seen = self.there & (self.places <= self.place)
        inputs: dict[str, Any] = {"input_ids": self.ids, "position_ids": self.positions, "attention_mask": seen}
        model, prefix = self.past.model, self.past.prefix
        with ExitStack() as stack:
            stack.enter_context(routed(model, self.routes))
            stack.enter_context(prefix_attention(model) if prefix else row_attention(model.config.get_text_config()))
            for layer in self.layers:
                stack.enter_context(layer.fixed(self.place))
            inputs |= {"prefix": prefix} if prefix else {}
            logits = model(**inputs, past_key_values=self.past.cache, use_cache=True).logits[:, -1]
        self.place += 1
        self.positions += 1
        return logits

    def keys_and_values(self) -> list[Tensor]:
        """A copy of all of them."""
        return [room.clone() for layer in self.layers for room in (layer.key_room, layer.value_room)]

    def restore(self, kept: list[Tensor]) -> None:
        """Undo what steps since `keys_and_values` wrote, wherever they did."""
        rooms = (room for layer in self.layers for room in (layer.key_room, layer.value_room))
        for room, before in zip(rooms, kept, strict=True):
            room.copy_(before)

    def end(self) -> None:
        """Leave a cache as ordinary steps would have left it."""
        for layer in self.layers:
            layer.fill(self.start + self.taken)


class Recorder:
    """Makes graphs of what calls start on a GPU.

    A stream of the device is kept for it: libraries set up memory of their own for each stream, which must be there
    before anything is recorded.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, advance: Callable[[], Tensor]) -> Tensor:
        """Call it where it will be recorded."""
        usual = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream):
            found = advance()
        usual.wait_stream(self.stream)
        return found

    def record(self, advance: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph, and where the result of the call will be; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, tools among them, may do as they like meanwhile.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"),
        ):
            return graph, advance()


def growing_layers(cache: Cache) -> list[GrowingLayer]:
    """The layers of a cache that `growing_cache` made."""
    return [layer for layer in cache.layers if isinstance(layer, GrowingLayer)]
