"""Everything that was measured of one model and task, the published figures beside the controls, and what follows.

Two questions, answered apart: do the roles want opposite things of the weights they share (`geometry`), and does
sharing cost success (`sharing`)? Either can be so without the other: a model may have room for opposed targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from unbraid.evaluate.statistics import Estimate, mean_over_runs
from unbraid.interference.attribution import COMPOSED, SCALES, VARIANTS, Published, effects, published, scaled
from unbraid.interference.geometry import Angle, Geometry
from unbraid.interference.sharing import (
    ENOUGH_STARTS,
    MARGIN,
    TWO_AGENTS,
    UNIFIED,
    WIDE,
    Effect,
    Ruling,
    Start,
    disagree,
    effect_of_sharing,
    primary,
    proxy,
)
from unbraid.interference.simulation import SaturationNull, Scatter, saturation_null, scatter, starts_needed

COMPOSED_ROUTED = "composed_routed"
"""R∘T as one routed model instead of two models."""
MODELS = (*VARIANTS, COMPOSED, TWO_AGENTS, WIDE, COMPOSED_ROUTED)
"""All models that are measured; the last two only where adapters are trained."""
ANGLE_LINE = 0.1
"""Choice: cosines nearer to 0 than this are neither opposed nor aligned."""
PUBLISHED_SAMPLES = 50
"""Source: arXiv 2602.00994, samples per model and question."""
WORTH_SEEING = 0.1
"""Nats. Choice: the effect of sharing whose price in starts the report names: one success in ten."""
MORE = 4
"""Times as many questions, or samples, that the report also names that price for."""


class Targets(StrEnum):
    """What the roles' gradients came to."""

    OPPOSED = "opposed"
    ALIGNED = "aligned"
    NEITHER = "neither opposed nor aligned"
    UNMEASURED = "not measurable"


@dataclass(frozen=True)
class Diagnosis:
    """The measures of one or more training starts.

    published: LEAS as in the paper, of every start. null: what it would say if sharing had cost nothing.
    decisive: joint less the co-trained pair, on log p (`sharing.primary`). effects: the same and its alternatives, on
    all scales. attribution: scale → effect → its mean over questions, over starts; six models, and seven.
    rates: model → mean success. cosine: of the gradients, over starts. scatter: of `decisive`.
    """

    published: tuple[Published, ...]
    null: SaturationNull
    decisive: Effect
    proxy: Effect
    effects: tuple[Effect, ...]
    attribution: Mapping[str, Mapping[str, Estimate]]
    rates: Mapping[str, Estimate]
    geometries: tuple[Geometry, ...]
    cosine: Estimate | None
    targets: Targets
    scatter: Scatter
    questions: int
    samples: int | None

    @property
    def starts(self) -> int:
        return self.decisive.estimate.n

    @property
    def published_share(self) -> float:
        """Share of questions with λ23 < 0, over starts."""
        return float(np.mean([p.negative for p in self.published]))

    @property
    def on_success(self) -> Effect:
        """The decisive comparison on success itself."""
        pair = self.decisive.joint, self.decisive.apart, "probability"
        return next(e for e in self.effects if (e.joint, e.apart, e.scale) == pair)

    @property
    def scales_disagree(self) -> bool:
        """Log p and success differ in opposite directions, either by more than `MARGIN`.

        Then models gave up on different questions: a mean of log p is made by the questions with rates near 0, a mean
        success by the others. Training by reward does that when it settles on one habit that is right for some.
        """
        nats, success = self.decisive.estimate.value, self.on_success.estimate.value
        return nats * success < 0 and min(abs(nats), abs(success)) > MARGIN

    @property
    def ruling(self) -> Ruling:
        """What sharing came to. Nothing is shown where log p and success disagree.

        Choice: that exception was made after short runs by reward were seen, in which log p alone called aligned skills
        a fight (docs/interference.md).
        """
        decided = self.decisive.ruling in (Ruling.INTERFERENCE, Ruling.SYNERGY)
        return Ruling.NOT_SHOWN if decided and self.scales_disagree else self.decisive.ruling

    def starts_for_worth(self, questions: int = 1, samples: int = 1) -> int:
        """Starts that an effect of `WORTH_SEEING` would take, with so many times the questions and the samples."""
        drawn = None if self.samples is None else samples * self.samples
        return starts_needed(WORTH_SEEING, self.scatter, questions * self.questions, drawn)

    def as_json(self) -> dict[str, Any]:
        """What scripts read."""
        synergy = self.ruling is Ruling.SYNERGY
        shown: dict[str, Any] = {
            # Whether they fight: that sharing helps is no cost either.
            "verdict": (Ruling.NOT_SHOWN if synergy else self.ruling).value,
            "sharing": self.ruling.value,
            "effect_nats": _plain(self.decisive.estimate),
            "effect_success": _plain(self.on_success.estimate),
            "joint": self.decisive.joint,
            "p_exchange": self.decisive.p,
            "proxy": {"verdict": self.proxy.ruling.value, "effect_nats": _plain(self.proxy.estimate)},
            "targets": self.targets.value,
            "cosine": _plain(self.cosine),
            "published": {
                "verdict": "interference" if self.published_share > 0.5 else "no interference",
                "negative_share": round(self.published_share, 4),
                "lambda23_logit": _plain(self.attribution["logit"]["23"]),
                "negative_share_if_sharing_cost_nothing": [round(self.null.low, 4), round(self.null.high, 4)],
            },
            "rates": {name: round(rate.value, 4) for name, rate in self.rates.items()},
            "starts": self.starts,
            "power": {
                "effect_nats": WORTH_SEEING,
                "starts": self.starts_for_worth(),
                f"starts_with_{MORE}_times_the_questions": self.starts_for_worth(questions=MORE),
                f"starts_with_{MORE}_times_the_samples": self.starts_for_worth(samples=MORE),
            },
        }
        if len(self.geometries):
            shown["angles_published_degrees"] = {
                name: round(float(np.mean([g.paper[name] for g in self.geometries])), 1)
                for name in self.geometries[0].paper
            }
        return shown


