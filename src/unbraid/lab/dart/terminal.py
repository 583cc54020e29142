"""The tables of the claims run on a terminal."""

from collections.abc import Sequence

from rich.table import Table

from unbraid.lab.autotool.terminal import shown
from unbraid.lab.claims import Verdict
from unbraid.lab.dart.methods import World
from unbraid.lab.dart.table import Claims, Row


def tables(claims: Claims) -> list[Table]:
    """Verdicts, the dose, and all methods in each world; those without a row are left out."""
    found = [
        _verdicts("DART's claims", claims.paper, "the paper"),
        _verdicts("Predictions", claims.predicted, "predicted"),
        *(
            _verdicts(f"DART less one shared adapter, by dose, {sharing} sharing", verdicts, "predicted")
            for sharing, verdicts in claims.dose.items()
        ),
        *(_methods(world, [row for row in claims.rows if row.world is world]) for world in World),
    ]
    return [table for table in found if table.row_count]


def place(row: Row) -> str:
    """Where a row was run, in words."""
    if row.world is World.SEARCH:
        return "search, GRPO"
    return f"{row.learner.value}, {row.sharing.value} sharing, rho {row.rho:g}"


def _verdicts(title: str, verdicts: Sequence[Verdict], last: str) -> Table:
    table = Table("claim", "verdict", "here", last, title=title, box=None, title_justify="left")
    for v in verdicts:
        table.add_row(v.claim.name, v.ruling.value, v.shown, v.claim.number)
    return table


def _methods(world: World, rows: Sequence[Row]) -> Table:
    columns = (
        "method",
        "where",
        "rate",
        "final, %",
        "area, %",
        "less shared_r16",
        "action, %",
        "reasoning, %",
        "bases",
    )
    table = Table(*columns, title=f"All methods, {world} world", box=None, title_justify="left")
    for row in rows:
        numbers = [shown(e, 100) for e in (row.final, row.auc, row.against, row.action, row.reasoning)]
        table.add_row(row.method, place(row), f"{row.rate:g}" if row.rate else "–", *numbers, str(row.final.n))
    return table
