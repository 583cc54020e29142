"""What second thoughts come to: a table for a terminal, and a picture of every threshold for a page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.table import Table
from rich.text import Text

from unbraid.evaluate.metrics import Comparison, Score
from unbraid.evaluate.second_thoughts import Curve, Point
from unbraid.evaluate.statistics import Estimate
from unbraid.report import figures
from unbraid.report.page import environment, number, signed, write_page
from unbraid.report.palette import HUES, INK, MUTED
from unbraid.report.views import Colophon


@dataclass(frozen=True)
class Seconds:
    """What second thoughts come to. validation: every threshold on the validation tasks, and `chosen`, one of them.

    last: the doubt in nats after the last test task, where a number of tokens was kept to; else None.
    scores: on the test tasks, greedy: as the model answers by itself, always thinking, with second thoughts.
    against: second thoughts less each of the other two, task by task. asked: what the threshold was chosen for.
    drafts: whose weights wrote first answers, told not to think; None: the model's own, free to think.
    """

    run: str
    asked: str
    drafts: str | None
    validation: Curve
    chosen: Point
    last: float | None
    thinking: float
    tasks: int
    scores: Sequence[Score]
    against: Sequence[Comparison]

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types; an infinite doubt is null."""
        points = [{**asdict(p), "doubt": _finite(p.doubt)} for p in self.validation.points]
        return {
            "doubt": _finite(self.chosen.doubt),
            "follows_tokens": self.last is not None,
            "doubt_at_the_end": _finite(self.chosen.doubt if self.last is None else self.last),
            "sure": self.validation.sure,
            "asked": self.asked,
            "drafts": self.drafts,
            "validation": {"tasks": self.tasks, "thinking": self.thinking, "points": points},
            "test": [s.to_json() for s in self.scores],
            "against": [asdict(c) for c in self.against],
        }

    @property
    def rule(self) -> str:
        """What was done to the test tasks, in words."""
        rule = f"Threshold: {doubt_in_words(self.chosen.doubt)}, chosen on the validation tasks for {self.asked}"
        if self.last is not None:
            rule += f"; it followed what was spent and ended at {doubt_in_words(self.last)}"
        if self.drafts and self.validation.sure < 1:
            bound = f"with more than {self.validation.sure:.1%}" if self.validation.sure > 0 else "at all"
            rule += f". What the model chooses to think about {bound}, it thinks about at once"
        return f"{rule}."


def _finite(doubt: float) -> float | None:
    return doubt if doubt < float("inf") else None


def doubt_in_words(doubt: float) -> str:
    """A threshold as people read it."""
    return f"{doubt:.3g} nats" if doubt < float("inf") else "none: every draft stands"


def thresholds_table(found: Seconds) -> Table:
    """Every threshold on the validation tasks; the chosen one is marked."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("doubt, nats", "right, %", "tokens", "thought again, %", "think, %"):
        table.add_column(name, justify="right")
    for point in found.validation.points:
        doubt = f"{point.doubt:.3g}" if point.doubt < float("inf") else "none"
        row = (doubt, *(number(v) for v in (100 * point.accuracy, point.tokens, 100 * point.again, 100 * point.think)))
        table.add_row(*row, style="bold" if point == found.chosen else "")
    return table


def result_table(found: Seconds) -> Table:
    """The test tasks: every way, and what second thoughts differ by from the others, paired."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("test tasks")
    for name in ("right, %", "tokens", "think, %"):
        table.add_column(name, justify="right")
    for one in found.scores:
        think = number(100 * one.think_rate.value if one.think_rate else None)
        table.add_row(one.labels.method, number(100 * one.accuracy.value), number(one.tokens.value), think)
    for one in found.against:
        cells = (_paired(one.accuracy, 100.0), _paired(one.tokens, 1.0))
        table.add_row(Text(f"  against {one.first}", style="dim"), *cells, "")
    return table


def write_second_thoughts(path: str | Path, found: Seconds, colophon: Colophon) -> None:
    """The page, whole or not at all."""
    page = (
        environment()
        .get_template("second_thoughts.html.j2")
        .render(
            title=f"{found.run}: second thoughts",
            found=found,
            colophon=colophon,
            wide=picture(found, 860.0),
            narrow=picture(found, 370.0),
            episodes=(),
        )
    )
    write_page(path, page)


def picture(found: Seconds, width: float) -> str:
    """SVG: accuracy against tokens; the line goes through the thresholds on validation, the points are test tasks."""
    validation, chosen = found.validation.points, found.chosen
    blue, slate = HUES["blue"].light, HUES["slate"].light
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, 300)
        xs, ys = [p.tokens for p in validation], [100 * p.accuracy for p in validation]
        axes.plot(xs, ys, color=blue, linewidth=1.4, alpha=0.7, marker=".", markersize=4)
        axes.plot([chosen.tokens], [100 * chosen.accuracy], marker="o", markersize=10, color=blue, fillstyle="none")
        for one, marker, colour in zip(found.scores, "sv*", (slate, slate, INK.light), strict=False):
            y = one.accuracy
            arms = [[100 * (y.value - (y.low or y.value))], [100 * ((y.high or y.value) - y.value)]]
            axes.errorbar(
                [one.tokens.value], [100 * y.value], yerr=arms, fmt=marker, color=colour, markersize=9, elinewidth=1.2
            )
            late = one.tokens.value > 0.8 * max(p.tokens for p in validation)
            axes.annotate(
                one.labels.method,
                (one.tokens.value, 100 * y.value),
                (-10 if late else 10, -12),
                textcoords="offset points",
                ha="right" if late else "left",
                color=colour if colour != slate else MUTED.light,
            )
        axes.set_xlabel("mean tokens per task (fewer is cheaper)")
        axes.set_ylabel("accuracy, %")
        axes.margins(0.12)
        axes.set_xlim(left=0)
        return figures.svg(figure, f"second-thoughts-{width:.0f}")


def _paired(e: Estimate, scale: float) -> Text:
    interval = "" if e.low is None or e.high is None else f" ({signed(scale * e.low)}…{signed(scale * e.high)})"
    return Text(f"{signed(scale * e.value)}{interval}", style="dim")
