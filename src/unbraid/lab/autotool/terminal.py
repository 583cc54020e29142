"""The tables of the claims run on a terminal."""

from rich.table import Table

from unbraid.evaluate.statistics import Estimate
from unbraid.lab.autotool.goal import Reached
from unbraid.lab.autotool.table import Claims


def tables(claims: Claims) -> list[Table]:
    """Methods, verdicts, shares and coverage, in this order; those without a row are left out."""
    found = [_methods(claims), _verdicts(claims), _shares(claims), _coverage(claims)]
    return [table for table in found if table.row_count]


def shown(e: Estimate | None, scale: float = 1.0, digits: int = 1) -> str:
    """A number with its interval, as far as there are any."""
    if e is None:
        return "–"
    text = f"{scale * e.value:.{digits}f}"
    if e.low is not None and e.high is not None:
        text += f" ({scale * e.low:.{digits}f}…{scale * e.high:.{digits}f})"
    return text


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, box=None, title_justify="left")


def _methods(claims: Claims) -> Table:
    columns = (
        "method",
        "start",
        "accuracy, %",
        "tokens",
        "think, %",
        "end of RL, %",
        "sampled",
        "prompts kept",
        "bases",
    )
    table = _table("All methods at one share of known prompts", *columns)
    for row in claims.rows:
        kept = "" if row.prompts_known is None else f"{row.prompts_known:.2f} known"
        numbers = (
            shown(row.accuracy, 100),
            shown(row.tokens),
            shown(row.think_rate, 100),
            shown(row.end_think_rate, 100),
        )
        sampled = f"{row.sampled / 1000:.0f}k" if row.sampled else "–"
        table.add_row(row.method, row.begins_as, *numbers, sampled, kept, str(row.accuracy.n))
    return table


def _verdicts(claims: Claims) -> Table:
    table = _table("The paper's claims", "claim", "verdict", "here", "the paper")
    for v in claims.verdicts:
        table.add_row(v.claim.name, v.ruling.value, v.shown, v.claim.number)
    return table


def _shares(claims: Claims) -> Table:
    columns = (
        "method",
        "known share",
        "oracle saves",
        "of it saved, %",
        "of distilled accuracy, %",
        "end of RL, %",
        "stops thinking",
        "goal",
    )
    table = _table("Known share", *columns)
    for r in claims.goal:
        numbers = (shown(r.oracle_saving), shown(r.saved, 100), shown(r.kept, 100), shown(r.think_rate, 100))
        table.add_row(r.method, f"{r.share:g}", *numbers, collapse(r), goal(r))
    return table


def collapse(r: Reached) -> str:
    """On how many bases it gave up thinking, and whether that was predicted of most."""
    return f"on {r.stopped_on} of {r.think_rate.n}" + (
        ", as predicted" if r.is_as_predicted else ", against prediction"
    )


def goal(r: Reached) -> str:
    """Whether the goal is met by the means, and on how many bases."""
    return f"{'met' if r.is_met else '–'}, on {r.met_on} of {r.kept.n}"


def _coverage(claims: Claims) -> Table:
    columns = ("simulated", "bases x seeds", "hold the truth, %", "below, %", "above, %", "no width, %")
    table = _table("Coverage of the intervals", *columns)
    for c in claims.coverages:
        shares = (f"{100 * share:.1f}" for share in (c.held, c.below, c.above, c.pointlike))
        table.add_row(c.setting.name, f"{c.bases} x {c.seeds}", *shares)
    return table
