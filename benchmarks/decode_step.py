"""One decoding step of the local sampler, an ordinary one and those of fixed shapes (`unbraid.rollout.fixed`).

    OMP_NUM_THREADS=1 python benchmarks/decode_step.py

A random model of `rollout_work.SIZES` after prompts of so many tokens; each kind feeds the same tokens, in turn by
rounds. `compiled` is the fixed step through `torch.compile`, `recorded` a CUDA graph of it; each is there where the
machine can do it. The last line is a JSON object: milliseconds of a step (of the CPU without a GPU, of the clock with
one), medians over rounds; ratios to the ordinary step; the largest difference of a logit from an ordinary step's.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from against_trl import load
from rollout_work import SIZES, VOCABULARY, make_model

from unbraid.rollout.cache import growing_cache
from unbraid.rollout.fixed import Recorder, Stretch
from unbraid.rollout.past import Past

Step = Callable[[torch.Tensor], torch.Tensor]
SET_UP = 3
"""Steps that are not counted: compiling, recording."""


def past_of(model: Any, rows: int, prompt: int, device: torch.device) -> Past:
    """After random prompts and one ordinary step."""
    random = torch.Generator().manual_seed(0)
    cache, ids = growing_cache(), torch.randint(200, VOCABULARY, (rows, prompt), generator=random).to(device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    past = Past(model, cache, None, None)
    past.step(ids[:, :1], None)
    return past


def kinds(model: Any, past: Callable[[], Past], rows: int, steps: int, device: torch.device) -> dict[str, Step]:
    """What is compared, each from a past of its own."""
    on_gpu = device.type == "cuda"
    ordinary, fixed, compiled = past(), Stretch(past(), rows, steps, False), Stretch(past(), rows, steps, False)
    compiled._advance = torch.compile(compiled._advance, dynamic=False)
    found: dict[str, Step] = {
        "ordinary": lambda ids: ordinary.step(ids, None),
        "fixed": lambda ids: fixed.step(ids, None, recorder=None),
        "compiled": lambda ids: compiled.step(ids, None, recorder=None),
    }
    if on_gpu:
        recorded, recorder = Stretch(past(), rows, steps, False), Recorder(device)
        found["recorded"] = lambda ids: recorded.step(ids, None, recorder)
    return found


@torch.inference_mode()
def main() -> None:
    """Take the steps and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), *SIZES[asked.size])
        model = load(Path(name)).model.eval().to(device)
    random, total = torch.Generator().manual_seed(1), SET_UP + asked.rounds * asked.steps
    ids = torch.randint(200, VOCABULARY, (total, asked.rows, 1), generator=random).to(device)
    steps = kinds(model, lambda: past_of(model, asked.rows, asked.prompt, device), asked.rows, total, device)
    cost: dict[str, list[float]] = {kind: [] for kind in steps}
    apart = dict.fromkeys(steps, 0.0)
    for number in range(-1, asked.rounds):
        some = ids[:SET_UP] if number < 0 else ids[SET_UP + number * asked.steps :][: asked.steps]
        logits: dict[str, torch.Tensor] = {}
        for kind, step in list(steps.items()):
            began = clock()
            try:
                for one in some:
                    logits[kind] = step(one)
            except RuntimeError as error:
                print(f"{kind}: left out ({str(error).splitlines()[0]})")
                del steps[kind]
                continue
            apart[kind] = max(apart[kind], float((logits[kind] - logits["ordinary"]).abs().max()))
            if number >= 0:
                cost[kind].append(1e3 * (clock() - began) / len(some))
    found = {
        kind: {
            "ms": round(median(cost[kind]), 2),
            "ratio": round(median(a / b for a, b in zip(cost[kind], cost["ordinary"], strict=True)), 2),
            "apart": float(f"{apart[kind]:.1e}"),
        }
        for kind in steps
    }
    for kind, row in found.items():
        print(f"{kind:10} {row['ms']:8.2f} ms   {row['ratio']:.2f} of an ordinary step   {row['apart']:.1e}")
    print(json.dumps({"device": device.type} | found))


if __name__ == "__main__":
    main()
