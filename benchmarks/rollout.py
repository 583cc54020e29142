"""Multi-turn rollouts against `generate` with a barrier per turn, and against the tool loop of TRL.

    python benchmarks/rollout.py --trl-python ~/trl-venv/bin/python

All systems play the same episodes with the same weights, which make the model count down to its tool call
(`rollout_work.py`). So each samples at temperature 1 from the full softmax and reads calls its own way, and still all
write the same tokens; the script fails if they do not. Tools only sleep, as `latencies.json` says.

Each is timed from messages to token ids, in turn, without a warm-up:

    ours      the episode loop over the slots; it also records log-prob and entropy of every token
    generate  all live episodes in one left-padded batch with a KV cache, then their tools in a thread pool, a barrier
    trl       `GRPOTrainer._generate` with `environment_factory`, in an environment of its own (requirements-trl.txt)

The last line is a JSON object; ratios are seconds of the other system over ours, medians over rounds.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from rollout_work import CALL, KINDS, LONGEST, SIZES, Work, digest, make_model, make_work
from transformers import AutoModelForCausalLM, AutoTokenizer

from unbraid.chat.format import ChatConfig
from unbraid.chat.preset import Preset
from unbraid.chat.types import Mode
from unbraid.policy import ModelConfig, load_policy
from unbraid.rollout.config import EnvironmentConfig
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.slots import SlotSampler
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Ended, Episode
from unbraid.tasks.reward import Reward, RewardConfig
from unbraid.tasks.task import Task
from unbraid.tasks.tools import tool

HERE = Path(__file__).parent
MAKE_TRL = (
    "make an environment for it (python -m venv trl-venv && trl-venv/bin/pip install -r "
    "benchmarks/requirements-trl.txt) and pass --trl-python trl-venv/bin/python"
)


# The systems: each takes the kind of latencies, plays all episodes, and returns seconds and the digest of their ids

System = Callable[[str], tuple[float, str]]


def generate_system(folder: Path, work: Work) -> Callable[[str], list[list[int]]]:
    """What one writes with transformers alone, done well."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    schema = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}

    @torch.inference_mode()
    def respond(contexts: list[list[int]]) -> list[list[int]]:
        batch = tokenizer.pad({"input_ids": contexts}, return_tensors="pt")
        drawn = model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=LONGEST + 1, use_cache=True
        )[:, batch["input_ids"].shape[1] :]
        lengths = (drawn == tokenizer.eos_token_id).int().argmax(-1) + 1
        return [row[:length].tolist() for row, length in zip(drawn, lengths, strict=True)]

    def play(kind: str) -> list[list[int]]:
        numbers = list(itertools.product(range(work.tasks), range(work.samples)))
        texts = [[{"role": "user", "content": work.prompts[task]}] for task, _ in numbers]
        contexts = tokenizer.apply_chat_template(texts, tools=[schema], add_generation_prompt=True)["input_ids"]

        def look(episode: int, call: int) -> str:
            task, sample = numbers[episode]
            time.sleep(work.latencies[kind][task][sample][call])
            return work.observations[task][sample][call]

        live = list(range(len(numbers)))
        with ThreadPoolExecutor(len(live)) as pool:
            for turn in itertools.count():
                responses = respond([contexts[episode] for episode in live])
                for episode, response in zip(live, responses, strict=True):
                    contexts[episode] += response
                live = [e for e, text in zip(live, tokenizer.batch_decode(responses), strict=True) if CALL in text]
                if not live:
                    return contexts
                seen = list(pool.map(look, live, itertools.repeat(turn)))
                for episode, text in zip(live, seen, strict=True):
                    contexts[episode] += tokenizer.encode(" <tool> " + text, add_special_tokens=False)
        raise AssertionError

    return play


class TrlSystem:
    """The tool loop of TRL in a process of another interpreter, which answers one line per line."""

    def __init__(self, python: str, folder: Path, threads: int, continuous: bool):
        command = [python, str(HERE / "rollout_trl.py"), str(folder), "--threads", str(threads)]
        command += ["--continuous"] if continuous else []
        quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | quiet
        )
        self.versions: dict[str, str] = self._read()

    def __call__(self, kind: str) -> tuple[float, str]:
        """Seconds inside the worker, and the digest of what was written."""
        assert self.process.stdin
        print(kind, file=self.process.stdin, flush=True)
        said = self._read()
        return said["seconds"], digest(said["ids"])

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the process of TRL ended; what it printed is above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Look(Environment):
    """An environment whose only tool sleeps. The n-th copy to be reset on a task is its n-th sample."""

    def __init__(self, work: Work):
        self.work = work
        self.begin("equal")

    def begin(self, kind: str) -> None:
        """A new batch of episodes."""
        self.latencies = self.work.latencies[kind]
        self.played = [itertools.count() for _ in self.work.prompts]

    def reset(self, task: Task) -> None:
        self.number, self.calls = int(task.id), itertools.count()
        self.sample = next(self.played[self.number])

    @tool
    def look(self) -> str:
        """Look at what is next."""
        call = next(self.calls)
        time.sleep(self.latencies[self.number][self.sample][call])
        return self.work.observations[self.number][self.sample][call]

    def score(self, episode: Episode) -> Reward:
        return Reward(float(episode.ended is Ended.ANSWER), {}, True, "")


