"""Commands for public benchmarks: `unbraid bench NAME RUN …`. Each writes one record, and goes on with one."""

import typer

from unbraid.cli.console import Runs, console

bench = typer.Typer(no_args_is_help=True, help="Score a run on public benchmarks.")


@bench.command()
def scores(runs: Runs) -> None:
    """The benchmark scores that runs have."""
    from unbraid.bench.score import read_score, records_of
    from unbraid.bench.table import benchmark_table
    from unbraid.errors import DataError

    found = [read_score(folder) for run in runs for folder in records_of(run)]
    if not found:
        raise DataError(f"no benchmark is finished in {', '.join(map(str, runs))}: `unbraid bench --help` lists them")
    console.print(benchmark_table(found))
