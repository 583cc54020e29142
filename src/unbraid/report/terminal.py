"""The report's table and transcripts for a terminal (rich)."""

from rich.table import Table
from rich.text import Text

from unbraid.evaluate.statistics import Estimate
from unbraid.report.page import compact, number, signed
from unbraid.report.views import Report, Transcript
from unbraid.tokens import Role

# Names from the terminal's own sixteen colours, so that light and dark terminals both stay readable.
_COLOURS = {"vermilion": "red", "plum": "magenta", "blue": "blue", "green": "green", "slate": "default"}
_ROLES = {Role.PROMPT: "dim", Role.REASONING: "yellow", Role.ACTION: "bold blue", Role.OBSERVATION: "green"}


def score_table(report: Report, everything: bool = False) -> Table:
    """The headline as a table: one row per method, or one per score."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("method", no_wrap=True)
    table.add_column("right, % (95 %)", no_wrap=True)
    for name in ("tokens", "think, %", "ACU"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mode, decoding", no_wrap=True)
    for score in report.scores if everything else report.headline:
        method = score.labels.method
        table.add_row(
            Text(method, style=f"bold {_COLOURS[report.style_of(method).colour]}"),
            _with_interval(score.accuracy, 100),
            number(score.tokens.value),
            number(100 * score.think_rate.value),
            compact(score.acu),
            Text(f"{score.mode.value}, {score.decoding.removesuffix(' per task')}", style="dim"),
        )
    if report.oracle:
        accuracy, tokens = number(100 * report.oracle.accuracy), number(report.oracle.tokens)
        table.add_row(Text("oracle"), accuracy, tokens, "–", "–", Text("computed", style="dim"))
    return table


def transcript_text(transcript: Transcript) -> Text:
    """A transcript with one colour per role; forced tokens are underlined."""
    t = transcript
    parts = ", ".join(f"{name} {signed(value, 2)}" for name, value in t.reward_parts.items())
    facts = [t.task, t.mode.value, "right" if t.correct else "wrong", f"reward {signed(t.reward, 2)}"]
    facts += [f"({parts})"] * bool(parts) + [t.reason] * bool(t.reason)
    text = Text(f"{t.method}  ", style="bold").append(" · ".join(facts), style="not bold dim").append("\n")
    for token in t.tokens:
        forced = token.role in (Role.REASONING, Role.ACTION) and not token.sampled
        text.append(token.text, style=f"not bold {_ROLES[token.role]}{' underline' if forced else ''}")
    return text


def _with_interval(e: Estimate, scale: float) -> Text:
    text = Text(number(scale * e.value), style="bold")
    if e.low is not None and e.high is not None:
        text.append(f" ({number(scale * e.low, 0)}–{number(scale * e.high, 0)})", style="not bold dim")
    return text
