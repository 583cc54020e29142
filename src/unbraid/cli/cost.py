"""The command about what a run would take: memory and time, without the model or the GPU."""

from typing import Annotated

import typer

from unbraid.cli.console import Layers, console, errors, load

app = typer.Typer()


@app.command()
def cost(
    recipe: Layers,
    gpu: Annotated[str, typer.Option(help="h200, h100, a100-80, a100-40, l40s, 4090, 3090, a10g, l4 or cpu.")] = "",
    fill: Annotated[float, typer.Option(help="Prompts and responses, on average, in parts of their limits.")] = 0.5,
    prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt, on average.")] = None,
    response: Annotated[int | None, typer.Option(help="Tokens drawn in one episode, on average.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Share of the GPU's stated operations; default .4.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Share of its stated bandwidth; default .6.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that share the run, as launchers start them.")] = 1,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Weights are spread over the ranks by FSDP2, computed in bfloat16.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="On a CPU: time a small step first, half a minute, and go by that.")
    ] = False,
) -> None:
    """What a recipe would take: memory of every device, time of a step and of the run. Nothing is downloaded."""
    from unbraid.cost.estimate import Assumed, estimate
    from unbraid.cost.launch import Launch
    from unbraid.cost.machines import machine_of
    from unbraid.cost.show import print_cost

    loaded = load(recipe)
    itemsize = 2 if loaded.model.dtype.endswith("16") or sharded else 4
    machine = machine_of(loaded.model.device, gpu, mfu, bandwidth, itemsize)
    if measure and not machine.is_gpu:
        from unbraid.cost.measure import calibrate

        errors.print("measuring a small step on this CPU …")
        machine = calibrate()
    assumed = Assumed(fill, prompt, response)
    found = estimate(loaded, machine, assumed, Launch(ranks, sharded))
    print_cost(found, assumed, console)
    if not found.fits:
        raise typer.Exit(1)
