"""`unbraid data`: rows looked into, labelled, chosen among, and built into a training set."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from unbraid.cli.console import Bars, Layers, console, errors, load
from unbraid.errors import DataError

data = typer.Typer(no_args_is_help=True, help="Rows: look into them, label them, choose among them, build a set.")


@data.command("inspect")
def data_inspect(
    source: Annotated[str, typer.Argument(help="File, directory, hub name (owner/name) or module:function?key=value.")],
    model: Annotated[str, typer.Option(help="Measure prompts in tokens, with this model's chat template.")] = "",
    show: Annotated[int, typer.Option(help="Tasks to show in full.", min=0)] = 3,
    against: Annotated[str, typer.Option(help="Another source, to look for the same tasks in.")] = "",
    problems: Annotated[Path | None, typer.Option(help="Write every bad and skipped row there, as JSON lines.")] = None,
    format: Annotated[str, typer.Option(help="Format of the rows; auto = told from their keys.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of a data set on the hub.")] = "train",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
) -> None:
    """What is in a source: counts, lengths, tools, problems, duplicates, and examples as they will be trained on."""
    from unbraid.data import DataConfig
    from unbraid.data.inspect import TemplatePrompts, inspect
    from unbraid.data.show import show_inspection

    prompts = None
    if model:
        from unbraid.policy.policy import ModelConfig, load_tokenizer

        prompts = TemplatePrompts(load_tokenizer(ModelConfig(path=model)))
    config = DataConfig(format=format, split=split, strict=strict, no_call=1.0)
    found = inspect(source, config, prompts, against)
    console.print(show_inspection(found, show))
    if problems:
        found.write_problems(problems)
    found.require_tasks()


@data.command("label")
def data_label(
    recipe: Layers,
    out: Annotated[Path, typer.Option(help="Folder to write; the same command goes on with what is in it.")],
    tries: Annotated[int, typer.Option(help="Tries per task and mode.")] = 8,
    rule: Annotated[str, typer.Option(help="When not thinking is right: any, majority or all tries.")] = "any",
    short: Annotated[str, typer.Option(help="Short answers: sampled, or gold.")] = "sampled",
    long: Annotated[str, typer.Option(help="Long answers: the first right one, or the shortest.")] = "first",
    ask: Annotated[
        str, typer.Option(help="Whether the thinker tries what is right without: always, needed.")
    ] = "always",
    fallback: Annotated[str, typer.Option(help="Tasks that nobody gets right: drop, or keep their gold.")] = "drop",
    no_think: Annotated[str, typer.Option(help="Sampler that does not think: model, URL#NAME or file.yaml.")] = "",
    think: Annotated[str, typer.Option(help="Sampler that thinks; both default to the recipe's model.")] = "",
    key_env: Annotated[str | None, typer.Option(help="Environment variable with the endpoints' key.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Request budget of the folder.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget of generated tokens.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also tasks that `train` holds out.")] = False,
) -> None:
    """Label tasks for the warm-up: short where the model is right without thinking, long where only thinking is."""
    from unbraid.label import LabelConfig, label_recipe
    from unbraid.label.from_recipe import settings_of
    from unbraid.label.table import label_table

    settings = {"key_env": key_env, "concurrency": concurrency, "max_requests": max_requests, "max_tokens": max_tokens}
    config = settings_of(LabelConfig, tries=tries, rule=rule, short=short, long=long, think=ask, fallback=fallback)
    with Bars() as bars:
        found = label_recipe(
            load(recipe), out, config, no_think=no_think, think=think, everything=everything, progress=bars.show,
            settings={key: value for key, value in settings.items() if value is not None},
            say=lambda text: errors.print(text, highlight=False, markup=False, soft_wrap=True),
        )  # fmt: skip
    console.print(label_table(found))
    console.print(f"warm up on them: tasks.warmup=unbraid.label:labelled?path={out}", highlight=False)


@data.command("refine")
def data_refine(
    source: Annotated[Path, typer.Argument(help="Folder of `data label`, or of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    method: Annotated[str, typer.Option(help="paper, mixed_groups or stratify.")] = "paper",
    across: Annotated[str | None, typer.Option(help="Variance across rounds (runs) or samples.")] = None,
    keep: Annotated[float, typer.Option(help="Share of the tasks to keep at most.")] = 1 / 3,
    mode: Annotated[str | None, typer.Option(help="Labels: tries of one sampler, no_think or think.")] = None,
    seed: int = 0,
) -> None:
    """Choose tasks by the rewards they were seen to give: the paper's two steps, mixed groups, or even levels."""
    from unbraid.data.refine import RefineConfig
    from unbraid.label.from_recipe import settings_of
    from unbraid.label.refining import refine_folder, refine_table

    found = refine_folder(source, out, settings_of(RefineConfig, method=method, keep=keep, seed=seed), across, mode)
    console.print(refine_table(found))
    console.print(f"train on them: tasks.train=unbraid.label:labelled?path={out}", highlight=False)


