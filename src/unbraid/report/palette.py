"""Colours of the report, for a light and a dark page.

Choice: hues that stay apart under the three common colour-vision deficiencies and reach a contrast of 4.5 : 1 on
their page, so that a label may have the colour of its line. Colour never carries a meaning alone: methods also have
markers and labels, roles have names.
"""

from dataclasses import dataclass
from typing import NamedTuple

from unbraid.tokens import Role


class Hue(NamedTuple):
    """One colour as hex, on the light page and on the dark one."""

    light: str
    dark: str


PAGE = Hue("#fcfbf8", "#15171c")
INK = Hue("#1d2026", "#e8e6e1")
MUTED = Hue("#5f646d", "#a2a7b1")
GRID = Hue("#e3e0d8", "#2d3139")

HUES = {
    "vermilion": Hue("#c8460a", "#ff8b4d"),
    "plum": Hue("#8e3a80", "#f09ad0"),
    "blue": Hue("#2a5bd7", "#7ea2ff"),
    "green": Hue("#0a7a5c", "#43c79c"),
    "slate": Hue("#5d6673", "#9aa4b2"),
}

ROLE_BACKGROUNDS = {
    Role.REASONING: Hue("#fbe9c6", "#443717"),
    Role.ACTION: Hue("#d9e4fd", "#1f2f5c"),
    Role.OBSERVATION: Hue("#d5efe3", "#123a2d"),
}

ROLES = {Role.REASONING: Hue("#976606", "#dba940"), Role.ACTION: HUES["blue"], Role.OBSERVATION: HUES["green"]}
"""Roles without text on them: lines and ribbons."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn wherever it appears: the name of a hue, a matplotlib marker and a line style."""

    colour: str
    marker: str
    line: str = "-"

    @property
    def hue(self) -> Hue:
        return HUES[self.colour]


METHODS = {
    "plain": Style("vermilion", "o"),
    "autotool_published": Style("plum", "^"),
    "recommended": Style("blue", "D"),
    "second_thoughts": Style("blue", "*", "--"),
    "direct": Style("slate", "s", ":"),
    "distilled": Style("slate", "v", "--"),
}
_OTHERS = (Style("green", "P"), Style("slate", "X", "-."), Style("green", "h", "--"), Style("plum", "<", ":"))


def style_of(method: str, colour: str = "") -> Style:
    """The style of a method: its own if it is known, otherwise one that depends on its name only.

    Args:
        colour: a name in `HUES` that overrides the colour.
    """
    style = METHODS.get(method) or _OTHERS[sum(method.encode("utf-8", "surrogatepass")) % len(_OTHERS)]
    return Style(colour, style.marker, style.line) if colour in HUES else style


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two hex colours, 1 to 21. Source: WCAG 2.2, relative luminance."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