def our_system(folder: Path, work: Work, slots: int) -> Callable[[str], list[list[int]]]:
    """The rollout of a training step, put together as `unbraid train` does."""
    chat = ChatConfig(preset=Preset(think="<think> ", after_thought=" </think> ", no_think="<no_think> "))
    policy = load_policy(ModelConfig(path=str(folder), device="cpu"), chat)
    environment = Look(work)
    player = Player(environment, policy.format, EnvironmentConfig(name="look"), RewardConfig(), LONGEST + 1)
    tasks = [Task(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(work.prompts)]

    def play(kind: str) -> list[list[int]]:
        environment.begin(kind)
        with closing(EpisodeRoll(player, lambda temperature: SlotSampler(policy, slots, temperature))) as roll:
            found = roll(tasks, [Mode.AUTO] * work.samples, temperature=1.0, seed=0)
        return [trajectory.ids.tolist() for trajectory in found]

    return play


def timed(play: Callable[[str], list[list[int]]]) -> Callable[[str], tuple[float, str]]:
    """Seconds of a call, and the digest of what it returned."""

    def run(kind: str) -> tuple[float, str]:
        began = time.perf_counter()
        ids = play(kind)
        return time.perf_counter() - began, digest(ids)

    return run


# The comparison


def measure(systems: dict[str, System], rounds: dict[str, int]) -> dict[str, dict[str, list[float]]]:
    """Seconds by kind of latencies, system and round; in a round every system that still takes part plays once.

    Raises:
        SystemExit: if the systems did not write the same tokens.
    """
    written: dict[str, str] = {}
    seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in systems} for kind in KINDS}
    for number, kind in itertools.product(range(max(rounds.values())), KINDS):
        for name, system in systems.items():
            if number < rounds[name]:
                took, written[f"{name}, {kind}, {number}"] = system(kind)
                seconds[kind][name].append(took)
    if len(set(written.values())) > 1:
        raise SystemExit(f"the systems wrote different tokens: {written}")
    return seconds


def ratios(seconds: dict[str, list[float]], other: str) -> list[float]:
    """Seconds of the other system over ours, by round."""
    return [theirs / ours for theirs, ours in zip(seconds.get(other, ()), seconds["ours"], strict=False)]


def summary(seconds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """What the last line says; a ratio to a system that did not take part is null."""
    found: dict[str, Any] = {}
    for kind, prefix in KINDS.items():
        for other in ("generate", "trl"):
            by_round = ratios(seconds[kind], other)
            found[f"{prefix}ratio_vs_{other}"] = round(median(by_round), 2) if by_round else None
    return found


def table(seconds: dict[str, dict[str, list[float]]]) -> Table:
    """The same for people."""
    shown = Table("latencies", "system", "seconds (median)", "ours is faster by (every round)")
    for kind, by_system in seconds.items():
        for name, took in by_system.items():
            by_round = ", ".join(f"{ratio:.2f}" for ratio in ratios(by_system, name)) if name != "ours" else ""
            shown.add_row(kind.replace("_", "-"), name, f"{median(took):.1f}", by_round)
    return shown


def main() -> int:
    """Play with every system in turn and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; tools have threads of their own")
    parser.add_argument("--trl-python", help="interpreter of the environment that has TRL; none: without")
    parser.add_argument("--trl-rounds", type=int, default=1, help="TRL is slow: it takes part in so many of the rounds")
    parser.add_argument(
        "--trl-continuous", action="store_true", help="TRL with continuous batching, much slower on a CPU"
    )
    parser.add_argument("--out", type=Path, help="file for the last line, settings, versions and seconds")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    work = make_work(asked.prompts, asked.samples)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        make_model(folder, *SIZES[asked.size])
        (folder / "work.json").write_text(json.dumps(asdict(work)))
        systems: dict[str, System] = {
            "ours": timed(our_system(folder, work, asked.slots)),
            "generate": timed(generate_system(folder, work)),
        }
        if asked.trl_python and shutil.which(asked.trl_python):
            trl = stack.enter_context(closing(TrlSystem(asked.trl_python, folder, asked.threads, asked.trl_continuous)))
            systems["trl"], versions["trl"] = trl, trl.versions["trl"]
        else:
            print(f"without TRL: {MAKE_TRL}")
        seconds = measure(systems, {name: asked.trl_rounds if name == "trl" else asked.rounds for name in systems})
    Console().print(table(seconds))
    last = summary(seconds)
    if asked.out:
        settings = {name: value for name, value in vars(asked).items() if name not in ("trl_python", "out")}
        told = {"settings": settings, "cores": os.cpu_count(), "versions": versions, "seconds": seconds}
        asked.out.write_text(json.dumps(last | told, indent=2) + "\n")
    print(json.dumps(last))
    return 0


if __name__ == "__main__":
    sys.exit(main())
