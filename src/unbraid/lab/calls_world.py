"""The calls world: one tool call whose argument is k relation hops away.

A query `i2b e7 r0 r1 r5` asks for tool t2 (intent i2, wording b) with the entity that is reached from e7 by
following r0, r1 and r5. Relations are fixed permutations of the entities; nothing in the prompt shows
them, so they can only be held in the weights. A model that thinks walks the chain hop by hop; a model that answers
directly can only be right where it has *known* the chain: its direct answer occurs in pre-training.
A chain is known with a probability that falls with k, so that thinking pays more the longer the chain.

Everything is a function of the world's seed: permutations, pools, which chains are known, every task.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from unbraid.chat.types import Answer, Call, Mode
from unbraid.tasks.task import Task

T = TypeVar("T")

ENTITIES, RELATIONS, TOOLS = 20, 6, 8
WORDINGS = "abc"
OFFERED_TOOLS = 3
KNOWN = (1.0, 1.0, 0.85, 0.6, 0.35, 0.15)
"""Share of known chains among those of k hops. Its mean, .658, is the natural known share of the world."""
LEVELS = len(KNOWN)
WORLD_VERSION = 1
"""Part of the name of a cached base: raise it with any change that makes older bases wrong."""
EVALUATION_TASKS = 96
"""Tasks per level in the dev set and in the test set."""


class Split(StrEnum):
    """Disjoint sets of chains: RL and warm-up use TRAIN, choices are made on DEV, results come from TEST."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


CHAINS = {Split.TRAIN: 128, Split.DEV: 48, Split.TEST: 96}
"""Chains per level and split; where a level has fewer chains in all (k < 2), in these proportions."""


@dataclass(frozen=True)
class Chain:
    """A walk over the relations: `entities[0]` is the start, `entities[-1]` the answer."""

    entities: tuple[int, ...]
    relations: tuple[int, ...]
    known: bool

    @property
    def hops(self) -> int:
        return len(self.relations)


@dataclass(frozen=True)
class Query:
    """A chain asked for through one tool, in one wording, with the tools on offer in this order."""

    chain: Chain
    tool: int
    wording: str
    offered: tuple[int, ...]

    @property
    def text(self) -> str:
        chain = self.chain
        return " ".join([f"i{self.tool}{self.wording}", f"e{chain.entities[0]}", *(f"r{r}" for r in chain.relations)])

    @property
    def call(self) -> Call:
        return Call(f"t{self.tool}", {f"p{self.tool}": f"e{self.chain.entities[-1]}"})

    @property
    def thought(self) -> str:
        at = self.chain.entities
        hops = (
            f"now take r{relation} of e{at[i]} , this gives e{at[i + 1]} ;"
            for i, relation in enumerate(self.chain.relations)
        )
        return " ".join([f"use t{self.tool} ; start at e{at[0]} ;", *hops, f"so value e{at[-1]}"])

    @property
    def short(self) -> Answer:
        return Answer(Mode.NO_THINK, calls=(self.call,))

    @property
    def long(self) -> Answer:
        return Answer(Mode.THINK, thought=self.thought, calls=(self.call,))

    def task(self, task_id: str) -> Task:
        """The query as every other task: one user message, JSON-schema tools, gold answers in both modes."""
        return Task(
            id=task_id,
            messages=({"role": "user", "content": self.text},),
            tools=tuple(tool_schema(t) for t in self.offered),
            expected=(self.call,),
            answers=(self.short, self.long),
            level=str(self.chain.hops),
            source="calls",
            extra={"known": self.chain.known, "needs_thinking": not self.chain.known},
        )


def tool_schema(tool: int) -> dict[str, Any]:
    """The JSON-schema dict of one tool: it takes one entity."""
    parameter = {"type": "string", "description": "an entity"}
    return {
        "type": "function",
        "function": {
            "name": f"t{tool}",
            "description": f"Does what i{tool} asks for.",
            "parameters": {"type": "object", "properties": {f"p{tool}": parameter}, "required": [f"p{tool}"]},
        },
    }


def keyed_rng(seed: int, *key: str | int) -> np.random.Generator:
    """A generator of its own for every key; draws under one key never move those under another."""
    parts = (zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)
    return np.random.default_rng([seed, *parts])


