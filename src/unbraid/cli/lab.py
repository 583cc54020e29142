"""`unbraid lab`: the desk-scale worlds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from unbraid.cli.console import Overrides, console, errors

lab = typer.Typer(
    no_args_is_help=True, help="Desk-scale worlds: small enough to train from nothing, with known answers."
)


@lab.command("base")
def lab_base(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    world: Annotated[int, typer.Option(help="Seed of the world; every seed is another world.")] = 0,
) -> None:
    """Pre-train the base model of a calls world from nothing (about 3 minutes) and print its gates."""
    from unbraid.lab.base_model import main as build

    raise typer.Exit(build(["--seed", str(world), "--out", str(out)]))


@lab.command("chat-model")
def lab_chat_model(
    rows: Annotated[str, typer.Argument(metavar="ROWS", help="Rows whose texts the tokenizer learns.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    hidden: Annotated[int, typer.Option(help="Width of the model.")] = 128,
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 2,
    vocab_size: Annotated[int, typer.Option(help="Tokens of the tokenizer, at most.")] = 4096,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
) -> None:
    """Build a small untrained ChatML model for real rows: what `rows-small` trains when no real model is at hand."""
    from unbraid.data import DataConfig, read_tasks
    from unbraid.lab.chatml import build_chatml_model, task_texts

    found = read_tasks(rows, DataConfig())
    console.print(found.summary(), highlight=False, markup=False)
    build_chatml_model(out, task_texts(found.tasks), vocab_size, hidden, layers, seed)
    console.print(f"model [bold]{out}[/]   now: unbraid train rows-small model.path={out} tasks.train={rows}")


@lab.command("search")
def lab_search(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of report.html.")] = Path("runs/search"),
    seed: Annotated[int, typer.Option(help="Of RL.")] = 0,
    world: Annotated[int, typer.Option(help="Of facts and base; others than 0 first build a base (minutes).")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at a time; 0 = one per core, at most 3.")] = 0,
    overrides: Overrides = None,
) -> None:
    """A tiny model learns to search: evaluate, train, evaluate, write one page. The last line is JSON."""
    from unbraid.lab.search import outcome, search
    from unbraid.report.terminal import score_table

    report = search(out, seed, world, overrides or [], jobs, errors)
    console.print(score_table(report))
    for line in report.summary:
        console.print(line, highlight=False)
    console.print(f"[bold]{out / 'report.html'}[/] shows it all", highlight=False)
    print(json.dumps(outcome(out, report)))


@lab.command("autotool")
def lab_autotool(
    out: Annotated[Path, typer.Option(help="Folder of cells and pages; what is there is taken.")] = Path(
        "runs/autotool"
    ),
    bases: Annotated[int, typer.Option(help="Base models; others than the first are built (3 minutes).")] = 6,
    seeds: Annotated[int, typer.Option(help="Seeds of each base.")] = 1,
    jobs: Annotated[int, typer.Option(help="Processes at a time; 0 = one per core.")] = 1,
    budget: Annotated[float | None, typer.Option(help="Minutes to spend now; 0 = only the pages.")] = None,
    tables: Annotated[Path | None, typer.Option("--json", help="Also write all tables here.")] = None,
    overrides: Overrides = None,
) -> None:
    """AutoTool's claims on several base models: cached cells, one verdict per claim. Hours; it goes on where it was."""
    from unbraid.lab.autotool.__main__ import main

    more = [f"--budget={budget}"] * (budget is not None) + [f"--json={tables}"] * (tables is not None)
    asked = [f"--out={out}", f"--bases={bases}", f"--seeds={seeds}", f"--jobs={jobs}", *more, *(overrides or [])]
    raise typer.Exit(main(asked))


@lab.command("dart")
def lab_dart(
    out: Annotated[Path, typer.Option(help="Folder of cells and page; what is there is taken.")] = Path("runs/dart"),
    bases: Annotated[int, typer.Option(help="Base models of each world; most are built first.")] = 6,
    world: Annotated[list[str] | None, typer.Option(help="conflict or search: run there only. Default: both.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time; 0 = one per core.")] = 1,
    budget: Annotated[float | None, typer.Option(help="Minutes to spend now; 0 = only the page.")] = None,
    tables: Annotated[Path | None, typer.Option("--json", help="Also write all tables here.")] = None,
    overrides: Overrides = None,
) -> None:
    """DART's claims on several base models: cached cells, one verdict per claim. Hours; it goes on where it was."""
    from unbraid.lab.dart.__main__ import main

    more = [f"--budget={budget}"] * (budget is not None) + [f"--json={tables}"] * (tables is not None)
    worlds = [f"--world={name}" for name in world or ()]
    raise typer.Exit(main([f"--out={out}", f"--bases={bases}", *worlds, f"--jobs={jobs}", *more, *(overrides or [])]))
