"""The doctor's questions to a chat format: silent on a good one, precise on bad ones."""

import pytest
from test_chat_format import ANSWERS, FORMATS, PLACES
from tiny import CHATML, MESSAGES, NO_TOOLS, REACTING, TAGS, TOOLS, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unbraid.chat import Answer, ChatConfig, ChatFormat, Mode, Preset
from unbraid.chat.checks import Finding, check_answers, check_chat, check_delimiters, check_prefixes, check_template


def bad(findings: list[Finding]) -> list[Finding]:
    assert findings
    assert all(bool(one.advice) == (one.level != "ok") for one in findings), "every finding says what to do"
    return [one for one in findings if one.level != "ok"]


@pytest.mark.parametrize("place", PLACES)
def test_a_good_format_passes(place):
    findings = check_chat(FORMATS[place], MESSAGES, TOOLS, ANSWERS)
    assert bad(findings) == []
    assert {one.check for one in findings} == {"delimiters", "mode prefix", "prefix stability", "answers"}


def test_a_template_that_reacts_to_enable_thinking_passes():
    chat = ChatFormat.build(tiny_tokenizer(REACTING), ChatConfig(preset="think-block"))
    assert bad(check_chat(chat, MESSAGES, TOOLS, ANSWERS)) == []


def test_a_conversation_that_cannot_be_rendered_is_one_finding():
    chat = ChatFormat.build(tiny_tokenizer(NO_TOOLS))
    assert [(one.level, one.check) for one in check_chat(chat, MESSAGES, TOOLS)] == [("error", "prompt")]


def test_a_delimiter_that_merges_with_its_neighbours():
    """One id alone, and others in context: words of the vocabulary, not added tokens."""
    words = ["<unk>", *TAGS, "[think]", "[no_think]", "so", "x", "<eos>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = "{{ messages[0].content }} "
    apart = ChatFormat.build(tokenizer)
    assert bad(check_delimiters(apart)) == []
    tight = Preset(think="[think] <think>", after_thought="</think> ", no_think="[no_think] ")
    findings = bad(check_delimiters(ChatFormat.build(tokenizer, ChatConfig(preset=tight))))
    assert [(one.level, one.message.split("'")[1]) for one in findings] == [("error", "<think>"), ("error", "</think>")]


def test_a_prefix_that_merges_with_the_prompt():
    preset = Preset(think="\n<think>\n", after_thought="\n</think>\n", no_think="\n\n[no_think]\n")
    chat = ChatFormat.build(tiny_tokenizer(), ChatConfig(preset=preset))
    assert [one.message.split("'")[1] for one in bad(check_prefixes(chat, MESSAGES))] == ["think", "no_think"]


def test_a_template_that_opens_the_thinking_span_itself():
    template = CHATML.replace("assistant\\n' }}\n{%- endif %}\n", "assistant\\n<think>\\n' }}\n{%- endif %}\n")
    assert template != CHATML
    chat = ChatFormat.build(tiny_tokenizer(template))
    assert "every response would think already" in bad(check_prefixes(chat, MESSAGES))[0].message
    # Nor is such a prompt the beginning of what follows.
    assert [one.level for one in bad(check_template(chat, MESSAGES))] == ["error", "warning"]


def test_a_template_that_rewrites_earlier_turns():
    counting = "{{ messages | length > 3 }}" + CHATML
    assert [one.level for one in bad(check_template(ChatFormat.build(tiny_tokenizer(counting)), MESSAGES))] == [
        "warning"
    ]
    refusing = "{% if messages | length > 3 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
    findings = bad(check_template(ChatFormat.build(tiny_tokenizer(refusing)), MESSAGES))
    assert [(one.level, "one turn only" in one.message) for one in findings] == [("warning", True)]


def test_answers_that_cannot_be_written_or_differ_as_text():
    chat = FORMATS["tag", "hermes"]
    answers = [Answer(Mode.THINK, f"a {TAGS[1]} b"), Answer(Mode.THINK, ""), ANSWERS[0]]
    findings = check_answers(chat, MESSAGES, TOOLS, answers)
    # An empty thought: its two line breaks are one token in the text.
    assert [one.level for one in findings] == ["error", "warning", "ok"]
    assert len(bad(findings)) == 2


def test_a_saved_template_is_recognised(tmp_path):
    FORMATS["tag", "hermes"].save(tmp_path)
    chat = ChatFormat.build(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    findings = check_template(chat, MESSAGES)
    assert bad(findings) == []
    assert "already takes modes" in findings[-1].message
