"""The card of a built set (README.md, in the hub's format): what it is made of, by which rules, and every count.

It holds no dates, durations or paths: a build that was stopped and resumed has the same card as one that was not.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from unbraid.data.lines import write_whole
from unbraid.data.overlap import KINDS, SAID
from unbraid.data.pool import Count, Step
from unbraid.label.build import CARD, RL, WARMUP, Built
from unbraid.label.stages import Stage, digest_of

KNOWN: Mapping[str, tuple[str, str]] = {
    "toolace": ("Team-ACE/ToolACE", "apache-2.0"),
    "xlam": ("Salesforce/xlam-function-calling-60k", "cc-by-4.0"),
    "hermes": ("NousResearch/hermes-function-calling-v1", "apache-2.0"),
    "glaive": ("glaiveai/glaive-function-calling-v2", "apache-2.0"),
    "toolrl": ("qiancheng0/ToolRL", "apache-2.0"),
}
"""Sources that are known by these names: where they are published, and under which licence."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LIBRARIES = ("unbraid", "torch", "transformers", "pyarrow")
_ABOUT = (
    "Single-step tasks of tool use, built by `unbraid data build` of public rows. The warm-up set has a short answer "
    "where the model was right without thinking, and a long one where only thinking was right. The RL set was chosen "
    "by the rewards that its tasks were seen to give."
)
_COLUMNS = (
    "Read: single steps, one for each assistant turn. Usable: after filter, repeats, overlap and the limit on steps "
    "without a call. Cut: what is left to draw the two pools from, which share no conversation."
)

Table = tuple[tuple[str, ...], list[list[str]]]
"""(head, rows)."""


def write_card(built: Built, words: Sequence[str] = ()) -> None:
    """Write the card of what stands.

    Args:
        words: of the command that the settings do not hold: recipes, overrides, samplers.
    """
    write_whole(built.folder / CARD, [card(built, words).encode()])


