"""Commands about runs: quickstart, train, evaluate, second-thoughts, report, doctor, recipes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from unbraid.cli.console import Bars, Layers, Overrides, Runs, console, errors, is_first, load, print_scores

if TYPE_CHECKING:
    from unbraid.policy import Policy
    from unbraid.prepare import TaskSets
    from unbraid.recipe import Recipe
    from unbraid.rollout.scoring import Roll

app = typer.Typer()


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of report.html.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Of warm-up and RL.")] = 0,
    world: Annotated[int, typer.Option(help="Of the calls world; others than 0 first build a base (3 minutes).")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at a time; 0 = one per core, at most 3.")] = 0,
    overrides: Overrides = None,
) -> None:
    """The whole loop on a laptop in minutes: warm up, train three ways, compare, write one page."""
    from unbraid.lab import quickstart as lab_quickstart
    from unbraid.report.terminal import score_table

    report = lab_quickstart.quickstart(out, seed, world, overrides or [], jobs, errors)
    console.print(score_table(report))
    for line in report.summary:
        console.print(line, highlight=False)
    console.print(f"\n[bold]{out / 'report.html'}[/] shows it all", highlight=False)


@app.command()
def train(
    recipe: Layers,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/ and the recipes' names.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in the folder stands.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate only, as `doctor`.")] = False,
    on: Annotated[str, typer.Option(help="ray: by the workers of a Ray cluster, started again when one is lost.")] = "",
    workers: Annotated[int, typer.Option(min=0, help="With --on ray; 0 = one for each GPU.")] = 0,
) -> None:
    """Warm up, train, evaluate and report, as a recipe says; with torchrun or accelerate launch, on several devices."""
    from unbraid import run
    from unbraid.run.on_ray import train_on_ray

    if dry_run:
        return doctor(recipe)
    loaded = load(recipe)
    run_dir = out or Path("runs") / "-".join(
        Path(item.removesuffix(".yaml")).name for item in recipe if "=" not in item
    )
    if on not in ("", "ray"):
        raise typer.BadParameter(f"'{on}': ray is all there is", param_hint="--on")
    with Bars() as bars:
        if on:
            train_on_ray(loaded, run_dir, resume, workers, bars.show)
        else:
            run.train(loaded, run_dir, resume, bars.show)
    if not is_first():
        return
    report = run.report_runs([run_dir], run_dir / "report.html")
    print_scores(report)
    console.print(f"\nmodel [bold]{run_dir / 'final'}[/]   page [bold]{run_dir / 'report.html'}[/]", highlight=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    overrides: Overrides = None,
    checkpoint: Annotated[str, typer.Option(help="Folder in the run that holds the weights.")] = "final",
) -> None:
    """Evaluate a trained run again, perhaps on other tasks or in other modes; replaces its scores and its page."""
    from unbraid import run as runs

    with _opened(run, overrides, checkpoint) as (recipe, policy, tasks, roll, bars):
        runs.evaluate_run(recipe, policy, tasks.test, run, bars.show, checkpoint, roll)
    if not is_first():
        return
    print_scores(runs.report_runs([run], run / "report.html"))


@app.command("second-thoughts")
def second_thoughts(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    overrides: Overrides = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens per task to keep to; as careful as they allow.")] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of always thinking's accuracy; as cheap as that is.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Folder in the run that holds the weights.")] = "final",
    drafts: Annotated[
        str | None,
        typer.Option(
            help="Who drafts: base, or a folder in the run. By default the weights themselves, free to think."
        ),
    ] = None,
) -> None:
    """Let direct answers stand only where the model was sure of them: choose how sure, and see what it gives."""
    from unbraid.report.second_thoughts import result_table, thresholds_table, write_second_thoughts
    from unbraid.run import colophon
    from unbraid.run.second_thoughts import drafts_of
    from unbraid.run.second_thoughts import second_thoughts as run_second_thoughts

    with _opened(run, overrides, checkpoint) as (recipe, policy, tasks, roll, bars):
        writer = drafts_of(recipe, run, drafts) if drafts else None
        found = run_second_thoughts(recipe, policy, tasks, run, roll, tokens, keep, bars.show, checkpoint, writer)
    if not is_first():
        return
    console.print(thresholds_table(found), "", found.rule, "", result_table(found), highlight=False)
    page = run / "second_thoughts.html"
    final = checkpoint == "final"
    given = {"--tokens": tokens, "--keep": keep, "--checkpoint": None if final else checkpoint, "--drafts": drafts}
    options = "".join(f" {name} {value}" for name, value in given.items() if value is not None)
    notes = colophon([f"unbraid second-thoughts {run}{options}"], {"run": recipe.seed})
    write_second_thoughts(page, found, notes)
    console.print(f"\npage [bold]{page}[/]", highlight=False)


@contextmanager
def _opened(
    run: Path, overrides: list[str] | None, checkpoint: str
) -> "Iterator[tuple[Recipe, Policy, TaskSets, Roll, Bars]]":
    """A finished run with its weights, its tasks and a way to roll them out; servers, if any, as long as it is open."""
    from unbraid import ranks
    from unbraid import run as runs
    from unbraid.policy import load_policy
    from unbraid.prepare import load_tasks, make_environment, open_fleet, roll_of
    from unbraid.recipe import load_recipe

    runs.recipe_of(run)
    recipe = load_recipe([run / "recipe.yaml"], overrides or [])
    with ExitStack() as stack:
        stack.enter_context(ranks.joined(recipe.model.device))
        policy = ranks.in_turn(lambda: load_policy(recipe.model, recipe.chat))
        runs.take_weights(policy, run / checkpoint)
        acts_in = make_environment(recipe)
        tasks = load_tasks(recipe, policy, acts_in)
        servers = open_fleet(recipe, policy, tasks.test, run / "servers")
        fleet = ranks.agree(lambda: stack.enter_context(servers) if ranks.is_first() else None)
        bars = stack.enter_context(Bars())
        yield recipe, policy, tasks, roll_of(recipe, policy, acts_in, fleet), bars


@app.command()
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page; default: the names of the runs.")] = "",
) -> None:
    """One page about one or more finished runs."""
    from unbraid.run import report_runs

    print_scores(report_runs(runs, out, title))
    console.print(f"page [bold]{out}[/]", highlight=False)


@app.command()
def doctor(recipe: Layers) -> None:
    """Check a recipe before spending anything on it: template, delimiters, reward, memory, time."""
    from unbraid.doctor import diagnose, print_findings

    findings = diagnose(load(recipe), errors)
    print_findings(findings, console)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command("add-delimiters")
def add_delimiters(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Such as '<search>' '</search>'.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
) -> None:
    """Write a base that has one id, and rows, for each delimiter: where `doctor` says that one is several tokens."""
    from unbraid.policy.new_tokens import save_with_delimiters

    new = save_with_delimiters(model, out, texts)
    console.print(f"{', '.join(new)} added   now: model.path={out}", highlight=False, markup=False)


@app.command()
def recipes(recipe: Annotated[list[str] | None, typer.Argument(metavar="[RECIPE]... [KEY=VALUE]...")] = None) -> None:
    """List the shipped recipes, or print one as it will be used, defaults included."""
    from unbraid.recipe import recipe_groups

    if recipe:
        return console.print(load(recipe).to_yaml(), highlight=False, markup=False, soft_wrap=True)
    for title, found in recipe_groups().items():
        table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for name, line in found.items():
            table.add_row(f"[bold]{name}[/]", line)
        console.print(title, table, "", sep="\n", highlight=False)
