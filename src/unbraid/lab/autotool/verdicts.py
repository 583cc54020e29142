"""The paper's claims, each as a number that this world can give, and what it gave.

A claim's number is computed per base, its interval is over bases (`lab.claims`). The lines that decide were fixed
before the run. Thirteen intervals of 95 % are read at once, none corrected for it: one false "seen" or "opposite"
among them is no surprise.
"""

from collections.abc import Sequence

from unbraid.lab.autotool.cells import CellResult
from unbraid.lab.autotool.methods import CLAIM_SHARE, CLAIM_START, COLLAPSED
from unbraid.lab.autotool.paired import Measure, Unit, units
from unbraid.lab.claims import Claim, Verdict, by_base, judge


def judge_all(results: Sequence[CellResult]) -> list[Verdict]:
    """Every claim at the start and share fixed for it."""
    found = units(results, CLAIM_START, CLAIM_SHARE)
    return [judge(claim, by_base(found, claim.measure)) for claim in CLAIMS]


def _accuracy(better: str, worse: str) -> Measure:
    return lambda unit: unit[better].test().accuracy - unit[worse].test().accuracy


def _tokens(first: str, second: str) -> Measure:
    return lambda unit: unit[first].test().tokens - unit[second].test().tokens


def _end_rate(method: str) -> Measure:
    def measure(unit: Unit) -> float:
        rate = unit[method].end_think_rate
        if rate is None:
            raise KeyError(method)
        return rate

    return measure


_START_RATE = 0.3
"""Think rate of the fuzzy start: ending above it is the opposite of a collapse."""
CLAIMS: tuple[Claim[Unit], ...] = (
    Claim(
        "plain RL collapses",
        "GRPO on tool use gives up thinking; here: share of sampled responses that think at its end, below 5 %",
        "length falls sharply, Fig. 1",
        _end_rate("plain"),
        more=False,
        line=COLLAPSED,
        against=_START_RATE,
        digits=2,
    ),
    Claim(
        "a length penalty does not prevent it",
        "the same for plain with a cost per token of thought",
        "Fig. 3",
        _end_rate("length_penalty"),
        more=False,
        line=COLLAPSED,
        against=_START_RATE,
        digits=2,
        note="a cost on thinking can hardly be expected to keep it",
    ),
    Claim(
        "a fixed entropy bonus restores some length",
        "tokens of fixed_entropy less those of plain",
        "Fig. 3, partly",
        _tokens("fixed_entropy", "plain"),
    ),
    Claim(
        "the distilled model overthinks",
        "tokens of distilled on known questions, over those of direct answers",
        "more than 10 × on every query, Fig. 1c",
        lambda unit: unit["distilled"].known.tokens / unit["direct"].known.tokens,
        line=1.0,
        note="by construction here: the distilled start always thinks; thoughts of this world end below 10 ×",
    ),
    Claim(
        "AutoTool is more accurate than distilled",
        "accuracy of autotool_published less that of distilled, points",
        "+9.8 points",
        _accuracy("autotool_published", "distilled"),
        scale=100.0,
        note="where thinking is always right, as here, no method can be above distilled",
    ),
    Claim(
        "AutoTool needs about a fifth of its tokens",
        "tokens of autotool_published over those of distilled, below .3",
        "183 / 966 = .19",
        lambda unit: unit["autotool_published"].test().tokens / unit["distilled"].test().tokens,
        more=False,
        line=0.3,
        against=1.0,
        digits=2,
        note="a model that never thinks has it too: read it with the accuracy",
    ),
    Claim(
        "AutoTool is more accurate than plain GRPO",
        "accuracy of autotool_published less that of plain, points",
        "83.2 against 76.7 on ACEBench",
        _accuracy("autotool_published", "plain"),
        scale=100.0,
    ),
    Claim(
        "AutoTool thinks where it is needed",
        "its think rate on unknown test questions less that on known ones",
        "45 % multi-turn, 0 % non-live",
        lambda unit: unit["autotool_published"].unknown.think_rate - unit["autotool_published"].known.think_rate,
        digits=2,
    ),
    Claim(
        "decoupling matters",
        "accuracy of autotool_published less that of without_decoupling, points",
        "+5.9 points",
        _accuracy("autotool_published", "without_decoupling"),
        scale=100.0,
    ),
    Claim(
        "the adaptive coefficient matters",
        "accuracy of autotool_published less that of without_adaptation, points",
        "+2.3 points",
        _accuracy("autotool_published", "without_adaptation"),
        scale=100.0,
    ),
    Claim(
        "refining the prompts matters",
        "accuracy of autotool_refined less that of autotool_published, points",
        "+6.4 points",
        _accuracy("autotool_refined", "autotool_published"),
        scale=100.0,
        note="variance across samples of the start; the other published reading is not run",
    ),
    Claim(
        "the asymmetric reward saves tokens",
        "tokens of without_asymmetry less those of autotool_published",
        "no number",
        _tokens("without_asymmetry", "autotool_published"),
    ),
    Claim(
        "the asymmetric reward does not cost accuracy",
        "accuracy of autotool_published less that of without_asymmetry, points, above −2",
        "no number",
        _accuracy("autotool_published", "without_asymmetry"),
        line=-0.02,
        scale=100.0,
    ),
)
