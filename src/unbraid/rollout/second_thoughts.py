"""Second thoughts: a direct answer stands where the model was sure of it, else the task is answered in thinking.

Whether thinking pays can often not be seen in the question. It shows while the answer is written: in how likely the
model finds what it writes. So a response that does not think is a draft. It is set aside at the first token of a call
that the model is not sure of, and the task is answered again with thinking forced. Both are paid for.

Ours, not a paper's. It needs no training, no other template and no server but one that tells log-probs; why it works
and where it stops is in docs/second-thoughts.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

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


@dataclass(frozen=True)
class SecondThoughts:
    """A `Roll` like `roll`, but that free answers have second thoughts above a `doubt` in nats.

    Samplers draw a draft to its end: its tokens after the doubt are neither kept nor counted, as a server that
    streams would be stopped there.
    """

    roll: Roll
    doubt: float

    def __call__(
        self, tasks: Sequence[Task], modes: Sequence[Mode], *, temperature: float, seed: object
    ) -> list[Trajectory]:
        """Graded trajectories; those with second thoughts have two responses, and the reward of the second."""
        found = self.roll(tasks, modes, temperature=temperature, seed=seed)
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


def _both(draft: Trajectory, tokens: int, thought: Trajectory) -> Trajectory:
    """A draft of which so many tokens were drawn, and the thought that replaced it."""
    start, end = draft.prompt_length, draft.prompt_length + tokens
    arrays = {
        name: np.concatenate([getattr(draft, name)[:end], getattr(thought, name)])
        for name in PER_TOKEN
    }  # fmt: skip
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
