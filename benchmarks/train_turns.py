"""A whole multi-turn GRPO step, episodes with tools and learning, against the one of TRL; losses are compared, too.

    python benchmarks/train_turns.py --trl-python ~/trl-venv/bin/python --out benchmarks/results/train_turns.json

The episodes are those of `rollout.py`: a model that counts down to its tool call, so that both systems write the same
tokens (the script fails if they do not), in 4 to 6 responses of 8 to 96 tokens, after prompts of 300 to 500 and with
observations of 50 to 150. Two prompts × 8 samples a step, float32, AdamW, no entropy or KL term; tools answer at once,
observations carry no loss in either. TRL runs its tool loop (`environment_factory`) in an environment of its own
(requirements-trl.txt), at the batch that was best for `train_step.py`. `against_trl.py` says what is measured.

Loss and gradients are compared on what was written in the last step, under random weights: where a model counts, its
gradients are nearly 0. The last line is a JSON object; `parity_max_abs`: the largest difference of a loss, or of an
element of a gradient.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from against_trl import PROMPTS, SAMPLES, Comparison, apart, arguments, load, our_gradients, our_steps
from rich.console import Console
from rollout import Look
from rollout_work import LONGEST, SIZES, VOCABULARY, Work, digest, make_model, make_work

from unbraid.chat.types import Mode
from unbraid.learn.config import LearnConfig
from unbraid.policy import Policy
from unbraid.rollout.config import EnvironmentConfig
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.slots import SlotSampler
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.reward import RewardConfig
from unbraid.tasks.task import Task

STEPS = 2
OLD = -float(np.log(VOCABULARY))
"""Log-prob of every token under the old policy, where losses are compared: near a random model's own."""


def make_folder(folder: Path, size: str, seed: int) -> None:
    """The model that counts, a random one of its shape in FOLDER/other, and what is played: FOLDER/work.json."""
    make_model(folder, *SIZES[size], seed)
    torch.manual_seed(seed + 1)
    other = transformers.Qwen3ForCausalLM(transformers.Qwen3Config.from_pretrained(folder))
    other.save_pretrained(folder / "other")
    work = make_work(STEPS * PROMPTS, SAMPLES, seed)
    for calls in itertools.chain(*work.observations[:PROMPTS]):
        del calls[:-1]  # the step that is not counted: one call
    for of_tasks in work.latencies.values():
        of_tasks[:] = [[[0.0] * len(calls) for calls in samples] for samples in of_tasks]
    more = {"prompts_a_step": PROMPTS, "samples": SAMPLES, "old": OLD}
    (folder / "work.json").write_text(json.dumps(asdict(work) | more))


def rolls(policy: Policy, work: Work) -> Iterator[Callable[[], list[Trajectory]]]:
    """What plays the episodes of each step; every second sample of a task is right."""
    environment = Look(work)
    player = Player(environment, policy.format, EnvironmentConfig(name="look"), RewardConfig(), LONGEST + 1)
    with closing(EpisodeRoll(player, lambda temperature: SlotSampler(policy, PROMPTS * SAMPLES, temperature))) as roll:

        def play(first: int) -> list[Trajectory]:
            numbers = range(first, first + PROMPTS)
            tasks = [Task(str(i), ({"role": "user", "content": work.prompts[i]},)) for i in numbers]
            trajectories = roll(tasks, [Mode.AUTO] * SAMPLES, temperature=1.0, seed=0)
            for number, trajectory in enumerate(trajectories):
                trajectory.reward = float(number % 2)
            return trajectories

        yield from (lambda first=step * PROMPTS: play(first) for step in range(STEPS))


def ours(folder: Path, fast: bool) -> None:
    """Print what steps cost and wrote, as train_turns_trl.py does; write the last batch's gradients to FOLDER."""
    given = json.loads((folder / "work.json").read_text())
    policy, last = load(folder), []
    config = LearnConfig(learning_rate=1e-6, advantage_scale="group", fast=fast, micro_batch=SAMPLES)

    def drawn(trajectories: list[Trajectory]) -> dict[str, object]:
        last[:] = trajectories
        trained = sum(int(t.sampled.sum()) for t in trajectories)
        return {"trained": trained, "digest": digest([t.ids.tolist() for t in trajectories])}

    work = Work(given["prompts"], given["observations"], given["latencies"])
    found = our_steps(policy, config, [], rolls(policy, work), drawn)
    if fast:
        save_gradients(folder, policy, last)
    print(json.dumps(found))


def save_gradients(folder: Path, policy: Policy, trajectories: list[Trajectory]) -> None:
    """Write FOLDER/ours.npz, as TRL wrote FOLDER/trl.npz: under the weights in FOLDER/other, with TRL's advantages."""
    policy.load_weights(folder / "other")
    for trajectory in trajectories:
        trajectory.logprobs = np.where(trajectory.sampled, np.float32(OLD), np.float32(0))
    written = json.loads((folder / "written.json").read_text())
    theirs = np.load(folder / "trl.npz")["advantages"]
    of = {tuple(ids): float(advantage) for ids, advantage in zip(written, theirs, strict=True)}
    advantages = [of[tuple(t.ids.tolist())] for t in trajectories]
    np.savez(folder / "ours.npz", **our_gradients(policy, trajectories, advantages, LearnConfig()))  # pyright: ignore[reportArgumentType]


def main() -> int:
    """Steps of TRL, of ours, and of ours the plain way; then what came out."""
    asked = arguments(__doc__, size={"choices": SIZES, "default": "small"})
    if asked.ours:
        ours(asked.ours, not asked.plain)
        return 0
    comparison, parity = Comparison(asked, __file__, ("several_turns",)), {}
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_folder(folder, asked.size, seed)
            played = comparison.play(folder)
            parity[f"seed {seed}"] = apart(dict(np.load(folder / "ours.npz")), folder / "trl.npz")
        written = {(step["digest"], step["trained"]) for steps in played.values() for step in steps[-1:]}
        if len(written) > 1:
            raise SystemExit(f"the systems wrote different tokens, or train on different ones: {written}")
        Console().print(f"seed {seed}: losses and gradients", parity[f"seed {seed}"], comparison.table())
        comparison.save(parity)
    print(json.dumps(comparison.last(parity)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
