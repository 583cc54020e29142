"""The local sampler: batched decoding with a KV cache on the policy's own weights.

Each prompt is prefilled once for all its samples, finished rows leave the batch, and every drawn token depends only
on (seed, task, sample, position) and the model: neither the order nor the company of requests matters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unbraid.errors import ModelError
from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed
from unbraid.policy.two_agents import TwoAgents
from unbraid.rollout.cache import growing_cache
from unbraid.rollout.context import Drawn
from unbraid.rollout.drawing import draw_tokens
from unbraid.rollout.fixed import FixedPast, FixedSteps
from unbraid.rollout.past import Past
from unbraid.rollout.prefix import Prefix
from unbraid.rollout.randomness import stream_key
from unbraid.rollout.single import single_trajectory
from unbraid.rollout.trajectory import Finish, Request, Trajectory
from unbraid.tokens import NONE, Provenance


class LocalSampler:
    """Draws trajectories from a policy on its own device.

    Args:
        policy: sampled as it is at each call: after an optimiser step there is nothing to sync.
        max_batch: most rows decoded together.
        fixed: steps keep to shapes that a GPU can record (`rollout.fixed`). Choice: off, as no GPU has run it yet.

    Raises:
        ModelError: the policy is of two agents.
    """

    def __init__(self, policy: Policy, max_batch: int = 512, fixed: bool = False):
        if isinstance(policy.model, TwoAgents):
            raise ModelError(
                "two agents are sampled by slots only (rollout.slots): this sampler's cache is one model's"
            )
        self.policy = policy
        self.max_batch = max_batch
        self.fixed = FixedSteps(policy, record=policy.device.type == "cuda") if fixed else None

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int, seed: object = 0
    ) -> list[Trajectory]:
        """One trajectory per request, in order.

        Args:
            temperature: 0 is greedy. Log-probs and entropies are of the distribution drawn from (greedy: T = 1).
            max_new_tokens: response budget in tokens, forced prefix and stop token included.
            seed: anything printable; with (task id, sample) it keys the random stream of a row.
        """
        model = self.policy.model
        was_training = model.training
        model.eval()
        # Rows that share a prompt stay together, long prompts with long ones: less padding.
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids))
        done: dict[int, Trajectory] = {}
        for first in range(0, len(order), self.max_batch):
            rows = order[first : first + self.max_batch]
            batch = _Decoding(self.policy, [requests[i] for i in rows], temperature, max_new_tokens, seed, self.fixed)
            done.update(zip(rows, batch.run(), strict=True))
        model.train(was_training)
        return [done[i] for i in range(len(requests))]


class _Decoding:
    """One batch on its way from prompts to trajectories. Arrays are indexed by row; `live` lists rows in the cache."""

    def __init__(
        self,
        policy: Policy,
        requests: list[Request],
        temperature: float,
        budget: int,
        seed: object,
        fixed: FixedSteps | None,
    ):
        self.policy, self.requests, self.temperature, self.budget = policy, requests, temperature, budget
        self.fixed = fixed
        rows = len(requests)
        modes = policy.format.modes
        self.choice_at, self.before_choice, self.choice_ids = modes.position, modes.shared, list(modes.choice_ids)
        self.stop_ids = np.array(policy.format.stop_ids)
        self.keys = np.array([stream_key(seed, r.task.id, r.sample) for r in requests], dtype=np.uint64)
        # forced[row, t] is the id that a forced mode puts at response position t, or -1 where the model draws.
        prefixes = [modes.of(r.mode) for r in requests]
        self.forced = np.full((rows, max((len(p) for p in prefixes), default=0)), -1)
        for row, prefix in enumerate(prefixes):
            self.forced[row, : len(prefix)] = prefix
        self.tokens = np.zeros((rows, budget), dtype=np.int64)
        self.logprobs = np.zeros((rows, budget), dtype=np.float32)
        self.entropies = np.full((rows, budget), np.nan, dtype=np.float32)
        self.lengths = np.full(rows, budget)
        self.stopped = np.zeros(rows, dtype=bool)
        self.choice = np.full((rows, 2), np.nan)
        # Of the router, by row: its state after the last token of each.
        self.states: NDArray[Any] = np.zeros(rows, dtype=np.uint8)

    def run(self) -> list[Trajectory]:
        live = np.arange(len(self.requests))
        logits, past = self._prefill()
        for position in range(self.budget):
            tokens = self._draw(logits, live, position)
            ended = np.isin(tokens, self.stop_ids) & ~self.stopped[live]
            if (forced := self._forced(live, position)) is not None:
                ended &= forced < 0
            self.stopped[live[ended]] = True
            self.lengths[live[ended]] = position + 1
            if self.stopped.all() or position + 1 == self.budget:
                break
            keep = ~self.stopped[live]
            if keep.sum() <= past.keep_share * len(live):
                order = _fill_gaps(keep)
                live, tokens = live[order], tokens[order]
                past.select(torch.from_numpy(order).to(self.policy.device))
            logits = self._step(tokens, live, past)
        return self._trajectories()

    def _prefill(self) -> tuple[torch.Tensor, Past]:
        """Run each distinct prompt once; returns next-token logits (rows, V), and what is behind them.

        Where rows share much, the cache is empty and what the prompts left is a prefix.
        """
        prompts = list(dict.fromkeys(r.prompt_ids for r in self.requests))
        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        padding = torch.tensor([longest - len(p) for p in prompts])
        ragged = bool(padding.any())
        device, cache = self.policy.device, growing_cache()
        positions = (torch.arange(longest) - padding[:, None]).clamp(min=0)
        index = {prompt: row for row, prompt in enumerate(prompts)}
        with routed(self.policy.model, self._prompt_routes(index, longest)):
            out = self.policy.model(
                input_ids=ids.to(device),
                attention_mask=(torch.arange(longest) >= padding[:, None]).long().to(device) if ragged else None,
                position_ids=positions.to(device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        rows = torch.tensor([index[r.prompt_ids] for r in self.requests]).to(device)
        prefix = Prefix.worth(self.policy.model, cache, rows, padding.to(device))
        if prefix:
            cache = growing_cache()
        else:
            cache.batch_select_indices(rows)
        past = Past(self.policy.model, cache, padding.to(device)[rows] if ragged else None, prefix)
        if self.fixed and self.fixed.usable:
            past = FixedPast(past, self.fixed, self.budget - 1)
        return out.logits[rows, -1], past

    def _prompt_routes(self, prompts: dict[tuple[int, ...], int], longest: int) -> NDArray[np.int8] | None:
        """Routes of the padded prompts; also sets every row's state. None if the policy does not route."""
        router = self.policy.router
        if not router:
            return None
        routes = np.full((len(prompts), longest), NONE, dtype=np.int8)
        states = []
        for prompt, row in prompts.items():
            context = np.zeros(len(prompt), dtype=bool)
            routes[row, longest - len(prompt) :] = router.route(prompt, context)
            states.append(router.state(prompt, context))
        self.states = np.array(states)[[prompts[request.prompt_ids] for request in self.requests]]
        return routes

    def _step(self, tokens: NDArray[np.int64], live: NDArray[np.int64], past: Past) -> torch.Tensor:
        """Feed one token per live row; returns next-token logits (live, V)."""
        device, routes = self.policy.device, None
        if router := self.policy.router:
            self.states[live], found = router.step(self.states[live], tokens)
            routes = torch.from_numpy(found)[:, None].to(device)
        return past.step(torch.from_numpy(tokens)[:, None].to(device), routes)

    def _forced(self, live: NDArray, position: int) -> NDArray[np.int64] | None:
        """Ids prescribed at `position`, -1 where the model draws; None where it draws everywhere."""
        if position >= self.forced.shape[1]:
            return None
        return self.forced[live, position]

    def _draw(self, logits: torch.Tensor, live: NDArray, position: int) -> NDArray[np.int64]:
        """Draw (or force) the token of every live row at `position`, and record what the trainer needs of it."""
        draws = draw_tokens(logits, self.temperature, self.keys[live], position, self._forced(live, position))
        if position == self.choice_at:
            chooses = (self.tokens[live, :position] == self.before_choice).all(-1) & ~self.stopped[live]
            self.choice[live[chooses]] = draws.choice(chooses, self.choice_ids)
        self.tokens[live, position] = draws.ids
        self.logprobs[live, position] = draws.logprobs
        self.entropies[live, position] = draws.entropies
        return draws.ids

    def _trajectories(self) -> list[Trajectory]:
        """Everything drawn, row by row. Roles are found for all rows at once: a role never depends on what follows."""
        prompts = [len(request.prompt_ids) for request in self.requests]
        ends = prompts + self.lengths
        ids = np.zeros((len(prompts), ends.max()), dtype=np.int64)
        provenance = np.full(ids.shape, Provenance.MODEL)
        for row, (request, start, end) in enumerate(zip(self.requests, prompts, ends, strict=True)):
            ids[row, :start], provenance[row, :start] = request.prompt_ids, Provenance.PROMPT
            ids[row, start:end] = self.tokens[row, : end - start]
        roles = self.policy.format.automaton.label(ids, provenance)
        return [self._trajectory(row, ids[row, :end].copy(), roles[row, :end].copy()) for row, end in enumerate(ends)]

    def _trajectory(self, row: int, ids: NDArray[np.int64], roles: NDArray[np.uint8]) -> Trajectory:
        request, length = self.requests[row], int(self.lengths[row])
        drawn = Drawn(
            ids[len(request.prompt_ids) :],
            int((self.forced[row] >= 0).sum()),
            self.logprobs[row, :length],
            self.entropies[row, :length],
            (float(self.choice[row, 0]), float(self.choice[row, 1])),
            Finish.STOP if self.stopped[row] else Finish.LENGTH,
        )
        return single_trajectory(self.policy.format, request, drawn, roles)


def _fill_gaps(keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places of the rows to keep, ordered so that most stay where they are: rows from the end fill the gaps."""
    count = int(keep.sum())
    order = np.arange(count)
    order[~keep[:count]] = count + np.flatnonzero(keep[count:])
    return order
