"""Labels: the rule, the log that survives being killed, both samplers, the files that are read back."""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelling import by_chance, labelling
from policies import calls_tasks, tiny_policy

from unbraid.chat.types import Answer, Call, Mode, Problem, Reading
from unbraid.data import DataConfig, read_tasks
from unbraid.data.task_rows import as_json, read_task_lines, write_task_lines
from unbraid.errors import CheckpointError, DataError, RecipeError
from unbraid.label import LabelConfig, LocalTries, Try, decide, label, label_recipe, labelled, read_tries
from unbraid.label.rule import INCOMPLETE, NEVER_RIGHT, NOT_JSON, SPECIAL, THOUGHTLESS
from unbraid.label.table import label_table, total
from unbraid.label.tries import SAMPLES, Failure, Mark, TryLog
from unbraid.learn.supervised import WarmupConfig, labels_to_examples
from unbraid.recipe import load_recipe
from unbraid.tasks.task import Task

FILES = ("samples.jsonl", "tasks.jsonl", "dropped.jsonl", "books.json")
DATA = Path(os.environ.get("UNBRAID_DATA", Path(__file__).parents[2] / "shared" / "data"))
TASK = Task("t", ({"role": "user", "content": "?"},), answers=(Answer(Mode.NO_THINK, content="gold"),))


# The rule -----------------------------------------------------------------------------------------------------------


def marks(pattern: str, thought: bool = False) -> list[Mark]:
    """One mark per letter: r right, w wrong; as many tokens as there are letters after it."""
    return [Mark(i, letter == "r", thought, False, 0.0, len(pattern) - i, i) for i, letter in enumerate(pattern)]


def decided(tried: str, thought_tried: str, thought: bool = True, can_write=lambda answer: True, **config):
    def read(mark: Mark) -> Try:
        mode = Mode.THINK if any(mark is one for one in long) else Mode.NO_THINK
        said = Reading(mode, "hm" if mark.thought else "", (), f"{mode} {mark.number}", ())
        return Try("t", mode, mark.number, said, mark.right, 0.0, "", mark.tokens)

    short, long = marks(tried), marks(thought_tried, thought)
    return decide(TASK, short, long, LabelConfig(tries=len(tried), **config), read, can_write)


@given(st.text("rw", min_size=1, max_size=8), st.data(), st.sampled_from(["any", "majority", "all"]))
def test_the_label_follows_the_rule(no_think, data, rule):
    think = data.draw(st.text("rw", min_size=len(no_think), max_size=len(no_think)))
    found = decided(no_think, think, rule=rule)
    right = {"any": "r" in no_think, "majority": no_think.count("r") > len(no_think) / 2, "all": "w" not in no_think}
    if right[rule]:
        assert (found.kind, found.difficulty) == ("short", "easy")
    elif "r" in think:
        assert (found.kind, found.difficulty) == ("long", "medium")
    else:
        assert (found.kind, found.difficulty, found.reason) == ("", "hard", NEVER_RIGHT)
    assert found.right == (no_think.count("r") / len(no_think), think.count("r") / len(think))
    if found.kind:
        by_mode = {a.mode: a for a in found.answers}
        assert len(by_mode) == len(found.answers)
        assert (Mode.NO_THINK in by_mode) == ("r" in no_think) and (Mode.THINK in by_mode) == ("r" in think)
        if "r" in think:
            assert by_mode[Mode.THINK].content == f"think {think.index('r')}"


def test_options_of_the_rule():
    assert decided("ww", "rr", long="shortest").answers[0].content == "think 1"
    assert decided("rw", "ww", short="gold").answers == TASK.answers
    assert decided("ww", "ww", fallback="gold").kind == "gold"
    assert decided("ww", "rr", thought=False).reason == THOUGHTLESS
    assert decided("rr", "rr", can_write=lambda a: False).reason == SPECIAL
    assert decided("rr", "rr", can_write=lambda a: a.mode is Mode.THINK).kind == "long"
    assert decided("wr", "", think="needed").kind == "short"
    assert decided("rr", "r").reason == INCOMPLETE


# The log ------------------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=6)
TRY = st.builds(
    Try,
    task=st.sampled_from("ab"),
    mode=st.sampled_from([Mode.THINK, Mode.NO_THINK]),
    number=st.integers(0, 5),
    reading=st.builds(
        Reading,
        mode=st.sampled_from(Mode),
        thought=TEXT,
        calls=st.lists(st.builds(Call, TEXT, st.dictionaries(TEXT, TEXT | st.integers(), max_size=2))).map(tuple),
        content=TEXT,
        problems=st.lists(st.sampled_from(Problem), max_size=2).map(tuple),
    ),
    correct=st.booleans(),
    reward=st.floats(-1, 1),
    reason=TEXT,
    tokens=st.integers(0, 9),
    prompt_tokens=st.integers(0, 9),
    requests=st.integers(0, 3),
)
FAILURE = st.builds(Failure, st.sampled_from("ab"), st.just(Mode.THINK), st.integers(0, 5), TEXT, st.integers(1, 3))


