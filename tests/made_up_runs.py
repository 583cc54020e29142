"""Made-up runs in the shape of real ones: what the report is tested on."""

from dataclasses import replace

import numpy as np

from unbraid.chat.types import Mode
from unbraid.evaluate import Labels, compare, score
from unbraid.report import (
    Colophon,
    Oracle,
    Report,
    RunView,
    Token,
    Transcript,
)
from unbraid.rollout.trajectory import Finish, Trajectory
from unbraid.tokens import Role

KNOWN = (1.0, 1.0, 0.88, 0.62, 0.42, 0.22)  # share of tasks per level that are right without thinking
THINKS = {
    "direct": (0, 0, 0, 0, 0, 0),
    "distilled": (1, 1, 1, 1, 1, 1),
    "plain": (0, 0, 0, 0, 0, 0),
    "autotool_published": (0, 0, 0, 0, 0.02, 0.01),
    "recommended": (0, 0.01, 0.05, 0.42, 0.99, 1),
}
LABELS = {
    "direct": "distilled model, forced not to think",
    "distilled": "supervised on thinking answers only",
    "plain": "GRPO without any entropy term",
    "autotool_published": "the paper's decoupled adaptive constraint (arXiv 2603.13348)",
    "recommended": "ours: mode entropy and centred advantages",
}


def response(method: str, level: int, index: int, rng: np.random.Generator) -> Trajectory:
    thinks = bool(rng.random() < THINKS[method][level])
    length = 4 + (19 + 10 * level if thinks else 8)
    return Trajectory(
        task_id=f"k{level}-{index}",
        sample=0,
        ids=np.arange(length),
        prompt_length=4,
        roles=np.where(np.arange(length) < 4, 0, np.where(np.arange(length) < length - 6, 1, 2)).astype(np.uint8),
        sampled=np.arange(length) >= 4,
        logprobs=-rng.exponential(0.1, length).astype(np.float32),
        entropies=np.zeros(length, dtype=np.float32),
        choice_probs=(0.5, 0.5),
        mode=Mode.THINK if thinks else Mode.NO_THINK,
        forced=Mode.AUTO,
        finish=Finish.STOP,
        level=str(level),
        source="calls",
        correct=bool(rng.random() < (0.985 if thinks else KNOWN[level])),
    )


def responses(method: str) -> list[Trajectory]:
    rng = np.random.default_rng(len(method))
    return [response(method, level, i, rng) for level in range(6) for i in range(60)]


def rows(name: str, steps: int = 60) -> list[dict[str, float | None]]:
    rng = np.random.default_rng(sum(name.encode()))
    t = np.arange(1, steps + 1)
    holds = name == "recommended"
    think = 0.38 + 0.05 * np.tanh(t / 20) if holds else 0.32 / (1 + np.exp((t - 11) / 3))
    think = np.clip(think + rng.normal(0, 0.025, steps) * (think > 0.01), 0, 1)
    mode_entropy = 0.47 * np.where(t > 36, np.clip((60 - t) / 24, 0.05, 1), 1) if holds else 0.66 * think / 0.32
    made: list[dict[str, float | None]] = []
    for i, step in enumerate(t):
        row: dict[str, float | None] = {
            "step": int(step),
            "think_rate": float(think[i]),
            "accuracy": float(np.clip(0.6 + 0.32 * think[i] * 2 + 0.05 * np.tanh(i / 9) + rng.normal(0, 0.03), 0, 1)),
            "tokens": float(8 + 50 * think[i] + rng.normal(0, 0.6)),
            "entropy/mode": float(max(0.0, mode_entropy[i] + rng.normal(0, 0.02))),
            "entropy/think": float(0.16 * np.exp(-i / 30) + 0.03 + rng.normal(0, 0.006)) if think[i] > 0.004 else None,
            "entropy/no_think": float(0.08 * np.exp(-i / 18) + 0.02 + rng.normal(0, 0.004)),
            "vote/group": float((0.03 if holds else -0.05 * np.exp(-i / 14)) + rng.normal(0, 0.012)),
            "seconds/rollout": 0.5,
        }
        if name == "autotool_published":
            row["constraint/decoupled/think/coefficient"] = 0.01 * 1.08 ** float(i)
            row["constraint/decoupled/think/target"] = 0.2
            row["constraint/decoupled/think/gate_open"] = float(np.clip(rng.normal(0.8, 0.1), 0, 1))
            row["constraint/decoupled/no_think/target"] = 0.1
        if holds:
            row["constraint/mode_entropy/all/coefficient"] = 0.05 + 0.2 * float(np.exp(-(((i - 20) / 14) ** 2)))
            row["constraint/mode_entropy/all/target"] = 0.45 if i < 36 else 0.45 * (59 - i) / 23
            row["constraint/mode_entropy/all/gate_open"] = float(np.clip(rng.normal(0.5, 0.1), 0, 1))
        made.append(row)
    return made


