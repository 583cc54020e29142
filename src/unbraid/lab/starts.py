"""Starting points for RL: a base after a short warm-up that teaches it one habit of thinking.

A start differs from the base in its mode token alone, by intent: the base can answer in both modes already. Where a
chain is unknown, a short example trains nothing but the mode token; its gold answer would make the chain known.
"""

from collections.abc import Callable
from enum import StrEnum

from unbraid.chat.format import ChatFormat
from unbraid.chat.types import Mode
from unbraid.lab.calls_world import KNOWN, CallsWorld, keyed_rng
from unbraid.learn.schedule import epochs
from unbraid.learn.supervised import SupervisedExample, SupervisedTrainer, WarmupConfig, response_example
from unbraid.policy import Policy

WARMUP = WarmupConfig(steps=60, batch_examples=64, learning_rate=1e-3, ramp_steps=5, mode_weight=10.0)


class Start(StrEnum):
    """DISTILLED always thinks; CLEAR thinks where it should; FUZZY thinks at random, whatever the prompt."""

    DISTILLED = "distilled"
    CLEAR = "clear"
    FUZZY = "fuzzy"


THINK_SHARE = {Start.DISTILLED: (1.0, 1.0), Start.CLEAR: (0.05, 0.9), Start.FUZZY: (0.3, 0.3)}
"""Share of examples that think, on (known, unknown) chains."""


def start_examples(
    world: CallsWorld, chat: ChatFormat, start: Start, count: int, seed: int = 0
) -> list[SupervisedExample]:
    """Warm-up examples over TRAIN chains at the world's natural known share."""
    tasks = world.training_tasks(count, sum(KNOWN) / len(KNOWN), seed)
    rng = keyed_rng(world.seed, "start", start, seed)
    examples = []
    for task in tasks:
        known = bool(task.extra["known"])
        thinks = rng.random() < THINK_SHARE[start][0 if known else 1]
        answer = next(a for a in task.answers if (a.mode is Mode.THINK) == thinks)
        example = response_example(task, answer, chat, WARMUP.mode_weight, mode_only=not thinks and not known)
        examples.append(example)
    return examples


def make_start(
    policy: Policy,
    world: CallsWorld,
    start: Start,
    seed: int = 0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Turns a freshly loaded base into a start, in place."""
    examples = start_examples(world, policy.format, start, WARMUP.steps * WARMUP.batch_examples, seed)
    SupervisedTrainer(policy.model, WARMUP, epochs(examples, WARMUP.batch_examples, seed)).run(on_step)
