"""The conflict world: two skills that ask for the same thing, for opposite things, or for anything in between.

A question names one of 16 fields and a number. It is looked up with one search and answered with what was found, and
every number has two *forms*, `e` and `c`: a hidden bit of the field decides which one the search must use. The answer
must use the same form on a share `rho` of the fields and the other form on the rest. So rho = 1 aligns the two skills,
rho = 0 opposes them, and nothing else changes: the same base, words, lengths and difficulty of either skill alone.

    <q> m? f3 n7 </q>
    <no_think> <search> f3 e7 </search>
    <information> n12 </information>
    <no_think> <answer> f3 c12 </answer> <eos>

A base writes both forms, half of the time each. Markers give tuning a direction to find: in pre-training `m+` asks
for form e everywhere and `m-` for form c; the tasks have `m?`, which says nothing.

There is exactly one right way to write the call and one to write the answer, so success can be computed instead of
sampled (`conflict_measure`). Everything is a function of the world's seed and rho.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from unbraid.lab.calls_world import Split, keyed_rng
from unbraid.lab.search_chat import STOP, observation_words
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Episode
from unbraid.tasks.reward import Reward
from unbraid.tasks.task import Task
from unbraid.tasks.tools import tool

FIELDS, NUMBERS = 16, 20
FORMS = ("e", "c")
"""The two forms of a number; a form is an index into it."""
UNSAID, MARKERS = "m?", ("m+", "m-")
"""The marker that says nothing, and those that ask for the form of the same index."""
NOTHING = "none"
"""What a search shows that asks for nothing that there is."""
CONFLICT_WORLD_VERSION = 1
"""Part of the name of a cached base: raise it with any change that makes older bases wrong."""
PER_FIELD = {Split.TRAIN: 10, Split.DEV: 5, Split.TEST: 5}
"""Numbers of every field in each split; no question is in two."""

WORDS = (
    *(UNSAID, *MARKERS, NOTHING),
    *(f"f{i}" for i in range(FIELDS)),
    *(f"n{i}" for i in range(NUMBERS)),
    *(f"{form}{i}" for form in FORMS for i in range(NUMBERS)),
)


@dataclass(frozen=True)
class Question:
    """A field and a number, what is found there, and the forms that the call and the answer must have."""

    field: int
    number: int
    found: int
    call_form: int
    answer_form: int

    @property
    def prompt(self) -> list[str]:
        """The words of the prompt."""
        return ["<q>", *self.text.split(), "</q>"]

    @property
    def text(self) -> str:
        return f"{UNSAID} f{self.field} n{self.number}"

    def written(self, call_form: int | None = None, answer_form: int | None = None) -> tuple[list[str], list[bool]]:
        """An episode after its prompt, and which of its words the model wrote; None takes the right form."""
        call_form = self.call_form if call_form is None else call_form
        answer_form = self.answer_form if answer_form is None else answer_form
        call = ["<no_think>", "<search>", f"f{self.field}", spelled(call_form, self.number), "</search>"]
        seen = observation_words(f"n{self.found}")
        answer = ["<no_think>", "<answer>", f"f{self.field}", spelled(answer_form, self.found), "</answer>", STOP]
        return [*call, *seen, *answer], [True] * len(call) + [False] * len(seen) + [True] * len(answer)

    def task(self, task_id: str) -> Task:
        """The question as every other task; what is needed to grade it is in `extra`."""
        return Task(
            id=task_id,
            messages=({"role": "user", "content": self.text},),
            level="same" if self.call_form == self.answer_form else "opposite",
            source="conflict-world",
            extra={
                "field": self.field,
                "number": self.number,
                "found": self.found,
                "call_form": self.call_form,
                "answer_form": self.answer_form,
            },
        )

    @classmethod
    def of(cls, task: Task) -> "Question":
        """The question that a task asks."""
        extra = task.extra
        return cls(extra["field"], extra["number"], extra["found"], extra["call_form"], extra["answer_form"])


def spelled(form: int, number: int) -> str:
    """The word for a number in a form."""
    return f"{FORMS[form]}{number}"


class Fields:
    """The hidden bits of a world at one rho.

    call_forms, answer_forms: of every field, indices into `FORMS`. Both forms are equally frequent in calls whatever
    rho is, among the fields that agree and among those that do not; the fields that agree at one rho agree at every
    higher one.

    Raises:
        ValueError: rho is no multiple of 1/8 in [0, 1]; fields agree in pairs, one of either form.
    """

    def __init__(self, world: int, rho: float):
        if not 0 <= rho <= 1 or (rho * FIELDS / 2) % 1:
            raise ValueError(f"rho is {rho}: give a multiple of {2 / FIELDS} between 0 and 1")
        self.world, self.rho = world, rho
        order = keyed_rng(world, "forms").permutation(FIELDS)
        self.call_forms, self.answer_forms = [0] * FIELDS, [0] * FIELDS
        for place, field in enumerate(order):
            self.call_forms[field] = place % 2
            self.answer_forms[field] = place % 2 if place < rho * FIELDS else 1 - place % 2

    @cached_property
    def found(self) -> list[list[int]]:
        """What is found for every field and number; the same at every rho."""
        return keyed_rng(self.world, "found").integers(NUMBERS, size=(FIELDS, NUMBERS)).tolist()

    def questions(self, split: Split) -> list[Question]:
        """All questions of a split, by field."""
        names = list(PER_FIELD)
        first = sum(PER_FIELD[name] for name in names[: names.index(split)])
        made = []
        for field in range(FIELDS):
            order = keyed_rng(self.world, "numbers", field).permutation(NUMBERS).tolist()
            for number in order[first : first + PER_FIELD[split]]:
                forms = self.call_forms[field], self.answer_forms[field]
                made.append(Question(field, number, self.found[field][number], *forms))
        return made


@lru_cache(maxsize=32)
def fields(world: int, rho: float) -> Fields:
    """The fields of a world, kept: every episode asks for them."""
    return Fields(world, rho)


class ConflictWorld(Environment):
    """The world as an environment: one tool, and a call and an answer that are each right or wrong.

    The search answers in whatever form it is asked: a wrong form costs the reward and nothing else, so that neither
    skill has to wait for the other to be learned.
    """

    def reset(self, task: Task) -> None:
        self.question = Question.of(task)

    @tool
    def search(self, query: str) -> str:
        """Look a number up.

        Args:
            query: the field, and the number in one of its forms
        """
        question = self.question
        known = {f"f{question.field} {spelled(form, question.number)}" for form in range(len(FORMS))}
        return f"n{question.found}" if query in known else NOTHING

    def score(self, episode: Episode) -> Reward:
        """1 for one right call and then the right answer, else 0; the parts say how often each was right."""
        question = self.question
        queries = [str(result.call.arguments.get("query", "")) for result in episode.results]
        called = queries == [f"f{question.field} {spelled(question.call_form, question.number)}"]
        answered = episode.answer == f"f{question.field} {spelled(question.answer_form, question.found)}"
        correct = episode.well_formed and called and answered
        reason = "right" if correct else self._fault(episode, called, answered)
        return Reward(float(correct), {"call": float(called), "answer": float(answered)}, correct, reason)

    def _fault(self, episode: Episode, called: bool, answered: bool) -> str:
        if episode.problem is not None:
            return episode.problem.value
        if not episode.answer:
            return f"no_answer: {episode.ended.value}"
        return "wrong: " + " and ".join(name for name, right in (("call", called), ("answer", answered)) if not right)


def train_set(world: int, rho: float) -> list[Task]:
    """All training questions: a source for recipes."""
    return tasks_of(world, rho, Split.TRAIN)


def held_out(world: int, rho: float, split: str) -> list[Task]:
    """The `dev` questions (for choosing) or the `test` questions (for results): a source for recipes."""
    return tasks_of(world, rho, Split(split))


def tasks_of(world: int, rho: float, split: Split) -> list[Task]:
    """The questions of a split as tasks."""
    return numbered(fields(world, float(rho)).questions(split), f"{split}-{world}")


def numbered(questions: Sequence[Question], name: str) -> list[Task]:
    """Questions as tasks with ids."""
    return [question.task(f"{name}-{i}") for i, question in enumerate(questions)]
