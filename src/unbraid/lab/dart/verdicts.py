"""DART's claims and our predictions, each as a number per base, and what it came to.

Lines were fixed before any result cell had run; only the base for tuning had been seen. Many intervals of 95 % are read
at once, none corrected for it: one false "seen" or "opposite" among twenty is no surprise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from unbraid.lab.claims import Claim, Ruling, Verdict, by_base, judge
from unbraid.lab.dart.cells import CellResult
from unbraid.lab.dart.methods import DOSED_AT, RHOS, Learner, Sharing, World

Key = tuple[World, Learner, Sharing, float, str]
"""(world, how it learned, sharing, rho, method)."""
Unit = Mapping[Key, CellResult]
"""All results of one base and seed. Bases of equal number in the two worlds have nothing to do with each other."""
Measure = Callable[[Unit], float]

CLOSE = 0.05
"""Success below which a difference counts as none, where a claim is that there is none."""
NOTHING = 0.01
"""The same for predictions that something is not above zero."""


def units(results: Iterable[CellResult]) -> dict[tuple[int, int], dict[Key, CellResult]]:
    """The results by (base, seed)."""
    found: dict[tuple[int, int], dict[Key, CellResult]] = {}
    for result in results:
        c = result.cell
        found.setdefault((c.base, c.seed), {})[c.world, c.learner, c.sharing, c.rho, c.method] = result
    return dict(sorted(found.items()))


def conflict(
    method: str, rho: float, learner: Learner = Learner.SUPERVISED, sharing: Sharing = Sharing.TIGHT
) -> Callable[[Unit], CellResult]:
    """The result of a method in the conflict world; KeyError where it was not run."""
    if learner is Learner.GRPO:
        sharing = Sharing.MIDDLE
    return lambda unit: unit[World.CONFLICT, learner, sharing, rho, method]


def search(method: str) -> Callable[[Unit], CellResult]:
    """The result of a method in the search world."""
    return lambda unit: unit[World.SEARCH, Learner.GRPO, Sharing.LOOSE, 1.0, method]


def less(first: Callable[[Unit], CellResult], second: Callable[[Unit], CellResult], field: str) -> Measure:
    """The first result's number less the second's."""
    return lambda unit: getattr(first(unit), field) - getattr(second(unit), field)


def opposed(first: str, second: str, field: str, sharing: Sharing) -> Measure:
    """The first method's number less the second's where skills are opposed, supervised."""
    return less(conflict(first, 0.0, sharing=sharing), conflict(second, 0.0, sharing=sharing), field)


def gain(rho: float, learner: Learner = Learner.SUPERVISED, sharing: Sharing = Sharing.TIGHT) -> Measure:
    """Area under the curve of DART less that of one shared adapter of as many weights."""
    return less(conflict("dart", rho, learner, sharing), conflict("shared_r16", rho, learner, sharing), "auc")


def alone(of: Callable[[Unit], CellResult], role: str) -> Measure:
    """A role's skill with its own adapter on alone, less its skill with both on."""

    def measure(unit: Unit) -> float:
        result = of(unit)
        return result.only[role][role == "reasoning"] - getattr(result, role)

    return measure


def slope(sharing: Sharing) -> Measure:
    """Least-squares slope of DART's gain over 1 − rho, at all doses."""

    def measure(unit: Unit) -> float:
        xs, ys = [1 - rho for rho in RHOS], [gain(rho, sharing=sharing)(unit) for rho in RHOS]
        middle, level = sum(xs) / len(xs), sum(ys) / len(ys)
        deviations = sum((x - middle) ** 2 for x in xs)
        return sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / deviations

    return measure


def rank_spread(unit: Unit) -> float:
    """Largest less smallest final success of DART over ranks 4 to 32, at rho = 0."""
    finals = [conflict(name, 0.0)(unit).final for name in ("dart_r4", "dart", "dart_r16", "dart_r32")]
    return max(finals) - min(finals)


def is_monotone(verdicts: Sequence[Verdict]) -> bool | None:
    """Whether DART's verdict, once it is "better", stays so towards more conflict. None where bases are too few.

    Args:
        verdicts: of `DOSE` at one place, from rho = 1 to rho = 0.
    """
    if any(v.ruling is Ruling.TOO_FEW for v in verdicts):
        return None
    order = [{Ruling.OPPOSITE: -1, Ruling.NOT_SEEN: 0, Ruling.SEEN: 1}[v.ruling] for v in verdicts]
    return order == sorted(order)


DOSE: dict[Sharing, tuple[Claim[Unit], ...]] = {
    sharing: tuple(
        Claim(
            f"rho = {rho:g}, {sharing}",
            f"area under the curve of dart less that of shared_r16 at rho = {rho:g}, {sharing} sharing, points",
            "≤ 0" if rho == 1 else "> 0" if rho <= 0.5 else "",
            gain(rho, sharing=sharing),
            scale=100.0,
        )
        for rho in sorted(RHOS, reverse=True)
    )
    for sharing in DOSED_AT
}
"""DART against one shared adapter, dose by dose; "seen" means that DART is better."""

