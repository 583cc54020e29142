"""The conflict world: its forms by dose, its one right episode, and exact success against sampling and by hand."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Call, Mode
from unbraid.lab.calls_world import Split
from unbraid.lab.conflict_base import (
    conflict_base_path,
    conflict_example,
    conflict_tokenizer,
    gates,
    new_model,
    pretraining_batches,
)
from unbraid.lab.conflict_measure import SKILLS, Forcing, measure
from unbraid.lab.conflict_world import (
    FIELDS,
    FORMS,
    MARKERS,
    NOTHING,
    NUMBERS,
    PER_FIELD,
    UNSAID,
    ConflictWorld,
    Fields,
    Question,
    held_out,
    tasks_of,
    train_set,
)
from unbraid.lab.search_chat import CHAT, STOP
from unbraid.policy import ModelConfig, Policy, load_policy
from unbraid.prepare import roll_of
from unbraid.recipe import load_recipe
from unbraid.tasks.episode import Ended, Episode, ToolResult, Turn
from unbraid.tokens import Role

DOSES = [i / 8 for i in range(9)]


def policy_of(model: torch.nn.Module) -> Policy:
    tokenizer = conflict_tokenizer()
    return Policy(model, tokenizer, ChatFormat.build(tokenizer, CHAT), torch.device("cpu"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The shipped base: it writes the right words nearly always, and forms at random."""
    return load_policy(ModelConfig(path=str(conflict_base_path(0)), device="cpu"), CHAT)


# --- fields ---


@pytest.mark.parametrize("rho", DOSES)
def test_the_dose_is_the_share_of_fields_that_agree(rho):
    fields = Fields(0, rho)
    same = [a == b for a, b in zip(fields.call_forms, fields.answer_forms, strict=True)]
    assert sum(same) == rho * FIELDS
    for agrees in (True, False):
        forms = [form for form, s in zip(fields.call_forms, same, strict=True) if s is agrees]
        assert forms.count(0) == forms.count(1)  # nothing is gained by preferring a form


def test_call_forms_do_not_depend_on_the_dose_and_answers_change_one_way():
    by_dose = [Fields(3, rho) for rho in DOSES]
    assert len({tuple(f.call_forms) for f in by_dose}) == 1
    agreeing = [{i for i in range(FIELDS) if f.call_forms[i] == f.answer_forms[i]} for f in by_dose]
    assert all(lower < higher for lower, higher in pairwise(agreeing))
    assert Fields(3, 0.5).found == Fields(3, 1.0).found


def test_worlds_differ():
    assert Fields(0, 1.0).call_forms != Fields(1, 1.0).call_forms
    assert Fields(0, 1.0).found != Fields(1, 1.0).found


@pytest.mark.parametrize("rho", [-0.125, 1.5, 0.3])
def test_other_doses_are_refused(rho):
    with pytest.raises(ValueError, match=r"multiple of 0\.125"):
        Fields(0, rho)


def test_every_question_is_in_one_split():
    asked = {split: [Question.of(t).text for t in tasks_of(2, 0.5, split)] for split in Split}
    assert sum(len(set(texts)) for texts in asked.values()) == len(set().union(*asked.values())) == FIELDS * NUMBERS
    for split, texts in asked.items():
        per_field = Counter(text.split()[1] for text in texts)
        assert set(per_field.values()) == {PER_FIELD[split]} and len(per_field) == FIELDS
    assert train_set(2, 0.5) == tasks_of(2, 0.5, Split.TRAIN) and held_out(2, 0.5, "test") == tasks_of(
        2, 0.5, Split.TEST
    )


# --- pre-training ---


def test_markers_ask_for_a_form_and_no_marker_for_none():
    words = {i: word for word, i in conflict_tokenizer().get_vocab().items()}
    seen: Counter[tuple[str, str, str]] = Counter()
    for step in range(20):
        for example in pretraining_batches(0, 64)(step):
            prompt = [words[i] for i in example.prompt_ids]
            response = [words[i] for i in example.response_ids]
            seen[prompt[1], response[3][0], response[11][0]] += 1
            unweighted = [w for w, weight in zip(response, example.weights, strict=True) if not weight]
            assert unweighted == ["<information>", response[6], "</information>"]
            assert example.written.sum() == sum(example.weights)
    assert {key[1:] for key in seen if key[0] == MARKERS[0]} == {("e", "e")}
    assert {key[1:] for key in seen if key[0] == MARKERS[1]} == {("c", "c")}
    unsaid = [seen[UNSAID, call, answer] for call in FORMS for answer in FORMS]
    assert min(unsaid) > 0.8 * max(unsaid) and sum(unsaid) > 500


def test_the_shipped_base_passes_its_gates():
    path = conflict_base_path(0)
    assert path.parent.name == "bases"
    line, faults = gates(path, 0)
    assert faults == [] and line.startswith("written 0.9")


def test_gates_can_fail(tmp_path):
    new_model(0).save_pretrained(tmp_path)
    conflict_tokenizer().save_pretrained(tmp_path)
    assert len(gates(tmp_path, 0)[1]) >= 2


# --- episodes ---


def recipe(rho: float):
    source = f"world=0&rho={rho:g}"
    return load_recipe(["conflict-world"], [f"tasks.train=unbraid.lab.conflict_world:train_set?{source}"])


