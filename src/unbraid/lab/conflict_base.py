"""Pre-trains the base models of the conflict world: both forms of every number, and no opinion on which.

Under `m+` and `m-` all numbers have the form that the marker asks for; under `m?` call and answer have forms drawn
one by one. So a direction for the form is in the base, the fields mean nothing to it yet, and neither form nor
observation of a question can be known.

    python -m unbraid.lab.conflict_base --world 0 --out DIR     # less than a minute on one core
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unbraid.lab.base_model import base_command, kept, save_half, training_bar, word_model
from unbraid.lab.calls_world import Split, keyed_rng
from unbraid.lab.conflict_measure import measure
from unbraid.lab.conflict_world import (
    CONFLICT_WORLD_VERSION,
    FIELDS,
    FORMS,
    MARKERS,
    NUMBERS,
    UNSAID,
    WORDS,
    Question,
    tasks_of,
)
from unbraid.lab.search_chat import CHAT, tagged_tokenizer
from unbraid.learn.supervised import Batches, SupervisedExample, SupervisedTrainer, WarmupConfig
from unbraid.policy import ModelConfig, load_policy

PRETRAINING = WarmupConfig(steps=700, batch_examples=64, learning_rate=3e-3, ramp_steps=50)

UNSAID_SHARE = 0.5
"""Share of pre-training under `m?`; the other two markers share the rest."""
WRITTEN_GATE = 0.97
"""Least probability that an episode without a marker is right in all but its forms."""
FORM_GATE = 0.15
"""Largest distance from one half of the probability of form e, per field and skill, on average."""
OBEYED_GATE = 0.95
"""Least probability of the form that a marker asks for."""


def conflict_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, the same ids in every world."""
    return tagged_tokenizer(WORDS)


def pretraining_batches(world: int, size: int) -> Batches:
    """Fresh examples for every step, of any field and number; what tools returned carries no loss."""
    vocabulary = conflict_tokenizer().get_vocab()

    def example(rng: np.random.Generator) -> SupervisedExample:
        field, number, found = int(rng.integers(FIELDS)), *(int(n) for n in rng.integers(NUMBERS, size=2))
        call_form, answer_form = (int(form) for form in rng.integers(len(FORMS), size=2))
        marker = UNSAID if rng.random() < UNSAID_SHARE else MARKERS[call_form]
        question = Question(field, number, found, call_form, answer_form if marker == UNSAID else call_form)
        return conflict_example(question, vocabulary, marker)

    def batch(step: int) -> list[SupervisedExample]:
        rng = keyed_rng(world, "pretraining", step)
        return [example(rng) for _ in range(size)]

    return batch


def conflict_example(question: Question, vocabulary: dict[str, int], marker: str = UNSAID) -> SupervisedExample:
    """An episode as one sequence, token for token what playing it would give; observations have no loss."""
    words, written = question.written()
    prompt = [marker if word == UNSAID else word for word in question.prompt]
    return SupervisedExample(
        tuple(vocabulary[word] for word in prompt),
        tuple(vocabulary[word] for word in words),
        tuple(map(float, written)),
        ((written.index(False), len(written) - written[::-1].index(False)),),
    )


def new_model(world: int) -> LlamaForCausalLM:
    """An untrained model of 0.1 million parameters, drawn from the world's seed."""
    return word_model(conflict_tokenizer().get_vocab(), 64, world, layers=2, intermediate=128)


def build_base(world: int, out: Path, on_step: Callable[[int, dict[str, float]], None] | None = None) -> None:
    """Pre-trains the base of a world and saves it as a Hugging Face folder (0.2 MB)."""
    model = new_model(world)
    batches = pretraining_batches(world, PRETRAINING.batch_examples)
    SupervisedTrainer(model, PRETRAINING, batches).run(on_step)
    save_half(model, conflict_tokenizer(), out)


def conflict_base_path(world: int) -> Path:
    """The base of a world: shipped, else from the cache, else built now (see `base_model.kept`)."""
    name = f"conflict-v{CONFLICT_WORLD_VERSION}-{world}"
    return kept(f"conflict-{world}", name, lambda out: build_with_progress(world, out))


def build_with_progress(world: int, out: Path) -> None:
    """`build_base` under a progress bar with the time left."""
    with training_bar(f"pre-training conflict base {world}", PRETRAINING.steps) as on_step:
        build_base(world, out, on_step)


def gates(path: Path, world: int) -> tuple[str, list[str]]:
    """What a base does on dev questions, computed, in a line; and what is wrong with it, if anything."""
    policy = load_policy(ModelConfig(path=str(path), device="cpu"), CHAT)
    tasks = tasks_of(world, 1.0, Split.DEV)
    found = measure(policy, tasks)
    shares = 1 / (1 + np.exp(-found.log_odds))  # (N, 2), of the right form
    fields = np.array([task.extra["field"] for task in tasks])
    uneven = float(np.mean([abs(shares[fields == f].mean(0) - 0.5).mean() for f in range(FIELDS)]))
    # What is left of an episode's log-prob without the choice between the two forms.
    written = float(np.exp(found.logprobs.sum(1) - np.log(shares).sum(1)).mean())
    obeyed = []
    for form, marker in enumerate(MARKERS):
        asked = [replace(Question.of(task), call_form=form, answer_form=form).task(task.id) for task in tasks]
        odds = measure(policy, asked, marker).log_odds
        obeyed.append(float((1 / (1 + np.exp(-odds))).mean()))
    line = f"written {written:.3f}   form e: {uneven:.3f} from one half   markers obeyed {min(obeyed):.3f}"
    faults = []
    if written < WRITTEN_GATE:
        faults.append(f"{written:.3f} of the episodes are right in all but their forms, needs {WRITTEN_GATE}")
    if uneven > FORM_GATE:
        faults.append(f"forms are {uneven:.3f} from one half, may be {FORM_GATE}")
    if min(obeyed) < OBEYED_GATE:
        faults.append(f"markers are obeyed with {min(obeyed):.3f}, needs {OBEYED_GATE}")
    return line, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a base, print its gates; exit status 1 if it fails them."""
    return base_command("conflict world", "--world", build_with_progress, gates, arguments)


if __name__ == "__main__":
    sys.exit(main())
