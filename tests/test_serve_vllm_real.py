"""Stock parsers of the real vLLM read our answers as we do: thoughts, calls and content, in all modes, streamed or not.

Two tiny models are over-fitted until they answer three conversations by heart, each in both modes, and choose one by
themselves. The first is a whole model in Qwen3's spelling, the second an adapter in the paper's, on a base that knows
one sentence. `UNBRAID_VLLM_PYTHON` names the interpreter that has vLLM.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import NotFoundError, OpenAI
from tiny import TOOLS, tiny_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.types import Answer, Call, Mode, Reading
from unbraid.data.read import DataConfig
from unbraid.learn.supervised import SupervisedExample, SupervisedTrainer, WarmupConfig, labels_to_examples
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy
from unbraid.recipe import Recipe, TasksConfig, load_recipe
from unbraid.rollout.config import RolloutConfig
from unbraid.serve.run_flags import serve_flags
from unbraid.tasks import Task
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import start_server

pytestmark = pytest.mark.vllm

PARIS = Call("get_weather", {"city": "Paris", "days": 3, "metric": True})
ROME = Call("get_weather", {"city": "東京", "days": 1})
THOUGHT = "The user asks for the weather, so I should look it up."
MODES = {Mode.AUTO: {}, Mode.THINK: {"enable_thinking": True}, Mode.NO_THINK: {"enable_thinking": False}}
BASE_SAYS = "I am the base."
ADMIN = (
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/collective_rpc", "/sleep", "/wake_up", "/reset_prefix_cache",
    "/pause", "/resume", "/update_weights", "/init_weight_transfer_engine", "/inference/v1/generate",
    "/inference/v1/abort_requests", "/v1/chat/completions/render", "/server_info",
)  # fmt: skip

REFUSED = {403, 404, 405}
"""vLLM answers 403 where a flag would have to put the route on."""


def task(name: str, asked: str, thinks: bool, calls: tuple[Call, ...], content: str = "") -> Task:
    both = (Answer(Mode.NO_THINK, "", calls, content), Answer(Mode.THINK, THOUGHT, calls, content))
    messages = ({"role": "user", "content": asked},)
    return Task(name, messages, TOOLS, calls, both, extra={"needs_thinking": thinks})


TASKS = (
    task("one", "What is the weather in Paris?", True, (PARIS,)),
    task("two", "Paris and 東京 tomorrow", False, (PARIS, ROME), "I look."),
    task("three", "You are a helpful assistant.", False, (), "Sunny, 20 degrees."),
)


def learn(policy: Policy, examples: list[SupervisedExample], steps: int, rate: float) -> None:
    config = WarmupConfig(steps=steps, learning_rate=rate, decay="cosine", ramp_steps=5)
    SupervisedTrainer(policy.model, config, lambda step: examples).run()


def examples_of(chat: ChatFormat) -> list[SupervisedExample]:
    """The chosen mode of each task, and both answers where the mode is forced."""
    examples, left_out = labels_to_examples(TASKS, chat, WarmupConfig(mode_weight=5.0))
    assert len(examples) == len(TASKS), left_out
    for one in TASKS:
        for answer in one.answers:
            ids, prefix = chat.response_ids(answer), chat.prefix_ids(answer.mode)
            prompt, rest = (*chat.prompt_ids(one.messages, one.tools), *prefix), ids[len(prefix) :]
            examples.append(SupervisedExample(prompt, tuple(rest), (1.0,) * len(rest)))
    return examples


def fresh_policy(chat: ChatConfig) -> Policy:
    tokenizer: Any = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    return Policy(model, tokenizer, ChatFormat.build(tokenizer, chat), torch.device("cpu"))


def save(run: Path, policy: Policy, recipe: Recipe) -> None:
    policy.save(run / "final")
    (run / "recipe.yaml").write_text(recipe.to_yaml())


def recipe_for(name: str, model: ModelConfig, chat: ChatConfig) -> Recipe:
    limits = {"data": DataConfig(max_prompt_tokens=800), "rollout": RolloutConfig(max_new_tokens=400)}
    return Recipe(name=name, model=model, chat=chat, tasks=TasksConfig(train="nowhere"), **limits)


@dataclass(frozen=True)
class Running:
    """A run that is served."""

    url: str
    name: str
    chat: ChatFormat
    client: Any  # an OpenAI; its types are stricter than plain chat dicts


def serve(run: Path) -> Iterator[Running]:
    recipe = load_recipe([run / "recipe.yaml"])
    plan = serve_flags(run, recipe)
    plan.write()
    environment = {**plan.environment, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    installation = find_vllm(os.environ["UNBRAID_VLLM_PYTHON"])
    arguments = [*plan.arguments, "--enforce-eager"]
    chat = ChatFormat.build(tiny_tokenizer(), recipe.chat)
    with start_server(installation, arguments, log=run / "vllm.log", environment=environment) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        yield Running(server.url, plan.name, chat, client)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A whole model that writes as Qwen3 does."""
    run, chat = tmp_path_factory.mktemp("full"), ChatConfig(preset="think-block")
    policy = fresh_policy(chat)
    learn(policy, examples_of(policy.format), steps=110, rate=5e-3)
    save(run, policy, recipe_for("full", ModelConfig(path="nowhere"), chat))
    yield from serve(run)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An adapter that writes as the paper does, on a base that knows one sentence."""
    run, chat = tmp_path_factory.mktemp("adapter"), ChatConfig(preset="tag")
    policy = fresh_policy(chat)
    learn(policy, [*base_examples(policy.format), *examples_of(policy.format)], steps=70, rate=5e-3)
    learn(policy, base_examples(policy.format), steps=20, rate=2e-3)
    policy.save(run / "base")
    model = ModelConfig(path=str(run / "base"), adapter=AdapterConfig(rank=12, alpha=24))
    # The base was saved with the template that forces modes; training goes on with a plain one, as with a hub's model.
    policy = load_policy(model, chat)
    learn(policy, examples_of(policy.format), steps=120, rate=1e-2)
    save(run, policy, recipe_for("adapter", model, chat))
    yield from serve(run)


def base_examples(chat: ChatFormat) -> list[SupervisedExample]:
    """What the base says to everything."""
    found = []
    for one in TASKS:
        for mode in Mode.AUTO, Mode.THINK, Mode.NO_THINK:
            prompt = (*chat.prompt_ids(one.messages, one.tools), *chat.prefix_ids(mode))
            rest = (*chat.encode(BASE_SAYS), chat.stop_ids[0])
            found.append(SupervisedExample(prompt, rest, (1.0,) * len(rest)))
    return found


@dataclass(frozen=True)
class Said:
    """What a client got."""

    reasoning: str
    content: str
    calls: tuple[Call, ...]
    finish: str


def ask(running: Running, one: Task, options: dict[str, Any], **further: Any) -> tuple[Said, list[int]]:
    """(What a client gets, the ids behind it)."""
    result: Any = running.client.chat.completions.create(
        model=running.name, messages=list(one.messages), tools=list(one.tools), temperature=0, max_tokens=300,
        extra_body={"chat_template_kwargs": options, "return_token_ids": True}, **further,
    )  # fmt: skip
    choice = result.choices[0]
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    reasoning = getattr(choice.message, "reasoning", None) or ""
    said = made(reasoning, choice.message.content or "", calls, choice.finish_reason)
    return said, choice.token_ids


def ask_streaming(running: Running, one: Task, options: dict[str, Any]) -> Said:
    reasoning = content = finish = ""
    calls: dict[int, list[str]] = {}
    stream: Any = running.client.chat.completions.create(
        model=running.name, messages=list(one.messages), tools=list(one.tools), temperature=0, max_tokens=300,
        extra_body={"chat_template_kwargs": options}, stream=True,
    )  # fmt: skip
    for chunk in stream:
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                parts = calls.setdefault(call.index, ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
    return made(reasoning, content, [(name, text) for name, text in calls.values()], finish)


def made(reasoning: str, content: str, calls: list[tuple[str, str]], finish: str) -> Said:
    """White space around texts is not compared: Qwen3's stock parsers leave what stands between the parts."""
    read = tuple(Call(name, json.loads(text)) for name, text in calls)
    return Said(reasoning.strip(), content.strip(), read, finish)


