"""What a policy does in the conflict world, computed by teacher forcing instead of sampled.

There is one right episode per question, and what tools show in it is known: its probability *is* the chance of success
at temperature 1. It is the product of what each role writes, so each skill has a number of its own.
"""

from collections.abc import Mapping, Sequence
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


class Forcing:
    """The right episodes of tasks, written down once: what a policy makes of them can be asked for again and again.

    Args:
        policy: of the vocabulary and the automaton; any policy with the same ones can be measured.
        marker: what stands in the prompts instead of the marker that says nothing.
    """

    def __init__(self, policy: Policy, tasks: Sequence[Task], marker: str = UNSAID):
        questions = [Question.of(task) for task in tasks]
        vocabulary = policy.tokenizer.get_vocab()

        def written(question: Question, call: int, answer: int) -> Trajectory:
            return forced_episode(policy, vocabulary, question, marker, call, answer)

        self.right = [written(q, q.call_form, q.answer_form) for q in questions]
        self.turned = [
            [written(q, _other(q.call_form), q.answer_form) for q in questions],
            [written(q, q.call_form, _other(q.answer_form)) for q in questions],
        ]
        """The same with the form of the call turned, and with that of the answer."""
        self.places = np.array([form_places(vocabulary, episode) for episode in self.right])
        """(N, 2), where the numbers stand that have a form: in the call, in the answer."""
        self.fields = np.array([question.field for question in questions])

    def success(self, policy: Policy) -> float:
        """Mean probability of a right episode, at temperature 1."""
        found = sequence_logprobs(policy, self.right, MICRO_BATCH, 1.0)
        return float(np.mean([np.exp(values.sum()) for values in found]))

    def measure(self, policy: Policy) -> Forced:
        """Everything."""
        count, rows = len(self.right), np.arange(len(self.right))
        found = sequence_logprobs(policy, [*self.right, *self.turned[0], *self.turned[1]], MICRO_BATCH, 1.0)
        values = np.array(found).reshape(3, count, -1)  # every episode of this world is as long as every other
        roles = np.array([episode.roles for episode in self.right])
        logprobs = np.stack([(values[0] * (roles == role)).sum(axis=1) for role in SKILLS], axis=1)
        forms = np.stack([values[0, rows, self.places[:, i]] for i in range(len(SKILLS))], axis=1)
        turned = np.stack([values[1 + i, rows, self.places[:, i]] for i in range(len(SKILLS))], axis=1)
        return Forced(logprobs, forms, forms - turned, self.fields)


def measure(policy: Policy, tasks: Sequence[Task], marker: str = UNSAID) -> Forced:
    """Teacher-force the right episodes of tasks, and those with one form turned, once."""
    return Forcing(policy, tasks, marker).measure(policy)


def forced_episode(
    policy: Policy, vocabulary: Mapping[str, int], question: Question, marker: str, call_form: int, answer_form: int
) -> Trajectory:
    """The trajectory that an episode with these forms would be, not drawn by anybody."""
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


def form_places(vocabulary: Mapping[str, int], episode: Trajectory) -> tuple[int, int]:
    """Where the numbers stand that have a form: in the call, in the answer."""
    ids = episode.ids.tolist()
    return ids.index(vocabulary["<search>"]) + 2, ids.index(vocabulary["<answer>"]) + 2


def _other(form: int) -> int:
    return len(FORMS) - 1 - form
