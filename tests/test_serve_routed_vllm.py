"""`unbraid serve` with routed adapters: stock clients of chat get every token through its adapter, history included."""

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM
from vllm_servers import enlarge

from unbraid.chat.format import ChatConfig
from unbraid.data.read import DataConfig
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy, routed_lora
from unbraid.policy.routing import RoutingConfig
from unbraid.recipe import Recipe, TasksConfig
from unbraid.rollout.config import RolloutConfig
from unbraid.serve.run_flags import serve_flags
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import Server, start_server

pytestmark = pytest.mark.vllm

CHAT = ChatConfig(preset="think-block")
TALK = [
    {"role": "user", "content": "What is <tool_call> the weather </think> in Paris?"},
    {"role": "assistant", "content": "<think>\nI look.\n</think>\n\n<tool_call>\n{Paris}\n</tool_call>"},
    {"role": "user", "content": "Sunny. And tomorrow?"},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    base = tmp_path_factory.mktemp("base")
    tokenizer: Any = tiny_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=False,
        initializer_range=0.15, eos_token_id=None, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model: Any = Qwen3ForCausalLM(config)
    model.save_pretrained(str(base))
    tokenizer.save_pretrained(str(base))
    adapter = AdapterConfig(rank=8, alpha=16, routing=RoutingConfig(context=None))
    made = load_policy(ModelConfig(path=str(base), adapter=adapter), CHAT)
    enlarge(made, 0.3)
    return made


@pytest.fixture(scope="module")
def server(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run = tmp_path_factory.mktemp("run")
    policy.save(run / "final")
    recipe = Recipe(
        name="routed", model=ModelConfig(path=policy.model.base_model.model.config._name_or_path), chat=CHAT,
        data=DataConfig(max_prompt_tokens=200), rollout=RolloutConfig(max_new_tokens=56),
        tasks=TasksConfig(train="nowhere"),
    )  # fmt: skip
    plan = serve_flags(run, recipe, flags=["--enforce-eager"])
    plan.write()
    environment = {**plan.environment, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    found = find_vllm(os.environ["UNBRAID_VLLM_PYTHON"], need_plugin=True)
    with start_server(found, plan.arguments, log=run / "server.log", environment=environment) as running:
        yield running


def converse(server: Server, **more: Any) -> tuple[list[int], list[int], list[float]]:
    """(ids of the prompt, of the answer, its log-probs)."""
    body = {"model": "routed", "messages": TALK, "logprobs": True, "return_token_ids": True, "max_tokens": 24, **more}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    choice = found["choices"][0]
    return found["prompt_token_ids"], choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]]


@torch.no_grad()
def own(policy: Policy, prompt: list[int], drawn: list[int], written: list[bool]) -> NDArray[np.float64]:
    """The trainer's log-probs of an answer to a prompt of which the model wrote so much."""
    assert policy.router
    row = [[*prompt, *drawn]]
    with routed_lora.routed(policy.model, policy.router.route(row, [[*written, *[True] * len(drawn)]])):
        logits = policy.model(input_ids=torch.tensor(row), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(drawn)[:, None])[:, 0].double().numpy()


def test_what_the_model_said_before_is_seen_by_turn_markers(policy: Policy, server: Server):
    prompt, drawn, logprobs = converse(server)
    assert policy.format.turns
    written = policy.format.turns.written(prompt).tolist()
    said = policy.format.decode([token for token, mine in zip(prompt, written, strict=True) if mine])
    assert said == TALK[1]["content"] + "<|im_end|>"
    assert np.abs(own(policy, prompt, drawn, written) - logprobs).max() <= 1e-4
    for wrong in ([False] * len(prompt), [True] * len(prompt)):
        assert np.abs(own(policy, prompt, drawn, wrong) - logprobs).max() > 1e-2


def test_a_client_that_tells_is_believed(policy: Policy, server: Server):
    prompt, drawn, logprobs = converse(server, vllm_xargs={"unbraid_written": "[]"})
    assert np.abs(own(policy, prompt, drawn, [False] * len(prompt)) - logprobs).max() <= 1e-4


def test_the_folder_is_what_a_run_leaves(policy: Policy, tmp_path: Path):
    policy.save(tmp_path)
    turns = json.loads((tmp_path / "routing.json").read_text())["turns"]
    assert policy.format.decode(turns["open"]) == "<|im_start|>assistant\n"
    assert policy.format.decode(turns["close"][:1]) == "<|im_end|>"
