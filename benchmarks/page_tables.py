"""Tables of results in Markdown, and their places in a page: between `<!-- name -->` and `<!-- name end -->`."""

from collections.abc import Mapping, Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def fill(text: str, tables: Mapping[str, str]) -> str:
    """The page with its tables made anew."""
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- {name} end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return text