def diagnose(
    starts: Sequence[Start],
    successes: Sequence[Mapping[str, Any]],
    samples: int,
    geometries: Sequence[Geometry] = (),
    simulations: int = 2000,
) -> Diagnosis:
    """All measures of a set of starts.

    Args:
        starts: rates of `MODELS`, exact or smoothed. successes: counts in `samples` tries, for what is published.
    """
    found = [effect_of_sharing(starts, joint, apart, scale) for scale in SCALES for joint, apart in _pairs(starts)]
    rates = {m: mean_over_runs([float(s.rates[m].mean()) for s in starts]) for m in MODELS if m in starts[0].rates}
    decisive = primary(starts)
    cosine, targets = judge_targets([g.decisive for g in geometries])
    return Diagnosis(
        published=tuple(published(counts, samples) for counts in successes),
        null=saturation_null(starts, samples, simulations=simulations),
        decisive=decisive,
        proxy=proxy(starts),
        effects=tuple(found),
        attribution={scale: _attribution(starts, scale) for scale in SCALES},
        rates=rates,
        geometries=tuple(geometries),
        cosine=cosine,
        targets=targets,
        scatter=scatter(starts, decisive.joint, TWO_AGENTS),
        questions=len(next(iter(starts[0].rates.values()))),
        samples=starts[0].samples,
    )


def _pairs(starts: Sequence[Start]) -> list[tuple[str, str]]:
    wide = [(WIDE, TWO_AGENTS), (WIDE, COMPOSED)] if all(WIDE in s.rates for s in starts) else []
    return [*wide, (UNIFIED, TWO_AGENTS), (UNIFIED, COMPOSED)]


def _attribution(starts: Sequence[Start], scale: Any) -> dict[str, Estimate]:
    """Means over questions of the six models' effects, and what the seven make of 23 and `composition`."""
    of_starts: dict[str, list[float]] = {}
    for start in starts:
        values = {name: scaled(start.rates[name], scale) for name in (*VARIANTS, COMPOSED)}
        six = effects({name: values[name] for name in VARIANTS})
        seven = effects(values)
        more = {"23 of seven": seven["23"], "composition": seven["composition"]}
        for name, found in (six | more).items():
            of_starts.setdefault(name, []).append(float(found.mean()))
    return {name: mean_over_runs(values) for name, values in of_starts.items()}


def judge_targets(angles: Sequence[Angle]) -> tuple[Estimate | None, Targets]:
    """The cosine over starts, and what follows; with too few starts by the jackknife of their mean."""
    known = [a for a in angles if np.isfinite(a.cosine)]
    if not known or len(known) < len(angles) / 2:
        return None, Targets.UNMEASURED
    if len(known) >= ENOUGH_STARTS:
        cosine = mean_over_runs([a.cosine for a in known])
    else:
        value = float(np.mean([a.cosine for a in known]))
        half = 1.96 * float(np.sqrt(np.sum([a.deviation**2 for a in known]))) / len(known)
        cosine = Estimate(value, value - half, value + half, len(known)) if np.isfinite(half) else None
    if cosine is None or cosine.low is None or cosine.high is None:
        return cosine, Targets.UNMEASURED
    if cosine.high < -ANGLE_LINE:
        return cosine, Targets.OPPOSED
    return cosine, Targets.ALIGNED if cosine.low > ANGLE_LINE else Targets.NEITHER


def sentences(d: Diagnosis) -> list[str]:
    """The verdict for people: opposed targets? a cost of sharing? how sure? what to do? what does the paper say?"""
    return [_on_targets(d), _on_cost(d), _on_certainty(d), _on_adapters(d), _on_published(d)]