_OPPOSED, _ALIGNED = 0.0, 1.0
PAPER: tuple[Claim[Unit], ...] = (
    Claim(
        "DART beats one shared adapter: search world",
        "share of right answers of dart less that of shared_r16, points",
        "39.9 against 36.6 (3B-Instruct)",
        less(search("dart"), search("shared_r16"), "final"),
        scale=100.0,
    ),
    Claim(
        "it words queries better: search world",
        "share of queries in both of the documents' words, dart less shared_r16, points",
        "retrieval 64.1 against 45.6 (3B, NQ)",
        less(search("dart"), search("shared_r16"), "action"),
        scale=100.0,
    ),
    Claim(
        "it reads better: search world",
        "share of right readings, dart less shared_r16, points",
        "37.6 against 26.5 (3B-Base, fixed retrieval)",
        less(search("dart"), search("shared_r16"), "reasoning"),
        scale=100.0,
    ),
    *(
        claim
        for sharing in DOSED_AT
        for claim in (
            Claim(
                f"DART beats one shared adapter: opposed skills ({sharing})",
                "final success of dart less that of shared_r16 at rho = 0, points",
                "the same",
                opposed("dart", "shared_r16", "final", sharing),
                scale=100.0,
            ),
            Claim(
                f"DART comes close to two agents ({sharing})",
                "area under the curve of dart less that of two_lora_agents at rho = 0, points, above −5",
                "39.9 against 40.4 (3B-Instruct)",
                opposed("dart", "two_lora_agents", "auc", sharing),
                line=-CLOSE,
                scale=100.0,
            ),
            Claim(
                f"the reasoning adapter alone keeps its skill ({sharing})",
                "probability of right reasoning with it alone less that with both at rho = 0, points, above −5",
                "44.8 of 45.1 (3B, NQ)",
                alone(conflict("dart", _OPPOSED, sharing=sharing), "reasoning"),
                line=-CLOSE,
                scale=100.0,
            ),
            Claim(
                f"the action adapter alone keeps its skill ({sharing})",
                "probability of the right call with it alone less that with both at rho = 0, points, above −5",
                "37.2 of 45.1 (3B, NQ): not kept there either",
                alone(conflict("dart", _OPPOSED, sharing=sharing), "action"),
                line=-CLOSE,
                scale=100.0,
            ),
            Claim(
                f"it is the roles that matter ({sharing})",
                "area under the curve of dart less that of placebo at rho = 0, points",
                "not tried",
                opposed("dart", "placebo", "auc", sharing),
                scale=100.0,
            ),
        )
    ),
    Claim(
        "rank hardly matters",
        "largest less smallest final success over ranks 4 to 32 at rho = 0, points, below 5",
        "45.1, 45.9, 45.1 for ranks 8, 16, 32",
        rank_spread,
        more=False,
        line=CLOSE,
        scale=100.0,
    ),
)

PREDICTED: tuple[Claim[Unit], ...] = (
    *(
        claim
        for sharing in DOSED_AT
        for claim in (
            Claim(
                f"aligned skills: no gain ({sharing})",
                f"area under the curve of dart less that of shared_r16 at rho = 1, {sharing} sharing, points, below +1",
                "≤ 0",
                gain(_ALIGNED, sharing=sharing),
                more=False,
                line=NOTHING,
                scale=100.0,
            ),
            *(
                Claim(
                    f"conflict: a gain at rho = {rho:g} ({sharing})",
                    f"the same at rho = {rho:g}, above 0",
                    "> 0",
                    gain(rho, sharing=sharing),
                    scale=100.0,
                )
                for rho in (0.5, 0.25, 0.0)
            ),
            Claim(
                f"the gain grows with the dose ({sharing})",
                "slope of the gain over 1 − rho, points",
                "> 0",
                slope(sharing),
                scale=100.0,
            ),
        )
    ),
    Claim(
        "aligned skills under GRPO: no gain",
        "area under the curve of dart less that of shared_r16 at rho = 1, points, below +1",
        "≤ 0",
        gain(_ALIGNED, Learner.GRPO),
        more=False,
        line=NOTHING,
        scale=100.0,
    ),
    Claim(
        "opposed skills under GRPO: a gain",
        "area under the curve of dart less that of shared_r16 at rho = 0, points",
        "> 0",
        gain(_OPPOSED, Learner.GRPO),
        scale=100.0,
    ),
    *(
        Claim(
            f"strict does as well as positional ({sharing})",
            "area under the curve of dart_strict less that of dart at rho = 0, points, above −5",
            "equal",
            opposed("dart_strict", "dart", "auc", sharing),
            line=-CLOSE,
            scale=100.0,
        )
        for sharing in DOSED_AT
    ),
    Claim(
        "strict does as well under GRPO",
        "area under the curve of dart_strict less that of dart under GRPO at rho = 0, points, above −5",
        "collapses",
        less(
            conflict("dart_strict", _OPPOSED, Learner.GRPO), conflict("dart", _OPPOSED, Learner.GRPO), "auc"
        ),
        line=-CLOSE,
        scale=100.0,
    ),
    Claim(
        "capacity rescues sharing",
        "gain at rho = 0 with adapters on the first layer's MLP less the gain with adapters everywhere, points",
        "> 0",
        lambda unit: gain(_OPPOSED, sharing=Sharing.MIDDLE)(unit) - gain(_OPPOSED, sharing=Sharing.LOOSE)(unit),
        scale=100.0,
    ),
    Claim(
        "two models of their own gain as well",
        "area under the curve of two_agents less that of full at rho = 0, points",
        "> 0",
        less(conflict("two_agents", _OPPOSED), conflict("full", _OPPOSED), "auc"),
        scale=100.0,
    ),
)  # fmt: skip


def judge_all(claims: Sequence[Claim[Unit]], results: Sequence[CellResult]) -> list[Verdict]:
    """Verdicts on claims, in order."""
    found = units(results)
    return [judge(claim, by_base(found, claim.measure)) for claim in claims]
