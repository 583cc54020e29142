"""The pages docs/recipes/*.md: what a run on a real model needs, takes and rests on.

    python benchmarks/recipe_pages.py

Written from the recipes, their comments and `unbraid cost`; a test holds the pages to that. What was really run is in
`results/shape_runs.json` (`benchmarks/shape_runs.py`).
"""

import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from unbraid.cost.estimate import Cost, estimate
from unbraid.cost.machines import machine
from unbraid.cost.show import duration
from unbraid.recipe import SHIPPED, Recipe, load_recipe
from unbraid.vllm.budget import size

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "recipes"
RUNS = Path(__file__).parent / "results" / "shape_runs.json"
SIZES = ("qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "llama-3.1-8b", "qwen2.5-32b")
HARDWARE = {"one-24gb": "4090", "two-24gb": "4090", "one-80gb": "a100-80", "four-80gb": "a100-80"}
"""Layer → the GPU that the tables are of."""
SMALL = (
    "model.device=cpu", "sampler=local", "data.validation=1", "rollout.prompts=2", "rollout.samples=2",
    "rollout.max_new_tokens=4", "learn.steps=2", "learn.ramp_steps=0", "evaluate.every=2", "evaluate.limit=1",
    "checkpoint.every=1",
)  # fmt: skip
FEW_ANSWERS = ("warmup.steps=2", "warmup.batch_examples=2")
"""What a shape-run has otherwise than the recipe, besides the model and where tasks come from; the latter with rows."""
ADAPTER_RATE = ("warmup.learning_rate=1e-4",)
LLAMA = ("chat.call_format=llama",)
PUBLISHED = re.compile(r"(?i)published|as published|that of its|as in the scripts|the group of")


@dataclass(frozen=True)
class Composition:
    """One page. layers: tasks and methods. given: what a user has to say. more: settings that adapters want besides.

    chat: whether calls are written as the model's own template does, so that Llama needs another format.
    """

    name: str
    title: str
    about: str
    layers: tuple[str, ...]
    given: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    chat: bool = True

    def overrides(self, model: str) -> list[str]:
        """What is put behind the layers for a size."""
        return [*self.given, *self.more, *(LLAMA if self.chat and model.startswith("llama") else ())]

    def load(self, model: str, hardware: str) -> Recipe:
        """The recipe on a size and hardware."""
        return load_recipe([*self.layers, f"sizes/{model}", f"hardware/{hardware}"], self.overrides(model))

    def command(self, model: str, hardware: str, verb: str = "train") -> str:
        """What a user types."""
        layers = " ".join((*self.layers, f"sizes/{model}", f"hardware/{hardware}"))
        return f"unbraid {verb} {layers} {' '.join(map(shlex.quote, self.overrides(model)))}".rstrip()


ROWS = ("tasks.train=rows.jsonl",)
QUESTIONS = ("tasks.train=unbraid.tasks.search:hotpotqa?path=questions.jsonl&calls=tools",)
NEITHER = "AutoTool's constraint and DART's two adapters. Neither paper has it."
SEARCHING = "questions answered by searching. Serve the documents first ([Search QA](../search.md))."
ASKING = "questions answered with SQL ([NL2SQL](../sql.md)): the built-in shop, or your databases."
COMPOSITIONS = (
    Composition(
        "rows-recommended",
        "Ours on function-calling rows",
        "Our recommended configuration, on rows of any format that [Your rows](../data.md) lists: warm-up, then GRPO.",
        ("rows", "recommended"),
        ROWS,
        ADAPTER_RATE,
    ),
    Composition(
        "rows-autotool",
        "AutoTool on function-calling rows",
        "The published configuration of AutoTool, on rows as of PubTool (ToolACE, xLAM, Hermes). What the paper says, "
        "and what we found: [AutoTool](../papers/autotool.md).",
        ("rows", "autotool_published"),
        ROWS,
        ADAPTER_RATE,
    ),
    Composition(
        "rows-both",
        "Both ideas on function-calling rows",
        f"{NEITHER} [What we saw of the two together](../claims-dart.md).",
        ("rows", "autotool_published", "routed"),
        ROWS,
        ADAPTER_RATE,
    ),
    Composition(
        "search-dart",
        "DART on search QA",
        f"The published configuration of DART, on {SEARCHING} What the paper says, and what we found: "
        "[DART](../papers/dart.md).",
        ("search-qa", "dart_published"),
        QUESTIONS,
    ),
    Composition(
        "search-both",
        "Both ideas on search QA",
        f"{NEITHER} Here on {SEARCHING}",
        ("search-qa", "autotool_published", "routed"),
        QUESTIONS,
    ),
    Composition(
        "nl2sql-dart",
        "DART on NL2SQL",
        f"The published configuration of DART, on {ASKING}",
        ("nl2sql", "dart_published"),
        chat=False,
    ),
    Composition(
        "nl2sql-both",
        "Both ideas on NL2SQL",
        f"{NEITHER} Here on {ASKING}",
        ("nl2sql", "autotool_published", "routed"),
        chat=False,
    ),
)


@cache
def cost(one: Composition, model: str, hardware: str) -> Cost:
    """What a composition takes on a size and hardware."""
    return estimate(one.load(model, hardware), machine(HARDWARE[hardware]))


def page(one: Composition) -> str:
    """The whole page of a composition."""
    costs = {(model, hardware): cost(one, model, hardware) for model in SIZES for hardware in HARDWARE}
    parts = [
        f"<!-- written by `python benchmarks/recipe_pages.py` -->\n\n# {one.title}",
        one.about,
        f"```\n{one.command('qwen2.5-7b', 'one-80gb')}\n```",
        "Other models and machines are other layers: every line of the table below is one, with what it takes. "
        f"`{one.command('qwen2.5-7b', 'one-80gb', 'cost')}` prints such a line in full, for your lengths and GPU.",
        needs(one),
        "## Memory and time\n\n" + table(costs),
        told(next(iter(costs.values()))),
        "## What is published, and what is ours\n\n" + settings(one),
        "## What was run\n\n" + status(one),
    ]
    return "\n\n".join(parts) + "\n"


def needs(one: Composition) -> str:
    """What has to be there before the command works."""
    lines = ["vLLM in an environment of its own: `make setup-vllm` ([vLLM](../vllm.md))."]
    if "rows" in one.layers:
        lines.append("`rows.jsonl`: your rows. `unbraid data inspect rows.jsonl` says what is in them.")
    if "search-qa" in one.layers:
        lines.append(
            "`questions.jsonl` as of HotpotQA or FlashRAG, and a corpus behind `unbraid serve-retriever CORPUS`."
        )
    if "nl2sql" in one.layers:
        lines.append("Nothing else for the shop; for databases of your own the settings on [NL2SQL](../sql.md).")
    lines.append(
        "The model, from the hub or a folder. It is written to the cache once more, with one id for each delimiter."
    )
    return "## What it needs\n\n" + "\n".join(f"* {line}" for line in lines)


def table(costs: dict[tuple[str, str], Cost]) -> str:
    """Every size on every hardware: whether it fits, at most how much, and how long."""
    rows = ["| size | hardware | fits | trainer's GPU at most: drawing, learning | a step | the run |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for (model, hardware), found in costs.items():
        place = next(row.device for row in found.memory.rows if row.who == "trainer")
        taken = ", ".join(size(found.memory.taken(place, phase)) for phase in ("sampling", "learning"))
        time = (duration(found.step_seconds), duration(found.run_seconds)) if found.fits else ("", "")
        said = "yes" if found.fits else "**no**"
        rows.append(f"| `sizes/{model}` | `hardware/{hardware}` | {said} | {taken} | {time[0]} | {time[1]} |")
    return "\n".join(rows)


def told(cost: Cost) -> str:
    """What the table rests on."""
    t = cost.tokens
    tools = f", {t.observed:.0f} from tools" if t.observed else ""
    return (
        f"A step is {t.prompts} × {t.samples} episodes, on average with a prompt of {t.prompt:.0f} tokens and "
        f"{t.drawn:.0f} drawn{tools}: half of the limits. 24 GB is an RTX 4090, 80 GB an A100. Speeds are assumed, not "
        "measured: [What a run takes](../cost.md)."
    )


def settings(one: Composition) -> str:
    """Every setting that a layer makes: first what a paper or its code has, then ours, with what their lines say."""
    rows = ["| setting | value | layer | where it comes from |", "| --- | --- | --- | --- |"]
    ours: dict[str, dict[str, list[str]]] = {}
    for layer in (*one.layers, "sizes/qwen2.5-7b", "hardware/one-80gb"):
        for key, value, comment in commented(layer):
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else str(value)
            if PUBLISHED.match(comment):
                rows.append(f"| `{key}` | `{text}` | `{layer}` | {comment} |")
            else:
                ours.setdefault(layer, {}).setdefault(comment, []).append(f"`{key}: {text}`")
    for layer, found in ours.items():
        notes = {note: re.sub(r"(?i)^ours:? ?", "", note).rstrip(".") for note in found}
        told = (", ".join(keys) + (f" ({notes[note]})" if notes[note] else "") for note, keys in found.items())
        rows.append(f"\n`{layer}`, ours: {'; '.join(told)}.")
    return "\n".join(rows)


def commented(layer: str) -> list[tuple[str, Any, str]]:
    """(dotted key, value, where from) of a layer's own lines; a comment holds for all that is on or below its line."""
    text = (SHIPPED / f"{layer}.yaml").read_text()
    comments = _comments(text)
    found = []
    for key, value in _leaves(yaml.safe_load(text)):
        if key.partition(".")[0] in ("name", "label", "extends"):
            continue
        above = [key, *(key.rsplit(".", n)[0] for n in range(1, key.count(".") + 1))]
        said = next((comments[k] for k in above if k in comments), "ours")
        found.append((key, value, said))
    return found


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in _leaves(v, f"{key}.{k}" if key else str(k))]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [leaf for n, item in enumerate(value) for leaf in _leaves(item, f"{key}.{n}")]
    return [(key, value)]


def _comments(text: str) -> dict[str, str]:
    """Dotted key → comment at the end of its line, or on the lines above it. Lists have one item here."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    waiting: list[str] = []
    for line in text.splitlines()[1:]:  # the first one says what the recipe is
        body, _, comment = line.partition("#") if line.lstrip().startswith("#") else _split(line)
        if not body.strip():
            waiting.append(comment.strip())
            continue
        indent = len(body) - len(body.lstrip())
        if body.lstrip().startswith("- "):
            path = [(i, k) for i, k in path if i < indent]
            path.append((indent, "0"))
            body = body.replace("- ", "  ", 1)
            indent += 2
        match = re.match(r"\s*([\w.-]+):", body)
        if match:
            path = [(i, k) for i, k in path if i < indent]
            path.append((indent, match[1]))
            said = comment.strip() or " ".join(waiting)
            if said:
                found[".".join(k for _, k in path)] = said
        waiting = []
    return found


def _split(line: str) -> tuple[str, str, str]:
    """(before, "#", comment) of a line; a `#` in quotes is none."""
    match = re.search(r"\s#\s", line)
    return (line[: match.start()], "#", line[match.end() :]) if match else (line, "", "")


def status(one: Composition) -> str:
    """`shape-run` where this was run on a narrow random model of a size's shape, and on what; `not run` else."""
    runs = json.loads(RUNS.read_text()).get(one.name, {}) if RUNS.exists() else {}
    rows = ["| size | status | what ran |", "| --- | --- | --- |"]
    for model in SIZES:
        row = f"`shape-run` | {runs[model]['said']}" if model in runs else "`not run` |"
        rows.append(f"| `sizes/{model}` | {row} |")
    changed = " ".join(f"`{line}`" for line in (*SMALL, *(FEW_ANSWERS if "rows" in one.layers else ())))
    searched = "the documents (one, searched in the run itself), " if "search-qa" in one.layers else ""
    return (
        "**No model of any size was trained by us.** `shape-run`: this recipe took two real steps on a CPU "
        "(`python benchmarks/shape_runs.py`), was stopped within the second, resumed from the checkpoint of the first, "
        "logged the same again, validated and was evaluated. The model was random and narrow, with family, layers, "
        "heads, positions and tied tables as published; precision, adapters and their routing, checkpointing of "
        "activations, chat format, loss, constraints and environment were those of the recipe. Other were the tasks "
        f"(a few made-up ones), {searched}the tokenizer (a small ChatML one that lacks the same delimiters) and "
        f"{changed}. Random models earn the same reward everywhere, so advantages were made up. It shows that the "
        "recipe runs on such a model; nothing of memory, speed, GPUs, vLLM, published weights and tokenizers, or what "
        "is learned. "
        f"{_called(runs)}`not run`: not even that.\n\n" + "\n".join(rows)
    )


def _called(runs: dict[str, Any]) -> str:
    """Whether any tool answered: random models hardly ever call one."""
    if not runs:
        return ""
    calls, episodes = (sum(run[name] for run in runs.values()) for name in ("calls", "episodes"))
    return f"{calls or 'No'} tool call{'s' * (calls > 1)} in {episodes} episodes. "


def main() -> None:
    """Write all pages."""
    PAGES.mkdir(exist_ok=True)
    for one in COMPOSITIONS:
        (PAGES / f"{one.name}.md").write_text(page(one), encoding="utf-8")
        print(f"docs/recipes/{one.name}.md")
    print(json.dumps({"pages": len(COMPOSITIONS)}))


if __name__ == "__main__":
    main()
