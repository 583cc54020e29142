"""Exported folders: stock transformers and PEFT make the same ids and logits of them; the card; what is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from exported_runs import MESSAGES, TOOL_LIST, base_model, make_run
from huggingface_hub import ModelCard
from tiny import tiny_tokenizer
from trl_worlds import CHAT, chat_tokenizer
from typer.testing import CliRunner

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.chat.preset import Preset
from unbraid.chat.types import Answer, Call, Mode
from unbraid.cli import export as command
from unbraid.errors import ChatError, CheckpointError, ModelError, UnbraidError
from unbraid.export import export_run, provenance, write
from unbraid.export.tokenizer import save_tokenizer
from unbraid.export.usage import Loading, serve_command
from unbraid.policy import Policy
from unbraid.policy.routed_lora import routed
from unbraid.recipe import load_recipe
from unbraid.run import policy_of, recipe_of
from unbraid.serve.run_flags import serve_flags

KINDS = {
    "whole": ("whole", False),
    "adapter": ("adapter", False),
    "merged": ("adapter", True),
    "routed": ("routed", False),
}
SCRIPT = Path(__file__).with_name("stock_loading.py")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Policy]]:
    """Every kind of run, exported to WORK/KIND-out."""
    work = tmp_path_factory.mktemp("exports")
    base = base_model(work / "base")
    policies = {}
    for name, (kind, merge) in KINDS.items():
        policies[name] = make_run(work / name, base, kind)
        export_run(work / name, work / f"{name}-out", merge=merge)
    return work, policies


@pytest.fixture(scope="module")
def stock(world: tuple[Path, dict[str, Policy]]) -> dict[str, Any]:
    """What stock software makes of the folders."""
    work, policies = world
    format = policies["whole"].format
    folders = {
        name: [str(work / f"{name}-out"), str(work / "base") if name in ("adapter", "routed") else ""] for name in KINDS
    }
    answer = format.response_ids(Answer(Mode.THINK, "so", (Call("add", {"a": 1}),)))
    asked = {
        "folders": folders, "messages": MESSAGES, "tools": TOOL_LIST, "ids": format.prompt_ids(MESSAGES, TOOL_LIST),
        "response": answer,
    }  # fmt: skip
    (work / "work.json").write_text(json.dumps(asked))
    subprocess.run([sys.executable, str(SCRIPT), str(work)], check=True, timeout=120)
    return json.loads((work / "stock.json").read_text())


@pytest.mark.parametrize("name", KINDS)
def test_stock_software_makes_the_same_ids_and_logits(name: str, world: tuple, stock: dict[str, Any]):
    policy, found = world[1][name], stock[name]
    prompt = policy.format.prompt_ids(MESSAGES, TOOL_LIST)
    for mode in (Mode.AUTO, Mode.THINK, Mode.NO_THINK):
        assert found["rendered"][mode] == [*prompt, *policy.format.prefix_ids(mode)]
    ids = torch.tensor([prompt])
    for number, (part, logits) in enumerate(found["logits"].items()):
        assert part in ("", "reasoning", "action")
        with torch.no_grad(), routed(policy.model, torch.full(ids.shape, number)):
            expected = policy.model(ids).logits[0, -1]
        torch.testing.assert_close(torch.tensor(logits), expected, atol=2e-5, rtol=0)
    assert len({tuple(logits) for logits in found["logits"].values()}) == (2 if name == "routed" else 1)
    assert found["eos"] == list(policy.format.stop_ids)
    assert found["said"].strip()  # the code on the card ran
    assert found["read"]["thinking"] == "so" and found["read"]["tool_calls"][0]["function"]["name"] == "add"


def test_the_card(world: tuple):
    work, _ = world
    card = ModelCard.load(work / "adapter-out" / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["library_name"] == "peft" and "base_model" not in data
    assert data["datasets"] == ["unbraid/some-rows"] and {"tool-use", "lora", "grpo"} <= set(data["tags"])
    text = card.text
    recipe = recipe_of(work / "adapter")
    assert recipe.fingerprint() in text
    assert "| api_bank | think | greedy | 40 | 75.0 (59.8–85.8) |" in text
    assert text.count("| my-adapter, test tasks |") == 1  # the other evaluation is of other weights
    digest = provenance._digest(work / "rows.jsonl")
    assert f"`{work / 'rows.jsonl'}`: sha256 {digest}" in text and "merged" not in text
    assert "is merged into it" in (work / "merged-out" / "README.md").read_text()
    assert "**Together the adapters need unbraid**" in (work / "routed-out" / "README.md").read_text()
    assert load_recipe([work / "adapter-out" / "recipe.yaml"]) == recipe


def test_names_of_the_hub_replace_folders(world: tuple):
    work, _ = world
    export_run(work / "routed", work / "named", base="Qwen/Qwen3-0.6B", license="apache-2.0")
    data = ModelCard.load(work / "named" / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen3-0.6B", "adapter")
    for name in ("reasoning", "action"):
        config = json.loads((work / "named" / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "Qwen/Qwen3-0.6B"
    assert "vllm serve Qwen/Qwen3-0.6B" in (work / "named" / "README.md").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_unbraid_takes_an_exported_folder(name: str, world: tuple):
    work, policies = world
    again = policy_of(work / f"{name}-out")
    assert again.format.stop_ids == policies[name].format.stop_ids
    ids = torch.tensor([again.format.prompt_ids(MESSAGES)])
    routes = again.routes(ids.numpy(), ids.numpy() * 0)
    with torch.no_grad(), routed(again.model, routes):
        own = again.model(ids).logits
    with torch.no_grad(), routed(policies[name].model, routes):
        torch.testing.assert_close(own, policies[name].model(ids).logits, atol=2e-5, rtol=0)
    plan = serve_flags(work / f"{name}-out", recipe_of(work / f"{name}-out"))
    whole = name in ("whole", "merged")
    assert f"--model={work / (f'{name}-out' if whole else 'base')}" in plan.arguments
    assert any("lora-modules" in flag and f"{name}-out" in flag for flag in plan.arguments) is not whole


def test_adapters_that_add_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    policy = make_run(tmp_path / "run", base_model(tmp_path / "base", missing=3), "adapter")
    assert policy.added_rows == 3
    done = export_run(tmp_path / "run")
    assert "add tokens to the base" in done.notes[0]
    card = (done.path / "README.md").read_text()
    assert "Not with vLLM" in card and "vllm serve" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    monkeypatch.chdir(done.path)
    exec(code.replace("max_new_tokens=512", "max_new_tokens=4"), names)
    assert capsys.readouterr().out.strip()
    ids = torch.tensor([[5, 6, len(policy.tokenizer) - 1]])
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits, policy.model(ids).logits)


def test_modes_that_a_template_cannot_say(tmp_path: Path):
    """Two line breaks in a row are one token: the template's last and the mode's first would become one."""
    joined = Preset(think="\n<think>\n", after_thought="\n</think>\n\n", no_think="\n\n<tool_call></tool_call>\n")
    base = base_model(tmp_path / "base")
    make_run(tmp_path / "run", base, "whole", ChatConfig(preset=joined))
    done = export_run(tmp_path / "run")
    assert done.path == tmp_path / "run" / "export"
    assert "cannot force the modes think, no_think" in done.notes[0]
    card = (done.path / "README.md").read_text()
    prefix = policy_of(done.path).format.prefix_ids(Mode.THINK)
    assert f"`think`: {list(prefix)}" in card
    stock = transformers.AutoTokenizer.from_pretrained(done.path)
    told = stock.apply_chat_template(MESSAGES, add_generation_prompt=True, mode="think", return_dict=False)
    assert told == stock.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert "unbraid" not in stock.chat_template


def test_what_is_refused(world: tuple, tmp_path: Path):
    work, _ = world
    refused: list[tuple[dict[str, Any], type[UnbraidError], str]] = [
        ({"run_dir": work / "whole", "out": work / "whole-out"}, CheckpointError, "is there already"),
        ({"run_dir": work / "routed", "merge": True}, ModelError, "routed adapters cannot be merged"),
        ({"run_dir": work / "whole", "merge": True}, ModelError, "no adapter to merge"),
        ({"run_dir": work / "whole", "checkpoint": "start"}, CheckpointError, "holds no weights"),
        ({"run_dir": work / "base"}, UnbraidError, "not a run folder"),
    ]
    for arguments, error, message in refused:
        with pytest.raises(error, match=message) as caught:
            export_run(**{"out": tmp_path / "out", **arguments})
        assert "\n" not in str(caught.value)
    for name in ("reasoning", "action"):
        (tmp_path / "two" / "final" / name).mkdir(parents=True)
        (tmp_path / "two" / "final" / name / "config.json").write_text("{}")
    (tmp_path / "two" / "recipe.yaml").write_text((work / "whole" / "recipe.yaml").read_text())
    with pytest.raises(CheckpointError, match="two agents and controls"):
        export_run(tmp_path / "two", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]


def test_a_folder_is_whole_or_not_there(world: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work, _ = world

    def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(write, "license_of", broken)
    with pytest.raises(OSError, match="disk is full"):
        export_run(work / "adapter", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_stock_transformers_reads_otherwise(world: tuple, tmp_path: Path):
    """AutoTokenizer makes of a qwen2 folder's tokenizer another one; whoever trained with that one is told."""
    tokenizer = tiny_tokenizer()
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ChatError, match="stock transformers makes other ids"):
        save_tokenizer(ChatFormat.build(tokenizer, CHAT), tmp_path)


def test_the_command(world: tuple, tmp_path: Path):
    work, _ = world
    done = CliRunner().invoke(command.app, [str(work / "adapter"), "--out", str(tmp_path / "out"), "--merge"])
    assert done.exit_code == 0 and "hf upload YOU/NAME" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_line_that_serves(world: tuple):
    _, policies = world
    line = serve_command(Loading("routed", policies["routed"].format, "BASE", ("reasoning", "action"), 4, "float64"))
    assert line.startswith("vllm serve BASE --dtype=float32 --reasoning-parser=qwen3")
    assert "--max-lora-rank=8 --lora-modules reasoning=./reasoning action=./action" in line
    whole = serve_command(Loading("whole", policies["whole"].format, "BASE", dtype="bfloat16"))
    assert whole.startswith("vllm serve . --dtype=bfloat16 --reasoning-parser")
    assert chat_tokenizer(modes=True).chat_template != chat_tokenizer().chat_template
