"""Findings in a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unbraid.chat.checks import Finding

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("error", "bold red")}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """One paragraph per finding, what to do about it below it, and a closing line with the counts."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, colour = _MARKS[finding.level]
        said = Text(finding.message)
        if finding.advice:
            said.append(f"\n→ {finding.advice}", style="bold")
        table.add_row(Text(mark, style=colour), Text(finding.check, style="dim"), said)
    console.print(table)
    counts = {level: sum(f.level == level for f in findings) for level in ("error", "warning")}
    closing = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in counts.items())
    worst = "error" if counts["error"] else "warning" if counts["warning"] else "ok"
    console.print(Text(f"\n{closing}", style=_MARKS[worst][1]))
