"""The slot sampler: many contexts, each at its own place and pace, decoded together on the policy's own weights.

A context that waits for a tool costs nothing, one that comes back joins the next step: there is no barrier. Keys and
values stay between turns, and a beginning that any slot holds is copied, never computed again: a prompt is prefilled
once for all its samples. What is drawn depends only on the tokens of a context and the key of its stream; on a CPU in
float32 bit for bit (`slot_cache` says how).
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.errors import ModelError
from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed
from unbraid.rollout.context import Drawn
from unbraid.rollout.drawing import Draws, draw_tokens
from unbraid.rollout.fed_tokens import common_length, ids_of, routes_of, start_alike, with_routes
from unbraid.rollout.slot_cache import ROWS, SlotCache, attention_windows, row_attention, up_to
from unbraid.rollout.trajectory import Finish

PREFILL_TOKENS = 4096
"""Most tokens of one prefill step, padding included: memory, and how long the event loop waits."""
PADDING_TOKENS = 512
"""Choice: a prefill step with fewer tokens may pad as it likes; that is cheaper than another step."""
WORTH_COPYING = 16
"""Choice: a beginning is copied from another slot, or waited for, if that spares so many tokens."""
ROUNDS = 4
"""Rounds of the event loop after a response: a tool that answers at once comes back before the next step."""


class SlotContext:
    """One context in a slot; `unbraid.rollout.context.Context` says what its methods do."""

    def __init__(self, sampler: "SlotSampler", slot: int, ids: Sequence[int]):
        self._sampler, self._slot, self._open = sampler, slot, True
        self.ids, self.written = list(ids), [False] * len(ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens that the model did not write."""
        self.ids.extend(ids)
        self.written.extend([False] * len(ids))

    def restart(self, ids: Sequence[int]) -> None:
        """Replace the whole context; what it has in common with the present one is not computed again."""
        self.ids, self.written = list(ids), [False] * len(ids)

    async def respond(self, key: np.uint64, mode: Mode, max_new_tokens: int) -> Drawn:
        """Draw one response. A cancelled call leaves the context as it was.

        Raises:
            ModelError: the response could outgrow the model's positions, the context is closed, or the engine failed.
        """
        if not self._open:
            raise ModelError("this context is closed: open a new one")
        drawn = await self._sampler._respond(self._slot, self.ids, self.written, key, mode, max_new_tokens)
        self.ids.extend(drawn.ids.tolist())
        self.written.extend([True] * len(drawn.ids))
        return drawn

    def close(self) -> None:
        """Give the slot back, to whoever waits longest for one."""
        if self._open:
            self._open = False
            self._sampler._free(self._slot)


@dataclass
class _Turn:
    """A response on its way: its context's tokens with their routes, what is forced, and who waits for it."""

    fed: NDArray[np.int64]
    state: int
    prefix: int
    future: "asyncio.Future[Drawn]"


