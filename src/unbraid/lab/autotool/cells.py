"""One cell of the claims run: a base, a start, a known share, a method and a seed, and a folder with what came out.

    OUT/cells/NAME-FINGERPRINT/  cell.json  recipe.yaml  metrics.jsonl  notes.jsonl  scores.jsonl  evaluation.parquet
                                 served.parquet

A cell is there whole or not at all, so whatever is there is not run again; what a killed run leaves in `unfinished/`
goes on from its last checkpoint. The fingerprint is of everything that decides the result, and not of where it is
written: a changed recipe, world or warm-up gives other names, and the old cells stay unread.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pydantic import TypeAdapter

from unbraid.chat.types import Mode
from unbraid.errors import CheckpointError, RecipeError
from unbraid.evaluate.evaluate import spread
from unbraid.evaluate.second_thoughts import THINKING_AT_ONCE
from unbraid.lab.autotool.methods import CLAIM_SHARE, CLAIM_START, METHODS, SAVED, SERVED, SWEEP_ORDER, SWEPT
from unbraid.lab.autotool.refined import SAMPLES, refine_prompts
from unbraid.lab.autotool.served import DOUBTS, MARGIN, PASSES, stream, with_second_thoughts
from unbraid.lab.base_model import PRETRAINING
from unbraid.lab.calls_world import WORLD_VERSION, held_out
from unbraid.lab.starts import THINK_SHARE, WARMUP, Start
from unbraid.learn.log import read_metrics, read_rollouts, write_rollouts
from unbraid.recipe import Recipe, load_recipe
from unbraid.rollout.second_thoughts import AHEAD, EVERY, Allowance
from unbraid.rollout.trajectory import Trajectory

PROMPTS = 1600
"""RL prompts of a cell: 50 steps of 32, each once."""
ENDS = 5
"""Last steps of training over which the final think rate is averaged."""
CALLS = "unbraid.lab.calls_world"
SERVED_FILE = "served.parquet"


@dataclass(frozen=True)
class Cell:
    """What is run. `seed` keys warm-up, prompts and sampling; `base` is the world with its base model."""

    base: int
    start: Start
    share: float
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"base-{self.base}-{self.start}-{self.share:.2f}-{self.method}-seed-{self.seed}"

    @property
    def begins_as(self) -> Start | None:
        """The start that it is made from; None for the base itself."""
        method = METHODS[self.method]
        return None if method.base else method.start or self.start


def plan(bases: int, seeds: int) -> list[Cell]:
    """All cells in the order of running, so that a run that ends early has whole bases and is balanced.

    First the full list, base by base; then the second start; then the sweep, share by share.
    """
    places = [(base, seed) for seed in range(seeds) for base in range(bases)]
    listed = [name for name, method in METHODS.items() if not method.serves]
    full = [Cell(base, CLAIM_START, CLAIM_SHARE, name, seed) for base, seed in places for name in listed]
    clear = [
        Cell(base, Start.CLEAR, CLAIM_SHARE, name, seed) for base, seed in places for name in ("mixed_warmup", *SWEPT)
    ]
    sweep = [
        Cell(base, CLAIM_START, share, name, seed) for share in SWEEP_ORDER for base, seed in places for name in SWEPT
    ]
    return full + clear + sweep


@dataclass(frozen=True)
class Part:
    """Means over some test tasks, greedy: accuracy and think rate in [0, 1], response tokens.

    What was answered several times counts once, by its mean.
    """

    tasks: int
    accuracy: float
    tokens: float
    think_rate: float

    @staticmethod
    def of(trajectories: Sequence[Trajectory]) -> "Part":
        """Means over trajectories, at least one."""
        by_task: dict[str, list[tuple[float, ...]]] = {}
        for t in trajectories:
            values = (float(t.correct), float(t.response_tokens), float(t.mode is Mode.THINK))
            by_task.setdefault(t.task_id, []).append(values)
        means = np.mean([np.mean(answers, axis=0) for answers in by_task.values()], axis=0)
        return Part(len(by_task), *means.tolist())


def mixture(known: Part, unknown: Part, share: float | None = None) -> Part:
    """Both parts together, at a share of known tasks; None: as many of each as there are."""
    total = known.tasks + unknown.tasks
    weight = known.tasks / total if share is None else share
    means = {
        name: weight * getattr(known, name) + (1 - weight) * getattr(unknown, name)
        for name in ("accuracy", "tokens", "think_rate")
    }
    return Part(total, **means)


@dataclass(frozen=True)
class Served:
    """The same weights served with second thoughts, on the same test tasks as they come in a stream.

    sure: the probability of thinking above which they think at once. allowed: tokens per task. doubt: the threshold in
        nats at the end; None where every draft stands. spent: tokens drawn to choose all that.
    """

    known: Part
    unknown: Part
    sure: float
    allowed: float
    doubt: float | None
    spent: int


@dataclass(frozen=True)
class CellResult:
    """What came out of a cell.

    known, unknown: test tasks whose chain is known, and the others. Both keep their natural mix of levels, as the RL
        prompts of any share do, so that `test(share)` is what the test set would give at that share.
    end_think_rate: of sampled responses, over the last steps of training; None without RL.
    responses, sampled_tokens: drawn in RL. spent_before: tokens drawn to choose the prompts, or how to serve.
    prompts_known: the known share of the RL prompts as they were used, where that is not the cell's.
    """

    cell: Cell
    known: Part
    unknown: Part
    end_think_rate: float | None = None
    responses: int = 0
    sampled_tokens: int = 0
    spent_before: int = 0
    prompts_known: float | None = None
    seconds: float = 0.0
    served: Served | None = None

    @property
    def with_served(self) -> list["CellResult"]:
        """This result and, where the weights were served otherwise too, that one: as of a method of its own."""
        if self.served is None:
            return [self]
        also = replace(
            self,
            cell=replace(self.cell, method=SERVED[self.cell.method]),
            known=self.served.known,
            unknown=self.served.unknown,
            end_think_rate=None,
            spent_before=self.spent_before + self.served.spent,
            served=None,
        )
        return [self, also]

    def test(self, share: float | None = None) -> Part:
        """On the test set as it is, or weighted to a share of known tasks."""
        return mixture(self.known, self.unknown, share)


def start_folder(cell: Cell, out: Path) -> Path:
    """Where the starts of a cell's base and seed are; `quickstart.make` puts them into `starts/` below."""
    made_from = [WORLD_VERSION, PRETRAINING.model_dump(), WARMUP.model_dump(), sorted(THINK_SHARE.items())]
    return out / "starts" / f"base-{cell.base}-seed-{cell.seed}-{_digest(made_from)}"


