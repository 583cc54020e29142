"""Pre-trains the lab's base models: small Llama-shaped models that hold one calls world in their weights.

What a base does not learn matters as much: there is no loss on the mode token, so that it has no opinion on when
to think, and direct answers occur only for known chains, so that the others stay unknown.

    python -m unbraid.lab.base_model --seed 0 --out DIR     # about three minutes on one core
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from unbraid.chat.types import Answer, Mode
from unbraid.lab.calls_chat import PAD, STOP, calls_tokenizer, prompt_words, response_words
from unbraid.lab.calls_world import LEVELS, WORLD_VERSION, CallsWorld, Query, Split, keyed_rng
from unbraid.lab.measure import Measured, load_start, measure
from unbraid.learn.supervised import Batches, SupervisedExample, SupervisedTrainer, WarmupConfig
from unbraid.tasks.cache import cache_folder

THINK_SHARE = 0.35
"""Share of pre-training examples that think."""

PRETRAINING = WarmupConfig(steps=700, batch_examples=128, learning_rate=3e-3, ramp_steps=50, mode_weight=0.0)

THINK_GATE = (0.95, 0.95, 0.95, 0.8, 0.8, 0.8)
"""Least accuracy of forced thinking for k = 0..5. A base below it is no ground for claims about thinking."""
DIRECT_GATE = 0.1
"""Largest distance between direct accuracy and the share of known chains."""


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained model of 0.35 M parameters, drawn from the world's seed.

    Choice: Llama, not Qwen2. AutoTokenizer replaces the tokenizer of any `qwen2` folder by Qwen's own, which cannot
    read a word-level vocabulary.
    """
    return word_model(calls_tokenizer().get_vocab(), 96, seed)


def word_model(
    vocabulary: Mapping[str, int], hidden: int, seed: int, layers: int = 3, intermediate: int = 256
) -> LlamaForCausalLM:
    """An untrained Llama over a vocabulary of words; the seed decides its weights."""
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary[STOP],
        pad_token_id=vocabulary[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretraining_batches(world: CallsWorld, size: int) -> Batches:
    """Fresh examples for every step: thoughts over free chains of every length, direct answers of known chains."""
    vocabulary, known = calls_tokenizer().get_vocab(), world.known_chains

    def example(query: Query, answer: Answer) -> SupervisedExample:
        response = tuple(vocabulary[word] for word in response_words(answer))
        prompt = tuple(vocabulary[word] for word in prompt_words(query))
        return SupervisedExample(prompt, response, (0.0, *[1.0] * (len(response) - 1)))

    def batch(step: int) -> list[SupervisedExample]:
        rng = keyed_rng(world.seed, "pretraining", step)
        thinking = round(THINK_SHARE * size)
        long = [world.query(world.free_chain(i % LEVELS, rng), rng) for i in range(thinking)]
        short = [world.query(known[rng.integers(len(known))], rng) for _ in range(size - thinking)]
        return [example(q, q.long) for q in long] + [example(q, q.short) for q in short]

    return batch


def build_base(seed: int, out: Path, on_step: Callable[[int, dict[str, float]], None] | None = None) -> None:
    """Pre-trains the base of world `seed` and saves it as a Hugging Face folder (0.7 MB).

    Weights are stored in half precision, and config.json asks for float32: no precision matters here that
    half the size does not buy.
    """
    model = new_model(seed)
    batches = pretraining_batches(CallsWorld(seed), PRETRAINING.batch_examples)
    SupervisedTrainer(model, PRETRAINING, batches).run(on_step)
    save_half(model, calls_tokenizer(), out)


def save_half(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save a base with its weights in half precision, to be loaded in float32."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = out / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def base_path(seed: int) -> Path:
    """The base of world `seed`: shipped, else from the cache, else built now (with a progress bar on stderr)."""
    return kept(f"calls-{seed}", f"calls-v{WORLD_VERSION}-{seed}", lambda out: build_with_progress(seed, out))


def kept(shipped: str, cached: str, build: Callable[[Path], None]) -> Path:
    """A base that is shipped under one name, else kept in the cache under another, else built there now.

    The cache is `tasks.cache.cache_folder()`.
    """
    places = (Path(__file__).parent / "bases" / shipped, cache_folder() / cached)
    for path in places:
        if path.is_dir():
            return path
    path = places[-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there: a build that is interrupted never looks like a base.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        build(Path(scratch) / "base")
        if not path.is_dir():
            shutil.move(Path(scratch) / "base", path)
    return path


def build_with_progress(seed: int, out: Path) -> None:
    """`build_base` under a progress bar with the time left."""
    with training_bar(f"pre-training base {seed}", PRETRAINING.steps) as on_step:
        build_base(seed, out, on_step)


@contextmanager
def training_bar(name: str, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A progress bar on stderr with the time left; gives what `SupervisedTrainer.run` calls after each step."""
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=steps)
        yield lambda step, _: bar.update(task, completed=step)


def gates(path: Path, seed: int) -> tuple[dict[str, Measured], list[str]]:
    """Forced modes, greedy, on the test set of world `seed`; and what is wrong with the base, if anything."""
    world, policy = CallsWorld(seed), load_start(path)
    tasks = world.evaluation_tasks(Split.TEST)
    found = {mode.value: measure(policy, tasks, mode) for mode in (Mode.THINK, Mode.NO_THINK)}
    faults = []
    for k in range(LEVELS):
        level = [t for t in tasks if t.level == str(k)]
        known = sum(bool(t.extra["known"]) for t in level) / len(level)
        think, direct = (found[mode].accuracy[k] for mode in ("think", "no_think"))
        if think < THINK_GATE[k]:
            faults.append(f"thinking is right on {think:.2f} of k = {k}, needs {THINK_GATE[k]}")
        if abs(direct - known) > DIRECT_GATE:
            faults.append(f"direct answers are right on {direct:.2f} of k = {k}, where {known:.2f} are known")
    return found, faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a base, print its gates; exit status 1 if it fails them."""

    def judge(path: Path, seed: int) -> tuple[str, list[str]]:
        found, faults = gates(path, seed)
        return "\n".join(f"{name:9} {measured}" for name, measured in found.items()), faults

    return base_command("calls world", "--seed", build_with_progress, judge, arguments)


def base_command(
    world: str,
    flag: str,
    build: Callable[[int, Path], None],
    judge: Callable[[Path, int], tuple[str, list[str]]],
    arguments: Sequence[str] | None,
) -> int:
    """What `python -m` does with the module of a world's bases: build one, print how it is and what is wrong with it.

    Args:
        flag: names the world's seed on the command line.

    Returns:
        Exit status, 1 if the base fails its gates.
    """
    parser = argparse.ArgumentParser(description=f"Pre-train one base of the {world}.")
    parser.add_argument(flag, type=int, default=0, dest="seed", help="of the world; every seed is another world")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    asked = parser.parse_args(arguments)
    build(asked.seed, asked.out)
    line, faults = judge(asked.out, asked.seed)
    print(line)
    for fault in faults:
        print(f"gate failed: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
