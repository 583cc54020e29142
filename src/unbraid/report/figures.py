"""The pictures of the report, as SVG whose colours follow the page's theme, and one for the README."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from unbraid.evaluate.statistics import Estimate
from unbraid.report.labels import are_ordered, level_names, moved_apart, on_lines
from unbraid.report.palette import GRID, HUES, INK, MUTED, PAGE
from unbraid.report.views import Report, RunView

POINTS = 72  # matplotlib counts inches, the page counts points; one SVG unit is one point
FONT = 10.5
LEFT = 46.0  # points beside the plot, for the names of the ticks
LONGEST = 14  # characters of a slanted name
Box = tuple[float, float, float, float]
NEAR = (11.0, 9.0)  # a label beside its point, clear of the horizontal error bar
PLACES = [(sx * x, y) for x, ys in ((11, (9, -9)), (27, range(-56, 57, 14))) for y in ys for sx in (1, -1)]
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": FONT,
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": MUTED.light,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK.light,
}


@dataclass(frozen=True)
class Mark:
    """A text at a point, in data coordinates, to be placed so that it covers no other."""

    x: float
    y: float
    text: str
    colour: str


def accuracy_against_tokens(report: Report, width: float, height: float) -> str:
    """SVG: one point per method of the headline, with 95 % intervals in both directions."""
    with mpl.rc_context(RC):
        figure, axes = canvas(width, height)
        _draw_accuracy_against_tokens(axes, report)
        return svg(figure, f"accuracy-{width:.0f}")


def by_level(report: Report, measure: str, width: float, height: float) -> str:
    """SVG: the headline's `think_rate` or `accuracy` per level: lines, or points where levels have no order."""
    with mpl.rc_context(RC):
        longest = _slanted(level_names(report.headline, measure), width - LEFT - 96)
        room = 0.42 * FONT * longest
        figure, axes = canvas(width, height + room, right=96, bottom=40 + room)
        _draw_by_level(axes, report, measure)
        return svg(figure, f"{measure}-by-level")


def save_headline(path: str | Path, report: Report) -> None:
    """Save accuracy against tokens, beside think rate by difficulty, as PNG or SVG (by the suffix): for a README."""
    with mpl.rc_context({**RC, "figure.facecolor": PAGE.light, "svg.hashsalt": "headline"}):
        figure = Figure(figsize=(920 / POINTS, 380 / POINTS))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        figure.subplots_adjust(left=0.07, right=0.88, top=0.88, bottom=0.14, wspace=0.22)
        _draw_accuracy_against_tokens(left, report)
        _draw_by_level(right, report, "think_rate")
        left.set_title("Accuracy against tokens", loc="left", pad=12, fontweight="bold")
        right.set_title(
            f"Think rate by {'difficulty' if are_ordered(report) else 'level'}", loc="left", pad=12, fontweight="bold"
        )
        metadata = {"Date": None} if Path(path).suffix == ".svg" else None
        figure.savefig(path, dpi=2 * POINTS, metadata=metadata)


def over_training(
    name: str,
    runs: Sequence[RunView],
    keys: Mapping[str, Sequence[str]],
    targets: Mapping[str, Sequence[str]],
    width: float,
    height: float,
    percent: bool = False,
    collapse_line: bool = False,
) -> str | None:
    """SVG of series over the steps: raw values faint, smoothed ones bold; None if no run logged any of them.

    Args:
        name: unique on the page.
        keys: run name -> keys to draw. Several of one run share its colour and are told apart by their labels.
        targets: run name -> keys of targets, drawn as dashes in the run's colour.
        percent: values are shares.
        collapse_line: mark 0, below which thinking loses, and each run's first warning.
    """
    with mpl.rc_context(RC):
        figure, axes = canvas(width, height, right=86)
        marks = []
        for run in runs:
            colour, run_keys = run.style.hue.light, keys.get(run.name, ())
            for key in run_keys:
                steps, values = (np.array(side) for side in run.series(key))
                if not len(steps):
                    continue
                values, smooth = values * (100 if percent else 1), smoothed(steps, values) * (100 if percent else 1)
                axes.plot(steps, values, color=colour, alpha=0.38, linewidth=0.9)
                axes.plot(steps, smooth, color=colour, linewidth=2, marker=run.style.marker if len(steps) == 1 else "")
                label = run.name if len(run_keys) == 1 else _series_name(key, run.name, alone=len(runs) == 1)
                marks.append(Mark(steps[-1], smooth[-1], label, colour))
            for key in targets.get(run.name, ()):
                steps, values = run.series(key)
                axes.plot(steps, values, color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
        if not marks:
            return None
        _finish_training_axes(axes, percent, collapse_line)
        if collapse_line:
            _draw_warnings(axes, runs)
        label_line_ends(axes, marks)
        return svg(figure, name)


def _series_name(key: str, run: str, alone: bool) -> str:
    """What one of several series of a run is called: a constraint by its name and group, others by their last part."""
    if key.startswith("constraint/"):
        return f"{run} {key.removeprefix('constraint/').rpartition('/')[0]}"
    own = key.rpartition("/")[2]
    return own if alone else f"{run} {own}"


def smoothed(steps: NDArray, values: NDArray) -> NDArray[np.float64]:
    """Gaussian kernel mean over the steps (width: 1/30 of their range), centred so that an onset does not move."""
    steps = np.asarray(steps, dtype=np.float64)
    width = max(0.6, float(np.ptp(steps)) / 30)
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / width) ** 2)
    return weights @ np.asarray(values, dtype=np.float64) / weights.sum(axis=1)


