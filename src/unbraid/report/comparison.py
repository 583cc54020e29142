"""Several runs against the first of them, benchmark by benchmark: one table, in a terminal and on a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from rich.table import Table
from rich.text import Text

from unbraid.evaluate.statistics import Estimate
from unbraid.report import figures
from unbraid.report.page import compact, environment, number, signed, write_page
from unbraid.report.palette import INK, MUTED, style_of
from unbraid.report.views import Colophon


@dataclass(frozen=True)
class Difference:
    """A run less the first run, over the entries that both have answered; ACU as a ratio.

    common: how many these are. think: over those whose mode is known in both. p_value: exact McNemar, where every
    entry was answered once and is right or wrong.
    """

    common: int
    accuracy: Estimate
    tokens: Estimate
    think: Estimate | None = None
    acu: Estimate | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Row:
    """One run in one section. note: why it is not paired, or what was different in how it was asked."""

    run: str
    accuracy: Estimate
    tokens: Estimate
    think: Estimate | None
    acu: float | None
    difference: Difference | None = None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One benchmark, or the runs' own evaluation, in one mode and decoding; the first run first, if it is there."""

    title: str
    asked: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Compared:
    """All of it. runs: names, the first one being what the others are held against; labels say what they are."""

    runs: Sequence[str]
    sections: Sequence[Section]
    labels: Sequence[str] = ()
    colophon: Colophon = field(default_factory=Colophon)

    @property
    def title(self) -> str:
        others = self.runs[1:]
        return f"{', '.join(others)} against {self.runs[0]}" if others else self.runs[0]


def write_comparison(path: str | Path, compared: Compared) -> None:
    """The page, whole or not at all."""
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=compared.title,
            compared=compared,
            colour=lambda run: style_of(run).colour,
            wide=difference_picture(compared, 860.0),
            narrow=difference_picture(compared, 370.0),
            episodes=(),
        )
    )
    write_page(path, page)


def difference_picture(compared: Compared, width: float) -> str:
    """SVG: the paired difference in accuracy of every row, in points; empty where no row is paired."""
    found = [(section, row, row.difference) for section in compared.sections for row in section.rows if row.difference]
    if not found:
        return ""
    several = len(compared.runs) > 2
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, 58 + 34 * len(found), right=16)
        figure.subplots_adjust(left=(150 if width < 500 else 210) / width)
        for place, (_, row, difference) in enumerate(found):
            style, e = style_of(row.run), difference.accuracy
            if e.low is not None and e.high is not None:
                axes.plot([100 * e.low, 100 * e.high], [place, place], color=style.hue.light, linewidth=1.8)
            axes.plot([100 * e.value], [place], color=style.hue.light, marker=style.marker, markersize=7)
        axes.axvline(0, color=MUTED.light, linewidth=1.1)
        names = [f"{s.title}, {s.asked.split(',')[0]}" + f"\n{r.run}" * several for s, r, _ in found]
        axes.set_yticks(range(len(found)), names, color=INK.light)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("accuracy, points")
        return figures.svg(figure, f"differences-{width:.0f}")


def comparison_table(compared: Compared) -> Table:
    """The table for a terminal; differences and their 95 % intervals stand below the values."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run")
    for name in ("right, %", "tokens", "think, %", "ACU", "entries"):
        table.add_column(name, justify="right", no_wrap=True)
    for section in compared.sections:
        table.add_row(Text.assemble((section.title, "bold"), (f"  {section.asked}", "dim")))
        for row in section.rows:
            think = number(100 * row.think.value if row.think else None)
            cells = (number(100 * row.accuracy.value), number(row.tokens.value), think, compact(row.acu))
            table.add_row(Text(f"  {row.run}"), *cells, str(row.accuracy.n))
            if d := row.difference:
                changes = [(d.accuracy, 100.0), (d.tokens, 1.0), (d.think, 100.0)]
                values = (_change(e, scale) for e, scale in changes)
                intervals = (_interval(e, scale, lambda x: signed(x, 0)) for e, scale in changes)
                table.add_row(Text("    paired", style="dim"), *values, _ratio(d.acu), Text(str(d.common), style="dim"))
                table.add_row("", *intervals, _interval(d.acu, 1.0, lambda x: number(x, 2)))
            if row.note:
                table.add_row(Text(f"    {row.note}", style="dim"))
    return table


def _change(e: Estimate | None, scale: float) -> Text:
    if e is None:
        return Text("–", style="dim")
    clear = e.low is not None and e.high is not None and not e.low <= 0 <= e.high
    return Text(signed(scale * e.value), style="bold" if clear else "")


def _ratio(e: Estimate | None) -> Text:
    return Text("–", style="dim") if e is None else Text(f"× {e.value:.2f}")


def _interval(e: Estimate | None, scale: float, written: Callable[[float], str]) -> Text:
    if e is None or e.low is None or e.high is None:
        return Text("")
    return Text(f"{written(scale * e.low)}…{written(scale * e.high)}", style="dim")
