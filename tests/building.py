"""A build to be killed: `python building.py ROWS OUT SEED KILLS` kills it at random moments, then lets it through."""

import json
import os
import random
import signal
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from unbraid.chat.format import ChatConfig, ChatFormat
from unbraid.lab.chatml import chatml_tokenizer
from unbraid.lab.public_rows import KnowsSome, hermes_rows, toolace_rows, xlam_rows
from unbraid.label import LabelConfig
from unbraid.label.build import Built, build
from unbraid.label.build_config import BuildConfig, Samplers
from unbraid.label.card import write_card
from unbraid.tasks.reward import RewardConfig, reward_function


def write_rows(folder: Path, toolace: int = 40, xlam: int = 120, hermes: int = 24) -> Path:
    """Small sources, and a benchmark that asks what three of their rows ask: the same, another number, other words."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {
        "toolace": list(toolace_rows(toolace)),
        "xlam": list(xlam_rows(xlam)),
        "hermes": list(hermes_rows(hermes)),
    }
    for name, of in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(of, ensure_ascii=False))
    asked = [rows["xlam"][3]["query"].upper(), rows["hermes"][2]["conversations"][1]["value"] + " Be quick!"]
    bench = [{"id": f"simple_{i}", "question": [[{"role": "user", "content": text}]]} for i, text in enumerate(asked)]
    (folder / "bench.json").write_text("\n".join(json.dumps(row | {"involved_classes": []}) for row in bench))
    return folder


def build_config(rows: Path, **changes: Any) -> BuildConfig:
    """All three sources and the benchmark, sizes that cut xLAM."""
    values: dict[str, Any] = {
        "sources": [(name, str(rows / f"{name}.json")) for name in ("toolace", "xlam", "hermes")],
        "benchmarks": [("bench", str(rows / "bench.json"))],
        "warmup": 40,
        "rl": 40,
        "labels": LabelConfig(tries=4),
    }
    return BuildConfig.model_validate(values | changes)


@cache
def chat() -> ChatFormat:
    """A ChatML format whose tokenizer knows bytes, and little more."""
    return ChatFormat.build(
        chatml_tokenizer(["Please find it."], 600), ChatConfig(preset="think-block", call_format="hermes")
    )


def samplers() -> Samplers:
    """Who tries the tasks: nobody, by chance."""
    who = KnowsSome(reward_function(RewardConfig()), part=48)
    return Samplers(chat(), 4096, who, who)


def building(rows: Path, out: Path, **options: Any) -> Built:
    """The whole build, card included."""
    built = build(build_config(rows), out, samplers=samplers, **options)
    write_card(built, ["rows"])
    return built


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def main(rows: Path, out: Path, seed: int, kills: int) -> None:
    """Fork and kill so many times, then go on until the work is done; prints how often it was killed in its work."""
    rng, killed = random.Random(seed), 0
    chat()  # built once for all children
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            building(rows, out)
            os._exit(0)
        # After a few files have changed, and then at any moment, perhaps in the middle of writing the next.
        changes, before = rng.randint(1, 12), -1
        while changes and os.waitpid(child, os.WNOHANG) == (0, 0):
            now = sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) if out.is_dir() else 0
            changes, before = changes - (now != before), now
            time.sleep(0.002)
        if changes:
            break
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
    building(rows, out)
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
