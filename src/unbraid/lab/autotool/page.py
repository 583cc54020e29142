"""Two pages: `claims.html` with verdicts, tables and the phase picture over all bases, and the project's report page
with the scores, curves and paired comparisons of one base."""

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl

from unbraid.evaluate.metrics import compare
from unbraid.evaluate.statistics import Estimate
from unbraid.lab.autotool.cells import Cell, cell_folder
from unbraid.lab.autotool.goal import oracle
from unbraid.lab.autotool.methods import CLAIM_SHARE, CLAIM_START, KEPT, METHODS, SAVED, SERVED, SWEPT, THRESHOLDS
from unbraid.lab.autotool.paired import units
from unbraid.lab.autotool.table import HEADLINE, Claims
from unbraid.lab.autotool.terminal import collapse, goal
from unbraid.lab.claims import ENOUGH_BASES
from unbraid.lab.measure import MAX_NEW_TOKENS
from unbraid.learn.log import read_rollouts
from unbraid.report import figures
from unbraid.report.page import environment, write_page, write_report
from unbraid.report.palette import MUTED, Style, style_of
from unbraid.report.views import Oracle, Report

TITLE = "AutoTool's claims at desk scale"
SHOWN = ("direct", "distilled", "plain", "autotool_published", "recommended", "advantage_batch", "mode_entropy")
"""Methods on the page of one base: more lines than these cannot be told apart."""
GOAL_LABELS = ("saved, % of what the oracle saves", "accuracy, % of distilled")


def write_claims(path: Path, claims: Claims, command: str) -> None:
    """Write the page of all bases."""
    template = files("unbraid.lab.autotool").joinpath("claims.html.j2").read_text(encoding="utf-8")
    made = environment()
    made.filters |= {"collapse": collapse, "goal": goal}
    html = made.from_string(template).render(
        title=TITLE,
        summary=summary(claims),
        claims=claims,
        methods=METHODS,
        phase=phase_picture(claims, 600, 340),
        goal=goal_picture(claims, 760, 300),
        share=CLAIM_SHARE,
        enough=ENOUGH_BASES,
        saved=SAVED,
        kept=KEPT,
        max_tokens=MAX_NEW_TOKENS,
        command=command,
        episodes=(),
    )
    write_page(path, html)


def summary(claims: Claims) -> list[str]:
    """What was run, and how the verdicts fell, in sentences made from the numbers."""
    counts = Counter(verdict.ruling for verdict in claims.verdicts)
    fell = ", ".join(f"{n} {ruling.value}" for ruling, n in counts.items())
    lines = [f"{claims.state[0].upper()}{claims.state[1:]}. Claims: {fell}."]
    for method in HEADLINE:
        row = next((r for r in claims.rows if (r.method, r.start) == (method, CLAIM_START)), None)
        if row:
            lines.append(
                f"{method}: {row.accuracy.value:.1%} right for {row.tokens.value:.1f} tokens, thinks on "
                f"{row.think_rate.value:.0%} (bases: {row.accuracy.n})."
            )
    for method in ("recommended", SERVED["recommended"]):
        met = [r for r in claims.goal if r.method == method]
        if not met:
            continue
        shares = ", ".join(
            f"{r.share:g}: {r.oracle_saving.value:.1f} tokens, {r.saved.value:.0%} at {r.kept.value:.1%}" for r in met
        )
        lines.append(f"What the oracle saves per known share, and what {method} saves of it and keeps: {shares}.")
    return lines


