"""The commands on a real run: a tiny routed model, its adapters alone and swapped, stopped and gone on with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rows import call_row, write
from tiny import tiny_tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from unbraid.bench.score import Entry, read_entries, read_score
from unbraid.chat.format import ChatConfig
from unbraid.cli.main import app
from unbraid.data import DataConfig
from unbraid.errors import DataError, ModelError
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy
from unbraid.policy.routing import RoutingConfig
from unbraid.recipe import Recipe, TasksConfig
from unbraid.rollout.config import RolloutConfig

TOKENS = 16


def base_model(folder: Path) -> Path:
    """A random Qwen2 that writes a bit of everything."""
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # calls come up by chance, so that both adapters write
        for tag in ("<tool_call>", "</tool_call>"):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(tag)] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A routed run, finished: rows, recipe and weights."""
    folder = tmp_path_factory.mktemp("made")
    rows = [call_row(json.dumps({"city": city})) for city in ("Lima", "Rome", "Oslo")]
    for number, row in enumerate(rows):
        row["conversations"][0]["value"] += f" ({number})"
    source = str(write(folder / "rows.json", rows))
    run = folder / "run"
    run.mkdir()
    recipe = Recipe(
        name="routed",
        model=ModelConfig(path=str(base_model(folder / "base")), device="cpu", adapter=adapters()),
        tasks=TasksConfig(train=source, test=source),
        data=DataConfig(validation=0),
        rollout=RolloutConfig(max_new_tokens=TOKENS),
    )
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    change(recipe.model, run / "final", lambda policy: None)
    return folder


def adapters() -> AdapterConfig:
    return AdapterConfig(rank=4, alpha=8, routing=RoutingConfig())


def change(model: ModelConfig, target: Path, how: Callable[[Policy], None]) -> None:
    """Save the run's random adapters, changed in some way."""
    policy = load_policy(model, ChatConfig())
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for _, weights in policy.trainable():
            weights.copy_(torch.randn_like(weights) * 0.3)
        how(policy)
    policy.save(target)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def said(run: Path, checkpoint: str, benchmark: str = "own-tasks", mode: str = "auto") -> dict[str, str]:
    """Id → what was written."""
    entries = read_entries(run / "benchmarks" / benchmark / f"{checkpoint}-{mode}-greedy")
    return {entry.id: entry.response for entry in entries}


def test_adapters_alone_and_swapped_are_what_they_are_called(made):
    run = made / "run"
    shown = invoke("bench", "roles", str(run))
    assert shown.count("own-tasks") == 5  # a row for each choice, and the place of the record
    model = ModelConfig(path=str(made / "base"), device="cpu", adapter=adapters())

    def without(adapter: str) -> Callable[[Policy], None]:
        def how(policy: Policy) -> None:
            for name, weights in policy.trainable():
                if f"lora_B.{adapter}." in name:
                    weights.zero_()

        return how

    def exchanged(policy: Policy) -> None:
        weights = dict(policy.trainable())
        for name, one in weights.items():
            if ".reasoning." in name:
                other = weights[name.replace(".reasoning.", ".action.")]
                kept = one.clone()
                one.copy_(other)
                other.copy_(kept)

    expected = {"reasoning": without("action"), "action": without("reasoning"), "swapped": exchanged}
    both = said(run, "final~both")
    assert len(both) == 3
    for choice, how in expected.items():
        change(model, run / choice, how)
        # The same as a run whose weights were changed: alone, the other adapter adds exactly 0.
        invoke("bench", "roles", str(run), "--checkpoint", choice)
        assert said(run, f"{choice}~both") == said(run, f"final~{choice}")
        assert said(run, f"final~{choice}") != both
    page = made / "page.html"
    shown = invoke("compare", f"{run}@final~both", f"{run}@final~reasoning", f"{run}@final~swapped", "--out", str(page))
    assert "routed@final~swapped" in shown and "own-tasks" in page.read_text()
    assert invoke("bench", "scores", str(run)).count("own-tasks") == 16
    with pytest.raises(ModelError, match="no adapters 'wisdom': choose one of both, reasoning, action, swapped"):
        invoke("bench", "api-bank", str(run), str(api_bank_rows(made)), "--adapters", "wisdom")
    with pytest.raises(ModelError, match="sampler=local"):
        invoke("bench", "roles", str(run), "sampler=vllm")


def api_bank_rows(folder: Path) -> Path:
    """Thirty rows as ToolRL processed them."""
    tools = (
        'You can use the following tools:\n1. Name: {}\nDescription: Finds.\nParameters: {{"date": {{"type": "str"}}}}'
    )
    rows = [
        {
            "system": f"**Available Tools**\nIn your response, {tools.format(f'Find{i}')}\n\n**Steps for Each Turn**\n",
            "user": f"**Dialogue Records History**\n<user> What of day {i}? </user>\n",
            "answer": [{"name": f"Find{i}", "parameters": {"date": f"2023-01-{i + 1:02d}"}}],
            "other": {"file": f"Find-level-1-{i}.jsonl", "id": 0},
        }
        for i in range(30)
    ]
    return write(folder / "level-1-api.json", rows)


def test_a_stopped_benchmark_ends_as_an_unbroken_one(made, monkeypatch):
    run, rows = made / "run", str(api_bank_rows(made))
    whole, parts = made / "whole", made / "parts"
    for copy in (whole, parts):
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("benchmarks"))
    command = ("bench", "api-bank", str(whole), rows, "--mode", "think", "--mode", "auto", "--limit", "12")
    invoke(*command, "--together", "12")
    from unbraid.bench import ask

    written: list[int] = []

    def stops(folder: Path, entries: list[Entry]) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(len(entries))
        real(folder, entries)

    real = ask.add_entries
    monkeypatch.setattr(ask, "add_entries", stops)
    resumed = [str(parts) if argument == str(whole) else argument for argument in command]
    result = CliRunner().invoke(app, [*resumed, "--together", "3"])
    assert result.exit_code == 130 and written == [3, 3, 3]
    monkeypatch.undo()
    invoke(*resumed, "--together", "7")
    for mode in ("think", "auto"):
        assert said(parts, "final", "api-bank", mode) == said(whole, "final", "api-bank", mode)
        scores = [read_score(r / "benchmarks" / "api-bank" / f"final-{mode}-greedy") for r in (whole, parts)]
        assert scores[0].tokens == scores[1].tokens and scores[0].accuracy.n == 12
    with pytest.raises(DataError, match=r"max_tokens 16 \(now 8\).*--again"):
        invoke(*command, "rollout.max_new_tokens=8")
    invoke(*command[:4], "--again", "--limit", "2", "rollout.max_new_tokens=8")
    assert len(said(whole, "final", "api-bank")) == 2


def test_a_run_is_asked_as_it_was_before_training(made):
    run, rows = made / "run", str(api_bank_rows(made))
    invoke("bench", "api-bank", str(run), rows, "--limit", "5", "--checkpoint", "base")
    invoke("bench", "api-bank", str(run), rows, "--limit", "5")
    assert said(run, "base", "api-bank").keys() == said(run, "final", "api-bank").keys()
    assert said(run, "base", "api-bank") != said(run, "final", "api-bank")
    shown = invoke("compare", f"{run}@base", str(run), "--out", str(made / "base.html"))
    assert "routed@base" in shown and "paired" in shown
