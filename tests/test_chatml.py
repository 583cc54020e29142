"""The small ChatML model: any unicode round-trips, modes can be told apart, and the saved folder is the same again."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rows import ROWS
from transformers import AutoModelForCausalLM, AutoTokenizer

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.types import Answer, Call, Mode
from unbraid.data.read import FORMATS, make_task
from unbraid.data.row import Example, UnwantedError
from unbraid.lab.chatml import CONTROL, DELIMITERS, build_chatml_model, chatml_tokenizer, task_texts


def examples(name: str, row: dict[str, Any]) -> list[Example]:
    """What a row gives; nothing where it is not wanted."""
    try:
        return [one for one in FORMATS[name].read(row) if isinstance(one, Example)]
    except UnwantedError:
        return []


TASKS = [make_task(f"{n}{i}", n, e) for n in ROWS for i, row in enumerate(ROWS[n]) for e in examples(n, row)]
TOKENIZER = chatml_tokenizer(task_texts(TASKS), 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_chatml_model(tmp_path_factory.mktemp("chatml"), task_texts(TASKS), 600, hidden=64, layers=1, seed=3)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_unicode_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_blank_line_is_one_token_that_is_not_two_newlines():
    (blank,), (newline,) = TOKENIZER.encode("\n\n"), TOKENIZER.encode("\n")
    assert blank != newline
    sparse = chatml_tokenizer(["no line ends at all here"] * 3, 300)
    assert len(sparse.encode("\n\n")) == 1


def test_delimiters_are_one_id_each_and_are_shown():
    ids = [TOKENIZER.encode(text) for text in CONTROL + DELIMITERS]
    assert all(len(i) == 1 for i in ids)
    assert len({i[0] for i in ids}) == len(ids)
    text = "<think>a</think>"
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True) == text


@pytest.mark.parametrize("preset", ["think-block", "tag"])
@pytest.mark.parametrize("call_format", ["hermes", "json_list", "toolrl"])
def test_chat_formats_work_with_it(preset, call_format):
    chat = ChatFormat.build(TOKENIZER, ChatConfig(preset=preset, call_format=call_format))
    assert len(chat.modes.choice_ids) == 2
    answer = Answer(Mode.THINK, "é 😀\n\n中", (Call("f", {"x": "e\u0301", "y": [1.5, None, {"z": True}]}),))
    for written in (answer, Answer(Mode.NO_THINK, "", answer.calls), Answer(Mode.NO_THINK, "", (), "\u202eabc")):
        read = chat.read(chat.response_ids(written))
        assert (read.mode, read.thought, read.calls, read.content, read.problems) == (
            written.mode, written.thought, written.calls, written.content, (),
        )  # fmt: skip


def test_template_renders_tools_history_and_tool_results():
    task = next(t for t in TASKS if t.id == "toolrl0")
    text = TOKENIZER.apply_chat_template(
        [dict(m) for m in task.messages],
        tools=[dict(t) for t in task.tools],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(text, str)
    system, user, call, result, answer, question, generation = text.split("<|im_start|>")[1:]
    assert system.startswith("system\nYou are a helpful multi-turn assistant.\n")
    assert '{"type": "function", "function": {"name": "Get Weather"' in system
    assert "Zürich" in system
    assert user == "user\nWhat time is it?<|im_end|>\n"
    assert call == 'assistant\n<tool_call>\n{"name": "Clock", "arguments": {}}\n</tool_call><|im_end|>\n'
    results = '[{"name": "Clock", "results": "<b>12:00</b>"}]'
    assert result == f"user\n<tool_response>\n{results}\n</tool_response><|im_end|>\n"
    assert answer == "assistant\nNoon.<|im_end|>\n"
    assert question == "user\nAnd the weather in Zürich and 東京?<|im_end|>\n"
    assert generation == "assistant\n"


def test_tool_results_in_a_row_share_one_turn():
    messages = [{"role": "user", "content": "x"}, *({"role": "tool", "content": c} for c in "ab")]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str)
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response><|im_end|>\n"
    )


def test_saved_folder_loads_as_it_was_built(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    built = chatml_tokenizer(task_texts(TASKS), 600)
    assert tokenizer.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()
    assert tokenizer.chat_template == built.chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    model = AutoModelForCausalLM.from_pretrained(folder)
    padded = model.config.vocab_size
    assert len(tokenizer) <= padded < len(tokenizer) + 64
    assert padded % 64 == 0
    ids = torch.tensor([tokenizer.encode("Weather in Zürich?")])
    assert model(ids).logits.shape == (1, ids.shape[1], padded)
    again = AutoModelForCausalLM.from_pretrained(
        build_chatml_model(tmp_path / "again", task_texts(TASKS), 600, hidden=64, layers=1, seed=3)
    )
    other = AutoModelForCausalLM.from_pretrained(
        build_chatml_model(tmp_path / "other", task_texts(TASKS), 600, hidden=64, layers=1, seed=4)
    )
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert not torch.equal(model(ids).logits, other(ids).logits)
