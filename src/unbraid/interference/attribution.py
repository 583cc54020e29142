"""LEAS (CEA in the paper's second version): what each capability and each pair of them adds to a question's success.

Six models from one start, and each question's success rate s of each of them:

    z = logit(s) = λ1 x1 + λ2 x2 + λ3 x3 + λ12 x12 + λ13 x13 + λ23 x23      (1 base, 2 tool use, 3 reasoning)

x_ij is 1 where i and j were trained in the same weights; taking turns at inference sets no bit. Six equations, six
unknowns, solved for each question by itself. The paper reads λ23 < 0 as interference of reasoning and tool use. As

    λ23 = z_unified − z_tool − z_reasoning + z_base,

it is also negative wherever either skill alone is enough to reach a ceiling, and wherever success takes both of them in
turn it measures that too: see `docs/interference.md` before believing it.

A seventh model, the reasoning model and the tool model taking turns (R∘T), gives the two apart: `composition` is what
having both skills adds to having each, and λ23 then what sharing weights adds to that.

Source: arXiv 2602.00994, §3–4 and appendix A; clipping at 1e-4 and the rule for what is kept from its released code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

VARIANTS = ("base", "reasoning", "tool", "unified", "hybrid_tool", "hybrid_reasoning")
"""Rows of `DESIGN`. hybrid_tool: the base reasons, the tool model acts; hybrid_reasoning: the other way round."""
COMPOSED = "composed"
"""The seventh row: the reasoning model reasons, the tool model acts."""
EFFECTS = ("1", "2", "3", "12", "13", "23")
"""Columns of `DESIGN`: x1 base, x2 tool use, x3 reasoning, and which pairs were trained in the same weights."""
DESIGN: NDArray[np.int64] = np.array(
    [
        [1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 1, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
    ]
)
WITH_COMPOSITION: NDArray[np.int64] = np.block(
    [
        [DESIGN, np.array([[0], [0], [0], [1], [0], [0]])],
        [np.array([[1, 1, 1, 0, 0, 0, 1]])],
    ]
)
"""`DESIGN` with R∘T and with a column for having both skills, in the same weights or not."""
CLIP = 1e-4

Scale = Literal["logit", "log", "probability"]
SCALES: tuple[Scale, ...] = ("logit", "log", "probability")


def clipped(successes: ArrayLike, samples: int) -> NDArray[np.float64]:
    """Success rates kept away from 0 and 1 by `CLIP`, as published: 0 of 50 is 9.2 logits from even odds, 1 of 50 3.9.

    Args:
        successes: of `samples` each.
    """
    return np.clip(np.asarray(successes, dtype=np.float64) / samples, CLIP, 1 - CLIP)


def smoothed(successes: ArrayLike, samples: int) -> NDArray[np.float64]:
    """(k + ½) / (n + 1): what a question with few samples can say of its rate. Source: Jeffreys' prior, nearly."""
    return (np.asarray(successes, dtype=np.float64) + 0.5) / (samples + 1)


def scaled(rates: ArrayLike, scale: Scale) -> NDArray[np.float64]:
    """Rates in (0, 1) as log-odds, as log-probabilities, or as they are."""
    rates = np.asarray(rates, dtype=np.float64)
    if scale == "logit":
        return np.log(rates) - np.log1p(-rates)
    return np.log(rates) if scale == "log" else rates


def effects(values: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """The exact solution of the system for every question.

    Args:
        values: what each of `VARIANTS` scores on Q questions, (Q,) each, on any scale; with `COMPOSED` the system of
            seven is solved.

    Returns:
        (Q,) for each of `EFFECTS`, and with `COMPOSED` for `composition`.

    Raises:
        ValueError: a variant is missing.
    """
    with_composition = COMPOSED in values
    names = (*VARIANTS, COMPOSED) if with_composition else VARIANTS
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"no success rates of {', '.join(missing)}: the system needs all of {', '.join(names)}")
    scores = np.stack([np.asarray(values[name], dtype=np.float64) for name in names])
    # Both matrices have determinant −1, so their inverses hold whole numbers and nothing is lost in solving.
    inverse = np.rint(np.linalg.inv(WITH_COMPOSITION if with_composition else DESIGN))
    found = (*EFFECTS, "composition") if with_composition else EFFECTS
    return dict(zip(found, inverse @ scores, strict=True))


def interaction(values: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """λ23 of the six alone, (Q,): the closed form, which needs neither hybrid."""
    unified, tool, reasoning, base = (
        np.asarray(values[name], dtype=np.float64) for name in ("unified", "tool", "reasoning", "base")
    )
    return unified - tool - reasoning + base


@dataclass(frozen=True)
class Published:
    """The paper's analysis of one start.

    effects: λ of the kept questions, (Q,) each. negative: share of them with λ23 < 0. kept, dropped: questions; those
    that none of the six models ever solved are dropped.
    """

    effects: Mapping[str, NDArray[np.float64]]
    negative: float
    kept: int
    dropped: int

    @property
    def says_interference(self) -> bool:
        """How the paper reads it: λ23 is negative on most questions."""
        return self.negative > 0.5


def published(successes: Mapping[str, ArrayLike], samples: int) -> Published:
    """LEAS as published, from how often each of `VARIANTS` solved each question in `samples` tries.

    Choice: λ23 = 0 counts as not negative. Shares of a start without any solved question are NaN.
    """
    counts = np.stack([np.asarray(successes[name]) for name in VARIANTS])
    solved = (counts > 0).any(0)
    rates = {name: scaled(clipped(row[solved], samples), "logit") for name, row in zip(VARIANTS, counts, strict=True)}
    found = effects(rates)
    kept = int(solved.sum())
    negative = float((found["23"] < 0).mean()) if kept else float("nan")
    return Published(found, negative, kept, int((~solved).sum()))
