"""What docs/interference.md claims of the measures themselves: coverage, saturation, sketches, the monitor, the cost.

    python benchmarks/interference.py        a few minutes on one core; the last line is JSON

The conflict world's base 0 is built first if it is not in the cache (half a minute).
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unbraid.chat.types import Mode
from unbraid.evaluate.evaluate import spread
from unbraid.interference.attribution import COMPOSED, VARIANTS, published
from unbraid.interference.geometry import geometry, role_gradients
from unbraid.interference.sharing import TWO_AGENTS, Start, primary
from unbraid.interference.simulation import PLANTED, coverage, saturation_null
from unbraid.interference.variants import take_turns
from unbraid.learn.advantages import group_advantages
from unbraid.learn.log import read_metrics
from unbraid.policy import Policy, load_policy
from unbraid.prepare import load_tasks, make_environment, roll_of
from unbraid.recipe import load_recipe
from unbraid.run import train
from unbraid.run.interference import LOOK_SAMPLES, LOOK_TASKS, look, successes

STARTS, QUESTIONS, SAMPLES, SIMULATIONS = 6, 80, 64, 4000
TIMED_QUESTIONS, TIMED_SAMPLES = 24, 16
ADAPTER = "model.adapter={rank: 8, alpha: 16}"


def main() -> None:
    """Print everything."""
    torch.set_num_threads(1)
    line = {
        "coverage": intervals(),
        "saturation": saturation(),
        "sketch": sketches(),
        "monitor_share": monitor(),
        **cost(),
    }
    print(json.dumps(line))


def intervals() -> dict[str, float]:
    """How often intervals over starts hold a planted effect, exact rates and sampled ones."""
    print(f"{SIMULATIONS} simulated diagnoses each, {STARTS} starts, {QUESTIONS} questions")
    found = {}
    for planted in PLANTED:
        for samples in (None, SAMPLES):
            c = coverage(planted, STARTS, QUESTIONS, samples, SIMULATIONS)
            how = "exact" if samples is None else f"{samples} samples"
            print(
                f"  {planted.name:<32}{how:<12} effect {c.effect:+.3f} nats   held {c.held:.1%}   "
                f"decided {c.decided:.1%}   wrongly {c.wrong:.1%}"
            )
            found[f"{planted.name}, {how}"] = round(c.held, 4)
    return found


def saturation(simulations: int = 200) -> dict[str, float]:
    """Unified, tool, reasoning, R∘T and the pair .9, base .2: nothing is lost by sharing."""
    rng, shares, rulings, starts = np.random.default_rng(0), [], [], []
    for _ in range(simulations):
        rates = dict.fromkeys((*VARIANTS, COMPOSED, TWO_AGENTS), 0.9) | {"base": 0.2}
        counts = [{m: rng.binomial(50, r, size=100) for m, r in rates.items()} for _ in range(STARTS)]
        starts = [Start.sampled(c, 50) for c in counts]
        shares.append(np.mean([published(c, 50).negative for c in counts]))
        rulings.append(primary(starts).ruling.value)
    null = saturation_null(starts, 50)  # of the last one
    wrong = float(np.mean([r == "interference" for r in rulings]))
    print(
        f"planted saturation, {simulations} times: λ23 < 0 on {np.mean(shares):.1%} of questions (simulated null "
        f"{null.low:.1%} … {null.high:.1%}); ours says interference in {wrong:.1%}"
    )
    return {"published_negative_share": round(float(np.mean(shares)), 4), "ours_says_interference": wrong}


def sketches() -> dict[str, float]:
    """Sketched against exact gradients of all weights of the conflict base, on sampled episodes."""
    recipe = load_recipe(["conflict-world"])
    policy = load_policy(recipe.model, recipe.chat)
    tasks = spread(load_tasks(recipe, policy, make_environment(recipe)).train, 32)
    drawn = roll_of(recipe, policy)(tasks, [Mode.AUTO] * 8, temperature=1.0, seed=0)
    groups = np.repeat(np.arange(len(tasks)), 8)
    advantages = group_advantages(np.array([t.reward for t in drawn]), groups, "batch")
    exact = geometry(role_gradients(policy, drawn, advantages, parts=4, width=None))
    numbers = sum(p.numel() for _, p in policy.trainable())
    found = {}
    for width in (256, 1024, 4096):
        sketched = geometry(role_gradients(policy, drawn, advantages, parts=4, width=width))
        errors = [
            abs(sketched.raw - exact.raw),
            *(abs(sketched.same[role] - exact.same[role]) for role in exact.same),
            abs(sketched.random_raw - exact.random_raw),
        ]
        kept = sum(min(width, p.numel()) for _, p in policy.trainable())
        print(f"sketches of {width}: {kept} of {numbers} numbers kept, largest error of four cosines {max(errors):.4f}")
        found[str(width)] = round(max(errors), 5)
    return found


def monitor() -> float:
    """Share of a run's time that the monitor takes at the default interval."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(["conflict-world"], [ADAPTER, "learn.steps=50", "evaluate.limit=4"])
        train(recipe, Path(folder) / "run")
        rows = read_metrics(Path(folder) / "run")
    stages = ("rollout", "learn", "interference")
    seconds = {stage: sum(row.get(f"seconds/{stage}") or 0.0 for row in rows) for stage in stages}
    share = seconds["interference"] / sum(seconds.values())
    whole, every = sum(seconds.values()), recipe.learn.interference_every
    print(f"monitor every {every} of {len(rows)} steps: {share:.2%} of {whole:.0f} s")
    return round(share, 4)


def cost() -> dict[str, float]:
    """What measuring takes beyond training, in evaluations of the published six: four single models and two hybrids."""
    recipe = load_recipe(["conflict-world"], [ADAPTER])

    def policy(*more: str) -> Policy:
        config = load_recipe(["conflict-world"], [ADAPTER, *more])
        return load_policy(config.model, config.chat)

    one = policy()
    tasks = load_tasks(recipe, one, make_environment(recipe))
    chosen = spread(tasks.test, TIMED_QUESTIONS)

    def seconds(do: Callable[[], object]) -> float:
        began = time.perf_counter()
        do()
        return time.perf_counter() - began

    def asked(model: Policy) -> float:
        return min(seconds(lambda: successes(recipe, model, chosen, TIMED_SAMPLES)) for _ in range(2))

    single, wide = asked(one), asked(policy("model.adapter={rank: 16, alpha: 32}"))
    hybrid, pair = asked(take_turns(one, policy())), asked(policy("model.two_agents=true"))
    with tempfile.TemporaryDirectory() as folder:
        looked = seconds(lambda: look(recipe, one, tasks, Path(folder) / "geometry.json"))
    # The look is taken once whatever is asked; scaled to the numbers that are the command's defaults.
    scale = 50 * 64 / (TIMED_QUESTIONS * TIMED_SAMPLES)
    six = scale * (4 * single + 2 * hybrid)
    everything = scale * (4 * single + wide + 3 * hybrid + pair) + looked
    trusted = scale * (wide + pair) + looked
    print(
        f"one model {single:.2f} s, two taking turns {hybrid:.2f} s for {TIMED_QUESTIONS} x {TIMED_SAMPLES} episodes; "
        f"gradients of {LOOK_TASKS} x {LOOK_SAMPLES} {looked:.1f} s"
    )
    print(f"in published diagnoses: everything {everything / six:.2f}, what the verdict rests on {trusted / six:.2f}")
    return {
        "cost_ratio_vs_six_evaluations": round(everything / six, 3),
        "verdict_only_ratio": round(trusted / six, 3),
    }


if __name__ == "__main__":
    main()
