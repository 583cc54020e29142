"""`unbraid bench bfcl`: BFCL's own harness, on a run or on any server."""

import os
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from unbraid.cli.bench import bench
from unbraid.cli.console import Bars, console, errors


@bench.command()
def bfcl(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder: it is served for the while.")] = None,
    url: Annotated[
        str, typer.Option(help="Or a server: http://host:port/v1, #MODEL after it for one that is not its first.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="With --url: folder for the record.")] = None,
    categories: Annotated[
        list[str] | None,
        typer.Option(help="As the harness names them; may be repeated. Default: single_turn, multi_turn."),
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help="auto (default), think, no_think; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most entries of a category.")] = None,
    prompting: Annotated[bool, typer.Option("--prompting", help="Functions in the prompt, not as tools.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one response; default: the run's, or 4096.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    together: Annotated[int, typer.Option(min=1, help="Entries asked at a time.")] = 16,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that finds no answer.")] = 5,
    again: Annotated[bool, typer.Option("--again", help="Throw away what was answered, and ask anew.")] = False,
    local: Annotated[bool, typer.Option("--local", help="Serve RUN without vLLM.")] = False,
    flag: Annotated[list[str] | None, typer.Option(help="A flag of vLLM, as --flag=--max-num-seqs=64.")] = None,
    key_env: Annotated[str, typer.Option(help="Environment variable that holds a server's key.")] = "",
    python: Annotated[str, typer.Option(help="Interpreter that has the harness; default: .venv-bfcl here.")] = "",
) -> None:
    """BFCL by its official harness, its checker untouched: single-turn and multi-turn categories."""
    from dataclasses import replace

    from unbraid.bench.bfcl import run as asking
    from unbraid.bench.bfcl.installation import find_bfcl
    from unbraid.bench.table import benchmark_table
    from unbraid.chat.types import Mode

    if (run is None) is not bool(url) or (url and out is None):
        raise typer.BadParameter("give a RUN, or --url with --out")
    modes = [Mode(name) for name in mode or ["auto"] if name in ("auto", "think", "no_think")]
    if len(modes) < len(mode or ["auto"]):
        raise typer.BadParameter(f"--mode {' '.join(mode or [])}: use auto, think, no_think")
    installation = find_bfcl(python)
    how = asking.Asking(
        categories=tuple(categories or asking.CATEGORIES), limit=limit, prompting=prompting, temperature=temperature,
        max_tokens=max_tokens or 4096, seed=seed, together=together, retries=retries, again=again,
        command=shlex.join(["unbraid", *sys.argv[1:]]),
    )  # fmt: skip
    if run is not None:
        how = replace(how, **_facts_of(run, max_tokens))
    found = []
    with _server(run, url, key_env, local, tuple(flag or ())) as server, Bars() as bars:
        for one in modes:
            found.append(asking.bfcl(installation, server, run or out or Path(), replace(how, mode=one), bars.show))
    console.print(benchmark_table(found))
    folder = found[-1].setting.folder(run or out or Path())
    console.print(f"\nrecord [bold]{folder}[/], the harness's own files in official/", highlight=False)


@contextmanager
def _server(run: Path | None, url: str, key_env: str, local: bool, flags: tuple[str, ...]) -> Any:
    from unbraid.bench.bfcl.served import at_url, of_run
    from unbraid.errors import ServerError

    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise ServerError(f"the environment has no {key_env}: export it, or name another one")
    if run is None:
        yield at_url(url, key)
        return
    with errors.status("starting the server") as status, of_run(run, local, flags=flags) as server:
        status.stop()
        yield server


def _facts_of(run: Path, max_tokens: int | None) -> dict[str, Any]:
    """What the record says of a run's model."""
    from unbraid.errors import DataError
    from unbraid.run.folder import read_scores, recipe_of

    recipe = recipe_of(run)
    preset = recipe.chat.preset if isinstance(recipe.chat.preset, str) else "own"
    try:
        parameters = next((score.labels.parameters for score in read_scores(run)), None)
    except DataError:
        parameters = None
    return {
        "model": recipe.name,
        "template": f"{preset}, {recipe.chat.call_format}",
        "parameters": parameters,
        "max_tokens": max_tokens or recipe.rollout.max_new_tokens,
    }
