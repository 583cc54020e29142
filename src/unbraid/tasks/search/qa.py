"""Search QA: answer a question by looking things up."""

from collections.abc import Sequence
from typing import Literal

from unbraid.errors import EnvError
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Episode, ToolFault
from unbraid.tasks.reward import Reward
from unbraid.tasks.search.answers import exact_match, f1, final_answer, mentions
from unbraid.tasks.search.index import Hit, Retriever, open_index
from unbraid.tasks.search.remote import RemoteRetriever
from unbraid.tasks.task import Task
from unbraid.tasks.tools import tool

RewardName = Literal["em", "f1", "em_format"]


class SearchQA(Environment):
    """One tool, `search`, and questions with gold answers in `task.extra["answers"]`.

    Args:
        corpus: what to search in, a folder or file (`corpus.read_corpus`); or `url`: a server that speaks Search-R1's
            `/retrieve` (`remote.RemoteRetriever`).
        topk: documents per search. Source: 3 in Search-R1 (arXiv 2503.09516).
        max_chars: of one document's text, at most; the rest is cut off. Choice: longer than nearly all passages of
            Wikipedia benchmarks, and no document can take the place of the others.
        reward: the reward's total, see `score`. cache: folder of cached indexes, empty = the usual one.
        timeout: seconds that a server may take. retries: how often one that does not answer is asked again, after half
            a second, one, two, and so on: 3 wait out 3.5 seconds, 7 a minute.

    Raises:
        EnvError: if not exactly one of `corpus` and `url` is given, or a value is none of those that it may be.
        DataError: if the corpus cannot be read. MissingExtraError: without bm25s.
    """

    def __init__(
        self,
        corpus: str = "",
        url: str = "",
        topk: int = 3,
        max_chars: int = 1000,
        reward: RewardName = "em",
        cache: str = "",
        timeout: float = 30.0,
        retries: int = 3,
    ):
        if bool(corpus) == bool(url):
            raise EnvError("SearchQA: give either corpus (a folder or a file) or url (a retriever's address)")
        if reward not in ("em", "f1", "em_format"):
            raise EnvError(f"SearchQA: reward '{reward}' is unknown; use em, f1 or em_format")
        if topk < 1 or max_chars < 1 or retries < 0:
            raise EnvError("SearchQA: topk and max_chars count from 1, retries from 0")
        self.topk, self.max_chars, self.reward = topk, max_chars, reward
        self.retriever: Retriever = (
            RemoteRetriever(url, timeout, retries) if url else open_index(corpus, cache=cache or None)
        )
        self._answers: list[str] = []
        self._titles: list[str] = []

    def reset(self, task: Task) -> None:
        """Take the gold answers of `task`, and the titles of its gold documents where it has them."""
        answers, titles = task.extra.get("answers"), task.extra.get("titles", [])
        if not answers or not _texts(answers) or not _texts(titles):
            raise EnvError(f"task {task.id}: SearchQA needs extra['answers'], a list of texts; 'titles' is one too")
        self._answers, self._titles = list(answers), list(titles)

    @tool
    def search(self, query: str) -> str:
        """Look something up in a collection of documents. Returns the passages that fit best.

        Args:
            query: A few words that the passage should contain.
        """
        return show(self.retriever.search(query, self.topk), self.max_chars)

    def score(self, episode: Episode) -> Reward:
        """`em`: 1 for an answer that matches a gold one exactly, else 0, as Search-R1 publishes it. `f1`: word overlap.

        `em_format` adds what Search-R1's follow-up (arXiv 2505.15117) pays for form and retrieval: 1 for a right
        answer, 0.2 less if a response was malformed; else 0.2 for a well-formed episode, 0.1 more if a gold answer
        stood in what was found; 0.1 for a wrong answer in a malformed episode; 0 without an answer.
        Choice: the paper tells form by a state machine over its tags; ours is `Episode.well_formed`.

        Parts: `em`, `f1`, `hit` (a gold answer occurs in what was found) and, where the task names gold documents,
        `titles` (share of them found). An answer is correct if it matches exactly, whatever the reward.
        """
        answer = final_answer(episode.answer)
        # Only what documents say: an error may repeat the query, and with it the model's guess.
        whole = (result for result in episode.results if result.fault in (None, ToolFault.CUT))
        found = "\n".join(result.text for result in whole)
        right = exact_match(answer, self._answers)
        parts = {
            "em": float(right),
            "f1": f1(answer, self._answers),
            "hit": float(mentions(found, self._answers)),
        }
        if self._titles:
            parts["titles"] = sum(f"(Title: {title})" in found for title in self._titles) / len(self._titles)
        if self.reward == "em_format":
            total = _with_format(right, bool(answer), episode.well_formed, parts["hit"] > 0)
        else:
            total = parts[self.reward]
        return Reward(total, parts, right, self._reason(episode, answer, right))

    def _reason(self, episode: Episode, answer: str, right: bool) -> str:
        if right:
            return "right"
        if not answer:
            return f"no answer ({episode.ended.value})"
        gold = ", ".join(repr(one) for one in self._answers[:3]) + (", …" if len(self._answers) > 3 else "")
        return f"wrong: {answer[:80]!r} is not among {gold}"


def show(hits: Sequence[Hit], max_chars: int) -> str:
    """What the model sees of `hits`, one line a document. Source: the form of Search-R1, `Doc 1(Title: …) …`."""
    if not hits:
        return "No document matches."
    return "\n".join(
        f"Doc {rank}(Title: {hit.title}) {_cut(' '.join(hit.text.split()), max_chars)}"
        for rank, hit in enumerate(hits, 1)
    )


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _with_format(right: bool, answered: bool, well_formed: bool, hit: bool) -> float:
    if right:
        return 1.0 if well_formed else 0.8
    if well_formed:
        return 0.3 if hit else 0.2
    return 0.1 if answered else 0.0
