"""Commands for public benchmarks: `unbraid bench NAME RUN …`. Each writes one record, and goes on with one."""

import inspect
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from unbraid.cli.console import Bars, Overrides, Runs, console, errors

bench = typer.Typer(no_args_is_help=True, help="Score a run on public benchmarks.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Python = Annotated[str, typer.Option(help="Interpreter that has what the clone needs; default: this one.")]


@dataclass
class Flags:
    """What all benchmarks that we ask ourselves take, as options of the command line."""

    overrides: Overrides = None
    mode: Annotated[list[str] | None, typer.Option(help="auto (default), think, no_think; may be repeated.")] = None
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0
    limit: Annotated[int | None, typer.Option(min=1, help="Most entries of a category.")] = None
    checkpoint: Annotated[
        str, typer.Option(help="Folder in the run that holds the weights; base: before training.")
    ] = "final"
    adapters: Annotated[str, typer.Option(help="Of a routed run: one adapter alone, or swapped.")] = ""
    again: Annotated[bool, typer.Option("--again", help="Throw away what was answered, and ask anew.")] = False
    together: Annotated[int, typer.Option(min=1, help="Entries asked and written down at a time.")] = 64


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `Flags` in place of its parameter `flags`."""
    own = [p for name, p in inspect.signature(command).parameters.items() if name != "flags"]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(Flags)
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    # Arguments before options, the open-ended list of overrides last: as they are written.
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)

    def run(**given: Any) -> None:
        flags = Flags(**{f.name: given.pop(f.name) for f in fields(Flags)})
        command(flags=flags, **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature(parameters)
    return run


@bench.command("api-bank")
@asks
def api_bank(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="ROWS", help="level-1-api.json, level-2-api.json, or a folder.")],
    flags: Flags,
    clone: Annotated[str, typer.Option(help="Folder api-bank of DAMO-ConvAI: its own evaluator decides.")] = "",
    python: Python = "",
) -> None:
    """API-Bank, levels 1 and 2: the next API call of a dialogue."""
    from unbraid.bench import api_bank as rows
    from unbraid.bench.official import Checker

    if not clone:
        return _ask(run, flags, lambda *_: rows.api_bank(source))
    with Checker("api_bank", clone, python) as checker:
        official = rows.official_reward(checker)
        return _ask(run, flags, lambda *_: rows.api_bank(source, official, "official: the APIs of the clone"))


@bench.command()
@asks
def acebench(
    run: Run,
    clone: Annotated[str, typer.Argument(metavar="CLONE", help="Folder of a clone of chenchen0103/ACEBench.")],
    flags: Flags,
    prompt: Annotated[str, typer.Option(help="official, or tools: APIs as tools of the chat template.")] = "official",
    language: Annotated[str, typer.Option(help="en or zh.")] = "en",
    python: Python = "",
) -> None:
    """ACEBench, normal and special, by its own evaluation."""
    from unbraid.bench import acebench as rows
    from unbraid.bench.official import Checker

    chosen = _one_of(prompt, "--prompt", ("official", "tools")), _one_of(language, "--language", ("en", "zh"))
    with Checker("acebench", clone, python) as checker:
        _ask(run, flags, lambda *_: rows.acebench(clone, checker, language=chosen[1], prompt=chosen[0]))


@bench.command()
@asks
def qa(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="QUESTIONS", help="A file, or a folder with one for each set.")],
    flags: Flags,
    corpus: Annotated[str, typer.Option(help="What to search in: a folder or a file.")] = "",
    url: Annotated[str, typer.Option(help="A retriever's address, such as of `unbraid serve-retriever`.")] = "",
    topk: Annotated[int, typer.Option(min=1, help="Passages of a search.")] = 3,
    name: Annotated[str, typer.Option(help="Of the record; default: qa, or qa and the one set.")] = "",
) -> None:
    """Search QA in FlashRAG's and Search-R1's form: NQ, TriviaQA, PopQA, HotpotQA, 2Wiki, MuSiQue, Bamboogle."""
    from unbraid.bench.questions import questions

    _ask(run, flags, lambda recipe, _: questions(source, recipe, corpus, url, topk, name))


@bench.command()
@asks
def nl2sql(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="QUESTIONS", help="dev.json of Spider, BIRD, or their form.")],
    flags: Flags,
    databases: Annotated[str, typer.Option(help="Folder with ID/ID.sqlite; default: found beside the file.")] = "",
    match: Annotated[str, typer.Option(help="ordered (Spider), set (BIRD), multiset; default: by the rows.")] = "",
    name: Annotated[str, typer.Option(help="Of the record; default: spider or bird, by the rows.")] = "",
) -> None:
    """Execution accuracy on questions in the form of Spider and BIRD."""
    from unbraid.bench.nl2sql import nl2sql as rows

    rule = _one_of(match, "--match", ("ordered", "set", "multiset")) if match else None
    _ask(run, flags, lambda recipe, _: rows(source, recipe, databases, rule, name))


@bench.command()
@asks
def roles(run: Run, flags: Flags) -> None:
    """The run's own test tasks with each adapter alone, both, and swapped: DART's mechanism table."""
    from unbraid.bench.roles import own_tasks
    from unbraid.prepare import load_tasks, make_environment

    if flags.adapters:
        raise typer.BadParameter("roles tries all of them: leave --adapters out")

    def own(recipe: Any, policy: Any) -> Any:
        acts_in = make_environment(recipe)
        return own_tasks(recipe, load_tasks(recipe, policy, acts_in), acts_in)

    _ask(run, flags, own, every_choice=True)


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


def _ask(run: Path, flags: Flags, make: Callable[[Any, Any], Any], every_choice: bool = False) -> None:
    """Ask in every mode, and with every choice of adapters if so; then print the table.

    Args:
        make: (recipe, policy) → the benchmark.
    """
    from unbraid.bench import ask as asking
    from unbraid.bench.roles import adapter_choices, with_adapters
    from unbraid.bench.table import benchmark_table
    from unbraid.chat.types import Mode
    from unbraid.errors import ModelError
    from unbraid.prepare import open_fleet

    modes = [Mode(_one_of(m, "--mode", ("auto", "think", "no_think"))) for m in flags.mode or ["auto"]]
    recipe, policy = asking.load_run(run, flags.checkpoint, flags.overrides or [])
    choices = adapter_choices(policy) if every_choice else (flags.adapters,)
    if any(choices) and recipe.sampler.engine != "local":
        raise ModelError("adapters by themselves are run in this process only: add sampler=local")
    benchmark = make(recipe, policy)
    if benchmark.notes:
        errors.print(benchmark.notes, highlight=False, markup=False)
    adapted = asking.recipe_for(benchmark, recipe)
    tasks = [task for found in benchmark.tasks.values() for task in found]
    found = []
    with open_fleet(adapted, policy, tasks, run / "servers") as fleet, Bars() as bars:
        for mode in modes:
            for choice in choices:
                how = asking.Asking(
                    mode, flags.temperature, flags.checkpoint, choice, flags.limit, flags.again, flags.together,
                    shlex.join(["unbraid", *sys.argv[1:]]),
                )  # fmt: skip
                with with_adapters(policy, choice):
                    roll = asking.roll_for(benchmark, adapted, policy, fleet)
                    found.append(asking.ask(benchmark, recipe, policy, run, how, roll, bars.show))
    console.print(benchmark_table(found))
    console.print(f"\nrecord [bold]{found[-1].setting.folder(run)}[/]", highlight=False)


def _one_of(value: str, flag: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise typer.BadParameter(f"{flag} {value}: use one of {', '.join(known)}")
    return value
