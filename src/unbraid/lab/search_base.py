"""Pre-trains the base models of the search world, on demonstrations with faults.

A base knows how to search, one way or another: by the question's own word, which finds little, by one of the documents'
words or by both; it may follow a question from the wrong end, or read the wrong document. What is best is in it, and
not what it does most: finding that out is left to RL. The demonstrations are of universes of their own, and what tools
returned carries no loss.

    python -m unbraid.lab.search_base --world 0 --out DIR     # about four minutes on one core
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM

from unbraid.chat.types import Answer, Call, Mode
from unbraid.lab.base_model import base_command, kept, save_half, training_bar, word_model
from unbraid.lab.calls_world import keyed_rng
from unbraid.lab.search_chat import observation_words, prompt_words, response_words, search_tokenizer
from unbraid.lab.search_skills import skills
from unbraid.lab.search_world import (
    LEVELS,
    NOTHING,
    SEARCH_WORLD_VERSION,
    SEARCHES,
    WORDINGS,
    Document,
    QueryKind,
    Question,
    Universe,
    held_out,
    shown,
)
from unbraid.learn.supervised import Batches, SupervisedExample, SupervisedTrainer, WarmupConfig
from unbraid.policy import load_policy

PRETRAINING = WarmupConfig(steps=700, batch_examples=64, learning_rate=3e-3, ramp_steps=50)

RIGHT_GATE = (0.06, 0.3)
"""Share of right answers at temperature 1: below there is nothing to reinforce, above little left to learn."""
WELL_FORMED_GATE = 0.95
WORDING_GATE = 0.1
"""Least share of each wording: what is never tried is never found."""
READING_GATE = 0.3
"""Least share of readings of the document asked for."""

FIRST_CLEAN = 0.5
"""Share of pre-training, its beginning, that shows `CLEAN` demonstrations; the rest shows `USUAL` ones.

Choice: documents that were not asked for are read so often in the usual ones that a model of this size hardly finds out
what reading is. RL can only bring back what is there.
"""


@dataclass(frozen=True)
class Faults:
    """How demonstrations go about a question; shares in [0, 1].

    queries: kinds, drawn anew for every query. wrong_order: questions that are followed from the outside in.
    misread: readings of another document than the one asked for, which is shown. gullible: readings of some document
    where the right one is not shown; the others search again.
    """

    queries: dict[QueryKind, float]
    wrong_order: float = 0.0
    misread: float = 0.0
    gullible: float = 0.0


CLEAN = Faults({QueryKind.ALIAS: 0.1, QueryKind.ONE_WORD: 0.2, QueryKind.BOTH_WORDS: 0.7})
USUAL = Faults(
    {QueryKind.ALIAS: 0.33, QueryKind.ONE_WORD: 0.44, QueryKind.BOTH_WORDS: 0.23},
    wrong_order=0.15,
    misread=0.25,
    gullible=0.5,
)


@dataclass(frozen=True)
class Demonstration:
    """One way to go about a question: what was said, and what each search showed (nothing after the last answer)."""

    question: Question
    turns: tuple[tuple[Answer, str], ...]


def demonstrate(question: Question, facts: Universe, faults: Faults, rng: np.random.Generator) -> Demonstration:
    """A demonstration; it never searches more than `SEARCHES` times."""
    hops = list(zip(question.relations, question.aliases, strict=True))
    if rng.random() < faults.wrong_order:
        hops.reverse()
    entity, done, note = question.entities[0], 0, ""
    turns: list[tuple[Answer, str]] = []
    while done < len(hops) and len(turns) < SEARCHES:
        relation, alias = hops[done]
        query = _query(entity, relation, alias, faults, rng)
        found = facts.search(query)
        thought = f"{note} next {alias} e{entity}".strip()
        turns.append((Answer(Mode.THINK, thought, (Call("search", {"query": query}),)), shown(found)))
        read = _read(facts.document(entity, relation), found, faults, rng)
        note = NOTHING
        if read is not None:
            entity, done, note = read, done + 1, f"got e{read}"
    turns.append((Answer(Mode.THINK, f"got e{entity}", content=f"e{entity}"), ""))
    return Demonstration(question, tuple(turns))


def _query(entity: int, relation: int, alias: str, faults: Faults, rng: np.random.Generator) -> str:
    words = [f"w{relation}_{wording}" for wording in rng.permutation(WORDINGS)]
    kind = list(faults.queries)[rng.choice(len(faults.queries), p=list(faults.queries.values()))]
    chosen = {QueryKind.ALIAS: [alias], QueryKind.ONE_WORD: words[:1], QueryKind.BOTH_WORDS: words}[kind]
    return " ".join([f"e{entity}", *chosen])


def _read(wanted: Document, found: tuple[Document, ...], faults: Faults, rng: np.random.Generator) -> int | None:
    """The entity that is taken from what a search shows; None to search again."""
    others = [document for document in found if document != wanted]
    if others and rng.random() < (faults.misread if wanted in found else faults.gullible):
        other = others[rng.integers(len(others))]
        return other.subject if other.object == wanted.subject else other.object
    return wanted.object if wanted in found else None


def demonstration_example(demonstration: Demonstration, vocabulary: dict[str, int]) -> SupervisedExample:
    """The demonstration as one sequence, token for token what an episode would give; observations have no loss."""
    words: list[str] = []
    weights: list[float] = []
    for answer, observation in demonstration.turns:
        said = response_words(answer)
        seen = observation_words(observation) if answer.calls else []
        words += said + seen
        weights += [1.0] * len(said) + [0.0] * len(seen)
    prompt = tuple(vocabulary[word] for word in prompt_words(demonstration.question.text))
    return SupervisedExample(prompt, tuple(vocabulary[word] for word in words), tuple(weights))


def pretraining_batches(world: int, size: int) -> Batches:
    """Fresh demonstrations for every step, each step in a universe of its own; the first ones are clean."""
    vocabulary = search_tokenizer().get_vocab()

    def batch(step: int) -> list[SupervisedExample]:
        rng, facts = keyed_rng(world, "pretraining", step), Universe(world, f"pretraining-{step}")
        faults = CLEAN if step < FIRST_CLEAN * PRETRAINING.steps else USUAL
        questions = [facts.question(LEVELS[i % len(LEVELS)], rng) for i in range(size)]
        return [demonstration_example(demonstrate(q, facts, faults, rng), vocabulary) for q in questions]

    return batch


def new_model(world: int) -> LlamaForCausalLM:
    """An untrained model of half a million parameters, drawn from the world's seed."""
    return word_model(search_tokenizer().get_vocab(), 128, world)


