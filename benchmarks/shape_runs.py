"""Shape-runs: every composition of docs/recipes on every size takes two real steps, on a narrow model of that shape.

    OMP_NUM_THREADS=1 python benchmarks/shape_runs.py
    python benchmarks/recipe_pages.py

The model has the family, layers, heads, groups of keys, positions and tied tables of the published one, its precision,
adapters and checkpointing of activations are the recipe's, and random weights; heads, layers and tables are narrow
(`NARROW`), and so are the batch and the budgets (`SMALL`). Everything else is what `unbraid train` would do with the
recipe. A run is stopped within its second step and resumed from the checkpoint of the first, and must then log for the
second what it logged before. Random models earn the same reward everywhere, which gives every response the advantage 0:
made-up ones stand in for them. What was run is written from the model that was loaded, into results/shape_runs.json,
from which the pages are made; the last line printed is a JSON object.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from recipe_pages import COMPOSITIONS, FEW_ANSWERS, RUNS, SIZES, SMALL, Composition

from unbraid.cost.architectures import architecture
from unbraid.data import DataConfig, collect
from unbraid.lab.chatml import chatml_tokenizer, task_texts
from unbraid.lab.public_rows import xlam_rows
from unbraid.learn import grpo
from unbraid.learn.log import read_metrics, read_rollouts
from unbraid.policy import ModelConfig
from unbraid.recipe import Recipe, load_recipe
from unbraid.run import policy_of, read_scores, train

NARROW = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 8}
VOCABULARY = 1536
"""Tokens of the tokenizer, before the recipe adds its delimiters."""
HAS_IDS = {"qwen2": ("<tool_call>", "</tool_call>"), "llama": ("<|python_tag|>", "<|eom_id|>", "<|eot_id|>")}
"""Delimiters that the published tokenizers have one id for; the recipes add the others."""
POSITIONS: dict[str, dict[str, Any]] = {
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "max_position_embeddings": 32768},
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
    },
}  # fmt: skip
"""Source: config.json of Qwen2.5-Instruct and Llama-3.1-Instruct."""


METERS = ("seconds", "tokens_per_s", "memory")
"""Of a step's log, what differs between two runs of it."""


class StoppedError(Exception):
    """The run was ended from outside."""


def published(size: str) -> tuple[str, Any]:
    """(name on the hub, configuration) of the model that a size's layer names."""
    path = load_recipe(["rows", f"sizes/{size}"], ["tasks.train=none"]).model.path
    return parse_qs(path.partition("?")[2])["model"][0], architecture(ModelConfig(path=path))


