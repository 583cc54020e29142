"""What a policy does in the conflict world, computed by teacher forcing instead of sampled.

There is one right episode per question, and what tools show in it is known: its probability *is* the chance of success
at temperature 1. It is the product of what each role writes, so each skill has a number of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.lab.conflict_world import FORMS, UNSAID, Question
from unbraid.learn.importance import sequence_logprobs
from unbraid.policy import Policy
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.task import Task
from unbraid.tokens import Provenance, Role

SKILLS = (Role.ACTION, Role.REASONING)
"""Order of the columns below: the call, and all else that the model writes, the answer among it."""
MICRO_BATCH = 128


@dataclass(frozen=True)
class Forced:
    """Right episodes of N questions under a policy.

    logprobs: (N, 2), nats, of everything that each role writes in them; columns as `SKILLS`.
    forms: (N, 2), nats, log-prob of the right form alone, where the call and the answer name their number.
    log_odds: (N, 2), nats, of the right form against the other at that place.
    fields: (N,), the field of each question: what measures are to be stratified by.
    """

    logprobs: NDArray[np.float64]
    forms: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    fields: NDArray[np.int64]

    @property
    def success(self) -> NDArray[np.float64]:
        """(N,) probability that an episode is right, at temperature 1."""
        return np.exp(self.logprobs.sum(axis=1))

    @property
    def skill(self) -> NDArray[np.float64]:
        """(N, 2) probability that each role writes what is right, the other one having done so."""
        return np.exp(self.logprobs)


def measure(policy: Policy, tasks: Sequence[Task], marker: str = UNSAID) -> Forced:
    """Teacher-force the right episodes of tasks, and those with one form turned.

    Args:
        marker: what stands in the prompts instead of the marker that says nothing.
    """
    questions = [Question.of(task) for task in tasks]
    right = [forced_episode(policy, q, marker) for q in questions]
    turned_call = [forced_episode(policy, q, marker, call_form=_other(q.call_form)) for q in questions]
    turned_answer = [forced_episode(policy, q, marker, answer_form=_other(q.answer_form)) for q in questions]
    found = sequence_logprobs(policy, [*right, *turned_call, *turned_answer], MICRO_BATCH, 1.0)
    count = len(questions)
    logprobs = np.array(
        [
            [values[(t.roles == role) & t.sampled].sum() for role in SKILLS]
            for t, values in zip(right, found, strict=False)
        ]
    )
    places = np.array([form_places(policy, t) for t in right])
    rows = np.arange(count)
    values = np.array(found)  # every episode of this world is as long as every other
    forms = np.stack([values[rows, places[:, skill]] for skill in range(len(SKILLS))], axis=1)
    other = np.stack([values[(1 + skill) * count + rows, places[:, skill]] for skill in range(len(SKILLS))], axis=1)
    return Forced(logprobs, forms, forms - other, np.array([q.field for q in questions]))


def forced_episode(
    policy: Policy, question: Question, marker: str = UNSAID, call_form: int | None = None,
    answer_form: int | None = None,
) -> Trajectory:  # fmt: skip
    """The trajectory that an episode with these forms would be (None: the right ones), not drawn by anybody."""
    vocabulary = policy.tokenizer.get_vocab()
    prompt = [marker if word == UNSAID else word for word in question.prompt]
    words, written = question.written(call_form, answer_form)
    ids = np.array([vocabulary[word] for word in [*prompt, *words]], dtype=np.int64)
    sampled = np.array([False] * len(prompt) + written)
    origin = np.where(sampled, Provenance.MODEL, Provenance.OBSERVATION)
    origin[: len(prompt)] = Provenance.PROMPT
    return Trajectory(
        task_id="",
        sample=0,
        ids=ids,
        prompt_length=len(prompt),
        roles=policy.format.automaton.label(ids, origin),
        sampled=sampled,
        logprobs=np.zeros(len(ids), dtype=np.float32),
        entropies=np.full(len(ids), np.nan, dtype=np.float32),
        choice_probs=(np.nan, np.nan),
        mode=Mode.NO_THINK,
        forced=Mode.NO_THINK,
        finish=Finish.STOP,
    )


def form_places(policy: Policy, episode: Trajectory) -> tuple[int, int]:
    """Where the numbers stand that have a form: of the call, of the answer."""
    vocabulary = policy.tokenizer.get_vocab()
    ids = episode.ids.tolist()
    return ids.index(vocabulary["<search>"]) + 2, ids.index(vocabulary["<answer>"]) + 2


def _other(form: int) -> int:
    return len(FORMS) - 1 - form