def calls_transcript(method: str, thinks: bool, correct: bool, forced: bool = False) -> Transcript:
    prompt = "<tools> t6 t0 t2 <ask> i2b e7 r0 r1 <go>"
    thought = "use t2 ; start at e7 ; take r0 of e7 , this gives e2 ; take r1 of e2 , this gives e8 ; so value e8"
    call = "t2 ( p2 = e8 )" if correct else "t2 ( p2 = e5 )"
    rng = np.random.default_rng(5)
    tokens = [Token(f"{word} ", Role.PROMPT, False) for word in prompt.split()]
    opening = "<think>" if thinks else "<no_think>"
    tokens.append(Token(f"{opening} ", Role.REASONING, not forced, None if forced else -0.61))
    for word in f"{thought} </think>".split() if thinks else []:
        tokens.append(Token(f"{word} ", Role.REASONING, True, -float(rng.exponential(0.05))))
    tokens += [Token(f"{word} ", Role.ACTION, True, -float(rng.exponential(0.2))) for word in call.split()]
    tokens.append(Token("<eos>", Role.ACTION, True, -0.0001))
    mode = Mode.THINK if thinks else Mode.NO_THINK
    return Transcript(
        method=method,
        task="k2-17",
        level="2",
        mode=mode,
        forced=mode if forced else Mode.AUTO,
        correct=correct,
        reward={(True, True): 0.5, (False, True): 1.0, (True, False): -0.5, (False, False): -1.0}[thinks, correct],
        reward_parts={"format": 0.0, "answer": 0.5 if thinks else 1.0},
        reason="" if correct else "wrong_arguments",
        finish="stop",
        tokens=tuple(tokens),
        note="chain not seen in pre-training" if thinks else "",
    )


def build_report() -> Report:
    by_method = {method: responses(method) for method in THINKS}
    scores = [
        score(
            sampled,
            Labels(method, "final", "tag", 340_000),
            Mode.NO_THINK if method == "direct" else Mode.AUTO,
            0.0,
        )
        for method, sampled in by_method.items()
    ]
    warning = {
        "step": 6,
        "level": "warning",
        "message": "predicted vote is against thinking and thinking is rare: collapse ahead",
    }
    views = [RunView(name, LABELS[name], rows(name)) for name in ("plain", "autotool_published", "recommended")]
    notes = ([warning], [warning | {"step": 9}], [{"step": 1, "level": "info", "message": "start"}])
    return Report(
        title="An agent that thinks only when it pays",
        summary=[
            "Three ways to train the same warmed-up model, on 360 held-out calls of known difficulty. Plain GRPO stops "
            "thinking within twenty steps; the published constraint slows this down and does not prevent it here; the "
            "recommended configuration keeps thinking where it pays.",
        ],
        scores=scores,
        runs=[replace(view, notes=said) for view, said in zip(views, notes, strict=True)],
        comparisons=[
            compare(by_method[first], by_method["recommended"], (first, "recommended"))
            for first in ("plain", "autotool_published", "distilled")
        ],
        transcripts=[
            calls_transcript("recommended", True, True),
            calls_transcript("recommended", False, True),
            calls_transcript("plain", False, False),
            calls_transcript("distilled", True, True, forced=True),
        ],
        oracle=Oracle(accuracy=0.99, tokens=25.7),
        labels=LABELS,
        colophon=Colophon(
            commands=["make quickstart", "unbraid quickstart --seed 0"],
            seeds={"base": 0, "rl": 0},
            versions={"unbraid": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
            seconds={"warm-up": 41.2, "plain": 61.0, "autotool_published": 63.5, "recommended": 70.9, "evaluation": 24},
            notes=["2 CPU cores, float32"],
        ),
    )
