"""Second thoughts: a direct answer stands where the model was sure of it, else the task is answered in thinking.

Whether thinking pays can often not be seen in the question. It shows while the answer is written: in how likely the
model finds what it writes. So a response that does not think is a draft. It is set aside at the first token of a call
that the model is not sure of, and the task is answered again with thinking forced. What the draft was sure of is not
written twice: the answer after the thought begins with as much of it as it agrees with.

Training wears doubt down, in direct answers above all. So drafts may be written by other weights than thoughts: the
base as it was, which knows best what it does not know.

Ours, not a paper's. It needs no training, no other template and no server but one that tells log-probs; why it works
and where it stops is in docs/second-thoughts.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unbraid.chat.types import Mode
from unbraid.errors import DataError
from unbraid.rollout.scoring import Roll
from unbraid.rollout.trajectory import PER_TOKEN, Response, Trajectory
from unbraid.tasks.task import Task
from unbraid.tokens import Role


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


@dataclass(frozen=True)
class SecondThoughts:
    """A `Roll` like `roll`, but that free answers have second thoughts above a `doubt` in nats.

    drafts: rolls out the first answers, told not to think; perhaps other weights. None: they are those of `roll`, free
        to think, and a thought stands.

    Samplers draw everything to its end: of a draft the tokens after the doubt are dropped, as a server that streams
    would be stopped there; in the thought what is kept of the draft is marked as not drawn.
    """

    roll: Roll
    doubt: float
    drafts: Roll | None = None

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """Graded trajectories; those with second thoughts have two responses, and the reward of the second."""
        found = self._first(tasks, modes, temperature, seed)
        for sample, mode in enumerate(modes):
            places = [i * len(modes) + sample for i in range(len(tasks))] if mode is Mode.AUTO else []
            ends = {place: drawn_until_doubt(found[place], self.doubt) for place in places}
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
        """Drafts where the mode is free, and answers in the modes that are asked for."""
        if self.drafts is None:
            return self.roll(tasks, modes, temperature=temperature, seed=seed)
        columns = []
        for sample, mode in enumerate(modes):
            roll, how = (self.drafts, Mode.NO_THINK) if mode is Mode.AUTO else (self.roll, mode)
            column = roll(tasks, [how], temperature=temperature, seed=(seed, sample))
            columns.append([replace(t, sample=t.sample * len(modes) + sample, forced=mode) for t in column])
        return [one for row in zip(*columns, strict=True) for one in row]


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
