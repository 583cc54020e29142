"""One page about interference: verdicts in sentences, the published figures beside their controls, all tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from unbraid.interference.diagnosis import Diagnosis, sentences
from unbraid.report import figures
from unbraid.report.page import environment, write_page
from unbraid.report.palette import HUES, MUTED


@dataclass(frozen=True)
class Picture:
    """A figure of the page; `alt` says what it shows to those who do not see it."""

    title: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A diagnosis and its heading; `name` is unique on the page.

    strata: also list kinds of tasks and tensors. picture: below the sentences.
    """

    name: str
    title: str
    diagnosis: Diagnosis
    strata: bool = True
    picture: Picture | None = None

    @property
    def lines(self) -> list[str]:
        return sentences(self.diagnosis)


def write_interference(
    path: Path, title: str, summary: Sequence[str], sections: Sequence[Section], pictures: Sequence[Picture],
    command: str, facts: Mapping[str, str],
) -> None:  # fmt: skip
    """Write the page."""
    html = (
        environment()
        .get_template("interference.html.j2")
        .render(
            title=title,
            summary=summary,
            sections=sections,
            pictures=pictures,
            command=command,
            facts=facts,
            episodes=(),
        )
    )
    write_page(path, html)


def attribution_picture(d: Diagnosis, name: str, width: float = 600, height: float = 260) -> Picture:
    """λ23 of every question as the paper plots it, and beside it the effect of sharing of every start."""
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, height)
        values = np.concatenate([p.effects["23"] for p in d.published])
        edges = np.linspace(-20, 20, 41)
        for side, colour in ((values[values < 0], HUES["vermilion"]), (values[values >= 0], HUES["blue"])):
            axes.hist(np.clip(side, -20, 20), bins=edges.tolist(), color=colour.light)
        axes.axvline(0, color=MUTED.light, linewidth=1.1)
        axes.axvline(d.null.mean, color=MUTED.light, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.set_xlabel("λ23, logits")
        axes.set_ylabel("questions")
        drawn = figures.svg(figure, f"lambda-{name}")
    return Picture(
        "λ23 as published",
        "Every question of every start. Dashes: its mean had sharing cost nothing (simulated).",
        f"Histogram of lambda 23; {d.published_share:.0%} of the questions lie below 0.",
        drawn,
    )


def dose_picture(
    title: str, lines: Mapping[str, Mapping[float, float]], name: str, ylabel: str, width: float = 600,
    height: float = 280,
) -> Picture:  # fmt: skip
    """Measures against the share of fields on which the skills agree: line name → rho → value."""
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, height, right=150)
        marks = []
        for (label, points), hue in zip(lines.items(), HUES.values(), strict=False):
            known = sorted((x, y) for x, y in points.items() if np.isfinite(y))
            if not known:
                continue
            xs, ys = zip(*known, strict=True)
            axes.plot(xs, ys, color=hue.light, marker="o", linewidth=1.8)
            marks.append(figures.Mark(xs[-1], ys[-1], label, hue.light))
        axes.axhline(0, color=MUTED.light, linewidth=1.1)
        axes.set_xlabel("rho: share of fields on which the skills agree")
        axes.set_ylabel(ylabel)
        figures.label_line_ends(axes, marks)
        drawn = figures.svg(figure, f"dose-{name}")
    return Picture(title, "Means over bases.", f"{title}; the numbers are in the JSON file and the tables.", drawn)