class SlotSampler:
    """Holds up to `slots` contexts and draws their responses together. Use within `async with`, in one event loop.

    Args:
        policy: sampled as it is; its weights must not change within the `async with`.
        slots: most contexts at once. Those in use take memory, each the keys and values of the longest context.
        temperature: 0 is greedy. Log-probs and entropies are of the distribution drawn from (greedy: T = 1).

    Raises:
        ModelError: the model keeps its past otherwise than as keys and values.
    """

    def __init__(self, policy: Policy, slots: int, temperature: float):
        self.policy, self.slots, self.temperature = policy, slots, temperature
        self._windows = attention_windows(policy.model)
        self._config = policy.model.config.get_text_config()
        self.max_tokens: int | None = getattr(self._config, "max_position_embeddings", None)
        """Most tokens of a context, its last response included; None if the model sets no limit."""
        modes = policy.format.modes
        self._choice_at, self._before_choice, self._choice_ids = modes.position, modes.shared, list(modes.choice_ids)
        self._stop_ids = np.array(policy.format.stop_ids)
        self._engine: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        rows = up_to(self.slots, ROWS)
        model = self.policy.model
        self._cache = SlotCache(self.policy.device, model.dtype, self._windows)
        # Slot s has row `row_of[s]` of the cache; slots that respond have the first rows, `slot_at[:n]`.
        self._row_of, self._slot_at = np.arange(rows), np.arange(rows)
        # By slot. held[s, :fed[s]] are the tokens whose keys and values are in the cache, also after the slot was
        # closed: ids, or ids with their routes (`fed_tokens`).
        self._held, self._fed = np.zeros((rows, self._cache.capacity), dtype=np.int64), np.zeros(rows, dtype=np.int64)
        self._responding = np.zeros(rows, dtype=bool)
        self._next, self._position, self._budget = (np.zeros(rows, dtype=np.int64) for _ in range(3))
        self._states = np.zeros(rows, dtype=np.int64)
        self._keys, self._choice = np.zeros(rows, dtype=np.uint64), np.zeros((rows, 2))
        # forced[s, t] is the id that a forced mode puts at response position t; -1, the model draws, comes last.
        modes = self.policy.format.modes
        self._forced = np.full((rows, 1 + max(len(modes.of(mode)) for mode in (Mode.THINK, Mode.NO_THINK))), -1)
        self._logprobs, self._entropies = (np.zeros(self._held.shape, dtype=np.float32) for _ in range(2))
        self._turns: dict[int, _Turn] = {}
        self._pending: list[int] = []
        # The slot given back last comes first: no more of them are ever in use than contexts were open at once.
        self._spare, self._used = list(range(self.slots))[::-1], 0
        self._waiting = deque[asyncio.Future[int]]()
        self._wake = asyncio.Event()
        self._error, self._training = None, model.training
        model.eval()
        self._engine = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._engine is not None
        self._engine.cancel()
        await asyncio.wait([self._engine])
        del self._cache
        self.policy.model.train(self._training)

    async def open(self, prompt_ids: Sequence[int]) -> SlotContext:
        """A new context; waits for a free slot, first come, first served."""
        self._check()
        if self._spare:
            slot = self._spare.pop()
            self._used = max(self._used, slot + 1)
            self._cache.reserve(self._used, 0)
            return SlotContext(self, slot, prompt_ids)
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return SlotContext(self, await turn, prompt_ids)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():
                self._free(turn.result())
            raise

    def _check(self) -> None:
        if self._engine is None:
            raise ModelError("the slot sampler does not run: use it within `async with`")
        if self._error is not None:
            raise self._error

    def _free(self, slot: int) -> None:
        if slot in self._turns and not (future := self._withdraw(slot).future).done():
            future.set_exception(ModelError("this context was closed while it was responding"))
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(slot)
                return
        self._spare.append(slot)

    async def _respond(
        self, slot: int, ids: Sequence[int], written: Sequence[bool], key: np.uint64, mode: Mode, budget: int
    ) -> Drawn:
        self._check()
        if slot in self._turns:
            raise ModelError("this context is already responding: await one response before the next")
        if not ids or budget < 1:
            raise ModelError("a response needs a context of at least one token and a budget of at least one")
        limit = self.max_tokens
        if limit is not None and len(ids) + budget > limit:
            raise ModelError(
                f"a context of {len(ids)} tokens and a response of up to {budget} outgrow the model's {limit} "
                "positions: shorten the prompt or the observations, or lower max_new_tokens"
            )
        future: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
        prefix = self.policy.format.modes.of(mode)
        fed, state, router = np.array(ids, dtype=np.int64), 0, self.policy.router
        if router:
            fed, state = with_routes(fed, router.route(fed, written)), int(router.state(fed, written))
        turn = _Turn(fed, state, min(len(prefix), budget), future)
        self._turns[slot] = turn
        self._keys[slot], self._budget[slot] = key, budget
        self._forced[slot], self._forced[slot, : len(prefix)] = -1, prefix
        self._position[slot], self._choice[slot] = 0, np.nan
        self._pending.append(slot)
        self._wake.set()
        try:
            return await future
        finally:
            if self._turns.get(slot) is turn:
                self._withdraw(slot)

    def _withdraw(self, slot: int) -> _Turn:
        """Take the slot out of the batch, whatever it is doing; what it has fed stays in the cache."""
        self._responding[slot] = False
        if slot in self._pending:
            self._pending.remove(slot)
        return self._turns.pop(slot)

    async def _serve(self) -> None:
        """The engine: prefill what came in, decode one step, let the event loop run; until cancelled."""
        try:
            while True:
                if not self._turns:
                    self._wake.clear()
                    await self._wake.wait()
                while self._pending:
                    self._prefill()
                    await asyncio.sleep(0)
                ended = self._responding.any() and self._step()
                for _ in range(ROUNDS if ended else 1):
                    await asyncio.sleep(0)
        except BaseException as error:
            closed = isinstance(error, asyncio.CancelledError)
            self._error = ModelError("the slot sampler was closed while responses were due") if closed else error
            for future in [*self._waiting, *(turn.future for turn in self._turns.values())]:
                if not future.done():
                    future.set_exception(self._error)
            if not isinstance(error, Exception):
                raise

    @torch.inference_mode()
    def _prefill(self) -> None:
        """One step of feeding contexts, all but the last token of each: that one is decoding's first."""
        left: dict[int, int] = {}
        for slot in list(self._pending):
            ids = self._turns[slot].fed[:-1]
            if self._reuse(slot, ids, list(left)):
                continue
            if more := len(ids) - int(self._fed[slot]):
                left[slot] = more
            else:
                self._begin(slot)
        # Long ones with long ones; a short one comes along where that costs little.
        batch: list[int] = []
        width = 0
        for slot in sorted(left, key=lambda slot: -left[slot]):
            width = width or up_to(min(left[slot], PREFILL_TOKENS), ROWS)
            tokens = width * (len(batch) + 1)
            if tokens <= PREFILL_TOKENS and (2 * left[slot] >= width or tokens <= PADDING_TOKENS):
                batch.append(slot)
        if batch:
            self._feed(batch, width)

    def _reuse(self, slot: int, ids: NDArray[np.int64], others: list[int]) -> bool:
        """Keep what the slot has in the cache of `ids` (and routes), and copy what another slot has more of them.

        Returns:
            True if that has to wait: one of `others`, about to be fed, will hold much more than any slot does now.
        """
        own = common_length(ids, self._held[slot, : self._fed[slot]])
        # Choice: who holds half of it goes on alone; the rest is news, and looking for it elsewhere takes time.
        if 2 * own < len(ids):
            common = self._common(ids)
            best = int(common.argmax())
            much = int(common[best]) + WORTH_COPYING
            # Asked first, as it spares comparing every pair of contexts where all are short.
            enough = len(ids) >= much
            if enough and any(start_alike(ids, self._turns[other].fed[:-1], much) for other in others):
                return True
            if common[best] >= own + WORTH_COPYING:
                end = int(common[best])
                self._cache.copy(int(self._row_of[best]), int(self._row_of[slot]), own, end)
                self._held[slot, own:end], own = ids[own:end], end
        self._fed[slot] = own
        return False

    def _common(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of `ids` each slot has in the cache, from the beginning on."""
        same = self._held[: self._used, : len(ids)] == ids[: self._held.shape[1]]
        if not same.size:
            return np.zeros(len(same), dtype=np.int64)
        return np.minimum(np.where(same.all(-1), same.shape[1], same.argmin(-1)), self._fed[: self._used])

    def _feed(self, batch: list[int], width: int) -> None:
        """Feed up to `width` tokens to each slot of the batch; padding is overwritten by what comes next."""
        slots, starts = np.array(batch), self._fed[batch]
        mask, positions = self._cache.aim(self._row_of[slots], starts, width)
        self._widen()
        ids = np.zeros((len(batch), width), dtype=np.int64)
        for row, slot in enumerate(batch):
            chunk = self._turns[slot].fed[:-1][starts[row] : starts[row] + width]
            ids[row, : len(chunk)] = chunk
            self._held[slot, starts[row] : starts[row] + len(chunk)] = chunk
            self._fed[slot] += len(chunk)
        self._forward(ids, mask, positions)

    def _begin(self, slot: int) -> None:
        self._pending.remove(slot)
        self._next[slot], self._states[slot] = self._turns[slot].fed[-1], self._turns[slot].state
        self._responding[slot] = True

    @torch.inference_mode()
    def _step(self) -> bool:
        """Feed one token to every slot that responds and draw the next; true if a response ended."""
        count = self._gather()
        rows = up_to(count, ROWS)
        slots, live = self._slot_at[:rows], self._slot_at[:count]
        # Rows beyond `count` fill up the matrix products: what they write lies behind what they hold.
        mask, positions = self._cache.aim(slice(0, rows), self._fed[slots], 1, count)
        self._widen()
        logits = self._forward(self._next[slots][:, None], mask, positions)[:, -1]
        self._held[live, self._fed[live]] = self._next[live]
        self._fed[live] += 1
        return self._draw(logits, slots, live)

    def _gather(self) -> int:
        """Bring the slots that respond to the first rows of the cache; returns how many they are."""
        there = self._responding[self._slot_at]
        count = int(there.sum())
        holes, strays = np.flatnonzero(~there[:count]), count + np.flatnonzero(there[count:])
        if len(holes):
            pairs, crossed = np.concatenate([holes, strays]), np.concatenate([strays, holes])
            self._cache.swap(holes, strays, int(self._fed[self._slot_at[pairs]].max()))
            self._slot_at[pairs] = self._slot_at[crossed]
            self._row_of[self._slot_at] = np.arange(len(self._slot_at))
        return count

    def _draw(self, logits: torch.Tensor, slots: NDArray[np.int64], live: NDArray[np.int64]) -> bool:
        at, count = self._position[slots], len(live)
        forced = self._forced[slots, np.minimum(at, self._forced.shape[1] - 1)]
        draws = draw_tokens(logits, self.temperature, self._keys[slots], at, forced if forced.max() >= 0 else None)
        ids, at = draws.ids[:count], at[:count]
        self._next[live] = ids
        if router := self.policy.router:
            self._states[live], routes = router.step(self._states[live], ids)
            self._next[live] = with_routes(ids, routes)
        self._logprobs[live, at], self._entropies[live, at] = draws.logprobs[:count], draws.entropies[:count]
        if (at == self._choice_at).any():
            self._note_choice(draws, live, at)
        self._position[live] += 1
        stopped = (ids[:, None] == self._stop_ids).any(-1) & (forced[:count] < 0)
        ended = stopped | (self._position[live] == self._budget[live])
        for slot, stop in zip(live[ended], stopped[ended], strict=True):
            self._finish(int(slot), Finish.STOP if stop else Finish.LENGTH)
        return bool(ended.any())

    def _note_choice(self, draws: Draws, live: NDArray[np.int64], at: NDArray[np.int64]) -> None:
        """Keep the probabilities of the modes where the token just drawn was the choice between them."""
        chooses = np.zeros(len(draws.ids), dtype=bool)
        for row in np.flatnonzero(at == self._choice_at):
            slot = live[row]
            before = ids_of(self._held[slot, self._fed[slot] - self._choice_at : self._fed[slot]])
            chooses[row] = tuple(before.tolist()) == tuple(self._before_choice)
        self._choice[live[chooses[: len(live)]]] = draws.choice(chooses, self._choice_ids)

    def _finish(self, slot: int, finish: Finish) -> None:
        turn, length = self._withdraw(slot), int(self._position[slot])
        if turn.future.done():
            return
        start = len(turn.fed)
        logprobs, entropies = self._logprobs[slot, :length].copy(), self._entropies[slot, :length].copy()
        think, no_think = self._choice[slot].tolist()
        ids = ids_of(np.append(self._held[slot, start : start + length - 1], self._next[slot]))
        turn.future.set_result(Drawn(ids, turn.prefix, logprobs, entropies, (think, no_think), finish))

    def _forward(self, fed: NDArray[np.int64], mask: Any, positions: torch.Tensor) -> torch.Tensor:
        """Logits of the last token fed to each row aimed at, (B, 1, V)."""
        routes = routes_of(fed) if self.policy.router else None
        with row_attention(self._config), routed(self.policy.model, routes):
            return self.policy.model(
                input_ids=torch.from_numpy(ids_of(fed)).to(self.policy.device),
                attention_mask=mask,
                # Only padding, and rows that do not count, lie beyond the model's positions.
                position_ids=positions if self.max_tokens is None else positions.clamp(max=self.max_tokens - 1),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits

    def _widen(self) -> None:
        """Keep the arrays of one entry per place as wide as the cache."""
        if (more := self._cache.capacity - self._held.shape[1]) > 0:
            self._held, self._logprobs = _wider(self._held, more), _wider(self._logprobs, more)
            self._entropies = _wider(self._entropies, more)


def _wider(array: NDArray[Any], more: int) -> NDArray[Any]:
    return np.pad(array, ((0, 0), (0, more)))
