"""BFCL on a run that vLLM serves: the prompts that vLLM makes of the harness's requests are ours, id for id."""

import asyncio
import json
import os
import urllib.request
from contextlib import contextmanager
from typing import Any

import pytest
from bfcl_caller import calling_run
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from web_serving import running

from unbraid.bench.bfcl.installation import find_bfcl
from unbraid.bench.bfcl.run import Asking, bfcl, read_answers
from unbraid.bench.bfcl.served import Server, at_url, of_run
from unbraid.chat.types import Mode

pytestmark = pytest.mark.vllm

CATEGORIES = ("live_multiple", "parallel", "irrelevance", "simple_java", "multi_turn_miss_func")


class Relay:
    """Passes requests on to a server, and has it tell the ids of the prompts it made of them."""

    def __init__(self, server: Server):
        self.server = server
        self.seen: list[tuple[dict[str, Any], list[int]]] = []

    @contextmanager
    def serving(self) -> Any:
        async def models(request: Request) -> JSONResponse:
            return JSONResponse(await asyncio.to_thread(_fetch, f"{self.server.url}/models"))

        async def complete(request: Request) -> JSONResponse:
            body = await request.json()
            answer = await asyncio.to_thread(
                _fetch, f"{self.server.url}/chat/completions", {**body, "return_token_ids": True}
            )
            self.seen.append((body, answer["prompt_token_ids"]))
            return JSONResponse(answer)

        routes = [Route("/v1/models", models), Route("/v1/chat/completions", complete, methods=["POST"])]
        with running(Starlette(routes=routes)) as address:
            yield f"{address}/v1"


def _fetch(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def test_vllm_sees_the_prompts_that_training_makes(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    policy = calling_run(tmp_path / "caller", steps=1)
    asking = Asking(categories=CATEGORIES, limit=4, max_tokens=2, mode=Mode.NO_THINK)
    vllm = os.environ["UNBRAID_VLLM_PYTHON"]
    with of_run(tmp_path / "caller", python=vllm, flags=("--enforce-eager", "--max-model-len=16384")) as server:
        assert server.by == "vllm" and server.model == "caller"
        relay = Relay(server)
        with relay.serving() as url:
            score = bfcl(find_bfcl(), at_url(url), tmp_path, asking)
    assert score.accuracy.n == 20 and len(relay.seen) >= 20
    forced = list(policy.format.prefix_ids(Mode.NO_THINK))
    for body, ids in relay.seen:
        assert ids == policy.format.prompt_ids(body["messages"], body["tools"]) + forced
    answers = read_answers(score.setting.folder(tmp_path) / "answers.jsonl")
    counted = sorted(reply["prompt_tokens"] for answer in answers for reply in answer["replies"])
    assert counted == sorted(len(ids) for _, ids in relay.seen)