def expected(one: Task, mode: Mode) -> Said:
    thinks = mode is Mode.THINK or (mode is Mode.AUTO and one.extra["needs_thinking"])
    answer = one.answers[thinks]
    return Said(answer.thought, answer.content, answer.calls, "tool_calls" if answer.calls else "stop")


def our_reading(running: Running, ids: list[int], mode: Mode) -> Reading:
    return running.chat.read([*running.chat.prefix_ids(mode), *ids])


def check_all_modes(running: Running, options_of: dict[Mode, dict[str, Any]]) -> None:
    for one in TASKS:
        for mode, options in options_of.items():
            said, ids = ask(running, one, options)
            assert said == expected(one, mode), (one.id, mode)
            reading = our_reading(running, ids, mode)
            assert (reading.thought, reading.content, reading.calls) == (said.reasoning, said.content, said.calls)
            assert not reading.problems
            assert ask_streaming(running, one, options) == said, (one.id, mode)


def request(url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """(status, text) of a POST of `body`, or of a GET."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def admin_answers(running: Running) -> dict[str, int]:
    """Status of every route that changes a server, for GET and POST."""
    found = {}
    for path in ADMIN:
        body = {"model": running.name, "lora_name": "x", "lora_path": "y", "method": "z", "token_ids": [1]}
        found[path] = request(running.url + path, body)[0]
        found[f"GET {path}"] = request(running.url + path)[0]
    return found


def test_a_whole_model_in_all_modes(full: Running):
    check_all_modes(full, MODES)


def test_a_whole_model_is_served_under_its_name(full: Running):
    assert [model.id for model in full.client.models.list().data] == ["full"]
    with pytest.raises(NotFoundError):
        full.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])
    assert set(admin_answers(full).values()) <= REFUSED


def test_a_whole_model_says_when_it_was_cut_off(full: Running):
    result: Any = full.client.chat.completions.create(
        model="full", messages=list(TASKS[0].messages), tools=list(TOOLS), temperature=0, max_tokens=6,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )  # fmt: skip
    choice = result.choices[0]
    assert choice.finish_reason == "length" and not choice.message.content and not choice.message.tool_calls
    assert choice.message.reasoning and THOUGHT.startswith(choice.message.reasoning)


def test_an_adapter_in_all_modes(adapter: Running):
    check_all_modes(adapter, MODES)
    check_all_modes(adapter, {mode: {"mode": mode.value} for mode in MODES})


def test_an_adapter_is_never_its_base(adapter: Running):
    assert [model.id for model in adapter.client.models.list().data] == ["adapter"]
    for model in ({}, {"model": ""}, {"model": "adapter-without-adapter"}, {"model": "nobody"}):
        body = {**model, "messages": list(TASKS[2].messages), "max_tokens": 20}
        status, text = request(f"{adapter.url}/v1/chat/completions", body)
        assert status == 404 and BASE_SAYS not in text
    assert set(admin_answers(adapter).values()) <= REFUSED


PARSING = Path(__file__).with_name("vllm_parsers.py")


def test_every_format_is_read_by_the_parsers_of_its_plan(tmp_path: Path):
    """The parsers alone, in vLLM's interpreter: every preset and call format, whole and in pieces of several sizes."""
    result = subprocess.run(
        [sys.executable, str(PARSING), "cases", str(tmp_path / "cases.json")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    command = [os.environ["UNBRAID_VLLM_PYTHON"], str(PARSING), "read", str(tmp_path / "cases.json")]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"})
    assert result.returncode == 0, result.stderr[-2000:]
    answer = json.loads(result.stdout.strip().splitlines()[-1])
    assert answer["wrong"] == [] and answer["read"] > 1000
