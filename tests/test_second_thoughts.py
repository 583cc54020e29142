"""Second thoughts: what sets a draft aside, that played for real they are what the curve says, what is kept to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.chat import Mode
from unbraid.errors import DataError
from unbraid.evaluate.second_thoughts import (
    Curve,
    curves,
    outcomes,
    points,
)
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import CallsWorld, Split
from unbraid.lab.measure import load_start
from unbraid.lab.starts import WARMUP, Start, start_examples
from unbraid.learn.log import read_rollouts, write_rollouts
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedTrainer
from unbraid.rollout.local import LocalSampler
from unbraid.rollout.scoring import SingleStep, numbered
from unbraid.rollout.second_thoughts import (
    AHEAD,
    EVERY,
    Allowance,
    SecondThoughts,
    beginning_kept,
    drawn_until_doubt,
    thinks_surely,
)
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tasks.reward import RewardConfig, reward_function
from unbraid.tokens import Role

PROMPT = 3


def draft(logprobs: list[float], roles: list[Role], mode: Mode = Mode.NO_THINK, sampled: list[bool] | None = None):
    """A response after a prompt of three tokens."""
    n = len(logprobs)
    drawn = [True] * n if sampled is None else sampled
    return Trajectory(
        task_id="a",
        sample=0,
        ids=np.arange(PROMPT + n),
        prompt_length=PROMPT,
        roles=np.array([Role.PROMPT] * PROMPT + roles, dtype=np.uint8),
        sampled=np.array([False] * PROMPT + drawn),
        logprobs=np.array([0.0] * PROMPT + logprobs, dtype=np.float32),
        entropies=np.full(PROMPT + n, np.nan, dtype=np.float32),
        choice_probs=(0.2, 0.8),
        mode=mode,
        forced=Mode.AUTO,
        finish=Finish.STOP,
    )


TOKEN = st.tuples(
    st.floats(-5, 0, width=32), st.sampled_from([Role.REASONING, Role.ACTION]), st.booleans()
)  # fmt: skip


@given(st.lists(TOKEN, min_size=1, max_size=12), st.floats(0.001, 4.0))
def test_a_draft_ends_at_the_first_unsure_token_of_a_call(tokens, doubt):
    logprobs, roles, sampled = (list(column) for column in zip(*tokens, strict=True))
    expected = None
    for number, (logprob, role, drawn) in enumerate(tokens, start=1):
        if drawn and role is Role.ACTION and -np.float32(logprob) > np.float32(doubt):
            expected = number
            break
    assert drawn_until_doubt(draft(logprobs, roles, sampled=sampled), doubt) == expected


@given(st.data(), st.lists(TOKEN, min_size=1, max_size=12), st.floats(0.001, 4.0))
def test_what_is_kept_is_what_answers_agree_in(data, tokens, doubt):
    logprobs, roles, sampled = (list(column) for column in zip(*tokens, strict=True))
    first = draft(logprobs, roles, sampled=sampled)
    first.ids[PROMPT:] = data.draw(st.lists(st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)))
    answer = data.draw(st.lists(st.integers(0, 1), max_size=12))
    thought = draft([0.0] * (2 + len(answer)), [Role.REASONING] * 2 + [Role.ACTION] * len(answer), Mode.THINK)
    thought.ids[PROMPT + 2 :] = answer
    drawn = drawn_until_doubt(first, doubt) or len(tokens)
    begins = roles.index(Role.ACTION) if Role.ACTION in roles else len(roles)
    expected = 0
    for mine, theirs in zip(first.ids[PROMPT + begins : PROMPT + drawn - 1], answer, strict=False):
        if mine != theirs:
            break
        expected += 1
    assert beginning_kept(first, drawn, thought) == expected
    assert beginning_kept(replace(first, mode=Mode.NONE), drawn, thought) == 0


def test_what_was_given_is_not_written():
    one = draft([0.0] * 6, [Role.ACTION] * 6, sampled=[False, False, True, False, False, True])
    assert one.response_tokens == 4
    assert draft([0.0] * 3, [Role.ACTION] * 3, sampled=[False] * 3).response_tokens == 3


def test_thoughts_stand_and_what_cannot_be_read_does_not():
    unsure = [-3.0, -3.0], [Role.ACTION, Role.ACTION]
    assert drawn_until_doubt(draft(*unsure, mode=Mode.THINK), 0.1) is None
    assert drawn_until_doubt(draft(*unsure), float("inf")) is None
    assert drawn_until_doubt(draft(*unsure, mode=Mode.NONE), float("inf")) == 2


@pytest.fixture(scope="module")
def world() -> CallsWorld:
    return CallsWorld(0)


@pytest.fixture(scope="module")
def roll(world) -> SingleStep:
    """A start of the calls world that thinks on some questions, and answers others directly, rightly or wrongly."""
    policy = load_start(base_path(0))
    config = WARMUP.model_copy(update={"steps": 15})
    examples = start_examples(world, policy.format, Start.CLEAR, config.steps * config.batch_examples)
    SupervisedTrainer(policy.model, config, epochs(examples, config.batch_examples, 0)).run(None)
    return SingleStep(LocalSampler(policy), policy.format, reward_function(RewardConfig()), 96)


@pytest.fixture(scope="module")
def tasks(world):
    return world.evaluation_tasks(Split.DEV, 6)


@pytest.fixture(scope="module")
def answers(roll, tasks) -> tuple[list[Trajectory], list[Trajectory]]:
    free, thoughts = (roll(tasks, [mode], temperature=0.0, seed=0) for mode in (Mode.AUTO, Mode.THINK))
    return free, thoughts


@pytest.mark.parametrize("doubt", [0.003, 0.1, 0.5, float("inf")])
def test_played_for_real_it_is_what_the_curve_says(roll, tasks, answers, doubt):
    free, thoughts = answers
    played = SecondThoughts(roll, doubt)(tasks, [Mode.AUTO], temperature=0.0, seed=0)
    right, tokens, again = (values[0] for values in outcomes(free, thoughts, [doubt]))
    assert [t.correct for t in played] == right.tolist()
    assert [t.response_tokens for t in played] == tokens.tolist()
    assert [len(t.parts) == 2 for t in played] == again.tolist()
    (point,) = points(free, thoughts, [doubt])
    assert point.accuracy == pytest.approx(np.mean([t.correct for t in played]))
    assert point.think == pytest.approx(np.mean([t.mode is Mode.THINK for t in played]))


def test_the_thresholds_differ_in_what_they_do(answers):
    found = points(*answers)
    assert len({point.again for point in found}) > 3 and found[0].again > found[-1].again
    assert [point.again for point in found] == sorted((point.again for point in found), reverse=True)


def test_a_draft_and_its_thought_are_both_there_token_for_token(roll, tasks, answers, tmp_path):
    played = SecondThoughts(roll, 0.05)(tasks, [Mode.AUTO], temperature=0.0, seed=0)
    both = [(i, t) for i, t in enumerate(played) if t.parts]
    assert both and any(t.response_tokens < len(t.response_ids) - t.parts[1].start + t.parts[0].end for _, t in both)
    for i, t in both:
        first, second = t.split()
        free, thought = answers[0][i], answers[1][i]
        assert free.ids[: len(first.ids)].tolist() == first.ids.tolist() and first.mode is second.mode is Mode.THINK
        assert second.ids.tolist() == thought.ids.tolist() and second.roles.tolist() == thought.roles.tolist()
        given = beginning_kept(free, len(first.ids) - first.prompt_length, thought)
        assert t.response_tokens == first.response_tokens + thought.response_tokens - given
        assert second.sampled.sum() == thought.sampled.sum() - given
        assert not second.logprobs[~second.sampled].any() and np.isnan(second.entropies[~second.sampled]).all()
        assert [part.mode for part in t.parts] == [Mode.NO_THINK, Mode.THINK]
        assert [part.forced for part in t.parts] == [Mode.AUTO, Mode.THINK] and t.forced is Mode.AUTO
        assert t.reward == thought.reward and t.choice_probs == free.choice_probs
    write_rollouts(tmp_path / "played.parquet", played)
    read = read_rollouts(tmp_path / "played.parquet")
    assert [t.parts for t in read] == [t.parts for t in played]


def test_forced_modes_have_none_and_samples_keep_their_places(roll, tasks):
    modes = [Mode.AUTO, Mode.NO_THINK, Mode.AUTO]
    played = SecondThoughts(roll, 0.01)(tasks[-6:], modes, temperature=1.0, seed=3)
    assert [t.task_id for t in played] == [task.id for task in tasks[-6:] for _ in modes]
    assert [t.sample for t in played] == [0, 1, 2] * 6
    assert all(t.mode is not Mode.THINK and not t.parts for t in played[1::3])
    assert any(t.parts for t in played[0::3]) and any(t.parts for t in played[2::3])


@pytest.fixture(scope="module")
def base_roll() -> SingleStep:
    policy = load_start(base_path(0))
    return SingleStep(LocalSampler(policy), policy.format, reward_function(RewardConfig()), 96)


@pytest.mark.parametrize("doubt", [0.01, 0.3])
def test_others_may_write_drafts(roll, base_roll, tasks, answers, doubt):
    drafts = base_roll(tasks, [Mode.NO_THINK], temperature=0.0, seed=0)
    played = SecondThoughts(roll, doubt, base_roll)(tasks, [Mode.AUTO], temperature=0.0, seed=0)
    right, tokens, again = (values[0] for values in outcomes(drafts, answers[1], [doubt]))
    assert [t.correct for t in played] == right.tolist() and [t.response_tokens for t in played] == tokens.tolist()
    assert 0 < again.sum() < len(tasks) and {t.forced for t in played} == {Mode.AUTO}
    for t, one, anew in zip(played, drafts, again, strict=True):
        assert anew or t.ids.tolist() == one.ids.tolist()


def test_others_draft_free_answers_only(roll, base_roll, tasks):
    modes = [Mode.AUTO, Mode.THINK, Mode.AUTO]
    played = SecondThoughts(roll, float("inf"), base_roll)([*tasks[:4], tasks[0]], modes, temperature=1.0, seed=3)
    assert [(t.task_id, t.sample) for t in played[-3:]] == [(tasks[0].id, 3), (tasks[0].id, 4), (tasks[0].id, 5)]
    assert [t.forced for t in played] == modes * 5
    assert all(t.mode is not Mode.THINK for t in (*played[0::3], *played[2::3]))
    assert all(t.mode is Mode.THINK for t in played[1::3])


@given(st.lists(TOKEN, min_size=1, max_size=12), st.lists(st.floats(0.001, 4.0), min_size=1, max_size=9))
def test_all_thresholds_at_once_are_each_by_itself(tokens, doubts):
    logprobs, roles, sampled = (list(column) for column in zip(*tokens, strict=True))
    first = draft(logprobs, roles, sampled=sampled)
    thought = draft([0.0] * 5, [Role.REASONING] * 2 + [Role.ACTION] * 3, Mode.THINK)
    thought.correct = True
    doubts = sorted([*doubts, *(-x for x in logprobs if x < 0), float("inf")])
    together = outcomes([first], [thought], doubts)
    for row, doubt in enumerate(doubts):
        drawn = drawn_until_doubt(first, doubt)
        alone = (
            (False, first.response_tokens, False)
            if drawn is None
            else (True, drawn + thought.response_tokens - beginning_kept(first, drawn, thought), True)
        )
        assert tuple(values[row, 0] for values in together) == alone
    if doubts[0] < doubts[-1]:
        with pytest.raises(DataError, match="sort them"):
            outcomes([first], [thought], doubts[::-1])


@pytest.mark.parametrize("sure", [0.0, 0.6, 0.9, 1.0])
def test_where_it_is_sure_of_thinking_nothing_is_drafted(roll, base_roll, tasks, answers, sure):
    free, thoughts = answers
    asked = []

    def drafting(tasks, modes, *, temperature, seed):
        asked.extend(task.id for task in tasks)
        return base_roll(tasks, modes, temperature=temperature, seed=seed)

    played = SecondThoughts(roll, 0.02, drafting, sure)(tasks, [Mode.AUTO], temperature=0.0, seed=0)
    at_once = [t.mode is Mode.THINK and t.choice_probs[0] > sure for t in free]
    assert asked == [t.task_id for t, thinks in zip(free, at_once, strict=True) if not thinks]
    drafts = base_roll(tasks, [Mode.NO_THINK], temperature=0.0, seed=0)
    first = [t if thinks_surely(t, sure) else d for t, d in zip(free, drafts, strict=True)]
    right, tokens, _ = (values[0] for values in outcomes(first, thoughts, [0.02]))
    assert [t.correct for t in played] == right.tolist() and [t.response_tokens for t in played] == tokens.tolist()
    for t, one, thinks in zip(played, free, at_once, strict=True):
        assert not thinks or (t.ids.tolist() == one.ids.tolist() and not t.parts)


def test_curves_are_of_the_surest_thoughts(roll, base_roll, tasks, answers):
    free, thoughts = answers
    drafts = base_roll(tasks, [Mode.NO_THINK], temperature=0.0, seed=0)
    found = curves(free, drafts, thoughts)
    assert found[0] == Curve(1.0, points(drafts, thoughts)) and found[-1].sure == 0.0
    thinking = sum(t.mode is Mode.THINK for t in free)
    assert 5 < thinking < len(tasks)
    at_once = [sum(thinks_surely(t, curve.sure) for t in free) for curve in found]
    assert at_once[0] == 0 and at_once[-1] == thinking and at_once == sorted(at_once) and len(set(at_once)) > 3
    for curve, count in zip(found, at_once, strict=True):
        assert curve.points[-1].again == 0 and curve.points[-1].think == pytest.approx(count / len(tasks))
    assert curves(drafts, drafts, thoughts) == found[:1], "who never thinks chooses nothing"


def test_episodes_are_refused():
    one = draft([-1.0], [Role.ACTION])
    with pytest.raises(DataError, match="single ones"):
        drawn_until_doubt(replace(one, parts=one.responses), 0.1)


def test_answers_to_other_tasks_are_refused(answers):
    with pytest.raises(DataError, match="same tasks"):
        points(answers[0], answers[1][1:])


def test_weights_are_those_of_a_larger_set(answers):
    free, thoughts = answers
    times = np.arange(len(free)) % 3
    repeated = [[t for t, n in zip(part, times, strict=True) for _ in range(n)] for part in (free, thoughts)]
    for weighted, plain in zip(points(free, thoughts, weights=times.astype(float)), points(*repeated), strict=True):
        assert weighted.accuracy == pytest.approx(plain.accuracy) and weighted.tokens == pytest.approx(plain.tokens)


def answered(tokens: int) -> Trajectory:
    return draft([0.0] * tokens, [Role.ACTION] * tokens)


def test_an_allowance_turns_the_doubt_by_what_was_spent():
    curve = [(0.1, 40.0), (0.3, 30.0), (1.0, 20.0)]
    one = Allowance(30.0, curve)
    assert one.doubt() == 0.3
    one.spend([answered(31)] * AHEAD)
    assert one.doubt() == 1.0, "a token too much, over as many tasks as it is made up for"
    one.spend([answered(29)] * AHEAD)
    assert one.doubt() == 0.3 and one.spent == 60 * AHEAD and one.tasks == 2 * AHEAD
    one.spend([answered(20)] * AHEAD)
    assert one.doubt() == 0.1
    assert Allowance(10.0, curve).doubt() == 1.0, "the cheapest where nothing is affordable"


@settings(max_examples=20)
@given(st.floats(14.0, 60.0), st.floats(0.5, 2.0), st.integers(0, 2**32 - 1))
def test_an_allowance_is_kept_to_although_its_curve_is_off(tokens, off, seed):
    """Tasks whose doubt and thought are drawn anew, and a curve that is wrong by a factor."""
    random = np.random.default_rng(seed)
    doubts, long, answers = random.exponential(1.0, 10_000), 60, {n: answered(n) for n in (10, 70)}
    curve = [(d, off * (10 + long * float((doubts > d).mean()))) for d in np.geomspace(0.001, 9, 200)]
    one, taken = Allowance(tokens, curve), []
    for start in range(0, len(doubts), EVERY):
        bound = one.doubt()
        taken += [10 + (long if doubt > bound else 0) for doubt in doubts[start : start + EVERY]]
        one.spend([answers[n] for n in taken[start:]])
    assert np.mean(taken) == pytest.approx(tokens, rel=0.03)


def test_an_allowance_is_spent_on_free_answers_in_their_order(roll, base_roll, tasks):
    again = [*tasks, *tasks]
    many = again[: 2 * EVERY + 5]
    drafts, thoughts = (
        how(tasks, [mode], temperature=0.0, seed=0) for how, mode in ((base_roll, Mode.NO_THINK), (roll, Mode.THINK))
    )
    curve = [(p.doubt, p.tokens) for p in points(drafts, thoughts)]
    one = Allowance(25.0, curve)
    played = SecondThoughts(roll, one, base_roll)(many, [Mode.AUTO, Mode.NO_THINK], temperature=0.0, seed=0)
    assert [(t.task_id, t.sample, t.forced) for t in played] == [
        (task.id, sample, mode) for task, sample, mode in numbered(many, [Mode.AUTO, Mode.NO_THINK])
    ]
    free = [t for t in played if t.forced is Mode.AUTO]
    assert one.tasks == len(many) and one.spent == sum(t.response_tokens for t in free)
    anew, expected = Allowance(25.0, curve), []
    for start in range(0, len(many), EVERY):
        part = SecondThoughts(roll, anew.doubt(), base_roll)(
            many[start : start + EVERY], [Mode.AUTO], temperature=0.0, seed=0
        )
        anew.spend(part)
        expected += [(t.task_id, t.response_tokens, t.correct) for t in part]
    assert [(t.task_id, t.response_tokens, t.correct) for t in free] == expected
    assert one == anew and one.doubt() != Allowance(25.0, curve).doubt(), "it has learned something"