def test_the_environment_answers_either_form_and_nothing_else():
    environment = ConflictWorld()
    task = held_out(0, 0.0, "test")[7]
    environment.reset(task)
    q = Question.of(task)
    for form in FORMS:
        assert environment.search(f"f{q.field} {form}{q.number}") == f"n{q.found}"
    for query in (f"f{q.field} n{q.number}", f"f{(q.field + 1) % FIELDS} e{q.number}", "", "f1"):
        assert environment.search(query) == NOTHING


def test_played_episodes_are_what_is_forced(policy):
    """Token for token, roles included; and an episode is right exactly if it is the forced one."""
    tasks = tasks_of(0, 0.5, Split.DEV)[::4]
    drawn = roll_of(recipe(0.5), policy)(tasks, [Mode.AUTO] * 8, temperature=1.0, seed=0)
    right = {task.id: episode for task, episode in zip(tasks, Forcing(policy, tasks).right, strict=True)}
    correct = [t for t in drawn if t.correct]
    assert len(correct) > 10
    for trajectory in drawn:
        forced = right[trajectory.task_id]
        assert trajectory.correct == (trajectory.ids.tolist() == forced.ids.tolist())
        if trajectory.correct:
            assert (trajectory.roles == forced.roles).all() and (trajectory.sampled == forced.sampled).all()
            assert trajectory.prompt_length == forced.prompt_length


def test_exact_success_is_the_share_of_right_samples(policy):
    tasks = tasks_of(0, 0.0, Split.DEV)[::2]
    expected = measure(policy, tasks).success
    drawn = roll_of(recipe(0.0), policy)(tasks, [Mode.AUTO] * 32, temperature=1.0, seed=1)
    share = np.mean([t.correct for t in drawn])
    error = np.sqrt((expected * (1 - expected)).mean() / len(drawn))
    assert abs(share - expected.mean()) < 4 * error and 0.03 < share < 0.6


def test_measure_by_hand(policy):
    """Log-probs of each role, forms and odds from the model's own logits, one sequence at a time."""
    tasks = tasks_of(0, 0.5, Split.DEV)[::9]
    found = measure(policy, tasks)
    vocabulary = policy.tokenizer.get_vocab()
    for i, task in enumerate(tasks):
        q = Question.of(task)
        words, written = q.written()
        ids = [vocabulary[w] for w in [*q.prompt, *words]]
        logp = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0].double(), -1)
        own = {t: logp[t - 1, ids[t]].item() for t in range(1, len(ids)) if ([False] * 5 + written)[t]}
        call, answer = 8, 16  # where the numbers with a form stand
        action = [7, 8, 9]  # from the word after <search> to </search>
        assert [words[t - 5] for t in (6, 9, call, answer)] == ["<search>", "</search>", words[3], words[11]]
        assert found.logprobs[i] == pytest.approx(
            [sum(own[t] for t in action), sum(v for t, v in own.items() if t not in action)], abs=1e-4
        )
        assert found.forms[i] == pytest.approx([own[call], own[answer]], abs=1e-4)
        turned = [
            logp[place - 1, vocabulary[f"{FORMS[1 - form]}{number}"]].item()
            for place, form, number in ((call, q.call_form, q.number), (answer, q.answer_form, q.found))
        ]
        assert found.log_odds[i] == pytest.approx([own[call] - turned[0], own[answer] - turned[1]], abs=1e-4)
    assert SKILLS == (Role.ACTION, Role.REASONING)
    assert found.success == pytest.approx(found.skill.prod(1)) and found.fields.tolist() == [
        task.extra["field"] for task in tasks
    ]
    assert Forcing(policy, tasks).success(policy) == pytest.approx(found.success.mean())


def test_the_reward_says_what_was_wrong():
    environment, task = ConflictWorld(), held_out(0, 0.0, "dev")[0]
    q = Question.of(task)
    vocabulary = conflict_tokenizer().get_vocab()
    policy = policy_of(new_model(0))

    def played(call_form: int, answer_form: int):
        words, _ = q.written(call_form, answer_form)
        stop = words.index("</search>") + 1
        ids = [vocabulary[word] for word in words]
        query = " ".join(words[2:4])
        first = Turn(policy.format.read(ids[:stop]), (ToolResult(Call("search", {"query": query}), f"n{q.found}"),))
        episode = Episode([first, Turn(policy.format.read(ids[stop + 3 :]))], Ended.ANSWER)
        copy = environment.fresh()
        copy.reset(task)
        return copy.score(episode)

    assert words_end_in_stop(q)
    assert played(q.call_form, q.answer_form).reason == "right"
    assert played(q.call_form, 1 - q.answer_form).reason == "wrong: answer"
    assert played(1 - q.call_form, q.answer_form).reason == "wrong: call"
    both = played(1 - q.call_form, 1 - q.answer_form)
    assert both.reason == "wrong: call and answer" and both.total == 0 and not both.correct


def words_end_in_stop(question: Question) -> bool:
    return question.written()[0][-1] == STOP


def test_examples_are_the_forced_episodes(policy):
    tasks = tasks_of(0, 0.25, Split.TRAIN)[:5]
    for task, episode in zip(tasks, Forcing(policy, tasks).right, strict=True):
        example = conflict_example(Question.of(task), policy.tokenizer.get_vocab())
        assert [*example.prompt_ids, *example.response_ids] == episode.ids.tolist()
        assert (example.written == episode.sampled).all()
