"""10,000 responses from an independent generator: the reading agrees with the construction, and nothing raises."""

import random
from collections import Counter
from itertools import combinations

import pytest
from response_fuzzer import CLOSE, FORMATS, OPEN, ORDER, PREFIXES, STOP, Fuzzer
from tiny import tiny_tokenizer

from unbraid.chat import ChatConfig, ChatFormat, Problem

SEED = 0
PLACES = [(preset, call_format) for preset in PREFIXES for call_format in FORMATS]
PER_PLACE = 10_000 // len(PLACES)

# Well-formed, every problem alone, every two of them; well-formed and single ones come more often.
CLASSES = [*[()] * 10, *[(problem,) for problem in ORDER] * 3, *combinations(ORDER, 2)]


def build(preset: str, call_format: str) -> ChatFormat:
    return ChatFormat.build(tiny_tokenizer(), ChatConfig(preset=preset, call_format=call_format))


def fuzzer(chat: ChatFormat, preset: str, call_format: str) -> Fuzzer:
    return Fuzzer(SEED, preset, call_format, lambda text: chat.tokenizer.encode(text, add_special_tokens=False))


def test_the_generator_knows_every_problem():
    assert [problem.value for problem in Problem] == list(ORDER)
    assert PER_PLACE * len(PLACES) == 10_000


@pytest.mark.parametrize(("preset", "call_format"), PLACES)
def test_reading_agrees_with_construction(preset, call_format):
    chat = build(preset, call_format)
    source, seen = fuzzer(chat, preset, call_format), Counter()
    for number in range(PER_PLACE):
        problems = CLASSES[number % len(CLASSES)]
        sample = source.draw(*problems)
        reading = chat.read(sample.ids, sample.truncated)
        where = (number, problems, sample.text)
        assert (reading.mode.value, reading.reason) == ("none" if sample.truncated else sample.mode, sample.reason), (
            where
        )
        assert list(reading.problems) == sorted(set(reading.problems), key=list(Problem).index), where
        if sample.reason is None:
            assert [(call.name, call.arguments) for call in reading.calls] == sample.calls, where
            assert (reading.thought, reading.content) == (sample.thought, sample.content), where
        if sample.text_too:
            assert chat.read_text(sample.text) == reading, where
        seen[sample.mode, sample.reason] += 1
    assert {reason for _, reason in seen} == {None, *ORDER}
    assert seen["think", None] > 50
    assert seen["no_think", None] > 50


@pytest.mark.parametrize(("preset", "call_format"), PLACES)
def test_random_tokens_never_raise(preset, call_format):
    chat, rng = build(preset, call_format), random.Random(SEED)
    special = [chat.tokenizer.convert_tokens_to_ids(text) for text in (OPEN, CLOSE, *FORMATS[call_format][:2], STOP)]
    prefixes = [[], list(chat.modes.think), list(chat.modes.no_think)]
    for _ in range(400):
        size = rng.randint(0, 40)
        ids = [rng.choice(special) if rng.random() < 0.3 else rng.randrange(len(chat.tokenizer)) for _ in range(size)]
        reading = chat.read(rng.choice(prefixes) + ids, truncated=rng.random() < 0.5)
        assert set(reading.problems) <= set(Problem)


@pytest.mark.parametrize(("preset", "call_format"), PLACES)
def test_random_bytes_never_raise(preset, call_format):
    chat, rng = build(preset, call_format), random.Random(SEED)
    for _ in range(400):
        text = rng.randbytes(rng.randint(0, 80)).decode(errors="replace")
        # In pieces: as one text, "]\n" and a line break that follows would be one token, and no mode prefix.
        parts = (
            rng.choice(("", chat.preset.think, chat.preset.no_think)),
            rng.choice(("", chat.calls.open, "{")),
            text,
        )
        ids = [token for part in parts for token in chat.tokenizer.encode(part, add_special_tokens=False)]
        assert chat.read(ids).problems == chat.read_text("".join(parts)).problems


def test_spelled_out_delimiters_are_text():
    """The same characters as other tokens are no delimiters: ids decide, not text."""
    chat = build("tag", "hermes")
    parts = ["[no_think]\n", "<tool_call>", '{"name": "f", "arguments": {"a": "</tool', '_call>"}}', "</tool_call>"]
    ids = [token for part in [*parts, STOP] for token in chat.tokenizer.encode(part, add_special_tokens=False)]
    reading = chat.read(ids)
    assert reading.problems == ()
    assert reading.calls[0].arguments == {"a": "</tool_call>"}
