"""Runs without a training: weights of some size, a recipe, scores and a benchmark, as `unbraid train` leaves them."""

from pathlib import Path
from typing import Any

import torch
from made_up_runs import responses
from tiny import TOOLS
from trl_worlds import CHAT, QUESTIONS, chat_model, chat_tokenizer

from unbraid.bench.score import Entry, Setting, add_entries, close_record, open_record
from unbraid.chat.format import ChatConfig
from unbraid.chat.types import Mode
from unbraid.evaluate import Labels, score
from unbraid.policy import AdapterConfig, ModelConfig, Policy, load_policy
from unbraid.policy.routing import RoutingConfig
from unbraid.recipe import Recipe, TasksConfig
from unbraid.run import write_scores

ADAPTERS = {
    "whole": None,
    "adapter": AdapterConfig(rank=4, alpha=8),
    "routed": AdapterConfig(rank=4, alpha=8, routing=RoutingConfig()),
}
MESSAGES = [{"role": "user", "content": QUESTIONS[0]}]
TOOL_LIST = [dict(tool) for tool in TOOLS]


def base_model(folder: Path, **settings: Any) -> Path:
    """A base with a licence. missing: rows that it has not of its tokenizer."""
    missing = settings.pop("missing", 0)
    model = chat_model(**settings)
    model.resize_token_embeddings(len(chat_tokenizer()) - missing)
    model.save_pretrained(folder)
    chat_tokenizer().save_pretrained(str(folder))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    return folder


@torch.no_grad()
def make_run(folder: Path, base: Path, kind: str, chat: ChatConfig = CHAT, size: float = 0.2) -> Policy:
    """A run of that kind of weights; returns its policy."""
    rows = folder.parent / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    model = ModelConfig(path=str(base), device="cpu", adapter=ADAPTERS[kind])
    tasks = TasksConfig(train=str(rows), test="unbraid/some-rows")
    recipe = Recipe(name=f"my-{kind}", label="a made-up run", model=model, chat=chat, tasks=tasks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = load_policy(recipe.model, recipe.chat)
        for name, weight in policy.trainable():
            if ".lora_A." not in name:
                weight.add_(torch.randn_like(weight) * (size if ".lora_" in name else 0.02))
    policy.save(folder / "final")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    found = responses("recommended")
    labels = Labels(recipe.name, f"{folder.name}/final", "think-block, hermes", policy.parameter_count())
    other = Labels(recipe.name, f"{folder.name}/start", "think-block, hermes", policy.parameter_count())
    write_scores(folder / "scores.jsonl", [score(found, one, Mode.AUTO, 0.0) for one in (labels, other)])
    setting = Setting(
        "api_bank", "L-1", "unbraid", "chat", recipe.name, "final", "think-block, hermes", Mode.THINK, 0.0, 64
    )
    record = setting.folder(folder)
    open_record(record, setting)
    add_entries(record, [Entry(str(i), "level-1", float(i % 4 > 0), 20 + i, Mode.THINK) for i in range(40)])
    close_record(record, setting)
    return policy
