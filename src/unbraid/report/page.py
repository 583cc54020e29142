"""One self-contained HTML file: readable on a phone, light and dark, no request to anywhere."""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unbraid.evaluate.statistics import Estimate
from unbraid.report import figures, palette
from unbraid.report.episode_data import episode_data
from unbraid.report.labels import are_ordered
from unbraid.report.views import Report, RunView, Token, troubles_of
from unbraid.tokens import Role

Keys = Callable[[RunView], list[str]]

LONG_PROMPT = 160
"""Prompts of more tokens than this are folded: the response is what a transcript is for."""


@dataclass(frozen=True)
class Panel:
    """One picture of the training section. `keys` and `targets` name what to draw for a run.

    special: only some runs log it, and nobody misses it elsewhere.
    """

    name: str
    title: str
    caption: str
    keys: Keys
    targets: Keys = lambda _: []
    percent: bool = False
    collapse_line: bool = False
    special: bool = False


def _key(*names: str) -> Keys:
    return lambda _: list(names)


def _below(prefix: str) -> Keys:
    return lambda run: list(dict.fromkeys(key for row in run.metrics for key in row if key.startswith(prefix)))


def _targets(group: str, choice: bool = False) -> Keys:
    """Targets of the constraints on a group. A constraint on the mode choice is known by its name."""

    def keys(run: RunView) -> list[str]:
        parts = [(key, key.split("/")) for key in run.keys("target")]
        on_choice = {key: "mode" in p[1] or "choice" in p[1] for key, p in parts}
        return [key for key, p in parts if on_choice[key] == choice and (choice or "/".join(p[2:-1]) == group)]

    return keys


PANELS = (
    Panel("think-rate", "Think rate", "Share of sampled responses that think.", _key("think_rate"), percent=True),
    Panel("accuracy", "Accuracy", "Of the sampled responses, on training tasks.", _key("accuracy"), percent=True),
    Panel("tokens", "Response length", "Mean tokens of a response.", _key("tokens")),
    Panel(
        "vote",
        "Predicted vote on the mode",
        "Which way the advantages push the choice: below 0, away from thinking. ▼ marks a run's first warning.",
        lambda run: [run.vote],
        collapse_line=True,
    ),
    Panel(
        "entropy-mode",
        "Entropy of the mode choice",
        "Two-way, in nats; ln 2 = 0.69 is a coin toss. Dashes: target.",
        _key("entropy/mode"),
        _targets("", choice=True),
    ),
    Panel(
        "entropy-think",
        "Entropy of thinking responses",
        "Nats per token, whole response. Dashes: target. A line ends where nothing thinks any more.",
        _key("entropy/think"),
        _targets("think"),
    ),
    Panel(
        "entropy-no-think",
        "Entropy of direct responses",
        "Nats per token, whole response. Dashes: target.",
        _key("entropy/no_think"),
        _targets("no_think"),
    ),
    Panel("coefficients", "Coefficients β", "Weight of each entropy term.", lambda run: run.keys("coefficient")),
    Panel(
        "gate",
        "Gate open",
        "Share of samples on which the entropy term acts.",
        lambda run: run.keys("gate_open"),
        percent=True,
    ),
    Panel("episodes", "Responses and calls", "Per episode.", _key("turns", "calls"), special=True),
    Panel(
        "think-turn",
        "Think rate by turn",
        "Share of each response of an episode, first to last, that thinks.",
        _below("think_rate_turn/"),
        percent=True,
        special=True,
    ),
    Panel("ended", "How episodes end", "Shares of episodes.", _below("ended/"), percent=True, special=True),
    Panel("faults", "Tool faults", "Shares of calls, by reason.", _below("fault/"), percent=True, special=True),
    Panel("queries", "Queries", "How they are worded: shares of all.", _below("queries/"), percent=True, special=True),
    Panel(
        "interference",
        "Reasoning and action gradients",
        "Cosine, noise taken out; random: the tokens parted by lot.",
        _key("interference/cosine", "interference/random"),
        special=True,
    ),
    Panel("skills", "Skills", "Shares of the occasions for each.", _below("skill/"), percent=True, special=True),
)


def write_report(path: str | Path, report: Report) -> None:
    """Write the page, whole or not at all.

    All text of the report is escaped; a response that contains HTML is shown, not run.
    """
    write_page(path, render(report))


