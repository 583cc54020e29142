"""Second thoughts: a direct answer stands where the model was sure of it, else the task is answered in thinking.

Whether thinking pays can often not be seen in the question. It shows while the answer is written: in how likely the
model finds what it writes. So a response that does not think is a draft. It is set aside at the first token of a call
that the model is not sure of, and the task is answered again with thinking forced. What the draft was sure of is not
written twice: the answer after the thought begins with as much of it as it agrees with.

Training wears doubt down, in direct answers above all. So drafts may be written by other weights than thoughts: the
base as it was, which knows best what it does not know. What training taught is what the question shows: where the
trained model is sure enough that thinking pays, it thinks at once, and nothing is drafted in vain.

How much doubt is too much may be a number, or follow from an allowance of tokens that is kept to as tasks come.

Ours, not a paper's. It needs no training, no other template and no server but one that tells log-probs; why it works
and where it stops is in docs/second-thoughts.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.rollout.scoring import Roll, numbered
from unbraid.rollout.trajectory import PER_TOKEN, Response, Trajectory
from unbraid.tasks.task import Task
from unbraid.tokens import Role

EVERY = 32
"""Choice: tasks that are answered at one doubt before an allowance looks at what they took."""
AHEAD = 128
"""Choice: tasks over which an allowance would make up for what was spent too much or too little before, as far as its
curve reaches."""


def drawn_until_doubt(draft: Trajectory, doubt: float) -> int | None:
    """Tokens of a response up to the one that sets it aside, that one included; None where the response stands.

    Args:
        draft: one response. What thinks stands; what has no readable mode is set aside at its end.
        doubt: nats; a token of a call less likely than exp(−doubt) is too much. Choice: tokens of calls only, as words
            around them may be put in many ways; and the least sure one, not a mean, so that a server can stop there.

    Raises:
        DataError: an episode of several responses.
    """
    if draft.parts:
        raise DataError(
            f"task {draft.task_id} was answered in {len(draft.parts)} responses: second thoughts are of single ones"
        )
    if draft.mode is Mode.THINK:
        return None
    if draft.mode is Mode.NONE:
        return draft.response_tokens
    unsure = draft.sampled & (draft.roles == Role.ACTION) & (draft.logprobs < -doubt)
    return int(unsure.argmax()) + 1 - draft.prompt_length if unsure.any() else None


def beginning_kept(draft: Trajectory, drawn: int, thought: Trajectory) -> int:
    """Tokens of a draft's calls, before its doubt, that the answer after the thought begins with.

    They were drawn once, in the draft. A server that is shown them behind the thought checks them all in one pass and
    draws on where they end; that changes no answer, as what the thought disagrees with is not kept.

    Args:
        drawn: what `drawn_until_doubt` says. Choice: of what has no readable mode nothing is kept.
    """
    if draft.mode is not Mode.NO_THINK:
        return 0
    sure = _from_first_call(draft)[: max(0, drawn - 1 - _before_first_call(draft))]
    answer = _from_first_call(thought)[: len(sure)]
    differs = np.append(sure[: len(answer)] != answer, True)
    return int(differs.argmax())


def _before_first_call(response: Trajectory) -> int:
    """Tokens of a response before its first call; all of them if it has none."""
    calls = response.roles[response.prompt_length :] == Role.ACTION
    return int(calls.argmax()) if calls.any() else len(calls)


def _from_first_call(response: Trajectory) -> NDArray[np.int64]:
    return response.response_ids[_before_first_call(response) :]


def thinks_surely(free: Trajectory, sure: float) -> bool:
    """Whether a free answer thinks, and found thinking likelier than `sure` where it chose, in [0, 1]."""
    return free.mode is Mode.THINK and free.choice_probs[0] > sure


@dataclass
class Allowance:
    """A mean number of tokens per task that is kept to, whatever tasks come: the doubt follows what was spent.

    It needs no labels, and forgets nothing: what is kept to is the mean of all tasks so far.

    tokens: per task. curve: what thresholds came to on other tasks, (doubt in nats, tokens per task) each: it says how
    far to turn the doubt, and may be off here. spent, tasks: so far.
    """

    tokens: float
    curve: Sequence[tuple[float, float]]
    spent: int = 0
    tasks: int = 0

    def doubt(self) -> float:
        """The smallest doubt in nats that is affordable now; the cheapest one where none is."""
        left = self.tokens * self.tasks - self.spent
        affordable = [doubt for doubt, tokens in self.curve if tokens <= self.tokens + left / AHEAD]
        return min(affordable) if affordable else min(self.curve, key=lambda point: point[1])[0]

    def spend(self, answers: Sequence[Trajectory]) -> None:
        """Take what these answers were."""
        self.spent += sum(answer.response_tokens for answer in answers)
        self.tasks += len(answers)


@dataclass(frozen=True)
class SecondThoughts:
    """A `Roll` like `roll`, but that free answers have second thoughts above a `doubt`: in nats, or an allowance.

    drafts: rolls out the first answers, told not to think; perhaps other weights. None: they are those of `roll`, free
        to think, and a thought stands.
    sure: with drafts by others, `roll` is asked first, and where it finds thinking likelier than that its thought
        stands, and nobody drafts. 1: it is not asked.

    Samplers draw everything to its end: of a draft the tokens after the doubt are dropped, as a server that streams
    would be stopped there; in the thought what is kept of the draft is marked as not drawn; and of an answer that is
    only asked whether to think nothing counts, as its choice is read off the prompt.
    """

    roll: Roll
    doubt: float | Allowance
    drafts: Roll | None = None
    sure: float = 1.0

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """Graded trajectories; those with second thoughts have two responses, and the reward of the second.

        With an allowance tasks are answered in their order, `EVERY` at a time.
        """
        if not isinstance(self.doubt, Allowance):
            return self._answer(tasks, modes, self.doubt, temperature, seed)
        found: list[Trajectory] = []
        for start in range(0, len(tasks), EVERY):
            part = tasks[start : start + EVERY]
            answers = self._answer(part, modes, self.doubt.doubt(), temperature, (seed, start))
            self.doubt.spend([answer for answer in answers if answer.forced is Mode.AUTO])
            found += answers
        for answer, (_, sample, _) in zip(found, numbered(tasks, modes), strict=True):
            answer.sample = sample
        return found

    def _answer(
        self, tasks: Sequence[Task], modes: Sequence[Mode], doubt: float, temperature: float, seed: object
    ) -> list[Trajectory]:
        found = self._first(tasks, modes, temperature, seed)
        for sample, mode in enumerate(modes):
            places = [i * len(modes) + sample for i in range(len(tasks))] if mode is Mode.AUTO else []
            ends = {place: drawn_until_doubt(found[place], doubt) for place in places}
            again = [place for place, end in ends.items() if end is not None]
            if again:
                asked = [tasks[place // len(modes)] for place in again]
                key = (seed, "second thoughts", sample)
                thoughts = self.roll(asked, [Mode.THINK], temperature=temperature, seed=key)
                for place, thought in zip(again, thoughts, strict=True):
                    found[place] = _both(found[place], ends[place] or 0, thought)
        return found

    def _first(
        self, tasks: Sequence[Task], modes: Sequence[Mode], temperature: float, seed: object
    ) -> list[Trajectory]:
        """Drafts where the mode is free and thinking not sure, and answers in the modes that are asked for."""
        if self.drafts is None:
            return self.roll(tasks, modes, temperature=temperature, seed=seed)
        columns = []
        for sample, mode in enumerate(modes):
            key, free = (seed, sample), mode is Mode.AUTO
            column: dict[int, Trajectory] = {}
            if self.sure < 1 or not free:
                answers = self.roll(tasks, [mode], temperature=temperature, seed=key)
                column = {i: t for i, t in enumerate(answers) if not free or thinks_surely(t, self.sure)}
            left = [i for i in range(len(tasks)) if i not in column]
            if left:
                asked = [tasks[i] for i in left]
                drafts = self.drafts(asked, [Mode.NO_THINK], temperature=temperature, seed=(key, "draft"))
                column |= dict(zip(left, drafts, strict=True))
            columns.append([column[i] for i in range(len(tasks))])
        found = [one for row in zip(*columns, strict=True) for one in row]
        return [
            replace(one, sample=sample, forced=mode)
            for one, (_, sample, mode) in zip(found, numbered(tasks, modes), strict=True)
        ]


def _both(draft: Trajectory, tokens: int, thought: Trajectory) -> Trajectory:
    """A draft of which so many tokens were drawn, and the thought that replaced it."""
    start, end = draft.prompt_length, draft.prompt_length + tokens
    kept = thought.prompt_length + _before_first_call(thought)
    again = {name: getattr(thought, name).copy() for name in PER_TOKEN}
    for name, nothing in (("sampled", False), ("logprobs", 0.0), ("entropies", np.nan)):
        again[name][kept : kept + beginning_kept(draft, tokens, thought)] = nothing
    arrays = {name: np.concatenate([getattr(draft, name)[:end], again[name]]) for name in PER_TOKEN}
    (first,), (second,) = draft.responses, thought.responses
    parts = (
        replace(first, end=end),
        Response(
            end + second.start, end + second.end, end,
            second.mode, second.forced, second.choice_probs, second.finish,
        ),
    )  # fmt: skip
    return replace(
        thought,
        sample=draft.sample,
        prompt_length=start,
        forced=draft.forced,
        choice_probs=draft.choice_probs,
        parts=parts,
        **arrays,
    )
