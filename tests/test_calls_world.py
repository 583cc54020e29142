"""The calls world: what is known, what is held out, and that it is written as every real model's data is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Call, Mode, Problem
from unbraid.lab import base_model
from unbraid.lab.base_model import PRETRAINING, base_path, gates, new_model, pretraining_batches
from unbraid.lab.calls_chat import CHAT, WordCalls, calls_tokenizer, prompt_words, response_words
from unbraid.lab.calls_world import CHAINS, ENTITIES, KNOWN, LEVELS, RELATIONS, CallsWorld, Split, keyed_rng
from unbraid.lab.measure import chain_aware, level_aware, load_start, measure
from unbraid.lab.starts import WARMUP, Start, start_examples
from unbraid.learn.supervised import WarmupConfig, labels_to_examples, response_example

WORLD = CallsWorld(0)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat.build(calls_tokenizer(), CHAT)


def key(chain):
    return chain.entities[0], chain.relations


def test_relations_are_permutations_and_worlds_differ():
    for table in WORLD.relations:
        assert sorted(table) == list(range(ENTITIES))
    other = CallsWorld(1)
    assert (WORLD.relations != other.relations).any()
    pools = [{key(c) for c in w.pools[Split.TEST][4]} for w in (WORLD, other)]
    assert len(pools[0] & pools[1]) < len(pools[0]) / 2
    assert {key(c) for c in CallsWorld(0).known_chains} == {key(c) for c in WORLD.known_chains}


def test_chains_follow_the_relations():
    rng = np.random.default_rng(0)
    for k in range(LEVELS):
        for chain in [*WORLD.pools[Split.TEST][k], *(WORLD.free_chain(k, rng) for _ in range(20))]:
            assert chain.hops == k
            for i, relation in enumerate(chain.relations):
                assert WORLD.relations[relation, chain.entities[i]] == chain.entities[i + 1]


def test_splits_are_disjoint_and_pools_have_their_sizes():
    for k in range(LEVELS):
        pools = [[key(c) for c in WORLD.pools[split][k]] for split in Split]
        flat = [c for pool in pools for c in pool]
        assert len(flat) == len(set(flat))
        if k >= 2:
            assert [len(pool) for pool in pools] == [CHAINS[split] for split in Split]
        assert min(map(len, pools)) >= 4
        assert len(flat) <= ENTITIES * RELATIONS**k


def test_known_shares_fall_with_hops_in_every_split():
    for split in Split:
        for k in range(LEVELS):
            pool = WORLD.pools[split][k]
            assert sum(c.known for c in pool) == round(KNOWN[k] * len(pool))


def test_thoughts_of_pretraining_come_from_no_pool():
    pooled = {key(c) for split in Split for level in WORLD.pools[split][2:] for c in level}
    rng = np.random.default_rng(1)
    for k in range(2, LEVELS):
        assert not pooled & {key(WORLD.free_chain(k, rng)) for _ in range(500)}


def test_pretraining_shows_direct_answers_of_known_chains_only_and_never_trains_the_mode():
    vocabulary = calls_tokenizer().get_vocab()
    words = {i: w for w, i in vocabulary.items()}
    known = {key(c) for c in WORLD.known_chains}
    batches, thinking, direct = pretraining_batches(WORLD, 128), 0, set()
    for step in range(30):
        for example in batches(step):
            prompt = [words[i] for i in example.prompt_ids]
            response = [words[i] for i in example.response_ids]
            chain = int(prompt[6][1:]), tuple(int(w[1:]) for w in prompt[7:-1])
            if response[0] == "<think>":
                thinking += 1
            else:
                direct.add(chain)
            assert example.weights == (0.0, *[1.0] * (len(response) - 1))
    assert direct <= known
    assert len(direct) > 0.9 * len(known)
    assert thinking == 30 * round(0.35 * 128)
    assert batches(7) == pretraining_batches(CallsWorld(0), 128)(7)


def test_evaluation_tasks_are_uniform_over_levels_and_chains():
    tasks = WORLD.evaluation_tasks(Split.TEST, per_level=96)
    assert [sum(t.level == str(k) for t in tasks) for k in range(LEVELS)] == [96] * LEVELS
    assert len({t.id for t in tasks}) == len(tasks)
    assert tasks == CallsWorld(0).evaluation_tasks(Split.TEST, per_level=96)
    for k in range(LEVELS):
        asked = [t.messages[0]["content"].split(" ", 1)[1] for t in tasks if t.level == str(k)]
        counts = [asked.count(c) for c in set(asked)]
        assert len(counts) == len(WORLD.pools[Split.TEST][k])
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.85, 1.0])
def test_training_tasks_have_the_share_asked_for(share):
    tasks = WORLD.training_tasks(400, share, seed=3)
    assert sum(t.extra["known"] for t in tasks) == round(share * 400)
    assert all(t.extra["needs_thinking"] != t.extra["known"] for t in tasks)
    pool = {key(c) for level in WORLD.pools[Split.TRAIN] for c in level}
    for task in tasks:
        words = task.messages[0]["content"].split()
        assert (int(words[1][1:]), tuple(int(w[1:]) for w in words[2:])) in pool
    assert tasks == CallsWorld(0).training_tasks(400, share, seed=3)
    assert tasks != WORLD.training_tasks(400, share, seed=4)


def test_training_levels_keep_their_natural_mix():
    tasks = WORLD.training_tasks(6_000, 0.5, seed=0)
    for known in (True, False):
        levels = [int(t.level) for t in tasks if t.extra["known"] == known]
        weights = np.array(KNOWN) if known else 1 - np.array(KNOWN)
        found = np.bincount(levels, minlength=LEVELS) / len(levels)
        assert np.abs(found - weights / weights.sum()).max() < 0.025


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        WORLD.training_tasks(10, 1.2, seed=0)


def test_global_random_state_is_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.random.get_rng_state().clone(), np.random.get_state()[1].copy()  # pyright: ignore
    CallsWorld(5).training_tasks(20, 0.5, seed=0)
    new_model(5)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # pyright: ignore


def test_words_equal_the_chat_format_token_by_token(chat):
    vocabulary = chat.tokenizer.get_vocab()
    rng = keyed_rng(0, "test")
    for i in range(120):
        query = WORLD.query(WORLD.free_chain(i % LEVELS, rng), rng)
        task = query.task("x")
        assert chat.prompt_ids(task.messages, task.tools) == [vocabulary[w] for w in prompt_words(query)]
        for answer in (query.short, query.long):
            ids = chat.response_ids(answer)
            assert ids == [vocabulary[w] for w in response_words(answer)]
            reading = chat.read(ids)
            assert reading.calls == task.expected
            assert not reading.problems
            hops = query.chain.hops
            assert len(ids) == (21 + 10 * hops if answer.mode is Mode.THINK else 10)


def test_tool_schemas_are_real_ones():
    for tool in WORLD.evaluation_tasks(Split.DEV, 1)[0].tools:
        function = json.loads(json.dumps(tool))["function"]
        (parameter,) = function["parameters"]["properties"]
        assert parameter == "p" + function["name"][1:]
        assert function["parameters"]["required"] == [parameter]


def test_the_saved_tokenizer_and_its_modes_load_with_auto_classes(chat, tmp_path):
    chat.save(tmp_path)
    new_model(0).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    task = WORLD.evaluation_tasks(Split.DEV, 1)[3]
    ids = chat.prompt_ids(task.messages, task.tools)
    for mode in (Mode.THINK, Mode.NO_THINK):
        forced = tokenizer.apply_chat_template(
            [*task.messages], tools=[*task.tools], add_generation_prompt=True, mode=mode.value, tokenize=False
        )
        assert tokenizer.encode(forced) == [*ids, *chat.modes.of(mode)]


def test_conversations_are_prefix_stable(chat):
    task = WORLD.evaluation_tasks(Split.DEV, 1)[3]
    prompt = chat.render(task.messages, task.tools)
    said = [*task.messages, {"role": "assistant", "content": "<no_think> so"}]
    assert chat.render(said, task.tools, add_generation_prompt=False).startswith(prompt)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("t2 ( p2 = e8 )", (Call("t2", {"p2": "e8"}),)),
        ("t2 ( )", (Call("t2", {}),)),
        ("t2 ( p2 = e8 , p3 = e1 )", (Call("t2", {"p2": "e8", "p3": "e1"}),)),
        (" ", Problem.EMPTY),
        ("( p2 = e8 )", Problem.NO_NAME),
        ("t2 p2 = e8 )", Problem.NOT_OBJECT),
        ("t2 ( p2 = e8", Problem.NOT_OBJECT),
        ("t2 (", Problem.NOT_OBJECT),
        ("t2", Problem.NOT_OBJECT),
        ("t2 ( p2 e8 )", Problem.BAD_ARGUMENTS),
        ("t2 ( p2 = = )", Problem.BAD_ARGUMENTS),
        ("t2 ( p2 = e8 , )", Problem.BAD_ARGUMENTS),
        ("t2 ( p2 = e8 , p2 = e1 )", Problem.BAD_ARGUMENTS),
        ("t2 ( p2 = e8 e1 )", Problem.BAD_ARGUMENTS),
    ],
)
def test_word_calls_parse(text, found):
    assert WordCalls().parse(text) == found


def test_word_calls_never_raise_on_any_words():
    rng, words, form = np.random.default_rng(0), list(calls_tokenizer().get_vocab()), WordCalls()
    for _ in range(3000):
        text = " ".join(rng.choice(words, rng.integers(0, 9)))
        parsed = form.parse(text)
        if not isinstance(parsed, Problem):
            rendered = form.render(parsed).removeprefix(form.open).removesuffix(form.close)
            assert form.parse(rendered) == parsed


def test_labels_pick_the_answer_by_their_rule(chat):
    tasks = WORLD.training_tasks(60, 0.5, seed=1)
    for labels in ("mixed", "long", "short"):
        examples, left_out = labels_to_examples(tasks, chat, WarmupConfig(labels=labels, mode_weight=7.0))
        assert not left_out
        for task, example in zip(tasks, examples, strict=True):
            thinks = chat.modes.read(example.response_ids) is Mode.THINK
            assert thinks == (labels == "long" or (labels == "mixed" and task.extra["needs_thinking"]))
            assert example.weights == (7.0, *[1.0] * (len(example.response_ids) - 1))


def test_unlabelled_rows_teach_both_modes_the_same_ones_every_time(chat):
    tasks = [replace(task, extra={}) for task in WORLD.training_tasks(300, 0.5, seed=2)]
    examples, _ = labels_to_examples(tasks, chat, WarmupConfig(labels="mixed"))
    thinks = [chat.modes.read(e.response_ids) is Mode.THINK for e in examples]
    assert 0.4 < np.mean(thinks) < 0.6
    again, _ = labels_to_examples(tasks[::-1], chat, WarmupConfig(labels="mixed"))
    assert [e.response_ids for e in again[::-1]] == [e.response_ids for e in examples]


def test_labels_use_what_a_row_has_and_count_what_is_left_out(chat):
    task = WORLD.training_tasks(1, 0.0, seed=1)[0]
    short, long = task.answers
    spoilt = replace(long, thought="so <think> value")
    rows = [replace(task, answers=a) for a in ((short,), (long,), (), (spoilt,))]
    examples, left_out = labels_to_examples(rows, chat, WarmupConfig(labels="long"))
    assert [chat.modes.read(e.response_ids) for e in examples] == [Mode.NO_THINK, Mode.THINK]
    assert sum(left_out.values()) == 2
    assert left_out["no answer to learn from"] == 1
    examples, left_out = labels_to_examples(rows[:2], chat, WarmupConfig(labels="long"), max_tokens=25)
    assert len(examples) == 1
    assert left_out == {"longer than 25 tokens": 1}


@pytest.mark.parametrize("start", list(Start))
def test_starts_never_see_the_answer_of_an_unknown_chain_unthought(chat, start):
    examples = start_examples(WORLD, chat, start, 600)
    tasks = WORLD.training_tasks(600, sum(KNOWN) / len(KNOWN), 0)
    think = {True: [], False: []}
    for task, example in zip(tasks, examples, strict=True):
        thinks = chat.modes.read(example.response_ids) is Mode.THINK
        think[task.extra["known"]].append(thinks)
        assert example.weights[0] == WARMUP.mode_weight
        learns = 1.0 if thinks or task.extra["known"] else 0.0
        assert set(example.weights[1:]) == {learns}
    expected = {"distilled": (1.0, 1.0), "clear": (0.05, 0.9), "fuzzy": (0.3, 0.3)}[start]
    assert (np.mean(think[True]), np.mean(think[False])) == pytest.approx(expected, abs=0.08)


def test_mode_only_examples_train_one_token(chat):
    task = WORLD.training_tasks(1, 0.0, seed=1)[0]
    example = response_example(task, task.answers[0], chat, mode_weight=10.0, mode_only=True)
    assert example.weights == (10.0, *[0.0] * 9)


def test_the_shipped_base_passes_its_gates():
    found, faults = gates(base_path(0), 0)
    assert not faults
    assert min(found["think"].accuracy) > 0.95


def test_the_shipped_base_is_small_and_loads_in_float32():
    path = base_path(0)
    assert sum(f.stat().st_size for f in path.iterdir()) < 1.5e6
    model = AutoModelForCausalLM.from_pretrained(path)
    assert next(model.parameters()).dtype == torch.float32
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(path))


def test_oracles_think_where_they_should():
    policy, tasks = load_start(base_path(0)), WORLD.evaluation_tasks(Split.DEV, 20)
    oracle, by_level, direct = (measure(policy, tasks, rule) for rule in (chain_aware, level_aware, Mode.NO_THINK))
    unknown = [np.mean([not t.extra["known"] for t in tasks if t.level == str(k)]) for k in range(LEVELS)]
    assert oracle.think_rate == pytest.approx(unknown)
    assert by_level.think_rate == (0, 0, 0, 1, 1, 1)
    assert np.mean(oracle.accuracy) > 0.97 > np.mean(direct.accuracy) + 0.2


def test_other_bases_are_built_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNBRAID_CACHE", str(tmp_path))
    monkeypatch.setattr(base_model, "PRETRAINING", PRETRAINING.model_copy(update={"steps": 2, "batch_examples": 8}))
    path = base_path(77)
    assert path.parent == tmp_path
    weights = (path / "model.safetensors").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    monkeypatch.setattr(base_model, "build_base", lambda *_: pytest.fail("built twice"))
    assert base_path(77) == path
    assert (path / "model.safetensors").read_bytes() == weights


def test_a_build_is_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "PRETRAINING", PRETRAINING.model_copy(update={"steps": 3, "batch_examples": 8}))
    for name in ("a", "b"):
        torch.manual_seed(len(name))
        base_model.build_base(4, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_the_command_reports_a_base_that_fails_its_gates(tmp_path, monkeypatch, capsys):
    evaluation_tasks = CallsWorld.evaluation_tasks
    monkeypatch.setattr(CallsWorld, "evaluation_tasks", lambda world, split: evaluation_tasks(world, split, 4))
    monkeypatch.setattr(base_model, "PRETRAINING", PRETRAINING.model_copy(update={"steps": 1, "batch_examples": 8}))
    assert base_model.main(["--seed", "3", "--out", str(tmp_path / "base")]) == 1
    printed = capsys.readouterr().out
    assert printed.count("gate failed: thinking is right on") == LEVELS
    assert printed.startswith("think")