@settings(max_examples=40)  # each one waits for the disk
@given(st.lists(st.lists(TRY | FAILURE, min_size=1, max_size=3), max_size=5), st.data())
def test_a_torn_log_keeps_whole_parts(tmp_path_factory, parts, data):
    """Cut anywhere, it is read up to the last whole part; what is appended then follows that."""
    folder = tmp_path_factory.mktemp("log")
    ends = [0]
    with TryLog(folder, {"a": 1}) as log:
        for part in parts:
            log.append(part)
            ends.append((folder / SAMPLES).stat().st_size)
    whole = [one for part in parts for one in part if isinstance(one, Try)]
    assert list(read_tries(folder)) == whole
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(folder / SAMPLES, cut)
    kept = sum(end <= cut for end in ends) - 1
    with TryLog(folder, {"a": 1}) as log:
        for part in parts[kept:]:
            log.append(part)
        everything = log.total()
        for one in whole:
            last = [w for w in whole if (w.task, w.mode, w.number) == (one.task, one.mode, one.number)][-1]
            assert log.read(log.marks[one.task, one.mode][one.number]) == last
    assert list(read_tries(folder)) == whole
    assert everything.tries == len(whole) and everything.tokens == sum(one.tokens for one in whole)
    assert everything.requests == sum(one.requests for part in parts for one in part)


def test_a_broken_log_is_not_read_over(tmp_path):
    labelling(tmp_path)
    lines = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    (tmp_path / SAMPLES).write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
    with pytest.raises(DataError, match="line 3 is not a try"):
        labelling(tmp_path)


