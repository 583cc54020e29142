"""The page of the claims run: verdicts, the dose picture, curves, tables."""

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import numpy as np

from unbraid.evaluate.statistics import mean_over_runs
from unbraid.lab.claims import ENOUGH_BASES
from unbraid.lab.dart.cells import GRPO_STEPS, SUPERVISED_EXAMPLES, SUPERVISED_STEPS, TUNING_BASE, CellResult
from unbraid.lab.dart.methods import ADAPTER_RATES, DOSED_AT, FULL_RATES, METHODS, Learner, Sharing, World
from unbraid.lab.dart.table import Claims
from unbraid.lab.dart.terminal import place as where
from unbraid.report import figures
from unbraid.report.page import environment, write_page
from unbraid.report.palette import MUTED, Style

TITLE = "DART's claims at desk scale"
STYLES = {
    "shared_r16": Style("vermilion", "o"),
    "dart": Style("blue", "D"),
    "dart_strict": Style("plum", "^"),
    "placebo": Style("slate", "X", "-."),
    "two_lora_agents": Style("green", "P", "--"),
}
"""Methods in the pictures: more lines than these cannot be told apart."""


PANEL = (440.0, 300.0)
"""Width and height of a picture, two of which stand beside each other."""


def write_claims(path: Path, claims: Claims, command: str) -> None:
    """Write the page."""
    template = files("unbraid.lab.dart").joinpath("claims.html.j2").read_text(encoding="utf-8")
    made = environment()
    made.filters["place"] = where
    curves = [
        (name, title, curve_picture(name, claims.results, (learner, sharing, rho), *PANEL))
        for name, title, learner, sharing, rho in (
            *(
                (f"{skills}-{sharing}", f"{skills} skills, supervised, {sharing}", Learner.SUPERVISED, sharing, rho)
                for sharing in DOSED_AT
                for skills, rho in (("aligned", 1.0), ("opposed", 0.0))
            ),
            ("aligned-grpo", "aligned skills, GRPO, middle", Learner.GRPO, Sharing.MIDDLE, 1.0),
            ("opposed-grpo", "opposed skills, GRPO, middle", Learner.GRPO, Sharing.MIDDLE, 0.0),
        )
    ]
    html = made.from_string(template).render(
        title=TITLE,
        summary=summary(claims),
        claims=claims,
        methods=METHODS,
        doses=[(sharing, dose_picture(claims, sharing, *PANEL)) for sharing in DOSED_AT],
        curves=[one for one in curves if one[2]],
        enough=ENOUGH_BASES,
        worlds=[(world, [row for row in claims.rows if row.world is world]) for world in World],
        protocol=protocol(),
        command=command,
        episodes=(),
    )
    write_page(path, html)


def summary(claims: Claims) -> list[str]:
    """What was run, and how the verdicts fell, in sentences made from the numbers."""
    counts = Counter(verdict.ruling for verdict in (*claims.paper, *claims.predicted))
    fell = ", ".join(f"{n} {ruling.value}" for ruling, n in counts.items())
    lines = [f"{claims.state[0].upper()}{claims.state[1:]}. Claims and predictions: {fell}."]
    for sharing, verdicts in claims.dose.items():
        gains = "; ".join(f"{v.claim.name.split(',')[0]}: {v.shown}" for v in verdicts if v.estimate)
        if gains:
            lines.append(f"Area under the curve, DART less one adapter of as many weights, {sharing}, points: {gains}.")
        if (monotone := claims.monotone[sharing]) is not None:
            lines.append(f"The verdict there is {'' if monotone else 'not '}monotone in the dose.")
    return lines


def protocol() -> str:
    """How methods were compared, for the page."""
    adapters, full = (", ".join(f"{rate:g}" for rate in rates) for rates in (ADAPTER_RATES, FULL_RATES))
    return (
        f"Conflict world: {SUPERVISED_STEPS} supervised steps of {SUPERVISED_EXAMPLES} examples, or {GRPO_STEPS} steps "
        f"of GRPO. Learning rate of each supervised method: the best area on the dev set of base {TUNING_BASE}, mean "
        f"of rho = 1 and rho = 0, out of {adapters} for adapters and {full} for full weights; no result is from that "
        "base. All else uses the rate of the world's recipe."
    )


def dose_picture(claims: Claims, sharing: Sharing, width: float, height: float) -> str | None:
    """SVG: area under the curve against conflict, one line per method, intervals over bases as bars."""
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, height, right=110)
        marks = []
        for name, style in STYLES.items():
            rows = [
                row
                for row in claims.rows
                if (row.world, row.learner, row.sharing, row.method)
                == (World.CONFLICT, Learner.SUPERVISED, sharing, name)
            ]
            if not rows:
                continue
            rows.sort(key=lambda row: 1 - row.rho)
            xs, ys = [1 - row.rho for row in rows], [100 * row.auc.value for row in rows]
            colour = style.hue.light
            for x, row in zip(xs, rows, strict=True):
                if row.auc.low is not None and row.auc.high is not None:
                    axes.plot([x, x], [100 * row.auc.low, 100 * row.auc.high], color=colour, linewidth=1.0)
            axes.plot(xs, ys, color=colour, marker=style.marker, linestyle=style.line, linewidth=1.8)
            marks.append(figures.Mark(xs[-1], ys[-1], name, colour))
        if not marks:
            return None
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(0, 100)
        axes.set_xlabel("conflict, 1 − rho")
        axes.set_ylabel("area under the curve, %")
        figures.label_line_ends(axes, marks)
        return figures.svg(figure, f"dose-{sharing}")


def curve_picture(
    name: str, results: Sequence[CellResult], place: tuple[Learner, Sharing, float], width: float, height: float
) -> str | None:
    """SVG: mean success over training, one line per method, the range over bases behind it."""
    learner, sharing, rho = place
    with mpl.rc_context(figures.RC):
        figure, axes = figures.canvas(width, height, right=110)
        marks = []
        for method, style in STYLES.items():
            curves = [
                r.curve
                for r in results
                if (r.cell.world, r.cell.learner, r.cell.sharing, r.cell.rho, r.cell.method)
                == (World.CONFLICT, learner, sharing, rho, method)
            ]
            if not curves:
                continue
            steps, values = [step for step, _ in curves[0]], np.array([[v for _, v in curve] for curve in curves])
            colour, mean = style.hue.light, [100 * mean_over_runs(list(column)).value for column in values.T]
            axes.fill_between(steps, 100 * values.min(0), 100 * values.max(0), color=colour, alpha=0.12, linewidth=0)
            axes.plot(steps, mean, color=colour, linestyle=style.line, linewidth=1.8)
            marks.append(figures.Mark(steps[-1], mean[-1], method, colour))
        if not marks:
            return None
        axes.axhline(25, color=MUTED.light, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 100)
        axes.set_xlabel("step")
        axes.set_ylabel("success, %")
        figures.label_line_ends(axes, marks)
        return figures.svg(figure, f"curve-{name}")
