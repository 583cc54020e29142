"""A build at its real size, on made-up rows in the formats of ToolACE, xLAM and Hermes, without a model.

    python benchmarks/data_build.py --out build-trial                       # 60,000 xLAM rows down to two pools
    python benchmarks/data_build.py --out build-trial --until refine        # to 8,200 and 7,000 tasks

Labels come from a sampler that is right by chance (`unbraid.lab.public_rows`), so that what is measured is the build. A
benchmark of 1,000 questions goes with it: 100 are asked by a row each, word for word, and 100 with one word more.
Seconds are CPU seconds; peak memory is that of the process so far.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.cli.console import Bars
from unbraid.lab.chatml import chatml_tokenizer
from unbraid.lab.public_rows import KnowsSome, hermes_rows, toolace_rows, xlam_rows
from unbraid.label.build import Built, build
from unbraid.label.build_config import UNTIL, BuildConfig, Samplers
from unbraid.label.card import source_table, step_table, write_card
from unbraid.tasks.reward import RewardConfig, reward_function

# As many rows as the public sets have.
SOURCES: dict[str, tuple[Callable[[int], Iterable[dict[str, Any]]], int]] = {
    "toolace": (toolace_rows, 11_300),
    "xlam": (xlam_rows, 60_000),
    "hermes": (hermes_rows, 9_600),
}
QUESTIONS = 1000


def write_sources(folder: Path, share: float) -> tuple[list[tuple[str, str]], str]:
    """(sources, benchmark): files of made-up rows, written unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [(name, folder / f"{name}.json") for name in SOURCES]
    bench = folder / "bench.json"
    if not bench.exists():
        for name, path in sources:
            rows, count = SOURCES[name]
            path.write_text(json.dumps(list(rows(max(1, round(count * share)))), ensure_ascii=False))
        asked = [row["query"] for row in json.loads((folder / "xlam.json").read_text())[: QUESTIONS // 5]]
        asked = asked[: len(asked) // 2] + [f"{text} Thanks!" for text in asked[len(asked) // 2 :]]
        asked += [f"Which of the {n} bridges over river number {n * 7} is the oldest one, and why?" for n in range(800)]
        rows = [{"id": f"simple_{i}", "question": [[{"role": "user", "content": t}]]} for i, t in enumerate(asked)]
        bench.write_text("\n".join(json.dumps(row | {"involved_classes": []}) for row in rows))
    return [(name, str(path)) for name, path in sources], str(bench)


def samplers() -> Samplers:
    """Who tries the tasks, with a real tokenizer to measure prompts by."""
    who = KnowsSome(reward_function(RewardConfig()))
    tokenizer = chatml_tokenizer([row["query"] + row["tools"] for row in xlam_rows(200)], 4096)
    chat = ChatFormat.build(tokenizer, ChatConfig(preset="think-block", call_format="hermes"))
    return Samplers(chat, 2048, who, who)


def main(out: Path, share: float, until: str) -> None:
    """Stage by stage, with what each took."""
    console, errors = Console(), Console(stderr=True)
    sources, bench = write_sources(out / "rows", share)
    sizes = {"warmup": round(8200 * share), "rl": round(7000 * share)}
    config = BuildConfig.model_validate({"sources": sources, "benchmarks": [("bench", bench)], **sizes})
    seconds: dict[str, float] = {}
    built: Built | None = None
    with Bars() as bars:
        for stage in UNTIL[: UNTIL.index(until) + 1]:
            start = time.process_time()
            built = build(config, out / "set", stage, samplers=samplers, progress=bars.show, say=errors.print)
            seconds[stage] = round(time.process_time() - start, 1)
    assert built
    write_card(built)
    for head, rows in (source_table(built), step_table(built.steps)):
        console.print("\n".join("  ".join(cells) for cells in (head, *rows)), soft_wrap=True, highlight=False)
    read = sum(one.books["rows"] for name, one in built.stages.items() if name.startswith("read "))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rates = {"read_rows_per_s": round(read / seconds["read"])} if seconds["read"] > 1 else {}
    print(json.dumps({"rows": read, "cpu_seconds": seconds, **rates, "peak_gib": round(peak, 2)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows, and of the sizes")
    parser.add_argument("--until", choices=UNTIL[1:], default="pool")
    arguments = parser.parse_args()
    main(arguments.out, arguments.share, arguments.until)
