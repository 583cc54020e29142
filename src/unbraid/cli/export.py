"""The command that makes a model ready for others."""

from pathlib import Path
from typing import Annotated

import typer

from unbraid.cli.console import console, errors

app = typer.Typer()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add the run's one adapter to its base.")] = False,
    base: Annotated[str, typer.Option(help="Hub name of the base, where the recipe names a folder.")] = "",
    license: Annotated[str, typer.Option(help="Of the model; default: what the base's own card says.")] = "",
    checkpoint: Annotated[str, typer.Option(help="Folder in the run that holds the weights.")] = "final",
) -> None:
    """Write a folder that stock transformers, PEFT and vLLM load, with a model card; nothing is uploaded."""
    with errors.status("exporting"):  # before the imports, which take seconds
        from unbraid.export import export_run

        done = export_run(run, out, merge=merge, checkpoint=checkpoint, base=base, license=license)
    for note in done.notes:
        errors.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{done.kind} model, card and tokenizer [bold]{done.path}[/]\n"
        f"  unbraid serve {done.path}\n  hf upload YOU/NAME {done.path}     (when you have read the card)",
        highlight=False,
    )
