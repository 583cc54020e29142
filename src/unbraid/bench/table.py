"""Scores of benchmarks for a terminal (rich)."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from unbraid.bench.score import BenchmarkScore
from unbraid.evaluate.statistics import Estimate
from unbraid.report.page import compact, number


def benchmark_table(scores: Sequence[BenchmarkScore]) -> Table:
    """One row per score, and one below it per category where there are several; then the official totals."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("benchmark", no_wrap=True)
    table.add_column("right, % (95 %)", no_wrap=True)
    for name in ("entries", "tokens", "think, %", "ACU"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("model, mode, decoding", overflow="fold")
    for score in scores:
        setting, think = score.setting, score.think_rate
        table.add_row(
            Text(setting.benchmark, style="bold"),
            _with_interval(score.accuracy),
            str(score.accuracy.n),
            number(score.tokens.value),
            number(100 * think.value if think else None),
            compact(score.acu),
            Text(f"{setting.model}/{setting.checkpoint}, {setting.mode.value}, {setting.decoding}", style="dim"),
        )
        if len(score.categories) > 1:
            for name, estimate in score.categories.items():
                table.add_row(Text(f"  {name}"), _with_interval(estimate), str(estimate.n))
        for name, value in score.totals.items():
            table.add_row(Text(f"  {name}", style="dim"), number(100 * value))
    return table


def _with_interval(e: Estimate) -> Text:
    text = Text(number(100 * e.value), style="bold")
    if e.low is not None and e.high is not None:
        text.append(f" ({number(100 * e.low, 0)}–{number(100 * e.high, 0)})", style="not bold dim")
    return text
