"""`unbraid compare`: runs against the first of them, entry by entry."""

from pathlib import Path
from typing import Annotated

import typer

from unbraid.cli.console import console

app = typer.Typer()


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders; FOLDER@base is before training.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("comparison.html"),
) -> None:
    """One table and one page: own evaluations and benchmarks of runs, paired with the first run's."""
    from unbraid.bench.compare import compare_runs
    from unbraid.report.comparison import comparison_table, write_comparison

    compared = compare_runs(runs)
    write_comparison(out, compared)
    console.print(comparison_table(compared))
    console.print(f"\npage [bold]{out}[/]", highlight=False)