def make_base(folder: Path, size: str, texts: Sequence[str], layers: int = 0) -> Path:
    """A random model of a size's shape, made narrow, with a tokenizer that lacks what the published one lacks.

    Args:
        layers: so many instead of the published number; 0 keeps it.
    """
    _, whole = published(size)
    kind = whole.model_type
    tokenizer = chatml_tokenizer(texts, VOCABULARY, HAS_IDS[kind])
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), num_hidden_layers=layers or whole.num_hidden_layers,
        num_attention_heads=whole.num_attention_heads, num_key_value_heads=whole.num_key_value_heads,
        tie_word_embeddings=whole.tie_word_embeddings, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **NARROW, **POSITIONS[kind],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tasks(folder: Path) -> dict[str, list[str]]:
    """Task layer → overrides that give it a few tasks: made-up rows in xLAM's format, two questions and the document
    that answers them, the built-in shop."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(xlam_rows(16))
    questions = [{"id": f"train_{n}", "question": f"Who is {n}?", "golden_answers": ["Ada"]} for n in range(8)]
    for name, lines in (("rows", rows), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "corpus").mkdir(exist_ok=True)
    (folder / "corpus" / "ada.md").write_text("# Ada\n\nAda is the first of them.\n")
    source = f"unbraid.tasks.search:hotpotqa?path={folder}/questions.jsonl&calls=tools"
    shop = "unbraid.tasks.sql:shop_tasks?split"
    return {
        "rows": [f"tasks.train={folder}/rows.jsonl", *FEW_ANSWERS],
        "search-qa": [f"tasks.train={source}", f"environment.name=search?corpus={folder}/corpus"],
        "nl2sql": [f"tasks.train={shop}=train&count=4", f"tasks.validation={shop}=dev&count=1", "tasks.test=null"],
    }


def texts_of(tasks: dict[str, list[str]]) -> list[str]:
    """What the tokenizer learns: the texts of these tasks."""
    sources = [line.partition("=")[2] for given in tasks.values() for line in given if line.startswith("tasks.train=")]
    return [text for source in sources for text in task_texts(collect(source, DataConfig(no_call=1.0)).tasks)]


def recipe_of(one: Composition, size: str, base: Path, given: Sequence[str]) -> Recipe:
    """The composition on a size, as its page has it, but for `SMALL`, the tasks and the narrow base."""
    hardware = "four-80gb" if size == "qwen2.5-32b" else "one-80gb"
    layers = [*one.layers, f"sizes/{size}", f"hardware/{hardware}"]
    path = f"model.path=unbraid.policy.new_tokens:with_delimiters?model={base}"
    return load_recipe(layers, [*one.overrides(size), *given, *SMALL, path])


@contextmanager
def made_up_advantages() -> Iterator[None]:
    """In turn half a point above and below, whatever the rewards."""

    def made(rewards: Sequence[float], groups: Any, scale: str) -> NDArray[np.float64]:
        return np.where(np.arange(len(rewards)) % 2, 0.5, -0.5)

    with mock.patch.object(grpo, "group_advantages", made):
        yield


def shape_run(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Take the recipe through a whole run, stopped and resumed; returns what was run.

    Raises:
        AssertionError: it did not do what it should.
    """
    seen: list[tuple[int, dict[str, Any]]] = []

    def stop_in_the_second(stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
        if stage == "train":
            seen.append((done, metrics))
            if len(seen) == 2:
                raise StoppedError

    with made_up_advantages():
        try:
            train(recipe, folder, progress=stop_in_the_second)
        except StoppedError:
            scores = train(recipe, folder, resume=True, progress=stop_in_the_second)
        else:
            raise AssertionError("nothing stopped the run")
    assert [done for done, _ in seen] == [1, 2, 2], "it did not go on from the checkpoint of its first step"
    _same(seen[1][1], seen[2][1])
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [1, 2] and all(0 < row["grad_norm"] < math.inf for row in rows)
    assert len(scores) == len(read_scores(folder)) == len(recipe.evaluate.modes) * len(recipe.evaluate.temperatures)
    return _what_ran(recipe, folder)


def _same(first: dict[str, Any], again: dict[str, Any]) -> None:
    """Both logs of one step, but for what a clock or a meter says."""
    assert first.keys() == again.keys()
    changed = {key for key, value in first.items() if not np.array_equal(value, again[key], equal_nan=True)}
    assert not {key for key in changed if key.partition("/")[0] not in METERS}, changed


def _what_ran(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Told by the policy that the run left, and by what it drew."""
    policy = policy_of(folder)
    trained = dict(policy.trainable())
    # Adapters start with a B of zeros.
    moved = [name for name, weight in trained.items() if ".lora_B." in name and bool(weight.any())]
    assert moved and all(weight.dtype is torch.float32 for weight in trained.values())
    assert policy.model.is_activation_checkpointing is recipe.model.gradient_checkpointing
    config = policy.model.config
    drawn = [t for path in sorted((folder / "rollouts").iterdir()) for t in read_rollouts(path)]
    adapters = sorted({name.split(".lora_B.")[1].partition(".")[0] for name in trained if ".lora_B." in name})
    return {
        "family": config.model_type,
        "layers": config.num_hidden_layers,
        "heads": [config.num_attention_heads, config.num_key_value_heads],
        "tied": config.tie_word_embeddings,
        "width": config.hidden_size,
        "inner": config.intermediate_size,
        "head": config.head_dim,
        "vocabulary": policy.model.get_input_embeddings().weight.shape[0],
        "base": str(next(p.dtype for p in policy.model.parameters() if not p.requires_grad)).partition(".")[2],
        "adapters": adapters,
        "adapted": len(trained) // (2 * len(adapters)),
        "moved": len(moved),
        "episodes": len(drawn),
        "calls": sum(len(t.responses) - 1 for t in drawn),
        "tokens": sum(t.response_tokens for t in drawn),
        "contexts": [min(len(t.ids) for t in drawn), max(len(t.ids) for t in drawn)],
        "scores": len(read_scores(folder)),
    }


def said(size: str, ran: dict[str, Any]) -> str:
    """One line for a page: what was as published, and what was not."""
    _, whole = published(size)
    heads = f"{ran['heads'][0]} heads, {ran['heads'][1]} of keys"
    narrow = (
        f"heads of {ran['head']} for {whole.head_dim}, width {ran['width']} for "
        f"{whole.hidden_size}, inner {ran['inner']} for {whole.intermediate_size}, {ran['vocabulary']} tokens for "
        f"{whole.vocab_size}"
    )
    return (
        f"{ran['layers']} layers, {heads} as published, {ran['base']}; {narrow}; {len(ran['adapters'])} adapter"
        f"{'s' * (len(ran['adapters']) > 1)} on {ran['adapted']} matrices; {ran['episodes']} episodes of up to "
        f"{ran['contexts'][1]} tokens"
    )


def write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Page → size → what ran, in the order of the pages, with the line for the page."""
    ordered = {
        one.name: {size: found[one.name][size] for size in SIZES if size in found[one.name]}
        for one in COMPOSITIONS
        if one.name in found
    }
    told = {
        name: {size: {**ran, "said": said(size, ran)} for size, ran in runs.items()} for name, runs in ordered.items()
    }
    path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    """Run what is asked for; results of the rest stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="*", default=[one.name for one in COMPOSITIONS])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--again", action="store_true", help="also what the file has already")
    parser.add_argument("--out", type=Path, default=RUNS)
    asked = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["UNBRAID_CACHE"] = str(work / "cache")
        tasks = write_tasks(work / "tasks")
        texts = texts_of(tasks)
        bases = {size: make_base(work / size, size, texts) for size in asked.sizes}
        for one in COMPOSITIONS:
            for size in asked.sizes if one.name in asked.pages else ():
                if size in found.get(one.name, {}) and not asked.again:
                    continue
                began = time.process_time()
                ran = shape_run(recipe_of(one, size, bases[size], tasks[one.layers[0]]), work / f"{one.name}-{size}")
                found.setdefault(one.name, {})[size] = ran
                print(f"{one.name}, {size}: {time.process_time() - began:.1f} CPU s, {said(size, ran)}", flush=True)
                write(asked.out, found)
    write(asked.out, found)
    print(json.dumps({"runs": sum(map(len, found.values())), "pages": len(found), "sizes": len(SIZES)}))


if __name__ == "__main__":
    main()