def test_killed_at_random_it_ends_as_the_unbroken_one(tmp_path):
    labelling(tmp_path / "whole")
    script = Path(__file__).with_name("labelling.py")
    command = [sys.executable, script, tmp_path / "killed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_finished_try_is_never_drawn_again(tmp_path):
    """A stop after every part: together the attempts draw each try once."""

    class StopError(Exception):
        pass

    def stop(stage, done, total, metrics):
        seen.append((stage, done))
        if seen.count((stage, done)) == 1 and done:
            raise StopError

    seen: list[tuple[str, int]] = []
    model = LocalTries(tiny_policy, {"m": 1}, by_chance, temperature=1.0, max_new_tokens=16, max_batch=10)
    found = None
    while found is None:
        with suppress(StopError):
            found = label(calls_tasks(6), model, model, tmp_path, LabelConfig(tries=4), progress=stop)
    drawn = Counter((t.task, t.mode, t.number) for t in read_tries(tmp_path))
    assert set(drawn.values()) == {1} and len(drawn) == 6 * 4 * 2
    assert total(found.books).cost["think"].tries == 24


def test_another_configuration_is_refused_and_another_rule_is_not(tmp_path):
    first = labelling(tmp_path, LabelConfig(tries=2))
    size = (tmp_path / SAMPLES).stat().st_size
    with pytest.raises(CheckpointError, match=r"tries: 2, now 3"):
        labelling(tmp_path, LabelConfig(tries=3))
    with pytest.raises(CheckpointError, match=r"no_think\.seed: 0, now 4"):
        labelling(tmp_path, LabelConfig(tries=2), seed=4)
    stricter = labelling(tmp_path, LabelConfig(tries=2, rule="all"))
    assert total(stricter.books).short < total(first.books).short
    assert (tmp_path / SAMPLES).stat().st_size == size


# Books and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("think", ["always", "needed"])
def test_books_add_up_and_files_read_back(tmp_path, think):
    found = labelling(tmp_path, LabelConfig(tries=3, rule="majority", think=think))
    books = total(found.books)
    assert books.tasks == 18 == books.kept + books.dropped.total() and books.kept == len(found.tasks)
    assert books.short and books.long and books.dropped
    assert (
        labelled(str(tmp_path)) == found.tasks and labelled(str(tmp_path), dropped=True) == found.tasks + found.dropped
    )
    through_reader = read_tasks(f"unbraid.label:labelled?path={tmp_path}", DataConfig())
    assert through_reader.tasks == found.tasks
    tried = 18 if think == "always" else 18 - books.short
    assert books.cost["think"].tries == 3 * tried and books.cost["no_think"].tries == 54
    assert json.loads((tmp_path / "books.json").read_text()).keys() == found.books.keys()
    label_table(found)


def test_baselines_come_from_the_same_samples(tmp_path):
    found = labelling(tmp_path)
    sets = {name: labelled(str(tmp_path), labels=name) for name in ("mixed", "long", "short")}
    assert len(sets["mixed"]) == len(found.tasks)
    assert {a.mode for t in sets["long"] for a in t.answers} == {Mode.THINK}
    assert {a.mode for t in sets["short"] for a in t.answers} == {Mode.NO_THINK}
    thinks = {t.id for t in sets["mixed"] if t.answers[0].mode is Mode.THINK}
    assert thinks == {t.id for t in found.tasks if t.extra["needs_thinking"]} <= {t.id for t in sets["long"]}
    with pytest.raises(DataError, match="labels="):
        labelled(str(tmp_path), labels="both")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(st.builds(Call, st.text(), st.dictionaries(st.text(), JSON, max_size=2)), max_size=2).map(tuple)
TASKS = st.builds(
    Task,
    id=st.text(),
    messages=st.lists(st.dictionaries(st.text(), JSON, max_size=2), max_size=2).map(tuple),
    tools=st.lists(st.dictionaries(st.text(), JSON, max_size=2), max_size=2).map(tuple),
    expected=CALLS,
    answers=st.lists(st.builds(Answer, st.sampled_from(Mode), st.text(), CALLS, st.text()), max_size=2).map(tuple),
    level=st.text(),
    source=st.text(),
    extra=st.dictionaries(st.text(), JSON, max_size=2),
)


@given(st.lists(TASKS, max_size=3))
def test_tasks_read_back_exactly(tmp_path_factory, tasks):
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    tasks.append(replace(TASK, id="\ud800 lone", source="\u2028"))
    write_task_lines(path, tasks)
    assert read_task_lines(path) == tasks == [as_json(task) for task in tasks]


def test_what_is_no_json_is_counted(tmp_path):
    odd = replace(calls_tasks(2)[0], extra={"set": {1}})
    model = LocalTries(tiny_policy, {}, by_chance, temperature=1.0, max_new_tokens=16, max_batch=10)
    found = label([odd, calls_tasks(2)[1]], model, model, tmp_path, LabelConfig(tries=1))
    assert total(found.books).dropped[NOT_JSON] == 1 and total(found.books).tasks == 2
    with pytest.raises(DataError, match="several tasks"):
        label([TASK, TASK], model, model, tmp_path / "x")


# Real models --------------------------------------------------------------------------------------------------------


def test_the_calls_world_is_labelled_as_it_was_made(tmp_path):
    """The shipped base knows some chains by heart: with it, labels must find out which, from samples alone."""
    source = "tasks.train=unbraid.lab.calls_world:train_set?world=0&known_share=0.66&count=40"
    recipe = load_recipe(["calls"], [source, "rollout.max_batch=60"])
    said: list[str] = []
    found = label_recipe(recipe, tmp_path, LabelConfig(tries=3, rule="majority"), say=said.append)
    agree = [bool(task.extra["known"]) != task.extra["needs_thinking"] for task in found.tasks]
    assert len(agree) >= 38 and sum(agree) >= len(agree) - 2
    assert "40 tasks" in said[0] and found.warnings == []
    examples, left_out = labels_to_examples(found.tasks, tiny_policy().format, WarmupConfig(labels="mixed"))
    assert len(examples) == len(found.tasks) and not left_out
    with pytest.raises(RecipeError, match="single steps"):
        label_recipe(load_recipe(["calls"], ["environment.name=search"]), tmp_path / "x")


def test_two_models(tmp_path):
    """The thinker is another model: its tries differ from those of one model, the others do not."""

    def model(seed):
        return LocalTries(
            lambda: tiny_policy(seed), {"model": seed}, by_chance, temperature=1.0, max_new_tokens=24, max_batch=50
        )

    tasks, config = calls_tasks(6), LabelConfig(tries=2)
    label(tasks, model(0), model(0), tmp_path / "one", config)
    label(tasks, model(0), model(1), tmp_path / "two", config)
    one, two = (list(read_tries(tmp_path / name)) for name in ("one", "two"))
    for mode, same in ((Mode.NO_THINK, True), (Mode.THINK, False)):
        assert ([t for t in one if t.mode is mode] == [t for t in two if t.mode is mode]) is same
    with pytest.raises(CheckpointError, match=r"think\.model: 1, now 0"):
        label(tasks, model(0), model(0), tmp_path / "two", config)


@pytest.mark.skipif(
    not (DATA / "toolrl" / "rlla_sft.json").is_file(),
    reason="no real rows: set UNBRAID_DATA to a folder with toolrl/ and glaive/",
)
def test_real_rows(tmp_path):
    """An untrained model on real rows: long schemas, unicode, everything wrong, every task in the books."""
    from unbraid.lab.chatml import build_chatml_model, task_texts

    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(json.loads((DATA / "toolrl" / "rlla_sft.json").read_text())[:30]))
    texts = task_texts(read_tasks(str(rows), DataConfig()).tasks)
    model = build_chatml_model(tmp_path / "model", texts, vocab_size=1024, hidden=32, layers=1)
    recipe = load_recipe(
        ["rows"],
        [
            f"model.path={model}", f"tasks.train={rows}", "data.max_prompt_tokens=900", "data.validation=5",
            "rollout.max_new_tokens=16", "rollout.max_batch=16",
        ],
    )  # fmt: skip
    said: list[str] = []
    found = label_recipe(recipe, tmp_path / "out", LabelConfig(tries=2, fallback="gold"), say=said.append)
    books = total(found.books)
    assert "held out 5" in said[0] and books.tasks == books.kept + books.dropped.total() >= 10
    assert books.gold == len(found.tasks) and all(t.extra["needs_thinking"] for t in found.tasks)
    assert read_tasks(f"unbraid.label:labelled?path={tmp_path / 'out'}", DataConfig()).tasks == found.tasks
