"""Chat formats: prompts, answers and forced modes as ids; the saved template; what is refused, and how it is said."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_chat_calls import CALLS, TEXT
from tiny import CHATML, MESSAGES, NO_TOOLS, REACTING, TAGS, TOOLS, tiny_tokenizer
from transformers import AutoTokenizer

from unbraid.chat import (
    CALL_FORMATS,
    PRESETS,
    Answer,
    Call,
    ChatConfig,
    ChatFormat,
    Mode,
    Preset,
    Problem,
    add_delimiters,
)
from unbraid.chat.template import unwrap, wrap
from unbraid.errors import ChatError
from unbraid.tokens import Role

WEATHER = Call("get_weather", {"city": "Paris", "days": 3})
ANSWERS = (
    Answer(Mode.THINK, "The user asks for the weather.", (WEATHER,)),
    Answer(Mode.NO_THINK, "", (WEATHER, Call("add", {"a": 1})), ""),
    Answer(Mode.NO_THINK, "", (), "Sunny, 20 degrees."),
    Answer(Mode.THINK, "Both.", (WEATHER,), "I will look it up."),
)
# Formats whose calls are tags take one tool of one argument: see test_chat_history.py.
PLACES = [(preset, name) for preset in PRESETS for name, one in CALL_FORMATS.items() if not one.observation]
FORMATS = {
    place: ChatFormat.build(tiny_tokenizer(), ChatConfig(preset=place[0], call_format=place[1])) for place in PLACES
}
TEMPLATES = {
    "chatml": CHATML,
    "reacting": REACTING,
    "no tools": NO_TOOLS,
    "indented start": "\n   {% if true %}\n  " + NO_TOOLS + "{% endif %}\n",
    "text at the end": CHATML + "{% if true %}\n{% endif %}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_read_back_from_ids_and_from_text(place, answer):
    chat = FORMATS[place]
    ids = chat.response_ids(answer)
    reading = chat.read(np.array(ids))
    assert (reading.mode, reading.thought, reading.calls, reading.content) == (
        answer.mode, answer.thought, answer.calls, answer.content
    )  # fmt: skip
    assert reading.problems == ()
    assert chat.read_text(chat.decode(ids)) == reading
    assert tuple(ids[: len(chat.prefix_ids(answer.mode))]) == chat.prefix_ids(answer.mode)
    assert ids[-1] in chat.stop_ids
    assert not set(chat.stop_ids) & set(ids[:-1])
    # What is written alone is what the text would be after the prompt.
    prompt = chat.prompt_ids(MESSAGES, TOOLS)
    text = chat.render(MESSAGES, TOOLS) + chat.decode(ids)
    assert chat.tokenizer.encode(text, add_special_tokens=False) == [*prompt, *ids]


@pytest.mark.parametrize("place", PLACES)
@given(calls=CALLS, mode=st.sampled_from([Mode.THINK, Mode.NO_THINK]), words=st.tuples(TEXT, TEXT))
@settings(max_examples=40)
def test_any_answer_reads_back_or_is_refused(place, calls, mode, words):
    chat = FORMATS[place]
    thought, content = words if mode is Mode.THINK else ("", words[1])
    answer = Answer(mode, thought, tuple(calls), content)
    reserved = {chat.preset.open, chat.preset.close, chat.calls.open, chat.calls.close, "<|im_end|>"}
    if any(text in thought or text in content for text in reserved):
        with pytest.raises(ChatError, match="does not read back"):
            chat.response_ids(answer)
        return
    reading = chat.read(chat.response_ids(answer))
    assert (reading.mode, reading.calls, reading.problems) == (mode, tuple(calls), ())
    assert (reading.thought, reading.content) == (thought.strip(), content.strip())


@pytest.mark.parametrize(
    "answer",
    [
        Answer(Mode.THINK, "I close </think> early"),
        Answer(Mode.THINK, "I write <tool_call> here"),
        Answer(Mode.NO_THINK, content="<|im_end|> and more"),
        Answer(Mode.NO_THINK, content="</tool_call>"),
        Answer(Mode.NO_THINK, content="<think>late</think>"),
        Answer(Mode.NO_THINK, calls=(Call("f", {"a": (1, 2)}),)),  # JSON has no tuples
        Answer(Mode.NO_THINK, calls=(Call("  ", {}),)),
    ],
)
def test_an_answer_that_would_not_read_back_is_refused(answer):
    with pytest.raises(ChatError, match="does not read back"):
        FORMATS["tag", "hermes"].response_ids(answer)


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.NONE])
def test_an_answer_needs_a_mode(mode):
    with pytest.raises(ChatError, match="choose think or no_think"):
        FORMATS["tag", "hermes"].response_ids(Answer(mode))
    with pytest.raises(ChatError, match="has a thought"):
        FORMATS["tag", "hermes"].response_ids(Answer(Mode.NO_THINK, "hm"))


def test_roles_of_a_response():
    chat = FORMATS["tag", "hermes"]
    ids = chat.response_ids(ANSWERS[0])
    start, end = (ids.index(chat.tokenizer.encode(text)[0]) for text in TAGS[2:])
    roles = [Role.ACTION if start < place <= end else Role.REASONING for place in range(len(ids))]
    assert chat.automaton.label(ids).tolist() == roles


def test_mode_position_is_where_the_prefixes_part():
    texts = {
        name: [FORMATS[name, "hermes"].decode([i]) for i in FORMATS[name, "hermes"].modes.choice_ids]
        for name in PRESETS
    }
    assert texts == {"tag": ["[think", "[no"], "think-block": ["\n", "\n\n"]}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("preset", PRESETS)
def test_the_saved_tokenizer_forces_modes(tmp_path, template, preset):
    chat = ChatFormat.build(tiny_tokenizer(TEMPLATES[template]), ChatConfig(preset=preset))
    before = chat.tokenizer.chat_template
    chat.save(tmp_path)
    assert chat.tokenizer.chat_template == before
    saved = AutoTokenizer.from_pretrained(tmp_path)
    tools = () if "no tools" in template or "start" in template else TOOLS
    prompt = chat.prompt_ids(MESSAGES, tools)

    def ids(**options):
        given = [dict(tool) for tool in tools] or None
        options = {"add_generation_prompt": True, **options}
        return saved.apply_chat_template([dict(m) for m in MESSAGES], tools=given, return_dict=False, **options)

    think, no_think = ([*prompt, *chat.prefix_ids(mode)] for mode in (Mode.THINK, Mode.NO_THINK))
    assert ids() == ids(mode="auto") == ids(mode=None) == ids(enable_thinking=None) == prompt
    assert ids(mode="think") == ids(enable_thinking=True) == think
    assert ids(mode="no_think") == ids(enable_thinking=False) == no_think
    assert ids(mode="think", enable_thinking=False) == think
    assert ids(mode="think", add_generation_prompt=False) == ids(add_generation_prompt=False)
    assert len(ids(add_generation_prompt=False)) < len(prompt)
    with pytest.raises(Exception, match="mode must be auto, think or no_think"):
        ids(mode="long")
    # A format can be built on the saved tokenizer, and saved again, with nothing applied twice.
    again = ChatFormat.build(saved, ChatConfig(preset=preset))
    assert again.prompt_ids(MESSAGES, tools) == prompt
    again.save(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == saved.chat_template


def test_a_tokenizer_with_named_templates(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": NO_TOOLS, "tool_use": CHATML}
    chat = ChatFormat.build(tokenizer)
    chat.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    given = {"tools": [dict(TOOLS[0])], "add_generation_prompt": True, "return_dict": False}
    ids = saved.apply_chat_template([dict(m) for m in MESSAGES], mode="think", **given)
    assert ids == [*chat.prompt_ids(MESSAGES, TOOLS), *chat.prefix_ids(Mode.THINK)]


def test_wrapping_is_undone_and_keeps_unicode():
    own = Preset(think="é🎉\\n' <think>\n", after_thought='</think> "', no_think="[\\n'o\"]")
    assert unwrap(wrap(CHATML, own)) == CHATML.removesuffix("\n")
    assert wrap(wrap(CHATML, PRESETS["tag"]), own) == wrap(CHATML, own)
    chat = ChatFormat.build(tiny_tokenizer(), ChatConfig(preset=own))
    for mode, text in ((Mode.THINK, own.think), (Mode.NO_THINK, own.no_think)):
        wrapped = chat.render(MESSAGES, chat_template=wrap(CHATML, own), mode=mode.value)
        assert wrapped == chat.render(MESSAGES) + text


def test_no_template_and_no_tools_are_said():
    with pytest.raises(ChatError, match="no chat template"):
        ChatFormat.build(tiny_tokenizer(None))
    chat = ChatFormat.build(tiny_tokenizer(NO_TOOLS))
    assert chat.prompt_ids(MESSAGES)
    with pytest.raises(ChatError, match="ignores tools"):
        chat.prompt_ids(MESSAGES, TOOLS)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": 3}]])
def test_a_conversation_that_cannot_be_rendered_is_said(messages):
    with pytest.raises(ChatError, match="cannot render"):
        FORMATS["tag", "hermes"].prompt_ids(messages)


def test_delimiters_must_be_one_id():
    tokenizer = tiny_tokenizer(tags=TAGS[:2])
    with pytest.raises(ChatError, match=r"delimiter '<tool_call>' is \d+ tokens .*add-delimiters"):
        ChatFormat.build(tokenizer)
    assert add_delimiters(tokenizer, TAGS) == 2
    assert add_delimiters(tokenizer, TAGS) == 0
    assert ChatFormat.build(tokenizer).read_text("[no_think]\nhm<|im_end|>").problems == ()


@pytest.mark.parametrize(("padding", "rows"), [(64, "padded"), (1, "grown")])
def test_adding_delimiters_never_shrinks_the_embedding(padding, rows):
    class Model(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.embedding = torch.nn.Embedding(size, 2)

        def get_input_embeddings(self):
            return self.embedding

        def resize_token_embeddings(self, new_num_tokens):
            self.embedding = torch.nn.Embedding(new_num_tokens, 2)

    tokenizer = tiny_tokenizer(tags=())
    size = len(tokenizer) + padding
    model = Model(size)
    assert add_delimiters(tokenizer, TAGS, model) == 4
    assert model.embedding.weight.shape[0] == (size if rows == "padded" else len(tokenizer))


def test_presets_are_data():
    own = {"think": "<think>\n", "after_thought": "\n</think>\n", "no_think": "[no_think]\n"}
    chat = ChatFormat.build(tiny_tokenizer(), ChatConfig.model_validate({"preset": own}))
    assert chat.modes.position == 0
    assert chat.read(chat.response_ids(ANSWERS[0])).calls == (WEATHER,)
    with pytest.raises(ChatError, match=r"chat\.preset: 'tags' is unknown; use one of tag, think-block"):
        ChatFormat.build(tiny_tokenizer(), ChatConfig(preset="tags"))
    with pytest.raises(ChatError, match="not told apart"):
        ChatFormat.build(tiny_tokenizer(), ChatConfig(preset=Preset(**{**own, "no_think": "<think>\n."})))
    with pytest.raises(ChatError, match="need four different"):
        ChatFormat.build(tiny_tokenizer(), ChatConfig(preset=Preset(**{**own, "after_thought": "<think>"})))
    with pytest.raises(ValidationError, match="white space"):
        Preset(**{**own, "think": " \n"})


def test_stop_ids():
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode([i]) for i in ChatFormat.build(tokenizer).stop_ids] == ["<|im_end|>"]
    # As in Qwen's base models: the template ends turns with one token, documents end with another.
    tokenizer.eos_token = "<|endoftext|>"
    stops = ChatFormat.build(tokenizer).stop_ids
    assert [tokenizer.decode([i]) for i in stops] == ["<|im_end|>", "<|endoftext|>"]
    tokenizer.eos_token, tokenizer.chat_template = None, "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ChatError, match="no stop token"):
        ChatFormat.build(tokenizer)


def test_a_llama_call_ends_the_turn():
    chat = FORMATS["tag", "llama"]
    ids = chat.response_ids(ANSWERS[0])
    assert chat.decode(ids[-1:]) == "<|eom_id|>"
    assert chat.decode(chat.response_ids(ANSWERS[2])[-1:]) == "<|im_end|>"


def test_truncated_and_empty_responses():
    chat = FORMATS["think-block", "hermes"]
    ids = chat.response_ids(ANSWERS[0])
    assert chat.read(ids[:5], truncated=True).problems == (Problem.TRUNCATED, Problem.UNCLOSED)
    # A call that was never closed is not made, however complete it looks.
    cut = chat.read(ids[:-2], truncated=True)
    assert chat.decode(ids[-2:]) == "</tool_call><|im_end|>"
    assert (cut.problems, cut.calls) == ((Problem.TRUNCATED, Problem.UNCLOSED), ())
    assert chat.read([], truncated=True).problems == (Problem.NO_MODE, Problem.TRUNCATED)
    assert chat.read([]).reason is Problem.NO_MODE
    assert chat.read(chat.prefix_ids(Mode.NO_THINK)).problems == ()


def test_reading_is_fast():
    """About 60 us on an idle core; the limit only catches a change of order."""
    chat = FORMATS["tag", "hermes"]
    ids = chat.response_ids(ANSWERS[0])
    laps = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(100):
            chat.read(ids)
        laps.append((time.perf_counter() - start) / 100)
    assert min(laps) < 1e-3
