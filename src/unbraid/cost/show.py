"""The cost of a recipe for people: two tables, what was assumed, and a verdict."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from unbraid.cost.estimate import Assumed, Cost, sequence_bytes
from unbraid.vllm.budget import size


def print_cost(cost: Cost, assumed: Assumed, console: Console) -> None:
    """Memory, time, assumptions, and what does not fit with what would."""
    console.print(cost.memory.table())
    table = Table("time", "what", "seconds", title=f"time on {cost.machine.name}, by assumption")
    table.columns[2].justify = "right"
    for part, seconds in (("one step", cost.step), ("the run", cost.run)):
        for at, (name, count) in enumerate(seconds.items()):
            table.add_row(part if at == 0 else "", name, duration(count))
        table.add_row("", "together", duration(sum(seconds.values())), style="bold", end_section=True)
    console.print(table)
    for line in assumptions(cost, assumed):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in cost.memory.notes:
        console.print(note, highlight=False, markup=False)
    verdict = "it fits" if cost.fits else "it does not fit: " + "; ".join(cost.memory.problems)
    console.print(verdict, style="bold green" if cost.fits else "bold red", highlight=False, soft_wrap=True)


def assumptions(cost: Cost, assumed: Assumed) -> Iterator[str]:
    """What the numbers rest on, a line each."""
    t, speed = cost.tokens, cost.machine.passes
    told = f"{t.prompts} x {t.samples} episodes: prompt {t.prompt:.0f} tokens, drawn {t.drawn:.0f}"
    observed = f", from tools {t.observed:.0f}" if t.observed else ""
    yield f"a step: {told}{observed} on average (--prompt, --response, or --fill {assumed.fill:g} of the limits)"
    rates = f"{speed.products / 1e12:.3g} Tflop/s in passes over many tokens, {speed.moved / 1e12:.3g} TB/s"
    yield f"{cost.machine.name}: {rates} (--mfu, --bandwidth; tools, rewards and loading are left out)"
    if ranks := cost.launch.ranks - 1:
        how = "weights spread over all, passes in bfloat16" if cost.launch.sharded else "each with all weights"
        yield (
            f"{ranks + 1} ranks on one machine, {how}; memory is that of the first, the others hold as much but for "
            f"servers; {cost.machine.link / 1e9:.3g} GB/s between two, and nothing waits meanwhile but them"
        )
    keys = sequence_bytes(cost.shape)
    weights, trained = size(cost.shape.weights), size(cost.shape.trained)
    yield f"weights {weights}, trained {trained}, keys and values {size(keys)} a token"


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3 min, 2.5 h, 3 d."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"