Benchmarks = Annotated[
    list[str] | None,
    typer.Option(
        "--benchmark", help="NAME=SOURCE whose questions must not be trained on (repeat).", metavar="NAME=SOURCE"
    ),
]
Sampler = Annotated[str, typer.Option(help="Another sampler: model, URL#NAME or file.yaml.")]


@data.command("build")
def data_build(
    out: Annotated[Path, typer.Option(help="Folder to write; the same command goes on with what is in it.")],
    source: Annotated[
        list[str], typer.Option(help="NAME=SOURCE (repeat): toolace=FILE, xlam=owner/name, …", metavar="NAME=SOURCE")
    ],
    recipe: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]... [KEY=VALUE]...", help="Says who labels, and how.")
    ] = None,
    benchmark: Benchmarks = None,
    until: Annotated[str, typer.Option(help="Last stage: read, pool, label, sample or refine.")] = "refine",
    warmup: Annotated[int | None, typer.Option(help="Tasks to warm up on, at most. [default: 8200]")] = None,
    rl: Annotated[int | None, typer.Option(help="Tasks for RL, at most. [default: 7000]")] = None,
    candidates: Annotated[int | None, typer.Option(help="Tasks to label. [default: 1.25 x warmup]")] = None,
    pool: Annotated[int | None, typer.Option(help="Tasks that RL's are refined from. [default: 3 x rl]")] = None,
    cut: Annotated[str, typer.Option(help="Sources that make room, with commas.")] = "xlam",
    no_call: Annotated[float, typer.Option(help="Largest share of a source's tasks in which no call is right.")] = 0.2,
    misfits: Annotated[str, typer.Option(help="Tasks whose call breaks its tool's schema: drop or keep.")] = "drop",
    max_characters: Annotated[int, typer.Option(help="Longest prompt.")] = 8192,
    remove: Annotated[
        str, typer.Option(help="Overlap that goes: question, near, call, with commas; or none.")
    ] = "question,near,call",
    tries: Annotated[int, typer.Option(help="Tries per task and mode.")] = 8,
    rule: Annotated[str, typer.Option(help="When not thinking is right: any, majority or all tries.")] = "any",
    short: Annotated[str, typer.Option(help="Short answers: sampled, or gold.")] = "sampled",
    long: Annotated[str, typer.Option(help="Long answers: the first right one, or the shortest.")] = "first",
    ask: Annotated[
        str, typer.Option(help="Whether the thinker tries what is right without: always, needed.")
    ] = "always",
    fallback: Annotated[str, typer.Option(help="Tasks that nobody gets right: drop, or keep their gold.")] = "drop",
    no_think: Sampler = "",
    think: Sampler = "",
    rl_model: Annotated[str, typer.Option(help="Who tries the RL pool, in both modes: the warmed-up model, say.")] = "",
    rounds: Annotated[Path | None, typer.Option(help="A run on work/pool/rl.jsonl: refine by its rounds.")] = None,
    method: Annotated[str, typer.Option(help="Refining: paper, mixed_groups or stratify.")] = "paper",
    refine_mode: Annotated[str | None, typer.Option(help="Refine by the tries of no_think or think alone.")] = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable with the endpoints' key.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Request budget of a stage.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget of generated tokens of a stage.")] = None,
    licence: Annotated[
        list[str] | None, typer.Option(help="Of a source that the card does not know (repeat).", metavar="NAME=ID")
    ] = None,
    format: Annotated[str, typer.Option(help="Format of the rows; auto = told from their keys.")] = "auto",
    split: Annotated[str, typer.Option(help="Split of data sets on the hub.")] = "train",
    seed: int = 0,
) -> None:
    """Build a training set of public rows: read, pool (filter, repeats, overlap, cut), label, sample, refine, card."""
    from unbraid.data.overlap import OverlapConfig
    from unbraid.data.refine import RefineConfig
    from unbraid.label import LabelConfig
    from unbraid.label.build import build
    from unbraid.label.build_config import BuildConfig, Samplers
    from unbraid.label.card import source_table, step_table, write_card
    from unbraid.label.from_recipe import settings_of

    config = settings_of(
        BuildConfig, sources=_named(source), benchmarks=_named(benchmark), licences=_named(licence), format=format,
        split=split, warmup=warmup, rl=rl, candidates=candidates, pool=pool, cut=_listed(cut), no_call=no_call,
        misfits=misfits, max_characters=max_characters, seed=seed, refine_mode=refine_mode,
        overlap=settings_of(OverlapConfig, remove=() if remove == "none" else _listed(remove)),
        refine=settings_of(RefineConfig, method=method, seed=seed),
        labels=settings_of(LabelConfig, tries=tries, rule=rule, short=short, long=long, think=ask, fallback=fallback),
    )  # fmt: skip
    bought = {"key_env": key_env, "concurrency": concurrency, "max_requests": max_requests, "max_tokens": max_tokens}
    settings = {key: value for key, value in bought.items() if value is not None}
    # A recipe must name tasks; those that are labelled come from the pool.
    loaded = load([*recipe, f"tasks.train={out / 'work' / 'pool' / 'warmup.jsonl'}"]) if recipe else None
    with Bars() as bars:
        built = build(
            config, out, until,
            samplers=(lambda: Samplers.of(loaded, no_think, think, settings)) if loaded else None,
            rl_samplers=(lambda: Samplers.of(loaded, rl_model, rl_model, settings)) if loaded and rl_model else None,
            rounds=rounds, progress=bars.show,
            say=lambda text: errors.print(text, highlight=False, markup=False, soft_wrap=True),
        )  # fmt: skip
    asked = {"--no-think": no_think, "--think": think, "--rl-model": rl_model, "--rounds": str(rounds or "")}
    write_card(built, [*(recipe or []), *(word for key, value in asked.items() if value for word in (key, value))])
    console.print(_table(*source_table(built)), "", _table(*step_table(built.steps)))
    console.print(f"card: {built.folder / 'README.md'}", highlight=False)


