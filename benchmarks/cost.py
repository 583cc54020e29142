"""What `unbraid cost` says of small steps on a CPU, against what they took: memory and time.

    OMP_NUM_THREADS=1 python benchmarks/cost.py --out benchmarks/results/cost.json

Every configuration is a random model in a process of its own (a fork of this one), which samples and learns three
times. Seconds are CPU seconds of one thread, the better of the last two; speeds are fitted to the first configuration
alone (`cost.measure`), measured before and after the others: its own ratio is 1, the rest are predictions. Memory is
the growth of the
resident set from before the model was built to its peak; the estimate is the calculator's without its constant for
the process. The last line is a JSON object.
"""

import argparse
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step_memory import peak_bytes, start_peak

from unbraid.cost.measure import Measured, Small, fitted, measure
from unbraid.policy.batch_shape import batch_shape
from unbraid.policy.memory import training_memory
from unbraid.preflight import drawing_bytes

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "cost.json", ROOT / "docs" / "cost.md"
BEGIN, END = "<!-- cost: begin (python benchmarks/cost.py --page) -->", "<!-- cost: end -->"
PARTS = ("sampling", "learning", "step", "memory")
FIRST = "calibration"
SMALL: dict[str, Small] = {
    FIRST: Small(),
    "wide, four layers": Small(vocabulary=4096, hidden=768, inner=2048, layers=3),
    "narrow, twelve layers": Small(vocabulary=2048, hidden=256, layers=12),
    "many logits": Small(vocabulary=32768, hidden=256, inner=768, layers=4),
    "long prompts": Small(vocabulary=4096, prompt=640),
    "long responses": Small(prompt=64, new=96),
    "adapter": Small(rank=8),
    "checkpointing": Small(checkpointing=True),
    "KL": Small(kl=0.01),
    "plain": Small(fast=False),
}


def one(name: str, told: Any) -> None:
    """Measure a configuration in this process, and put what was found, and bytes, on the queue."""
    torch.set_num_threads(1)
    small = SMALL[name]
    measure(replace(small, vocabulary=300, hidden=64, inner=64, layers=1, prompt=16, new=4), 1)  # libraries load
    before = start_peak()
    found = measure(small)
    told.put((found, peak_bytes() - before))


def expected_memory(small: Small, found: Measured) -> int:
    """The calculator's bytes at the larger of the two moments, its constant for the process left out."""
    shape, rows = found.shape, small.prompts * small.samples
    batch = batch_shape(small.samples, small.new, small.prompt, small.prompt, small.samples)
    learning = training_memory(shape, batch, kl=small.kl > 0)
    drawing = drawing_bytes(shape, rows, small.prompt + small.new)
    return max(learning.total, learning.resident + sum(drawing.values())) - learning.overhead


def in_process(name: str) -> tuple[Measured, int]:
    """`one` in a process of its own."""
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    process = context.Process(target=one, args=(name, told))
    process.start()
    found = told.get(timeout=600)
    process.join()
    return found


def page_table(told: dict[str, Any]) -> str:
    """The results as docs/cost.md shows them."""
    rows = ["| configuration | sampling | learning | a step | memory |", "| --- | --- | --- | --- | --- |"]
    for name, one in told["configurations"].items():
        ratios = one["expected_over_measured"]
        if name == FIRST:
            rows.append(f"| {name} | (fitted) | (fitted) | (fitted) | {ratios['memory']:.2f} |")
        else:
            rows.append(f"| {name} | {' | '.join(f'{ratios[part]:.2f}' for part in PARTS)} |")
    return "\n".join(rows)


def write_page() -> None:
    """Put the committed results into docs/cost.md."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{page_table(json.loads(RESULTS.read_text()))}\n\n{END}{tail}", encoding="utf-8")


def main() -> None:
    """Measure, fit, predict; a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SMALL), choices=SMALL)
    parser.add_argument("--out", type=Path, help="write the last line there, too")
    parser.add_argument("--page", action="store_true", help="only put the committed results into docs/cost.md")
    asked = parser.parse_args()
    if asked.page:
        return write_page()
    names = [FIRST, *(name for name in asked.only if name != FIRST)]
    found = {name: in_process(name) for name in names}
    # A machine that others use is not equally fast all the time: the calibration is made again in the end.
    first, memory = found[FIRST]
    last, _ = in_process(FIRST)
    seconds = {part: (getattr(first, part) + getattr(last, part)) / 2 for part in ("sampling", "learning")}
    found[FIRST] = replace(first, **seconds), memory
    here = fitted(SMALL[FIRST], found[FIRST][0])
    table = Table("configuration", "sampling: s, ratio", "learning: s, ratio", "step: ratio", "memory: MB, ratio")
    told = {}
    for name, (seen, memory) in found.items():
        small = SMALL[name]
        sampling, learning = seen.expected(small, here)
        ratios = {
            "sampling": sampling / seen.sampling,
            "learning": learning / seen.learning,
            "step": (sampling + learning) / (seen.sampling + seen.learning),
            "memory": expected_memory(small, seen) / memory,
        }
        told[name] = {
            "seconds": {"sampling": round(seen.sampling, 3), "learning": round(seen.learning, 3)},
            "bytes": memory,
            "expected_over_measured": {part: round(ratio, 3) for part, ratio in ratios.items()},
        }
        cells = (f"{seen.sampling:.2f}, {ratios['sampling']:.2f}", f"{seen.learning:.2f}, {ratios['learning']:.2f}")
        table.add_row(name, *cells, f"{ratios['step']:.2f}", f"{memory / 1e6:.0f}, {ratios['memory']:.2f}")
    Console(width=110).print(table)
    worst = {
        part: [bound(one["expected_over_measured"][part] for name, one in told.items()) for bound in (min, max)]
        for part in PARTS
    }
    line = json.dumps({"expected_over_measured": worst, "calibrated_on": FIRST, "configurations": told})
    if asked.out:
        asked.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
