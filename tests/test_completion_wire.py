"""Chat requests as they are read: what is refused and why, and how a conversation is shown to the model."""

import json
from typing import Any

import pytest
from tiny import CHATML, SEARCH_TAGS, TOOLS, tiny_tokenizer

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.history import Conversation
from unbraid.chat.types import Answer, Call, Mode
from unbraid.serve.chat_completions import said, shown_prompt
from unbraid.serve.completion_wire import Asked, BadRequestError, read_request

# -- conversations ------------------------------------------------------------------------------------------------


def as_asked(messages: list[dict], **more: Any) -> Asked:
    return read_request(json.dumps({"messages": messages, **more}).encode(), "m")


def test_a_conversation_is_shown_as_training_shows_it():
    format = ChatFormat.build(tiny_tokenizer(CHATML))
    conversation = Conversation(format, [{"role": "user", "content": "Weather?"}], "as_served")
    opening = conversation.opening(TOOLS)
    calls = (Call("get_weather", {"city": "Paris", "limits": [1, 2.5]}), Call("get_weather", {"city": "東京"}))
    drawn = format.response_ids(Answer(Mode.THINK, "look it up", calls, "Wait."))
    conversation.results(format.read(drawn), ["sunny", "rain"], TOOLS, opening + drawn)
    wire = [
        {"type": "function", "id": f"x{i}", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
        for i, c in enumerate(calls)
    ]
    asked = as_asked([
        {"role": "user", "content": [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]},
        {"role": "assistant", "content": "Wait.", "reasoning": "look it up", "tool_calls": wire},
        {"role": "tool", "tool_call_id": "x0", "content": "sunny"},
        {"role": "tool", "tool_call_id": "x1", "content": "rain"},
    ], tools=list(TOOLS))  # fmt: skip
    assert asked.messages[-1]["name"] == "get_weather"
    ids = shown_prompt(format, asked.messages, asked.tools)
    assert ids == format.prompt_ids(conversation.messages, TOOLS)


def test_a_stop_token_that_closes_a_call_belongs_to_it():
    format = ChatFormat.build(tiny_tokenizer(CHATML, SEARCH_TAGS), ChatConfig(call_format="search"))
    calls = (Call("search", {"query": "Emma"}),)
    ids = format.response_ids(Answer(Mode.THINK, "I search.", calls))
    assert said(format, ids, False, True) == ("I search.", "", calls)
    assert said(format, ids, False, False) == ("I search.", "<search> Emma", ()), "as histories have it"


def test_results_inside_the_models_own_turn_go_on_with_it():
    chat = ChatConfig(call_format="search")
    format = ChatFormat.build(tiny_tokenizer(CHATML, SEARCH_TAGS), chat)
    question = {"role": "user", "content": "Who wrote Emma?"}
    conversation = Conversation(format, [question], "keep")
    context = conversation.opening(())
    messages: list[dict] = [question]
    for mode, thought, result in ((Mode.THINK, "I search.", "Emma is a book."), (Mode.NO_THINK, "", "By Austen.")):
        drawn = format.response_ids(Answer(mode, thought, (Call("search", {"query": "Emma"}),)))
        context += drawn + conversation.results(format.read(drawn), [result], (), context + drawn).ids
        call = {"id": "a", "type": "function", "function": {"name": "search", "arguments": '{"query": "Emma"}'}}
        messages += [
            {"role": "assistant", "content": None, "reasoning": thought or None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": result},
        ]
    assert shown_prompt(format, as_asked(messages).messages, ()) == context
    later = [*messages, {"role": "assistant", "content": "Austen"}, {"role": "user", "content": "Sure?"}]
    short = [question, {"role": "assistant", "content": "Austen"}, {"role": "user", "content": "Sure?"}]
    assert shown_prompt(format, as_asked(later).messages, ()) == format.prompt_ids(short)


# -- refusals -----------------------------------------------------------------------------------------------------

USER = [{"role": "user", "content": "i1c e2"}]
CALL = {"id": "x", "type": "function", "function": {"name": "t1", "arguments": "{"}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON"),
        (b'{"temperature": NaN}', "not JSON"),
        ([], "object"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, r"messages[0]"),
        ({"messages": [{"role": "ghost", "content": "x"}]}, r"messages[0]"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": 3}]}, "tool_calls"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [{}]}]}, "tool_calls[0]"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [CALL]}]}, "arguments"),
        ({"messages": USER, "tools": [{"name": "x"}]}, "tools"),
        ({"messages": USER, "tool_choice": "required"}, "tool_choice"),
        ({"messages": USER, "tool_choice": {"type": "function", "function": {"name": "t"}}}, "tool_choice"),
        ({"messages": USER, "temperature": -1}, "temperature"),
        ({"messages": USER, "temperature": 1e-300}, "temperature"),
        ({"messages": USER, "temperature": "hot"}, "temperature"),
        ({"messages": USER, "max_tokens": 0}, "max_tokens"),
        ({"messages": USER, "max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"messages": USER, "n": 0}, "n is"),
        ({"messages": USER, "n": 1000}, "n is"),
        ({"messages": USER, "seed": "x"}, "seed"),
        ({"messages": USER, "seed": 10**30}, "seed"),
        ({"messages": USER, "stream": 1}, "stream"),
        ({"messages": USER, "stop": ["x"]}, "stop"),
        ({"messages": USER, "top_p": 0.9}, "top_p"),
        ({"messages": USER, "top_k": 20}, "top_k"),
        ({"messages": USER, "logprobs": True}, "logprobs"),
        ({"messages": USER, "logit_bias": {"3": 5}}, "logit_bias"),
        ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": USER, "chat_template_kwargs": {"mode": "deep"}}, "mode"),
        ({"messages": USER, "chat_template_kwargs": {"enable_thinking": "yes"}}, "enable_thinking"),
        ({"messages": USER, "chat_template_kwargs": {"date": 1}}, "date"),
    ],
)
def test_bad_requests_are_told_why(body, named):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequestError) as caught:
        read_request(body, "m")
    assert named in str(caught.value) and "\n" not in str(caught.value) and caught.value.status == 400


def test_what_a_request_leaves_out():
    (message,) = USER
    assert as_asked(USER) == Asked((message,))
    nothing = dict.fromkeys(("temperature", "seed", "n", "stop", "tools", "chat_template_kwargs", "stream_options"))
    assert as_asked(USER, **nothing, user="me", store=True, metadata={}) == Asked((message,))
    neutral = {"top_p": 1.0, "top_k": -1, "presence_penalty": 0.0, "logprobs": False, "stop": [], "tool_choice": "auto"}
    assert as_asked(USER, **neutral) == Asked((message,))


def test_how_a_mode_is_asked_for():
    asked = [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"mode": "auto", "enable_thinking": False},
             {"mode": None, "enable_thinking": True}]  # fmt: skip
    modes = [as_asked(USER, chat_template_kwargs=one).mode for one in asked]
    assert modes == [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO, Mode.THINK]