def build_base(world: int, out: Path, on_step: Callable[[int, dict[str, float]], None] | None = None) -> None:
    """Pre-trains the base of a world and saves it as a Hugging Face folder (1.2 MB)."""
    model = new_model(world)
    batches = pretraining_batches(world, PRETRAINING.batch_examples)
    SupervisedTrainer(model, PRETRAINING, batches).run(on_step)
    save_half(model, search_tokenizer(), out)


def search_base_path(world: int) -> Path:
    """The base of a world: shipped, else from the cache, else built now (see `base_model.kept`)."""
    return kept(
        f"search-{world}", f"search-v{SEARCH_WORLD_VERSION}-{world}", lambda out: build_with_progress(world, out)
    )


def build_with_progress(world: int, out: Path) -> None:
    """`build_base` under a progress bar with the time left."""
    with training_bar(f"pre-training search base {world}", PRETRAINING.steps) as on_step:
        build_base(world, out, on_step)


def gates(path: Path, world: int, tasks: int = 100) -> tuple[str, list[str]]:
    """What a base does on dev questions at temperature 1, in a line; and what is wrong with it, if anything.

    Args:
        tasks: per level; two episodes each.
    """
    from unbraid.prepare import roll_of
    from unbraid.recipe import load_recipe

    recipe = load_recipe(
        ["search-world"], [f"model.path={path}", f"environment.name=unbraid.lab.search_world:SearchWorld?world={world}"]
    )
    policy = load_policy(recipe.model, recipe.chat)
    drawn = roll_of(recipe, policy)(held_out(world, "dev", tasks), [Mode.AUTO] * 2, temperature=1.0, seed=0)
    accuracy = float(np.mean([t.correct for t in drawn]))
    well_formed = float(np.mean([t.episode is not None and t.episode.well_formed for t in drawn]))
    found = skills(drawn, policy.format.decode)
    wording = " ".join(f"{kind.value} {found.wording[kind]:.2f}" for kind in USUAL.queries)
    line = (
        f"right {accuracy:.3f}   well-formed {well_formed:.3f}   queries: {wording}   "
        f"innermost first {found.order:.2f}   reads what it asked for {found.reading:.2f}"
    )
    faults = []
    low, high = RIGHT_GATE
    if not low <= accuracy <= high:
        faults.append(f"{accuracy:.3f} of the answers are right: RL needs between {low} and {high} to learn from")
    if well_formed < WELL_FORMED_GATE:
        faults.append(f"{well_formed:.3f} of the episodes are well-formed, needs {WELL_FORMED_GATE}")
    for kind in USUAL.queries:
        if found.wording[kind] < WORDING_GATE:
            faults.append(f"{kind.value} is {found.wording[kind]:.2f} of the queries, needs {WORDING_GATE}")
    if found.reading < READING_GATE:
        faults.append(f"it reads what it asked for in {found.reading:.2f} of the cases, needs {READING_GATE}")
    return line, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a base, print its gates; exit status 1 if it fails them."""
    return base_command("search world", "--world", build_with_progress, gates, arguments)


if __name__ == "__main__":
    sys.exit(main())
