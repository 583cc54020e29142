"""Tries from a local model in a forced mode."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from unbraid.chat.types import Mode, Reading
from unbraid.errors import ChatError
from unbraid.label.tries import Failure, Spent, Try, Want
from unbraid.policy import Policy
from unbraid.rollout import LocalSampler, Request
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.reward import RewardFunction

REFUSED = "the chat template refuses it"


class LocalTries:
    """Draws from a policy in batches, long prompts first: what does not fit into memory shows at once.

    Batches are cut from the list of what is wanted; a stopped labelling goes on at the border of one and ends as an
    unbroken one would, bit for bit (CPU, same thread count).

    Args:
        policy: loads the policy; called when tries are drawn, and let go afterwards: two models are never held at once.
        identity: names the model and what it is sampled with.
        max_batch: most responses decoded together.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        identity: Mapping[str, Any],
        reward: RewardFunction,
        *,
        temperature: float,
        max_new_tokens: int,
        max_batch: int,
        seed: int = 0,
    ):
        self.identity: Mapping[str, Any] = {
            **identity, "temperature": temperature, "max_new_tokens": max_new_tokens,
            "max_batch": max_batch, "seed": seed,
        }  # fmt: skip
        self._load, self._reward = policy, reward
        self._temperature, self._budget, self._batch, self._seed = temperature, max_new_tokens, max_batch, seed

    def draw(self, wants: Sequence[Want], spent: Spent) -> Iterator[Sequence[Try | Failure]]:
        """A part for every batch. A task that the template refuses gives wrong tries of no tokens."""
        policy = self._load()
        requests: list[tuple[Want, Request]] = []
        refused: list[Try] = []
        first, problem = "", None
        prompts: dict[str, tuple[int, ...]] = {}
        for want in wants:
            task = want.task
            try:
                if task.id not in prompts:
                    prompts[task.id] = tuple(policy.format.prompt_ids(task.messages, task.tools))
                requests.append((want, Request(task, prompts[task.id], want.number, want.mode)))
            except Exception as fault:  # templates refuse conversations in their own ways, with errors of any kind
                problem, first = fault, first or task.id
                refused.append(nothing(want, REFUSED))
        if not requests and problem is not None:
            raise ChatError(
                f"no prompt can be rendered; task {first}: {problem}: label with another model"
            ) from problem
        if refused:
            yield refused
        # Stable: the tries of a task stay together, and what is left after a stop is cut where the whole would be.
        requests.sort(key=lambda pair: -len(pair[1].prompt_ids))
        sampler = LocalSampler(policy, self._batch)
        for start in range(0, len(requests), self._batch):
            part = requests[start : start + self._batch]
            drawn = sampler.sample(
                [request for _, request in part],
                temperature=self._temperature,
                max_new_tokens=self._budget,
                seed=(self._seed, "label", part[0][0].mode),
            )
            yield [self._judge(policy, want, one) for (want, _), one in zip(part, drawn, strict=True)]

    def _judge(self, policy: Policy, want: Want, drawn: Trajectory) -> Try:
        reading = policy.format.read(drawn.response_ids.tolist(), truncated=drawn.finish is Finish.LENGTH)
        return judge(self._reward, want, reading, drawn.response_tokens, drawn.prompt_length)


def judge(
    reward: RewardFunction, want: Want, reading: Reading, tokens: int, prompt_tokens: int, requests: int = 0
) -> Try:
    """A try of what was read; raises RewardError if a user's reward function fails."""
    worth = reward(want.task, reading)
    return Try(
        want.task.id, want.mode, want.number, reading, worth.correct, worth.total, worth.reason,
        tokens, prompt_tokens, requests,
    )  # fmt: skip


def nothing(want: Want, reason: str, requests: int = 0) -> Try:
    """A wrong try of no tokens: the sampler will not take this task, however often it is asked."""
    reading = Reading(Mode.NONE, "", (), "", ())
    return Try(want.task.id, want.mode, want.number, reading, False, 0.0, reason, 0, 0, requests)


def weights_mark(path: str) -> str:
    """Changes when the weights in a folder do; "" for a name on a hub.

    Choice: sizes and slices spread over every weight file, because hashing gigabytes takes longer than it is worth.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ""
    digest = sha256()
    for file in sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pt", ".json")):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as data:
            for slice_ in range(64):
                data.seek(size * slice_ // 64)
                digest.update(data.read(4096))
    return digest.hexdigest()[:16]