def card(built: Built, words: Sequence[str] = ()) -> str:
    """The text of the card."""
    parts = [
        _header(built),
        "# A training set for tool use that thinks when it pays",
        _ABOUT,
        _reading(built),
        "## Sources",
        _markdown(source_table(built)),
        _COLUMNS,
        _not_read(built),
        "## Steps",
        _markdown(step_table(built.steps)),
        *_overlap(built),
        *_labels(built),
        "## Rules",
        _markdown((("rule", "value"), [[name, str(value)] for name, value in _rules(built)])),
        "## Licences",
        _markdown((("source", "published as", "licence"), [[name, *_known(built, name)] for name in _names(built)])),
        "A row keeps the licence of the set that it is from. These are the licences of the sets published under these "
        "names; who gives another file such a name has to look for themselves.",
        "## Made by",
        f"```bash\n{command(built, words)}\n```",
        _markdown((("library", "version"), [[name, version(name)] for name in _LIBRARIES])),
        _markdown((("file", "rows", "fingerprint"), _fingerprints(built))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(built: Built) -> str:
    files = _files(built)
    rows = sum(_lines(built.folder / path) for path in files)
    licences = sorted({_known(built, name)[1] for name in _names(built)})
    head: dict[str, Any] = {
        "license": licences[0] if len(licences) == 1 else licences,
        "task_categories": ["text-generation"],
        "tags": ["function-calling", "tool-use", "reinforcement-learning"],
        "size_categories": [next((name for most, name in _SIZES if rows < most), "n>1M")],
        "source_datasets": [published for name in _names(built) if (published := _known(built, name)[0])],
    }
    if files:
        head["configs"] = [
            {"config_name": Path(path).stem, "data_files": [{"split": "train", "path": path}]} for path in files
        ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---"


def _reading(built: Built) -> str:
    files = _files(built)
    if not files:
        return "The sets themselves are not made yet: labels and refining are to come."
    lines = [f'datasets.load_dataset("FOLDER", "{Path(path).stem}")' for path in files]
    says = "What is nested (`messages`, `tools`, `expected`, `answers`, `extra`) is JSON text."
    keys = " ".join({WARMUP: f"tasks.warmup=FOLDER/{WARMUP}", RL: f"tasks.train=FOLDER/{RL}"}[path] for path in files)
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{says} With unbraid: `{keys}`."


def source_table(built: Built) -> Table:
    """Counts of every source from rows to sets, before and after the cut, with the share of labels that think."""
    head = ("source", "rows", "bad", "read", "usable", "cut", "warm-up", "thinks, %", "RL pool", "RL")
    read = [one.books for name, one in built.stages.items() if name.startswith("read ")]
    steps = {step.name: step for step in built.steps}
    label, pool = built.stages.get("label"), built.stages.get("pool")

    def row(sources: Sequence[str]) -> list[str]:
        def kept(step: str) -> int | None:
            return _sum(steps[step], sources).kept if step in steps else None

        def read_sum(key: str) -> int:
            return sum(books[key] for books in read if books["source"] in sources)

        warmup = kept("warm-up size")
        thinks = sum(label.books["thinks"].get(name, 0) for name in sources) if label else 0
        rl_pool = sum(pool.books["rl"].get(name, 0) for name in sources) if pool else None
        share = f"{100 * thinks / warmup:.1f}" if warmup else None
        counts = [read_sum("rows"), read_sum("bad"), read_sum("tasks"), kept("no call"), kept("cut"), warmup]
        return ["–" if n is None else str(n) for n in (*counts, share, rl_pool, kept("RL size"))]

    names = _names(built)
    rows = [[name, *row([name])] for name in names]
    return head, rows + ([["all", *row(names)]] if len(names) > 1 else [])


def step_table(steps: Sequence[Step]) -> Table:
    """What every step was given, kept, and dropped for which reason."""
    rows: list[list[str]] = []
    for step in steps:
        whole = _sum(step, list(step.sources))
        reasons = "; ".join(f"{n} {reason}" for reason, n in sorted(whole.dropped.items(), key=lambda x: (-x[1], x[0])))
        rows.append([step.name, str(whole.came), str(whole.kept), reasons or "–"])
    return ("step", "came", "kept", "dropped"), rows


def overlap_table(overlaps: Sequence[Mapping[str, Any]]) -> Table:
    """What the tasks share with each benchmark."""
    head = ("benchmark", "rows", "questions", *(SAID[kind] for kind in KINDS), "its questions", "show a tool of it")
    rows = [
        [
            one["name"], str(one["rows"]), str(one["questions"]), *(str(one["kinds"].get(kind, 0)) for kind in KINDS),
            str(sum(one["touched"].values())), str(one["same_tool"]),
        ]
        for one in overlaps
    ]  # fmt: skip
    return head, rows


def _not_read(built: Built) -> str:
    lines: list[str] = []
    for name, one in built.stages.items():
        if name.startswith("read "):
            of = one.books
            lines += [f"* {name.removeprefix('read ')}: {n} {reason}" for reason, n in of["reasons"].items()]
    return "\n".join(["Rows, or parts of them, that became no task:", "", *lines]) if lines else ""


def _overlap(built: Built) -> list[str]:
    pool = built.stages.get("pool")
    if pool is None:
        return []
    overlaps = pool.books["overlaps"]
    if not overlaps:
        return ["## Overlap with benchmarks", "Not looked for: no benchmark was given."]
    rules = built.config.overlap
    removed = ", ".join(SAID[kind] for kind in KINDS if kind in rules.remove) or "nothing"
    said = (
        "Every user message is compared with every user message of a benchmark, as words without case and punctuation. "
        f"The same: equal, from {rules.equal_from} words on, or shorter with a tool in common. Nearly the same: "
        f"{rules.share:.0%} of the question's {rules.words}-grams, from {rules.near_from} words on. "
        f"Taken out: {removed}."
    )
    examples = [
        [one["name"], SAID[hit["kind"]], hit["task"], _cell(hit["ours"]), hit["question"], _cell(hit["theirs"])]
        for one in overlaps
        for hit in one["examples"]
    ]
    table = (("benchmark", "", "task", "asks", "question", "is"), examples)
    return [
        "## Overlap with benchmarks",
        said,
        _markdown(overlap_table(overlaps)),
        _markdown(table) if examples else "",
    ]


def _labels(built: Built) -> list[str]:
    parts: list[str] = []
    for name, what in (("label", "The warm-up's tasks"), ("sample", "The RL pool")):
        if one := built.stages.get(name):
            parts += [f"{what} were tried by:" if name == "label" else f"{what} was tried by:", _tried(one)]
    if refined := built.stages.get("refine"):
        over = "the rounds of a run that trained on the pool" if "rounds" in refined.made_of else "these tries"
        notes = [note.removeprefix("note: ") for note in refined.books["notes"]]
        parts.append(
            "\n".join([f"The RL set was chosen by rewards across {over}.", *(f"\n* {note}" for note in notes)])
        )
    return ["## Labels and rewards", *parts] if parts else []


def _tried(one: Stage) -> str:
    books = one.books["books"]
    rows: list[list[str]] = []
    for mode, share in books["right"].items():
        who, cost = one.made_of[mode], books["cost"][mode]
        path = Path(str(who.get("path", "")))
        model = who.get("model") or (path.name if path.is_absolute() else who.get("path")) or "a sampler of its own"
        right = "–" if share is None else f"{100 * share:.1f}"
        rows.append(
            [mode, str(model), str(who.get("temperature", "–")), str(cost["tries"]), str(cost["tokens"]), right]
        )
    levels = ", ".join(f"{n} {level}" for level, n in books["difficulty"].items())
    warnings = [f"* {line}" for line in one.books["warnings"]]
    table = _markdown((("mode", "model", "temperature", "tries", "tokens written", "right, %"), rows))
    return "\n\n".join([table, f"Difficulty: {levels}.", *warnings])


def _rules(built: Built) -> list[tuple[str, Any]]:
    config = built.config
    sizes = [(name, getattr(config, name)) for name in ("warmup", "candidates", "rl", "pool")]
    kept = [(name, getattr(config, name)) for name in ("no_call", "misfits", "max_characters", "seed")]
    parts = {"labels": config.labels, "refine": config.refine}
    nested = [
        (f"{part}.{key}", value) for part, of in parts.items() for key, value in of.model_dump(mode="json").items()
    ]
    unused = {"refine.keep", "refine.seed"}
    return [*sizes, ("cut", ", ".join(config.cut)), *kept, *((k, v) for k, v in nested if k not in unused)]


def command(built: Built, words: Sequence[str] = ()) -> str:
    """The command that builds the same, with names in place of paths."""
    config = built.config
    options = [f"--source {name}={_short(source)}" for name, source in config.sources]
    options += [f"--benchmark {name}={_short(source)}" for name, source in config.benchmarks]
    options += [f"--licence {name}={licence}" for name, licence in config.licences]
    flat = {"format", "split", "warmup", "rl", "candidates", "pool", "no_call", "misfits", "max_characters", "seed"}
    asked = {name: getattr(config, name) for name in (*sorted(flat), "refine_mode")}
    asked |= {"cut": ",".join(config.cut), "remove": ",".join(config.overlap.remove)}
    asked |= {key: getattr(config.labels, key) for key in ("tries", "rule", "short", "long", "fallback")}
    asked |= {"ask": config.labels.think, "method": config.refine.method}
    plain = type(config)(sources=config.sources)
    usual = {name: getattr(plain, name) for name in (*flat, "refine_mode")} | {"cut": ",".join(plain.cut)}
    usual |= {key: getattr(plain.labels, key) for key in ("tries", "rule", "short", "long", "fallback")}
    usual |= {"ask": plain.labels.think, "method": plain.refine.method, "remove": ",".join(plain.overlap.remove)}
    options += [f"--{key.replace('_', '-')} {value}" for key, value in asked.items() if value != usual[key]]
    start = " ".join(["unbraid data build", *map(_short, words), "--out FOLDER"])
    return " \\\n    ".join([start, *options])


def _short(word: str) -> str:
    """A word without the place where its file lies."""
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{Path(value).name}" if value and Path(value).exists() else word


def _files(built: Built) -> list[str]:
    """The sets that are made."""
    return [path for stage, path in (("label", WARMUP), ("refine", RL)) if stage in built.stages]


def _names(built: Built) -> list[str]:
    return list(dict.fromkeys(name for name, _ in built.config.sources))


def _known(built: Built, name: str) -> tuple[str, str]:
    published, licence = KNOWN.get(name, ("", "unknown"))
    return published, dict(built.config.licences).get(name, licence)


def _sum(step: Step, sources: Sequence[str]) -> Count:
    whole = Count()
    for name in sources:
        one = step.sources.get(name, Count())
        whole.came, whole.kept = whole.came + one.came, whole.kept + one.kept
        whole.dropped.update(one.dropped)
    return whole


def _fingerprints(built: Built) -> list[list[str]]:
    files = _files(built)
    return [[path, str(_lines(built.folder / path)), digest_of([built.folder / path])] for path in files]


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _cell(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]} …"


def _markdown(table: Table) -> str:
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
