"""NL2SQL in the form of Spider and BIRD: a question and a database in, a query out that gives the gold query's rows.

Right is execution accuracy. `match` says when results are the same (`tasks.sql.compare`): `ordered` is Spider's rule,
`set` is BIRD's; by default the rows tell which, `SQL` being BIRD's key and `query` Spider's. Source: both evaluation
scripts. Differences: queries run in our sandbox with its limits; columns may come in any order under `ordered`, as in
Spider's test suite; questions whose gold query fails are left out and counted in the notes.
"""

from collections import Counter
from pathlib import Path

from unbraid.bench.ask import Benchmark
from unbraid.errors import DataError
from unbraid.recipe import Recipe
from unbraid.tasks.sql.compare import Match
from unbraid.tasks.sql.nl2sql import NL2SQL
from unbraid.tasks.sql.read import question_rows, question_tasks
from unbraid.tasks.task import Task

DATABASES = ("database", "dev_databases", "test_database", "databases")
"""Names of the folder of databases beside a file of questions, in Spider and BIRD."""
ALL = "all"
"""The category where rows have no difficulty."""


def nl2sql(source: str, recipe: Recipe, databases: str = "", match: Match | None = None, name: str = "") -> Benchmark:
    """The benchmark from a file of questions.

    Args:
        recipe: of the run: its call format says how the prompt explains queries.
        databases: folder with `ID/ID.sqlite`; by default one of `DATABASES` beside the file.
        name: of the record; by default spider or bird, after the form of the rows.

    Raises:
        DataError: no question can be asked. EnvError: there are no databases.
    """
    file = Path(source)
    folder = databases or next((str(file.parent / d) for d in DATABASES if (file.parent / d).is_dir()), "")
    if not folder:
        raise DataError(f"{file}: no folder {' or '.join(DATABASES)} beside it: give --databases")
    bird = any(isinstance(row, dict) and "SQL" in row and "query" not in row for row in question_rows(file)[:1])
    rule: Match = match or ("set" if bird else "ordered")
    tasks: dict[str, list[Task]] = {}
    bad: Counter[str] = Counter()
    calls = "tags" if recipe.chat.call_format == "sql" else "chat"
    for task in question_tasks(source, folder, calls=calls):
        if isinstance(task, DataError):
            bad[str(task)] += 1
        else:
            tasks.setdefault(task.level or ALL, []).append(task)
    reasons = "; ".join(f"{n} x {reason}" for reason, n in bad.most_common(3))
    if not tasks:
        raise DataError(f"{file}: no question can be asked ({reasons})")
    count = sum(map(len, tasks.values()))
    return Benchmark(
        name=name or ("bird" if bird else "spider"),
        checker=f"ours: execution accuracy, rows compared as {rule}",
        tasks=tasks,
        acts_in=NL2SQL(folder, reward="execution", match=rule),
        other={"questions": file.name, "match": rule},
        notes=f"{count} questions of {file.name}" + (f"; left out: {reasons}" if bad else ""),
    )
