"""`unbraid interference` and `unbraid lab interference`: do reasoning and tool use fight over shared weights?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from unbraid.cli.console import Bars, Layers, console, load
from unbraid.cli.lab import lab

app = typer.Typer()


@app.command()
def interference(
    recipe: Layers,
    out: Annotated[
        Path | None, typer.Option(help="Folder; what is there is taken. Default: runs/interference-…")
    ] = None,
    starts: Annotated[int, typer.Option(help="Training starts, the unit of all intervals.")] = 3,
    questions: Annotated[int, typer.Option(help="Test tasks that every model is asked.")] = 50,
    samples: Annotated[int, typer.Option(help="Responses to each.")] = 64,
) -> None:
    """Do reasoning and tool use fight in your model? Trains four or five models per start. The last line is JSON."""
    from unbraid.interference.diagnosis import sentences
    from unbraid.report.interference import Section, attribution_picture, write_interference
    from unbraid.run.interference import interference as diagnose_recipe

    loaded = load(recipe)
    folder = out or Path("runs") / ("interference-" + "-".join(Path(i).stem for i in recipe if "=" not in i))
    with Bars() as bars:
        found = diagnose_recipe(loaded, folder, starts, questions, samples, bars.show)
    command = f"unbraid interference {' '.join(recipe)} --starts {starts} --questions {questions} --samples {samples}"
    trained = f"{found.starts} training start{'s' * (found.starts > 1)}"
    lines, weight = sentences(found), loaded.learn.off_role_kl
    held = f"held at the start by a KL of weight {weight:g} (learn.off_role_kl)" if weight else "free to drift"
    write_interference(
        folder / "interference.html",
        f"Reasoning and tool use: {loaded.name}",
        [f"{trained}, {found.questions} questions, {found.samples} samples of each model."],
        [Section("diagnosis", "Verdict", found, picture=attribution_picture(found, "diagnosis"))],
        [],
        command,
        {"recipe": loaded.label or loaded.name, "steps": str(loaded.learn.steps), "other role": held},
    )
    for line in lines:
        console.print(line, highlight=False)
    console.print(f"page [bold]{folder / 'interference.html'}[/]", highlight=False)
    shown = found.as_json() | {"sentences": lines, "command": command, "off_role_kl": weight}
    (folder / "interference.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(found.as_json()))


@lab.command("interference")
def lab_interference(
    out: Annotated[Path, typer.Option(help="Folder of cells and page; what is there is taken.")] = Path(
        "runs/interference"
    ),
    bases: Annotated[int, typer.Option(help="Base models of either world, built first.")] = 6,
    rank: Annotated[int, typer.Option(help="Of the conflict world's adapters; the wide one has twice as much.")] = 4,
    part: Annotated[
        list[str] | None,
        typer.Option(help="tight, loose, tight-held, tight-grpo or search: run only that. Default: all."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes at a time; 0 = one per core.")] = 1,
    budget: Annotated[float | None, typer.Option(help="Minutes to spend now; 0 = only the page.")] = None,
    tables: Annotated[Path | None, typer.Option("--json", help="Also write all tables here.")] = None,
) -> None:
    """The measures of interference where the answer is known, and in the search world. The last line is JSON."""
    from unbraid.lab.interference.__main__ import main

    more = [f"--part={name}" for name in part or ()]
    more += [f"--budget={budget}"] * (budget is not None) + [f"--json={tables}"] * (tables is not None)
    raise typer.Exit(main([f"--out={out}", f"--bases={bases}", f"--rank={rank}", f"--jobs={jobs}", *more]))