def _on_targets(d: Diagnosis) -> str:
    if d.cosine is None or d.targets is Targets.UNMEASURED:
        return (
            "Targets: not measurable. The gradients of at least one role cannot be told from noise; take more episodes "
            "or a start that solves some questions and not others."
        )
    shown = f"cosine {_interval(d.cosine)}, noise taken out"
    meaning = {
        Targets.OPPOSED: "what helps reasoning tokens harms action tokens on the same kind of task",
        Targets.ALIGNED: "what helps one role helps the other",
        Targets.NEITHER: "to first order neither role moves the other",
    }[d.targets]
    return f"Targets: {d.targets.value} ({shown}): {meaning}."


def _on_cost(d: Diagnosis) -> str:
    effect = d.decisive
    value = effect.estimate.value
    shown = f"{_interval(effect.estimate)} nats of log success, success times {np.exp(value):.2f}"
    against = "one model less the pair of agents that learned together"
    size = "as many weights as both agents have" if effect.joint == WIDE else "as many weights as one agent has"
    text = {
        Ruling.INTERFERENCE: f"Sharing weights costs success: {against} is {shown}",
        Ruling.SYNERGY: f"Sharing weights helps: {against} is {shown}",
        Ruling.NOT_SHOWN: f"A cost of sharing is not shown: {against} is {shown}",
        Ruling.TOO_FEW: f"Too few starts to say whether sharing costs anything: {against} is {shown}",
    }[d.ruling]
    none = "; a cost that would matter is ruled out" if effect.is_negligible else ""
    turned = (
        f" Success itself differs the other way, by {_interval(d.on_success.estimate)}: the models gave up on "
        "different questions, and log p counts those most. Train longer before believing either."
    )
    return f"{text} ({size}){none}.{turned * d.scales_disagree}"


def _on_certainty(d: Diagnosis) -> str:
    few = f"{d.starts} training start{'s' if d.starts != 1 else ''}, {d.questions} questions"
    how = "exact probabilities" if d.samples is None else f"{d.samples} samples each"
    cheap = d.proxy
    drawn = "" if d.samples is None else f", {d.starts_for_worth(samples=MORE)} with {MORE} times the samples"
    agrees = "contradicts it" if disagree(d.decisive, cheap) else "does not contradict it"
    return (
        f"How sure: {few}, {how}; exchanging the models within starts gives p = {d.decisive.p:.3f}. The cheap proxy, "
        f"less two single-role models taking turns, says {_interval(cheap.estimate)} nats and {agrees}. To see an "
        f"effect of {WORTH_SEEING} nats four times in five takes about {d.starts_for_worth()} starts, "
        f"{d.starts_for_worth(questions=MORE)} with {MORE} times the questions{drawn}."
    )


def _on_adapters(d: Diagnosis) -> str:
    small = effect_ruling(d, UNIFIED)
    if d.ruling is Ruling.INTERFERENCE:
        return "Routed adapters are worth trying: they keep the roles' weights apart at the price of one model."
    if d.ruling is Ruling.TOO_FEW:
        return "Whether routed adapters are worth trying cannot be said yet: run more starts."
    if d.decisive.joint == WIDE and small is Ruling.INTERFERENCE:
        return "Routed adapters are hardly worth trying: one adapter of twice the rank does as well as two agents."
    return "Routed adapters are not indicated: there is no shown cost of sharing for them to save."


def effect_ruling(d: Diagnosis, joint: str) -> Ruling:
    """The ruling on log p of another joint model against the co-trained pair."""
    return next(
        (e.ruling for e in d.effects if (e.joint, e.apart, e.scale) == (joint, TWO_AGENTS, "log")), Ruling.TOO_FEW
    )


def _on_published(d: Diagnosis) -> str:
    share, null = d.published_share, d.null
    says = "interference" if share > 0.5 else "no interference"
    line = (
        f"The paper's measure says {says}: λ23 is negative on {share:.0%} of the questions. Had sharing cost nothing, "
        f"these very models would show {null.low:.0%} to {null.high:.0%}."
    )
    if share > 0.5 and d.ruling in (Ruling.NOT_SHOWN, Ruling.SYNERGY):
        return line + " So it is not to be believed here."
    if share <= 0.5 and d.ruling is Ruling.INTERFERENCE:
        return line + " It misses a cost that is there."
    return line


def _interval(e: Estimate) -> str:
    text = f"{e.value:.2f}" + (f" ({e.low:.2f} … {e.high:.2f})" if e.low is not None and e.high is not None else "")
    return text.replace("-", "\N{MINUS SIGN}")


def _plain(e: Estimate | None) -> list[float | None] | None:
    """[value, low, high]."""
    return None if e is None else [None if x is None else round(x, 4) for x in (e.value, e.low, e.high)]