def goal_picture(claims: Claims, width: float, height: float) -> str | None:
    """SVG: saving and accuracy of our methods against known share, side by side; dashes are what the goal asks for."""
    methods = (SERVED["recommended"], "recommended")
    lines = {name: sorted((r for r in claims.goal if r.method == name), key=lambda r: r.share) for name in methods}
    if not any(lines.values()):
        return None
    with mpl.rc_context(figures.RC):
        figure, both = figures.canvases(width, height)
        # Each line is named at the end where the two are further apart.
        panels = zip(both, ("saved", "kept"), GOAL_LABELS, (SAVED, KEPT), (0, -1), strict=True)
        for axes, field, label, goal, end in panels:
            marks = []
            for method, reached in lines.items():
                if not reached:
                    continue
                style, shares = style_of(method), [r.share for r in reached]
                numbers: list[Estimate] = [getattr(r, field) for r in reached]
                low, high = ([100 * _side(e, side) for e in numbers] for side in ("low", "high"))
                middle = [100 * e.value for e in numbers]
                axes.fill_between(shares, low, high, color=style.hue.light, alpha=0.12, linewidth=0)
                axes.plot(
                    shares, middle, color=style.hue.light, marker=style.marker, linestyle=style.line, linewidth=1.6
                )
                marks.append(figures.Mark(shares[end], middle[end], method, style.hue.light))
            axes.axhline(100 * goal, color=MUTED.light, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.set_xlim(0.2, 0.9)
            axes.set_xlabel("share of known prompts")
            axes.set_ylabel(label)
            figures.label_points(axes, marks)
        return figures.svg(figure, "goal")


def _side(e: Estimate, side: str) -> float:
    bound = getattr(e, side)
    return e.value if bound is None else bound


def _style(method: str) -> Style:
    return style_of(method, "green" if method == "advantage_batch" else "")


def phase_picture(claims: Claims, width: float, height: float) -> str | None:
    """SVG: final think rate against known share, one line per method of the sweep, thresholds as dashed lines."""
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, height, right=130)
        marks = []
        for method in SWEPT:
            style = _style(method)
            points = [(r.share, 100 * r.think_rate.value) for r in claims.goal if r.method == method]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=style.hue.light, marker=style.marker, linestyle=style.line, linewidth=1.8)
            marks.append(figures.Mark(xs[-1], ys[-1], method, style.hue.light))
        if not marks:
            return None
        for threshold in THRESHOLDS.values():
            axes.axvline(threshold, color=MUTED.light, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_ylim(-4, 104)
        axes.set_xlim(0.2, 0.9)
        axes.set_xlabel("share of known prompts")
        axes.set_ylabel("final think rate, %")
        figures.label_line_ends(axes, marks)
        return figures.svg(figure, "phase")


def write_one_base(path: Path, claims: Claims, out: Path, overrides: Sequence[str], command: str) -> Report | None:
    """Write the report page of the first base that has any method of the headline; None if there is none."""
    from unbraid.run import colophon, read_scores, run_view

    found = units(claims.results, CLAIM_START, CLAIM_SHARE)
    place = next((p for p, unit in found.items() if {"direct", "distilled"} <= unit.keys()), None)
    if place is None:
        return None
    unit = found[place]

    def folder(method: str) -> Path:
        return cell_folder(Cell(place[0], CLAIM_START, CLAIM_SHARE, method, place[1]), out, overrides)

    names = [name for name in SHOWN if name in unit]
    shown = {name: read_rollouts(folder(name) / "evaluation.parquet") for name in names}
    ideal = oracle(unit)
    report = Report(
        title=f"{TITLE}: base {place[0]}, seed {place[1]}",
        summary=["One base of the claims run: what differs here may differ by chance. Verdicts are in claims.html."],
        scores=[score for name in names for score in read_scores(folder(name))],
        runs=[run_view(folder(name)) for name in names if METHODS[name].is_trained],
        comparisons=[
            compare(shown["distilled"], shown[n], ("distilled", n)) for n in names if n not in ("direct", "distilled")
        ],
        oracle=Oracle(ideal.accuracy, ideal.tokens),
        labels={name: f"{METHODS[name].label} ({METHODS[name].whose.value})" for name in names},
        colophon=colophon(
            [command], {"world": place[0], "seed": place[1]}, {name: round(unit[name].seconds, 1) for name in names}
        ),
    )
    write_report(path, report)
    return report