@data.command("overlap")
def data_overlap(
    source: Annotated[str, typer.Argument(help="What is, or was, trained on: any source of tasks.")],
    benchmark: Benchmarks = None,
    words: Annotated[int, typer.Option(help="Words of one n-gram.", min=1)] = 5,
    share: Annotated[float, typer.Option(help="Share of a question's n-grams from which on it is near.")] = 0.6,
    show: Annotated[int, typer.Option(help="Pairs to show for each benchmark.", min=0)] = 5,
) -> None:
    """Look for what benchmarks ask among the tasks of a source: equal and near questions, equal calls."""
    from unbraid.data import DataConfig, read_tasks
    from unbraid.data.overlap import SAID, OverlapConfig, audit, overlap_row, read_benchmark
    from unbraid.label.card import overlap_table
    from unbraid.label.from_recipe import settings_of

    if not (named := _named(benchmark)):
        raise typer.BadParameter("give at least one --benchmark NAME=SOURCE")
    config = settings_of(OverlapConfig, words=words, share=share)
    tasks = read_tasks(source, DataConfig(no_call=1.0)).tasks
    found = []
    with Bars() as bars:
        for name, of in named:
            told = partial(bars.show, name, metrics={})
            found.append(audit(tasks, read_benchmark(name, of), config, told))
    console.print(_table(*overlap_table([overlap_row(one) for one in found])))
    for hit in (hit for one in found for hit in one.examples(show)):
        console.print(f"{hit.task} {SAID[hit.kind]} {hit.question}", highlight=False, markup=False)
        console.print(f"  {hit.ours}\n  {hit.theirs}", highlight=False, markup=False, style="dim")


def _named(items: list[str] | None) -> list[tuple[str, str]]:
    """(name, value) of every NAME=VALUE; one without a name is named after its file.

    Raises:
        DataError: a name or a value is empty, or the name is none that folders and tables take.
    """
    found = []
    for item in items or []:
        name, equals, value = item.partition("=")
        name, value = (name, value) if equals else (Path(item).stem, item)
        if not value or not name.replace("-", "").replace("_", "").isalnum():
            raise DataError(f"{item!r}: write NAME=VALUE, the name of letters, digits, - and _")
        found.append((name, value))
    return found


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _table(head: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 or name == "dropped" else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