def _draw_accuracy_against_tokens(axes: Axes, report: Report) -> None:
    marks: list[Mark] = []
    bars: list[Box] = []
    for score in report.headline:
        style = report.style_of(score.labels.method)
        x, y = score.tokens, _percent(score.accuracy)
        axes.errorbar(
            x.value,
            y.value,
            xerr=_arms(x),
            yerr=_arms(y),
            fmt=style.marker,
            color=style.hue.light,
            markersize=8,
            markeredgecolor=PAGE.light,
            markeredgewidth=0.8,
            elinewidth=1.3,
        )
        marks.append(Mark(x.value, y.value, score.labels.method, style.hue.light))
        (left, right), (down, up) = _arms(x).ravel(), _arms(y).ravel()
        bars.append((x.value - left, y.value, x.value + right, y.value))
        bars.append((x.value, y.value - down, x.value, y.value + up))
    if report.oracle:
        x, y = report.oracle.tokens, 100 * report.oracle.accuracy
        axes.plot(x, y, marker="*", markersize=13, markerfacecolor="none", color=INK.light, linestyle="none")
        marks.append(Mark(x, y, report.oracle.label, INK.light))
    axes.set_xlabel("mean response tokens (fewer is cheaper)")
    axes.set_ylabel("accuracy, %")
    axes.margins(0.12)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low - 4, -3), min(high, 103))
    label_points(axes, marks, bars)


def _draw_by_level(axes: Axes, report: Report, measure: str) -> None:
    levels, ordered = level_names(report.headline, measure), are_ordered(report)
    marks = []
    for index, score in enumerate(report.headline):
        style, values = report.style_of(score.labels.method), getattr(score, f"{measure}_by_level")
        shift = 0.05 * (index - (len(report.headline) - 1) / 2)  # error bars beside, not on top of, each other
        drawn = [
            (position + shift, _percent(values[level])) for position, level in enumerate(levels) if level in values
        ]
        if not drawn:
            continue
        axes.errorbar(
            [x for x, _ in drawn],
            [e.value for _, e in drawn],
            yerr=np.hstack([_arms(e) for _, e in drawn]),
            color=style.hue.light,
            marker=style.marker,
            linestyle=style.line if ordered else "none",
            markersize=5.5,
            markeredgecolor=PAGE.light,
            markeredgewidth=0.6,
            linewidth=1.8,
            elinewidth=1,
        )
        marks.append(Mark(drawn[-1][0], drawn[-1][1].value, score.labels.method, style.hue.light))
    _name_levels(axes, levels)
    axes.set_xlim(-0.3, max(len(levels) - 0.7, 0.3))
    axes.set_ylim(-4, 104)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlabel("difficulty level" if ordered else "")
    if not marks:
        why = "no response has a mode to read" if measure == "think_rate" and report.headline else "no levels"
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=MUTED.light)
    axes.set_ylabel("think rate, %" if measure == "think_rate" else "accuracy, %")
    label_line_ends(axes, marks)


def _slanted(levels: Sequence[str], width: float) -> int:
    """Characters of the longest level name if the names must be slanted to fit side by side, else 0."""
    longest = min(max(map(len, levels), default=0), LONGEST)
    return longest if 0.6 * FONT * longest > width / max(len(levels), 1) - 4 else 0


def _name_levels(axes: Axes, levels: Sequence[str]) -> None:
    """Ticks with the levels' names: slanted and cut where they would run into each other, some left out if many."""
    width = axes.get_window_extent().transformed(_to_points(axes)).width
    every = max(1, math.ceil(1.3 * FONT * len(levels) / width))
    slanted = _slanted(levels, width)
    names = [name if not slanted or len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in levels]
    axes.set_xticks(range(0, len(levels), every), names[::every])
    if slanted:
        for label in axes.get_xticklabels():
            label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")


def _finish_training_axes(axes: Axes, percent: bool, collapse_line: bool) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(x=0.01)
    left, right = axes.get_xlim()
    if right - left < 1:
        axes.set_xlim(left - 1, right + 1)
    low, high = axes.get_ylim()
    if percent:
        axes.set_ylim(-4, 104)
        axes.set_yticks([0, 25, 50, 75, 100], ["0", "", "50", "", "100 %"])
    elif collapse_line:
        axes.set_ylim(min(low, -0.02), max(high, 0.02))
        axes.axhline(0, color=INK.light, linewidth=1)
    elif low >= -0.1 * high:
        axes.set_ylim(bottom=-0.03 * high if high > 0 else -0.05)


