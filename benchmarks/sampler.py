"""The local sampler against `generate` of transformers: tokens per second, side by side, on the lab's model.

    python benchmarks/sampler.py

Both draw the same number of responses to the same prompts with the same model, temperature, budget and stop token,
with a KV cache and without logits processors. Runs alternate, so that whatever else the machine does hits both.
The last line is a JSON object; `tokens_per_s_ratio_vs_generate` is the median over rounds of the ratio of one round,
on `mixed`: what a step of RL samples.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from unbraid.chat.types import Mode
from unbraid.lab.base_model import base_path
from unbraid.lab.calls_world import CallsWorld
from unbraid.lab.measure import MAX_NEW_TOKENS, load_start
from unbraid.lab.starts import Start, make_start
from unbraid.learn.batch import collate
from unbraid.learn.objective import score_tokens
from unbraid.policy import Policy
from unbraid.rollout import LocalSampler, Request, Trajectory
from unbraid.rollout.cache import growing_cache
from unbraid.tasks.task import Task

WORKLOADS = {"mixed": Mode.AUTO, "think": Mode.THINK}
"""`mixed`: the model chooses, responses differ much in length. `think`: long responses only."""


@dataclass(frozen=True)
class Work:
    """One rollout step: `samples` responses to each task."""

    tasks: list[Task]
    samples: int
    mode: Mode

    def requests(self, policy: Policy) -> list[Request]:
        prompts = [tuple(policy.format.prompt_ids(task.messages, task.tools)) for task in self.tasks]
        return [
            Request(task, prompt, sample, self.mode)
            for task, prompt in zip(self.tasks, prompts, strict=True)
            for sample in range(self.samples)
        ]


def ours(policy: Policy, work: Work, seed: int) -> int:
    """Sample; returns the number of drawn tokens."""
    drawn = LocalSampler(policy).sample(
        work.requests(policy), temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed
    )
    return sum(int(t.sampled.sum()) for t in drawn)


@torch.inference_mode()
def generate(policy: Policy, work: Work, seed: int) -> int:
    """The same with `generate`; returns the number of drawn tokens, those after the stop token not counted."""
    torch.manual_seed(seed)
    forced = policy.format.modes.of(work.mode)
    prompts = [[*policy.format.prompt_ids(task.messages, task.tools), *forced] for task in work.tasks]
    longest, stop = max(map(len, prompts)), policy.format.stop_ids[0]
    ids = torch.tensor([[stop] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    policy.model.eval()
    out = policy.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=work.samples,
        max_new_tokens=MAX_NEW_TOKENS - len(forced),
        eos_token_id=list(policy.format.stop_ids),
        pad_token_id=stop,
        use_cache=True,
    )[:, longest:]
    stopped = torch.isin(out, torch.tensor(policy.format.stop_ids))
    return int((stopped.cumsum(-1) - stopped.long() == 0).sum())


@torch.inference_mode()
def forward_only(policy: Policy, work: Work, lengths: Sequence[int]) -> None:
    """The floor: the model's forward passes for responses of these lengths, longest first, and nothing else."""
    prompts = [policy.format.prompt_ids(task.messages, task.tools) for task in work.tasks]
    width = round(np.mean([len(p) for p in prompts]))
    cache = growing_cache()
    policy.model(input_ids=torch.ones((len(prompts), width), dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    cache.batch_select_indices(torch.arange(len(prompts)).repeat_interleave(work.samples))
    for position in range(1, max(lengths)):
        live = sum(length > position for length in lengths)
        cache.batch_select_indices(torch.arange(live))
        policy.model(input_ids=torch.ones((live, 1), dtype=torch.long), past_key_values=cache)


def largest_difference(policy: Policy, trajectories: Sequence[Trajectory]) -> float:
    """Largest |Δ log-prob| in nats between what the sampler recorded and what the trainer computes."""
    batch = collate(trajectories, np.zeros(len(trajectories)), policy.format.modes.position)
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    return float((scores.logprobs - batch.old_logprobs)[batch.sampled].abs().max())


def rate(draw: Callable[[], int]) -> float:
    """Tokens per second of one call."""
    began = time.perf_counter()
    return draw() / (time.perf_counter() - began)


def main() -> int:
    """Time both on every workload and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7, help="alternating runs of each")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    world, policy = CallsWorld(0), load_start(base_path(0))
    make_start(policy, world, Start.FUZZY)
    tasks = world.training_tasks(asked.prompts, known_share=0.66, seed=1)
    table = Table(
        "workload", "tokens/s", "generate", "ratio (all rounds)", "share of time in the model", "max |Δ log p|"
    )
    found: dict[str, dict[str, float]] = {}
    for name, mode in WORKLOADS.items():
        work = Work(tasks, asked.samples, mode)
        trajectories = LocalSampler(policy).sample(
            work.requests(policy), temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed="check"
        )
        lengths = [t.response_tokens for t in trajectories]
        total = sum(int(t.sampled.sum()) for t in trajectories)
        generate(policy, work, 0)  # the first call of each is slower

        def floor(work: Work = work, lengths: list[int] = lengths, total: int = total) -> int:
            forward_only(policy, work, lengths)
            return total

        rounds = np.array(
            [
                [rate(lambda: ours(policy, work, seed)), rate(lambda: generate(policy, work, seed)), rate(floor)]  # noqa: B023 (called at once)
                for seed in range(asked.rounds)
            ]
        )
        ratios = rounds[:, 0] / rounds[:, 1]
        found[name] = {
            "tokens_per_s": round(median(rounds[:, 0])),
            "tokens_per_s_generate": round(median(rounds[:, 1])),
            "ratio": round(median(ratios), 2),
            "share_in_model": round(median(rounds[:, 0] / rounds[:, 2]), 2),
            "max_logprob_difference": largest_difference(policy, trajectories),
        }
        row = found[name]
        table.add_row(
            name,
            f"{row['tokens_per_s']:,}",
            f"{row['tokens_per_s_generate']:,}",
            f"{row['ratio']} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"{row['share_in_model']:.0%}",
            f"{row['max_logprob_difference']:.1e}",
        )
    Console().print(table)
    print(json.dumps({"tokens_per_s_ratio_vs_generate": found["mixed"]["ratio"], **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
