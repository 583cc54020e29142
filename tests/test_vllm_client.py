"""The client of one server: what it reads from the wire, and which answers are worth another attempt. Also the flags
that a server which samples for a trainer is started with.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from policies import tiny_policy
from stand_in_vllm import StandIn, Trouble

from unbraid.errors import ServerError
from unbraid.policy import Policy
from unbraid.rollout.probe import own_logprobs
from unbraid.vllm.client import Client, RefusedError, UnavailableError, open_session
from unbraid.vllm.flags import Sampled, lora_rank, sampling_flags

T = TypeVar("T")
PROMPT = [1, 5, 9, 14, 3, 22, 8]
REQUEST: dict[str, Any] = {
    "model": "base", "temperature": 0.7, "max_tokens": 6, "seed": 1, "stop_ids": [2], "salt": "s",
}  # fmt: skip


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def server(policy) -> Iterator[StandIn]:
    with StandIn(policy.model) as server:
        yield server


def ask(url: str, work: Callable[[Client], Awaitable[T]], seconds: float = 20) -> T:
    async def main() -> T:
        async with open_session() as session:
            return await work(Client(url, session, seconds))

    return asyncio.run(main())


def generate(url: str, seconds: float = 20, **changes: Any):
    return ask(url, lambda client: client.generate(PROMPT, **(REQUEST | changes)), seconds)


# -- responses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_of_the_distribution_drawn_from(policy, server, temperature):
    found = generate(server.url, temperature=temperature)
    own = own_logprobs(policy, [*PROMPT, *found.ids], len(PROMPT), temperature or 1.0)
    assert found.logprobs == pytest.approx(own.tolist(), abs=1e-5)
    assert len(found.ids) == 6 and not found.stopped


def test_a_response_ends_with_the_stop_token(server):
    first = generate(server.url).ids[0]
    found = generate(server.url, stop_ids=[first, 2])
    assert found.ids == (first,) and found.stopped


def test_a_seed_repeats_a_response_and_none_is_sent_without(server):
    # What is remembered of the prompt changes the last digits of log-probs, as vLLM's does.
    first, again, other = generate(server.url).ids, generate(server.url).ids, generate(server.url, seed=2).ids
    assert first == again != other
    generate(server.url, seed=None)
    assert [body["sampling_params"]["seed"] for body in server.bodies()] == [1, 1, 2, None]


@pytest.mark.parametrize("wanted", [(3, 7), (0, 1), (1, 0, 2), (50,)])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_logprobs_of_given_tokens_come_back_in_order_and_all_of_them(policy, server, wanted, temperature):
    found = ask(server.url, lambda c: c.next_logprobs(PROMPT, wanted, model="base", temperature=temperature, salt="s"))
    own = [own_logprobs(policy, [*PROMPT, token], len(PROMPT), temperature or 1.0)[0] for token in wanted]
    assert found == pytest.approx(own, abs=1e-5)


def test_what_is_remembered_depends_on_the_salt(server):
    """The stand-in does what vLLM does: this is what salts are for."""
    before = generate(server.url, temperature=0.0)
    with torch.no_grad():
        server._base = tiny_policy(seed=1).model.eval()
    mixed, fresh = (generate(server.url, temperature=0.0, salt=salt) for salt in ("s", "t"))
    assert mixed.logprobs != fresh.logprobs != before.logprobs


# -- what is worth another attempt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Trouble("status", status=500), "500: EngineCore encountered an issue. See stack trace (above)."),
        (Trouble("status", status=503), "503"),
        (Trouble("status", status=429), "429"),
        (Trouble("hang"), "no answer within 0.3 s"),
        (Trouble("cut"), "ClientPayloadError"),
        (Trouble("garbage"), "JSONDecodeError"),
        (Trouble("abort"), "ended by the server (abort)"),
        (Trouble("die"), "Disconnected"),
    ],
    ids=lambda value: f"{value.kind}{value.status}" if isinstance(value, Trouble) else "",
)
def test_a_server_in_trouble_may_be_asked_again(server, trouble, says):
    generate(server.url)  # it is warm now: the next answer takes no time
    server.troubles = [trouble]
    with pytest.raises(UnavailableError) as caught:
        generate(server.url, seconds=0.3)
    assert says in str(caught.value) and server.url in str(caught.value) and "\n" not in str(caught.value)
    if trouble.kind != "die":
        assert generate(server.url).ids


def test_nobody_there_may_be_there_later():
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9/"):
        generate("http://127.0.0.1:9")


@pytest.mark.parametrize("url", ["127.0.0.1:9", "nonsense", "ftp://somewhere"])
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(ServerError, match=url):
        generate(url)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refusal_is_final(server, status):
    server.troubles = [Trouble("status", status=status)]
    with pytest.raises(RefusedError, match=str(status)) as caught:
        generate(server.url)
    assert not isinstance(caught.value, UnavailableError) and caught.value.status == status
    with pytest.raises(RefusedError, match="does not exist"):
        generate(server.url, model="nobody")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({}, "without a choice"),
        ([], "without a choice"),
        ({"choices": []}, "without a choice"),
        ({"finish_reason": "stop", "token_ids": [1]}, "no 'logprobs'"),
        ({"finish_reason": "stop", "token_ids": [1], "logprobs": None}, "supported version"),
        ({"finish_reason": "stop", "token_ids": [], "logprobs": {"content": []}}, "0 tokens"),
        ({"finish_reason": "stop", "token_ids": [1, 2], "logprobs": {"content": [{"logprob": -1}]}}, "2 tokens came"),
        ({"finish_reason": "stop", "token_ids": [1], "logprobs": {"content": [{"logprob": -9999.0}]}}, "NaN"),
        ({"finish_reason": "stop", "token_ids": [1], "logprobs": {"content": [{"logprob": math.nan}]}}, "NaN"),
    ],
)
def test_answers_that_cannot_be_meant_are_final(server, answer, says, monkeypatch):
    whole = {"choices": [answer]} if isinstance(answer, dict) and "token_ids" in answer else answer
    monkeypatch.setattr(server, "_generate", lambda body: whole)
    with pytest.raises(ServerError, match=says) as caught:
        generate(server.url)
    assert not isinstance(caught.value, UnavailableError)


def test_probabilities_that_do_not_come_back_are_named(server, monkeypatch):
    answer = {"choices": [{"logprobs": {"content": [{"top_logprobs": []}]}}]}
    monkeypatch.setattr(server, "_generate", lambda body: answer)
    with pytest.raises(ServerError, match=r"\[5, 6\] did not come back"):
        ask(server.url, lambda c: c.next_logprobs(PROMPT, (5, 6), model="base", temperature=1.0, salt="s"))


# -- everything else -------------------------------------------------------------------------------------------------


def test_all_weights_are_replaced_between_pause_and_resume(tmp_path, server):
    other = tiny_policy(seed=3)
    other.save(tmp_path)
    ask(server.url, lambda client: client.load_weights(str(tmp_path)))
    routes = ["/pause?mode=wait", "/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
    assert [path for path, _ in server.asked] == routes
    found = generate(server.url)
    own = own_logprobs(other, [*PROMPT, *found.ids], len(PROMPT), 0.7)
    assert found.logprobs == pytest.approx(own.tolist(), abs=1e-5)


def test_an_adapter_is_loaded_and_forgotten_also_if_the_answer_was_lost(tmp_path, server):
    policy = tiny_policy(adapter=True)
    policy.model.save_pretrained(tmp_path)

    async def twice(client: Client) -> None:
        for _ in range(2):
            await client.load_adapter("a", str(tmp_path))

    ask(server.url, twice)
    found = generate(server.url, model="a")
    own = own_logprobs(policy, [*PROMPT, *found.ids], len(PROMPT), 0.7)
    assert found.logprobs == pytest.approx(own.tolist(), abs=1e-5)
    for _ in range(2):
        ask(server.url, lambda client: client.unload_adapter("a"))
    assert not server.adapters


def test_an_adapter_that_is_refused_is_named(server):
    server.troubles = [Trouble("status", "/v1/load_lora_adapter", status=400)]
    with pytest.raises(RefusedError, match="load_lora_adapter: 400"):
        ask(server.url, lambda client: client.load_adapter("a", "nowhere"))
    server.troubles = [Trouble("status", "/v1/unload_lora_adapter", status=400)]
    with pytest.raises(RefusedError, match="unload_lora_adapter: 400"):
        ask(server.url, lambda client: client.unload_adapter("a"))


def test_facts(server):
    assert ask(server.url + "/", lambda client: client.facts()) == ("0.32.0", 256)
    server.troubles = [Trouble("garbage", "/version"), Trouble("status", "/v1/models", status=404)]
    with pytest.raises(UnavailableError, match="/version"):
        ask(server.url, lambda client: client.facts())
    with pytest.raises(RefusedError, match="/v1/models: 404"):
        ask(server.url, lambda client: client.facts())


def test_health(server):
    assert ask(server.url, lambda client: client.healthy())
    server.troubles = [Trouble("status", "/health", status=503)]
    assert not ask(server.url, lambda client: client.healthy())
    server.stop()
    assert not ask(server.url, lambda client: client.healthy())


def test_the_key_of_the_environment_is_sent(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")

    async def headers() -> str:
        async with open_session() as session:
            return session.headers["Authorization"]

    assert asyncio.run(headers()) == "Bearer secret"


# -- flags -----------------------------------------------------------------------------------------------------------


def sampled(**changes: Any) -> Sampled:
    usual: dict[str, Any] = {
        "model": "m", "dtype": "float32", "max_tokens": 300, "rank": 0, "memory": 0.4, "sleep": False, "devices": "",
        "cpu": False,
    }  # fmt: skip
    return Sampled(**(usual | changes))


def test_what_every_server_is_told():
    for cpu in (False, True):
        for rank in (0, 12):
            flags, _ = sampling_flags(sampled(cpu=cpu, rank=rank))
            assert {
                "--model=m", "--served-model-name=base", "--dtype=float32", "--max-model-len=300",
                "--logprobs-mode=processed_logprobs", "--generation-config=vllm", "--enable-scale-out",
            } <= set(flags)  # fmt: skip


def test_an_adapter_or_all_weights():
    flags, environment = sampling_flags(sampled(rank=12))
    assert {"--enable-lora", "--max-lora-rank=16", "--max-loras=1", "--max-cpu-loras=2"} <= set(flags)
    assert environment == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    flags, environment = sampling_flags(sampled())
    (config,) = [flag for flag in flags if flag.startswith("--weight-transfer-config=")]
    assert json.loads(config.partition("=")[2]) == {"backend": "unbraid"} and "--enable-lora" not in flags
    assert environment == {"VLLM_SERVER_DEV_MODE": "1"}


def test_a_gpu_its_memory_and_its_devices():
    flags, environment = sampling_flags(sampled(devices="2,3", rank=8))
    assert {"--gpu-memory-utilization=0.4", "--tensor-parallel-size=2"} <= set(flags)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    flags, environment = sampling_flags(sampled(devices="5"))
    assert environment["CUDA_VISIBLE_DEVICES"] == "5" and not any("tensor-parallel" in flag for flag in flags)
    assert "CUDA_VISIBLE_DEVICES" not in sampling_flags(sampled())[1]


def test_a_cpu_takes_gibibytes_and_no_devices():
    flags, environment = sampling_flags(sampled(cpu=True, memory=0.4, devices="1"))
    assert environment == {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    assert not any("gpu" in flag or "chunked" in flag for flag in flags)
    assert sampling_flags(sampled(cpu=True, memory=2.5))[1]["VLLM_CPU_KVCACHE_SPACE"] == "3"


@pytest.mark.parametrize(("max_tokens", "batched"), [(300, 2048), (5000, 5000)])
def test_seeds_on_a_cpu_need_whole_prompts(max_tokens, batched):
    flags, _ = sampling_flags(sampled(cpu=True, seeded=True, max_tokens=max_tokens))
    assert {"--no-enable-chunked-prefill", f"--max-num-batched-tokens={batched}"} <= set(flags)
    assert not any("chunked" in flag for flag in sampling_flags(sampled(seeded=True))[0])


def test_sleep_needs_its_routes():
    flags, environment = sampling_flags(sampled(sleep=True, rank=8))
    assert "--enable-sleep-mode" in flags
    assert environment == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}


def test_further_flags_have_the_last_word():
    flags, _ = sampling_flags(sampled(), ["--max-model-len=99", "--x"])
    assert flags[-2:] == ["--max-model-len=99", "--x"]


def test_ranks():
    assert [lora_rank(rank) for rank in (1, 2, 8, 9, 512)] == [1, 8, 8, 16, 512]
    with pytest.raises(ValueError, match="up to rank 512"):
        lora_rank(513)


def test_the_stand_in_cuts_the_list_as_vllm_does(server):
    """Of n ids asked for with `logprobs: n`, the last is missing, unless it was sampled."""
    params = {"temperature": 0, "max_tokens": 1, "logprobs": 2, "logprob_token_ids": [5, 6], "ignore_eos": True}
    body = {"token_ids": PROMPT, "sampling_params": params | {"detokenize": False}, "model": "base", "cache_salt": "s"}
    answer = server._generate(body)
    assert isinstance(answer, dict)
    (content,) = answer["choices"][0]["logprobs"]["content"]
    assert [token["token_id"] for token in content["top_logprobs"]] == [content["token_id"], 5]