def _draw_warnings(axes: Axes, runs: Sequence[RunView]) -> None:
    for run in runs:
        if run.warnings:
            step, colour = run.warnings[0]["step"], run.style.hue.light
            axes.axvline(step, color=colour, linewidth=1.1, linestyle=(0, (1, 2)))
            axes.plot(
                step, 1, marker="v", color=colour, markersize=7, transform=axes.get_xaxis_transform(), clip_on=False
            )


def label_points(axes: Axes, marks: Sequence[Mark], bars: Sequence[Box] = ()) -> None:
    """Write each text beside its point where it covers least; a fine line leads to texts that had to move."""
    scale, data = _to_points(axes), axes.transData
    frame = np.array(axes.get_window_extent().transformed(scale).extents)
    points = [scale.transform(data.transform((mark.x, mark.y))) for mark in marks]
    corners = [scale.transform(data.transform(np.reshape(bar, (2, 2)))).ravel() for bar in bars]
    taken = [np.array([x - 7, y - 7, x + 7, y + 7]) for x, y in points]
    taken += [corner + np.array([-1.5, -1.5, 1.5, 1.5]) for corner in corners]
    for mark, point in zip(marks, points, strict=True):
        width, half = 0.6 * FONT * len(mark.text), 0.6 * FONT
        boxes, costs = [], []
        for dx, dy in PLACES:
            left, middle = point[0] + dx - (width if dx < 0 else 0), point[1] + dy
            box = np.array([left, middle - half, left + width, middle + half])
            outside = 2 * width * half - _overlap(box, frame)
            costs.append(sum(_overlap(box, other) for other in taken) + 2 * outside + 0.2 * math.hypot(dx, dy))
            boxes.append(box)
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        _annotate(axes, mark, *PLACES[best])


def label_line_ends(axes: Axes, marks: Sequence[Mark]) -> None:
    """Write each text right of the plot at the height of its line's end, moved apart where they would overlap."""
    if not marks:
        return
    frame = axes.get_window_extent().transformed(_to_points(axes))
    texts = [on_lines(mark.text) for mark in marks]
    points = [_to_points(axes).transform(axes.transData.transform((mark.x, mark.y))) for mark in marks]
    heights = [FONT * (1.05 + 1.25 * text.count("\n")) for text in texts]
    placed = moved_apart([p[1] for p in points], heights, frame.y0 - 2, frame.y1 + 8)
    edge = frame.x1 + 5
    for mark, text, point, y in zip(marks, texts, points, placed, strict=True):
        axes.annotate(
            text,
            (mark.x, mark.y),
            (edge - point[0], y - point[1]),
            textcoords="offset points",
            color=mark.colour,
            fontsize=FONT - 1,
            va="center",
            linespacing=1.25,
            annotation_clip=False,
        )


def _annotate(axes: Axes, mark: Mark, dx: float, dy: float) -> None:
    leader = {"arrowstyle": "-", "color": mark.colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5}
    leader["relpos"] = (0 if dx > 0 else 1, 0.5)
    axes.annotate(
        mark.text,
        (mark.x, mark.y),
        (dx, dy),
        textcoords="offset points",
        color=mark.colour,
        ha="left" if dx > 0 else "right",
        va="center",
        arrowprops=leader if (abs(dx), abs(dy)) != NEAR else None,
        annotation_clip=False,
    )


def _to_points(axes: Axes) -> Affine2D:
    """From pixels to points, the unit of annotation offsets, fonts and this module."""
    return Affine2D().scale(POINTS / axes.figure.dpi)


def _overlap(a: NDArray, b: NDArray) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(sides.clip(min=0)))


def _percent(e: Estimate) -> Estimate:
    low, high = (None if bound is None else 100 * bound for bound in (e.low, e.high))
    return Estimate(100 * e.value, low, high, e.n)


def _arms(e: Estimate) -> NDArray[np.float64]:
    """(2, 1) lengths of the error bar; 0 where there is no interval."""
    low, high = e.value if e.low is None else e.low, e.value if e.high is None else e.high
    return np.array([[max(0.0, e.value - low)], [max(0.0, high - e.value)]])


def canvas(width: float, height: float, right: float = 14, bottom: float = 40) -> tuple[Figure, Axes]:
    """An empty figure of so many points, and its axes; room for labels on the right and below."""
    figure = Figure(figsize=(width / POINTS, height / POINTS), dpi=POINTS)
    axes = figure.subplots()
    figure.subplots_adjust(left=LEFT / width, right=1 - right / width, top=1 - 14 / height, bottom=bottom / height)
    return figure, axes


def canvases(width: float, height: float) -> tuple[Figure, tuple[Axes, Axes]]:
    """An empty figure of so many points with two axes side by side."""
    figure = Figure(figsize=(width / POINTS, height / POINTS), dpi=POINTS)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(
        left=LEFT / width, right=1 - 14 / width, top=1 - 14 / height, bottom=40 / height, wspace=3.0 * LEFT / width
    )
    return figure, (left, right)


def svg(figure: Figure, name: str) -> str:
    """The figure as an inline SVG element: ids made unique on the page, colours as variables of its theme."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text
    )
    for variable, hue in {**HUES, "page": PAGE, "ink": INK, "muted": MUTED, "grid": GRID}.items():
        text = text.replace(hue.light, f"var(--{variable})")
    return text
