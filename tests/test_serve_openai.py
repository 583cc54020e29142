"""The OpenAI-compatible server over real sockets, asked by the real `openai` client: the samplers' own answers."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from policies import calls_tasks, tiny_policy
from web_serving import post, running

from unbraid.chat.types import Call, Mode
from unbraid.errors import DataError, ModelError
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_chat import CHAT
from unbraid.policy import ModelConfig, Policy, load_policy
from unbraid.rollout import Finish, LocalSampler, Request
from unbraid.rollout.randomness import stream_key
from unbraid.rollout.slots import SlotSampler
from unbraid.serve.chat_completions import STREAM, LocalModel, said
from unbraid.serve.completion_wire import Asked, BadRequestError
from unbraid.serve.openai import openai_app, serve_local
from unbraid.tasks import Task

TASKS = calls_tasks(18)
MODES: dict[Mode, Any] = {
    Mode.AUTO: {},
    Mode.THINK: {"chat_template_kwargs": {"enable_thinking": True}},
    Mode.NO_THINK: {"chat_template_kwargs": {"mode": "no_think", "enable_thinking": True}},
}


@pytest.fixture(scope="module")
def base() -> Policy:
    """The shipped base of the calls world: it answers in earnest."""
    return load_policy(ModelConfig(path=str(base_path(0)), device="cpu"), CHAT)


@pytest.fixture(scope="module")
def served(base):
    with running(openai_app(base, "calls-0", slots=8)) as url:
        yield url


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, task: Task, mode: Mode = Mode.AUTO, **settings: Any) -> Any:
    settings = {
        "model": "calls-0",
        "seed": 5,
        "max_tokens": 90,
        "temperature": 0.8,
        "tools": list(task.tools),
    } | settings
    return client.chat.completions.create(messages=list(task.messages), extra_body=MODES[mode], **settings)  # type: ignore[reportArgumentType]


def plain(choice: Any) -> tuple[str, str, list[tuple[str, dict]], str]:
    """(thought, content, calls, finish) of an answer."""
    message = choice.message
    assert message.reasoning == message.reasoning_content
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]
    return message.reasoning or "", message.content or "", calls, choice.finish_reason


def expected(policy: Policy, task: Task, mode: Mode, index: int = 0, budget: int = 90, seed: int = 5) -> Any:
    """What `LocalSampler` draws in the same stream, as `plain` shows it, and its (prompt, response) tokens."""
    format = policy.format
    prompt, forced = format.prompt_ids(task.messages, task.tools), len(format.prefix_ids(mode))
    asked = Request(Task(STREAM, ()), tuple(prompt), index, mode)
    (drawn,) = LocalSampler(policy).sample([asked], temperature=0.8, max_new_tokens=budget + forced, seed=seed)
    truncated = drawn.finish is Finish.LENGTH
    read = format.read(drawn.ids[len(prompt) :].tolist(), truncated)
    finish = "length" if truncated else "tool_calls" if read.calls else "stop"
    calls = [(call.name, call.arguments) for call in read.calls]
    return (read.thought, read.content, calls, finish), (len(prompt) + forced, len(drawn.ids) - len(prompt) - forced)


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(MODES))
def test_answers_are_the_samplers(client, base, mode):
    thoughts = set()
    for task in TASKS[::3]:
        found = ask(client, task, mode)
        answer, (prompt, drawn) = expected(base, task, mode)
        assert plain(found.choices[0]) == answer
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (prompt, drawn)
        assert found.usage.total_tokens == prompt + drawn
        thoughts.add(bool(answer[0]))
    assert mode is Mode.AUTO or thoughts == {mode is Mode.THINK}


def test_a_tiny_policy_answers_as_the_slot_sampler_does():
    policy = tiny_policy(sharp=0.1)
    prompt = policy.format.prompt_ids(TASKS[0].messages, TASKS[0].tools)

    async def draw() -> list[int]:
        async with SlotSampler(policy, 1, 1.3) as sampler:
            drawn = await (await sampler.open(prompt)).respond(stream_key(7, STREAM, 0), Mode.THINK, 31)
            return drawn.ids.tolist()

    ids = asyncio.run(draw())
    asked = Asked(TASKS[0].messages, TASKS[0].tools, Mode.THINK, 1.3, 30, 7)  # type: ignore[reportArgumentType]
    with LocalModel(policy, "tiny") as model:
        (choice,) = model.submit(asked).result(60).choices
    truncated = ids[-1] not in policy.format.stop_ids
    assert (choice.thought, choice.content, choice.calls) == said(policy.format, ids, truncated, True)
    assert choice.tokens == len(ids) - 1


def test_the_form_is_openais(client):
    found = ask(client, TASKS[0], Mode.THINK)
    raw = found.model_dump(exclude_unset=True)
    assert raw.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert raw["object"] == "chat.completion" and raw["model"] == "calls-0" and raw["id"].startswith("chatcmpl-")
    message = raw["choices"][0]["message"]
    assert message.keys() == {"role", "content", "reasoning", "reasoning_content", "tool_calls"}
    assert message["content"] is None and message["role"] == "assistant"
    call = message["tool_calls"][0]
    assert call.keys() == {"id", "type", "function"} and call["type"] == "function"
    assert re.fullmatch(r"call[0-9a-f]{5}", call["id"])


def test_a_stream_says_the_same_in_pieces_by_role(client):
    for task, mode in [(TASKS[0], Mode.NO_THINK), (TASKS[-1], Mode.THINK), (TASKS[1], Mode.AUTO)]:
        whole = ask(client, task, mode, n=2)
        chunks = list(ask(client, task, mode, n=2, stream=True, stream_options={"include_usage": True}))
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({c.id for c in chunks}) == 1
        assert not chunks[-1].choices and chunks[-1].usage == whole.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
        for index, choice in enumerate(whole.choices):
            deltas = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
            said = [one.delta.model_dump(exclude_unset=True) for one in deltas]
            message = choice.message.model_dump(exclude_unset=True)
            kinds = ["reasoning"] * bool(message["reasoning"]) + ["content"] * bool(message["content"])
            kinds += ["tool_calls"] * bool(message.get("tool_calls"))
            assert said[0] == {"role": "assistant", "content": ""} and said[-1] == {}
            assert [next(iter(one)) for one in said[1:-1]] == kinds
            joined = {key: value for one in said[1:] for key, value in one.items()}
            for call in joined.get("tool_calls", []):
                call.pop("index")
            assert {key: joined.get(key) for key in kinds} == {key: message[key] for key in kinds}
            assert [one.finish_reason for one in deltas] == [None] * (len(deltas) - 1) + [choice.finish_reason]
    without = list(ask(client, TASKS[0], stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_seeds_repeat_and_n_are_the_streams_of_a_seed(client, base):
    task = TASKS[-1]
    found = ask(client, task, n=6)
    again = ask(client, task, n=6)
    assert [one.model_dump() for one in found.choices] == [one.model_dump() for one in again.choices]
    references = [expected(base, task, Mode.AUTO, index) for index in range(6)]
    assert [plain(one) for one in found.choices] == [answer for answer, _ in references]
    assert len({str(answer) for answer, _ in references}) > 1
    assert found.usage.completion_tokens == sum(drawn for _, (_, drawn) in references)
    other = ask(client, task, n=6, seed=-6)
    assert [plain(one) for one in other.choices] != [plain(one) for one in found.choices]
    free = [str([plain(one) for one in ask(client, task, n=6, seed=None, temperature=3).choices]) for _ in range(2)]
    assert free[0] != free[1], "without a seed every request is drawn anew"


def test_greedy_needs_no_seed(client):
    found = [plain(ask(client, TASKS[2], temperature=0, seed=seed).choices[0]) for seed in (None, 1, 2)]
    assert found[0] == found[1] == found[2]


def test_limits_of_tokens(client, base):
    cut = ask(client, TASKS[-1], Mode.THINK, max_tokens=5)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 5
    assert cut.choices[0].message.reasoning and cut.choices[0].message.content == ""
    assert plain(cut.choices[0]) == expected(base, TASKS[-1], Mode.THINK, budget=5)[0]
    named = ask(client, TASKS[-1], Mode.THINK, max_tokens=None, max_completion_tokens=6)
    assert named.usage.completion_tokens == 6
    whole = ask(client, TASKS[-1], Mode.THINK, max_tokens=100_000)
    assert plain(whole.choices[0])[3] == "tool_calls", "more than fits is as many as fit"
    fitting = "e0 " * (256 - len(base.format.prompt_ids([{"role": "user", "content": ""}])) - 3)
    last = client.chat.completions.create(model="calls-0", messages=[{"role": "user", "content": fitting}])
    assert last.usage.completion_tokens <= 3 and last.usage.total_tokens <= 256


def test_calls_without_tools_are_what_was_written(client, base):
    for task, settings in ((TASKS[0], {"tool_choice": "none"}), (TASKS[0], {"tools": openai.omit})):
        message = ask(client, task, Mode.NO_THINK, temperature=0, **settings).choices[0].message
        assert message.tool_calls is None and message.content.startswith("<tool_call> t")


def test_unreadable_calls_are_content(base):
    format, words = base.format, base.format.encode
    broken = words("<think> use t2 </think> <tool_call> t2 p2 = </tool_call> <eos>")
    assert said(format, broken, False, True) == ("use t2", "<tool_call> t2 p2 = </tool_call>", ())
    cut = words("<no_think> <tool_call> t2 (")
    assert said(format, cut, True, True) == ("", "<tool_call> t2 (", ())
    thinking = words("<think> use t2 ;")
    assert said(format, thinking, True, True) == ("use t2 ;", "", ())
    unclosed = words("<think> use t2 <eos>")
    assert said(format, unclosed, False, True) == ("use t2", "", ())
    both = words("<no_think> so <tool_call> t2 ( p2 = e1 ) </tool_call> <eos>")
    assert said(format, both, False, True) == ("", "so", (Call("t2", {"p2": "e1"}),))
    assert said(format, both, False, False) == ("", "so <tool_call> t2 ( p2 = e1 ) </tool_call>", ())


def test_many_at_once_get_what_each_gets_alone(client):
    wanted = [(TASKS[i % len(TASKS)], list(MODES)[i % 3], (0.5, 0.8, 1.0, 0.0)[i % 4], i) for i in range(16)]

    def one(want):
        task, mode, temperature, seed = want
        found = ask(client, task, mode, temperature=temperature, seed=seed, n=1 + seed % 2)
        return [choice.model_dump() for choice in found.choices]

    alone = [one(want) for want in wanted]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, wanted)) == alone


# -- refusals -------------------------------------------------------------------------------------------------------

USER: Any = [{"role": "user", "content": "i1c e2"}]


def test_refusals_are_those_of_the_openai_client(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=USER)
    assert unknown.value.code == "model_not_found" and "calls-0" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="calls-0", messages=[{"role": "user", "content": "e1 " * 300}])
    assert long.value.code == "context_length_exceeded"
    asked = {"model": "calls-0", "messages": USER, "user": "me", "top_p": 1, "stop": [], "store": False, "seed": 1}
    assert client.chat.completions.create(**asked), "what asks for nothing is taken"


def test_an_error_has_openais_shape(served):
    for body in (b"{", {"messages": USER, "stop": ["x"], "stream": True}):
        status, answer = post(f"{served}/v1/chat/completions", body)
        assert status == 400 and answer.keys() == {"error"}
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"


def test_other_paths(served, client):
    assert [one.id for one in client.models.list()] == ["calls-0"]
    with urllib.request.urlopen(f"{served}/v1/models") as response:
        (card,) = json.load(response)["data"]
    assert card["max_model_len"] == 256 and card["object"] == "model"
    with urllib.request.urlopen(f"{served}/health") as response:
        assert json.load(response) == {"status": "ok"}
    assert post(f"{served}/v1/completions", {})[0] == 404
    status, answer = post(f"{served}/health", {})
    assert status == 405 and "POST /v1/chat/completions" in answer["error"]["message"]
    assert post(f"{served}/v1/chat/completions", b" " * 5_000_000)[0] == 413


# -- trouble ------------------------------------------------------------------------------------------------------


@pytest.fixture
def endless() -> Policy:
    """It never stops by itself."""
    policy = tiny_policy()
    policy.format.stop_ids = (-1,)
    return policy


def test_a_client_that_leaves_frees_its_slot(endless):
    with running(openai_app(endless, "tiny", slots=1)) as url:
        host = url.removeprefix("http://")
        for stream in (False, True):
            body = json.dumps({"messages": USER, "max_tokens": 30_000, "n": 3, "stream": stream})
            leaving = http.client.HTTPConnection(host)
            leaving.request("POST", "/v1/chat/completions", body)
            time.sleep(0.3)
            with urllib.request.urlopen(f"{url}/health", timeout=2) as response:  # while it draws
                assert response.status == 200
            leaving.close()
        started = time.monotonic()
        status, answer = post(f"{url}/v1/chat/completions", {"messages": USER, "max_tokens": 2})
        assert status == 200 and answer["usage"]["completion_tokens"] == 2
        assert time.monotonic() - started < 3, "30,000 tokens would take much longer"


def test_closing_ends_what_is_drawn(endless):
    with LocalModel(endless, "tiny", slots=2) as model:
        answers = [model.submit(Asked(tuple(USER), max_tokens=30_000)) for _ in range(3)]
        time.sleep(0.2)
    assert all(answer.cancelled() for answer in answers)
    with pytest.raises(ModelError, match="within `with`"):
        model.submit(Asked(tuple(USER)))


def test_who_waits_longest_comes_next_whatever_the_temperature(endless):
    with LocalModel(endless, "tiny", slots=1) as model:
        ended: list[int] = []
        answers = []
        for place, temperature in enumerate((0.5, 1.0, 0.5, 0.0)):
            answers.append(model.submit(Asked(tuple(USER), temperature=temperature, max_tokens=20)))
            answers[-1].add_done_callback(lambda _, place=place: ended.append(place))
        for answer in answers:
            assert answer.result(30).choices[0].finish == "length"
        assert ended == [0, 1, 2, 3]
        assert list(model._engines) == [0.0], "only the last is kept"


def test_a_model_that_fails_is_one_line_and_recovers(monkeypatch):
    policy = tiny_policy()
    forward = policy.model.forward
    with running(openai_app(policy, "tiny")) as url:

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("out of\nmemory")

        monkeypatch.setattr(policy.model, "forward", broken)
        asked = {"messages": USER, "max_tokens": 3, "n": 2}
        status, answer = post(f"{url}/v1/chat/completions", asked)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert answer["error"]["message"] == "the model failed: RuntimeError: out of memory"
        monkeypatch.setattr(policy.model, "forward", forward)
        assert post(f"{url}/v1/chat/completions", asked)[0] == 200


def test_the_policy_is_left_as_it_was(endless):
    endless.model.train()
    with LocalModel(endless, "tiny") as model:
        for temperature in (0.5, 1.0):
            assert model.submit(Asked(tuple(USER), temperature=temperature, max_tokens=2)).result(30)
            assert not endless.model.training
    assert endless.model.training


def test_a_template_without_tools_is_a_refusal():
    policy = tiny_policy()
    policy.tokenizer.chat_template = policy.tokenizer.chat_template.replace("tools or []", "[]")
    with LocalModel(policy, "tiny") as model, pytest.raises(BadRequestError, match="ignores tools"):
        model.submit(Asked(tuple(USER), TASKS[0].tools)).result(30)  # type: ignore[reportArgumentType]


# -- the command's function ---------------------------------------------------------------------------------------


def test_a_taken_port_is_one_line(endless):
    with pytest.raises(DataError, match="another host or port"):
        serve_local(endless, "tiny", port=99999)


def test_it_serves_until_interrupted():
    code = (
        "from policies import tiny_policy; from unbraid.serve.openai import serve_local; "
        "serve_local(tiny_policy(), 'runs/[tiny]', port=0)"
    )
    env = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "COLUMNS": "40"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stderr
        told = process.stderr.readline()
        match = re.fullmatch(r"serving runs/\[tiny\] on (http://127\.0\.0\.1:\d+/v1); Ctrl-C stops\n", told)
        assert match, told
        assert post(f"{match[1]}/chat/completions", {"messages": USER, "max_tokens": 2})[0] == 200
        process.send_signal(signal.SIGINT)
        assert (process.wait(10), process.stderr.read()) == (0, "")
    finally:
        process.kill()
        process.wait()
