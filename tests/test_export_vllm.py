"""Exported folders in the real vLLM, without unbraid's plugin: a whole model, an adapter, each of two routed ones.

`UNBRAID_VLLM_PYTHON` names the interpreter that has vLLM.
"""

import json
import os
import shlex
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_runs import MESSAGES, TOOL_LIST, base_model, make_run

from unbraid.chat.types import Mode
from unbraid.export import export_run
from unbraid.export.usage import Loading, serve_command
from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed
from unbraid.vllm.installation import find_vllm
from unbraid.vllm.server import Server, start_server

pytestmark = pytest.mark.vllm

SETTINGS = {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Policy]]:
    """A run of each kind, exported."""
    work = tmp_path_factory.mktemp("exports")
    base = base_model(work / "base", head=32)
    policies = {kind: make_run(work / kind, base, kind) for kind in ("whole", "adapter", "routed")}
    for kind in policies:
        export_run(work / kind, work / f"{kind}-out")
    return work, policies


def start(line: str, log: Path) -> Server:
    """The server that a card's line starts, small and eager."""
    _, _, model, *flags = shlex.split(line)
    arguments = [f"--model={model}", *flags, "--enforce-eager", "--max-model-len=512"]
    installation = find_vllm(os.environ["UNBRAID_VLLM_PYTHON"])
    return start_server(installation, arguments, log=log, environment=SETTINGS)


def post(server: Server, path: str, **body: Any) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def check(server: Server, name: str, policy: Policy, route: int = 0) -> None:
    """The prompt's ids in every mode, and the log-probs of what stands in it."""
    prompt = policy.format.prompt_ids(MESSAGES, TOOL_LIST)
    for mode in (Mode.AUTO, Mode.THINK, Mode.NO_THINK):
        told = post(
            server, "/tokenize", model=name, messages=MESSAGES, tools=TOOL_LIST, add_generation_prompt=True,
            chat_template_kwargs={"mode": mode.value},
        )  # fmt: skip
        assert told["tokens"] == [*prompt, *policy.format.prefix_ids(mode)]
    said = post(
        server, "/v1/completions", model=name, prompt=prompt, echo=True, logprobs=0, max_tokens=1, temperature=0
    )
    found = np.array(said["choices"][0]["logprobs"]["token_logprobs"][1 : len(prompt)])
    ids = torch.tensor([prompt])
    with torch.no_grad(), routed(policy.model, torch.full(ids.shape, route)):
        logp = torch.log_softmax(policy.model(ids).logits[0, :-1].float(), -1)
    expected = logp.gather(-1, ids[0, 1:, None])[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_whole_model(world: tuple):
    work, policies = world
    format = policies["whole"].format
    line = serve_command(Loading("whole", format, ""), str(work / "whole-out"))
    with start(line, work / "whole.log") as server:
        check(server, str(work / "whole-out"), policies["whole"])
        assert "unbraid" not in server.output().replace(str(work), "")


def test_adapters_each_alone(world: tuple):
    work, policies = world
    routed_out = work / "routed-out"
    format, names = policies["routed"].format, ("reasoning", "action")
    line = serve_command(Loading("routed", format, str(work / "base"), names, 4), str(routed_out))
    with start(f"{line} tuned={work / 'adapter-out'} --max-loras=3", work / "adapters.log") as server:
        check(server, "tuned", policies["adapter"])
        for number, name in enumerate(names):
            check(server, name, policies["routed"], number)