class CallsWorld:
    """One world: its relations, its pools of chains, and the tasks made from them."""

    def __init__(self, seed: int):
        self.seed = seed
        rng = keyed_rng(seed, "relations")
        self.relations = np.stack([rng.permutation(ENTITIES) for _ in range(RELATIONS)])

    def chain(self, code: int, hops: int, known: bool) -> Chain:
        """The chain with this number: its digits are the start entity and the relations."""
        rest, start = divmod(code, ENTITIES)
        entities, relations = [start], []
        for _ in range(hops):
            rest, relation = divmod(rest, RELATIONS)
            relations.append(relation)
            entities.append(int(self.relations[relation, entities[-1]]))
        return Chain(tuple(entities), tuple(relations), known)

    @cached_property
    def _codes(self) -> list[np.ndarray]:
        """Per level, the numbers of all its chains in an order of this world's own."""
        return [keyed_rng(self.seed, "chains", k).permutation(ENTITIES * RELATIONS**k) for k in range(LEVELS)]

    @cached_property
    def pools(self) -> dict[Split, list[list[Chain]]]:
        """`pools[split][k]`: the chains of one split and level.

        Choice: the number of known chains is exact in every split and level, so that bases do not differ in what
        an ideal policy could reach.
        """
        pools: dict[Split, list[list[Chain]]] = {split: [] for split in Split}
        for k, codes in enumerate(self._codes):
            scale = min(1.0, len(codes) / sum(CHAINS.values()))
            start = 0
            for split, size in CHAINS.items():
                count = round(size * scale)
                # The order is random already: the first ones of a split are its known ones.
                known = round(KNOWN[k] * count)
                part = codes[start : start + count]
                pools[split].append([self.chain(int(code), k, i < known) for i, code in enumerate(part)])
                start += count
        return pools

    @cached_property
    def known_chains(self) -> list[Chain]:
        """Every chain whose direct answer may occur in pre-training."""
        return [c for split in Split for level in self.pools[split] for c in level if c.known]

    def free_chain(self, hops: int, rng: np.random.Generator) -> Chain:
        """A chain for a thought in pre-training: from no pool where there is a choice (k >= 2)."""
        codes = self._codes[hops]
        first = sum(CHAINS.values()) if hops >= 2 else 0
        return self.chain(int(codes[rng.integers(first, len(codes))]), hops, known=False)

    def query(self, chain: Chain, rng: np.random.Generator) -> Query:
        """Asks for a chain through a random tool, in a random wording."""
        tool, *others = (int(t) for t in rng.permutation(TOOLS)[:OFFERED_TOOLS])
        offered = [tool, *others]
        rng.shuffle(offered)
        return Query(chain, tool, WORDINGS[rng.integers(len(WORDINGS))], tuple(offered))

    def evaluation_tasks(self, split: Split, per_level: int = EVALUATION_TASKS) -> list[Task]:
        """Tasks uniform over k; every chain of the split occurs equally often (to within one)."""
        rng = keyed_rng(self.seed, "evaluation", split)
        tasks = []
        for k, chains in enumerate(self.pools[split]):
            picked = [c for _ in range(-(-per_level // len(chains))) for c in _shuffled(chains, rng)][:per_level]
            tasks += [self.query(c, rng).task(f"{split}-{self.seed}-{k}-{i}") for i, c in enumerate(picked)]
        return tasks

    def training_tasks(self, count: int, known_share: float, seed: int) -> list[Task]:
        """Prompts for RL (or warm-up) from the TRAIN pool.

        Args:
            known_share: share of prompts with a known chain, 0..1. Known and unknown chains each keep
                their natural mix of levels: P(k | known) is proportional to `KNOWN`, P(k | unknown) to its complement.
            seed: of this draw; tasks of different seeds differ in order, chains and wording.
        """
        if not 0 <= known_share <= 1:
            raise ValueError(f"known_share is {known_share}: give a share between 0 and 1")
        rng = keyed_rng(self.seed, "training", seed)
        known_prompts = round(known_share * count)
        tasks: list[Task] = []
        for is_known, prompts in ((True, known_prompts), (False, count - known_prompts)):
            weights = np.array(KNOWN) if is_known else 1 - np.array(KNOWN)
            levels = [[c for c in level if c.known == is_known] for level in self.pools[Split.TRAIN]]
            for k in rng.choice(LEVELS, prompts, p=weights / weights.sum()):
                query = self.query(levels[k][rng.integers(len(levels[k]))], rng)
                tasks.append(query.task(f"train-{self.seed}-{seed}-{len(tasks)}"))
        return _shuffled(tasks, rng)


def train_set(world: int, known_share: float, count: int, seed: int = 0) -> list[Task]:
    """Training prompts of a world: a source for recipes (see `CallsWorld.training_tasks`)."""
    return CallsWorld(world).training_tasks(count, known_share, seed)


def held_out(world: int, split: str, per_level: int = EVALUATION_TASKS) -> list[Task]:
    """The `dev` set of a world (for choosing) or its `test` set (for results): a source for recipes."""
    return CallsWorld(world).evaluation_tasks(Split(split), per_level)


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]