def write_page(path: str | Path, html: str) -> None:
    """Write a file, whole or not at all. A lone surrogate, which UTF-8 cannot hold, is written as its escape."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)


def environment() -> Environment:
    """The templates, with the filters and the values that all pages share."""
    made = Environment(
        loader=PackageLoader("unbraid.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters.update(
        breakable=breakable,
        percent=percent,
        number=number,
        signed=signed,
        compact=compact,
        hover=hover,
        visible=visible,
    )
    made.filters["episode_data"] = lambda episodes, colours: Markup(episode_data(episodes, colours))
    viewer = files("unbraid.report").joinpath("episodes.js").read_text(encoding="utf-8")
    # The page's policy names this script by its hash: no other one would run, whatever a tool has said.
    digest = base64.b64encode(hashlib.sha256(viewer.encode()).digest()).decode()
    made.globals.update(viewer=Markup(viewer), viewer_hash=f"sha256-{digest}", theme=_theme(), Role=Role)
    return made


def render(report: Report) -> str:
    """The page as a string."""
    panels, absent = _training_panels(report)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            title=report.title,
            episodes=report.episodes,
            colours={run.name: run.style.colour for run in report.runs},
            scatter_wide=figures.accuracy_against_tokens(report, 600, 520),
            scatter_narrow=figures.accuracy_against_tokens(report, 370, 330),
            think_rate=figures.by_level(report, "think_rate", 400, 225),
            ordered=are_ordered(report),
            troubles=troubles_of(report.headline),
            accuracy=figures.by_level(report, "accuracy", 400, 225),
            panels=panels,
            absent=absent,
            long_prompt=LONG_PROMPT,
        )
    )


def _training_panels(report: Report) -> tuple[list[tuple[Panel, str]], list[str]]:
    drawn, absent = [], []
    for panel in PANELS:
        keys = {run.name: panel.keys(run) for run in report.runs}
        targets = {run.name: panel.targets(run) for run in report.runs}
        svg = figures.over_training(
            panel.name, report.runs, keys, targets, 340, 210, panel.percent, panel.collapse_line
        )
        if svg:
            drawn.append((panel, svg))
        elif not panel.special:
            absent.append(panel.title)
    return drawn, absent


def _theme() -> Mapping[str, list[tuple[str, str]]]:
    """CSS variables of the light and the dark page."""
    hues = {**palette.HUES, "page": palette.PAGE, "ink": palette.INK, "muted": palette.MUTED, "grid": palette.GRID}
    hues |= {role.name.lower(): hue for role, hue in palette.ROLES.items()}
    hues |= {f"{role.name.lower()}-background": hue for role, hue in palette.ROLE_BACKGROUNDS.items()}
    return {
        "light": [(name, hue.light) for name, hue in hues.items()],
        "dark": [(name, hue.dark) for name, hue in hues.items()],
    }


def breakable(name: str) -> Markup:
    """A name, escaped, that may break after its underscores: long method names must fit a phone."""
    return Markup("_<wbr>").join(name.split("_"))


def percent(estimate: Estimate | float) -> str:
    """`91.8` from 0.918; the unit stands in the column's head."""
    return f"{100 * (estimate.value if isinstance(estimate, Estimate) else estimate):.1f}"


def number(value: float | None, digits: int = 1) -> str:
    """A number with fixed digits, a true minus sign, and a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 1) -> str:
    """As `number`, with a sign in front of positive numbers too."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def compact(value: float | None) -> str:
    """Three significant digits with k or M: ACU spans six orders of magnitude between lab and real models."""
    if value is None:
        return "–"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


MARKS = {" ": "·", "\t": "→", "\n": "↵\n", "\r": "␍"}
"""White space made visible, where a token is nothing else. `episodes.js` has the same marks."""


def visible(text: str) -> str:
    """A token's text, escaped by the template; of one that is only white space, marks that can be seen."""
    if not text.isspace():
        return text
    return Markup('<span class="blank">{}</span>').format("".join(MARKS.get(c, "·") for c in text))


def hover(token: Token) -> str:
    """What a token says about itself."""
    if token.role in (Role.PROMPT, Role.OBSERVATION):
        return ""
    if not token.sampled or token.logprob is None:
        return "forced: not drawn by the model"
    return f"log-prob {number(token.logprob, 3)} nats".replace("\N{MINUS SIGN}0.000", "0.000")
