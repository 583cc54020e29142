"""The command `unbraid`: parse, call, print. Everything here can be had from Python in as few lines."""

import sys
from typing import NoReturn

import typer
from rich.text import Text

from unbraid.cli import agents, bfcl, compare, cost, export, interference, runs, serving
from unbraid.cli.console import errors, is_first, several
from unbraid.cli.data import data
from unbraid.cli.lab import lab
from unbraid.errors import UnbraidError

INTERRUPTED = 130
_AGAIN = "; the same command goes on where it was"
_GOES_ON = {
    "train": "; the same command with --resume goes on from the last checkpoint",
    **dict.fromkeys(
        ("bench", "interference", "data build", "data label", "lab autotool", "lab dart", "lab interference"), _AGAIN
    ),
}
"""What Ctrl-C says to whoever stopped a command that can go on."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(runs.app)
app.add_typer(agents.app)
app.add_typer(serving.app)
app.add_typer(compare.app)
app.add_typer(cost.app)
app.add_typer(export.app)
app.add_typer(interference.app)
app.add_typer(data, name="data")
app.add_typer(bfcl.bench, name="bench")
app.add_typer(lab, name="lab")


@app.callback()
def about() -> None:
    """Post-training for language models that use tools: think only when it pays."""


def _refuse(error: Exception) -> NoReturn:
    where = ""
    if several():
        from unbraid import ranks

        if ranks.is_told(error):
            sys.exit(1)
        where = f"rank {ranks.rank()}: " if ranks.rank() else ""
    # As text, not as markup: messages quote users' brackets.
    errors.print(Text.assemble(("error: ", "bold red"), where, str(error)), highlight=False, soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Entry point: errors of ours are one line, without a traceback."""
    try:
        # Without standalone mode an exit status is returned, not raised; Ctrl-C is 130.
        status = app(standalone_mode=False) or 0
    except UnbraidError as error:
        _refuse(error)
    except OSError as error:  # a disk that is full, a folder that cannot be written
        _refuse(error)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
            error.show()  # pyright: ignore[reportAttributeAccessIssue] (a usage error of the command line)
            sys.exit(2)
        raise
    if status == INTERRUPTED:
        hint = _GOES_ON.get(" ".join(sys.argv[1:3])) or _GOES_ON.get("".join(sys.argv[1:2]), "")
        if is_first():
            errors.print(f"stopped{hint}", highlight=False)
    sys.exit(status)