def recipe_of(cell: Cell, out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a cell; for methods without RL, what they are evaluated with."""
    method, begins_as = METHODS[cell.method], cell.begins_as
    prompts = f"world={cell.base}&known_share={cell.share:g}&count={PROMPTS}&seed={cell.seed}"
    train = f"{CALLS}:train_set?{prompts}"
    if method.refined:
        kept = quote(str(_kept_prompts(cell, out)), safe="/.")
        train = f"unbraid.lab.autotool.refined:refined_set?{prompts}&kept={kept}"
    return load_recipe(
        ["calls", *method.layers],
        [
            f"name={method.name}",
            f"label={json.dumps(f'{method.label} ({method.whose})', ensure_ascii=False)}",
            f"seed={cell.seed}",
            f"model.path={_base(cell) if begins_as is None else start_folder(cell, out) / 'starts' / begins_as}",
            f"tasks.train={train}",
            f"tasks.validation={CALLS}:held_out?world={cell.base}&split=dev",
            f"tasks.test={CALLS}:held_out?world={cell.base}&split=test",
            "warmup=null",
            f"evaluate.modes=[{method.mode}]",
            "evaluate.temperatures=[0.0]",
            *method.overrides,
            *overrides,
        ],
    )


def _base(cell: Cell) -> str:
    return f"unbraid.lab.base_model:base_path?seed={cell.base}"


def responses_in(recipe: Recipe) -> int:
    """Responses that RL draws: what the methods have in common, and the unit of their budget."""
    return recipe.learn.steps * recipe.rollout.prompts * recipe.rollout.samples


def check_budgets(cells: Sequence[Cell], overrides: Sequence[str] = ()) -> int:
    """The number of responses that every RL method of the plan draws, of at most equally many tokens each.

    Raises:
        RecipeError: they do not draw equally many.
    """
    names = dict.fromkeys(cell.method for cell in cells if METHODS[cell.method].is_trained)
    recipes = {name: recipe_of(Cell(0, CLAIM_START, CLAIM_SHARE, name, 0), Path(), overrides) for name in names}
    budgets = {name: (responses_in(r), r.rollout.max_new_tokens) for name, r in recipes.items()}
    if len(set(budgets.values())) > 1:
        shown = ", ".join(f"{name} {n} x {tokens}" for name, (n, tokens) in budgets.items())
        raise RecipeError(f"methods draw unequal budgets (responses x most tokens): {shown}: make them equal")
    return next(iter(budgets.values()), (0, 0))[0]


def cell_folder(cell: Cell, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Where the result of a cell is, or will be."""
    recipe = recipe_of(cell, Path(), overrides)  # relative paths in it: the place of OUT decides nothing
    refined = SAMPLES if METHODS[cell.method].refined else 0
    parts = [recipe.fingerprint(), recipe.evaluate.model_dump(mode="json"), WORLD_VERSION, refined]
    if cell.method in SERVED:
        parts += [SERVED[cell.method], SAVED + MARGIN, PASSES, EVERY, AHEAD, DOUBTS, THINKING_AT_ONCE]
    return out / "cells" / f"{cell.name}-{_digest(parts)}"


def read_cell(cell: Cell, out: Path, overrides: Sequence[str] = ()) -> CellResult | None:
    """The result of a cell; None if it was not run."""
    path = cell_folder(cell, out, overrides) / "cell.json"
    return TypeAdapter(CellResult).validate_json(path.read_bytes()) if path.exists() else None


def run_cell(cell: Cell, out: Path, overrides: Sequence[str], tell: Callable[..., None]) -> float:
    """Run a cell, or go on with it, and keep its result; returns seconds. Its start must be there."""
    from unbraid.run import evaluate_run, replace_folder, train

    began, target = time.perf_counter(), cell_folder(cell, out, overrides)
    if target.is_dir():
        return 0.0
    method, recipe, work = METHODS[cell.method], recipe_of(cell, out, overrides), out / "unfinished" / target.name
    if method.refined:
        start = Path(recipe.model.path)
        refine_prompts(start, cell.base, cell.share, PROMPTS, cell.seed, _kept_prompts(cell, out))
    if method.is_trained:
        try:
            train(recipe, work, resume=True, progress=tell)
        except CheckpointError:  # begun in another place, or its checkpoint cannot be read: nothing is lost but time
            shutil.rmtree(work)
            train(recipe, work, progress=tell)
    else:
        from unbraid.policy import load_policy
        from unbraid.prepare import load_tasks

        work.mkdir(parents=True, exist_ok=True)
        policy = load_policy(recipe.model, recipe.chat)
        evaluate_run(recipe, policy, load_tasks(recipe, policy).test, work, tell)
        (work / "recipe.yaml").write_text(recipe.to_yaml())
    served = _serve(cell, recipe, work) if cell.method in SERVED else None
    seconds = time.perf_counter() - began
    result = replace(_result(cell, recipe, work, out, seconds), served=served)

    def keep(folder: Path) -> None:
        for name in ("recipe.yaml", "metrics.jsonl", "notes.jsonl", "scores.jsonl", "evaluation.parquet", SERVED_FILE):
            if (work / name).exists():
                shutil.copy(work / name, folder / name)
        (folder / "cell.json").write_bytes(TypeAdapter(CellResult).dump_json(result, indent=1))

    replace_folder(target, keep)
    shutil.rmtree(work)
    return seconds


def _serve(cell: Cell, recipe: Recipe, work: Path) -> Served:
    """Serve what a cell has trained with second thoughts; writes the answers beside its evaluation."""
    from unbraid.policy import load_policy
    from unbraid.prepare import load_tasks, roll_of
    from unbraid.run import policy_of

    base = load_policy(recipe.model.model_copy(update={"path": _base(cell)}), recipe.chat)
    tasks = load_tasks(recipe, base)
    tests = stream(spread(tasks.test, recipe.evaluate.limit), cell.share)
    drafting, thinking = (roll_of(recipe, policy) for policy in (base, policy_of(work)))
    drawn, how, spent = with_second_thoughts(drafting, thinking, tasks.train, tests)
    assert isinstance(how.doubt, Allowance)
    write_rollouts(work / SERVED_FILE, drawn)
    doubt = how.doubt.doubt()
    parts = _known_and_unknown(cell, drawn)
    return Served(*parts, how.sure, how.doubt.tokens, doubt if doubt < float("inf") else None, spent)


def _known_and_unknown(cell: Cell, drawn: Sequence[Trajectory]) -> tuple[Part, Part]:
    known = {task.id: bool(task.extra["known"]) for task in held_out(cell.base, "test")}
    parts = [Part.of([t for t in drawn if known[t.task_id] is which]) for which in (True, False)]
    return parts[0], parts[1]


def _result(cell: Cell, recipe: Recipe, work: Path, out: Path, seconds: float) -> CellResult:
    on_known, on_unknown = _known_and_unknown(cell, read_rollouts(work / "evaluation.parquet"))
    method = METHODS[cell.method]
    if not method.is_trained:
        return CellResult(cell, on_known, on_unknown, seconds=seconds)
    rows = read_metrics(work)
    # A step in which no response had a mode has no think rate.
    ends = [row["think_rate"] for row in rows[-ENDS:] if row.get("think_rate") is not None]
    per_step = recipe.rollout.prompts * recipe.rollout.samples
    before: Mapping[str, Any] = json.loads(_kept_prompts(cell, out).read_text()) if method.refined else {}
    return CellResult(
        cell,
        on_known,
        on_unknown,
        end_think_rate=float(np.mean(ends)) if ends else None,
        responses=per_step * len(rows),
        sampled_tokens=round(sum(row["tokens"] for row in rows) * per_step),
        spent_before=before.get("tokens", 0),
        prompts_known=before.get("known_share"),
        seconds=seconds,
    )


def _kept_prompts(cell: Cell, out: Path) -> Path:
    return start_folder(cell, out) / f"refined-{cell.start}-{cell.share:.2f}.json"


def _digest(parts: Any) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
