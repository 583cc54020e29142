"""All checks of a recipe, in the order in which a run would meet the problems."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from unbraid.chat.checks import Finding
from unbraid.doctor.environments import MAX_TASKS, check_environment
from unbraid.doctor.rewards import check_reward
from unbraid.doctor.servers import check_servers
from unbraid.doctor.start import (
    check_constraints,
    check_cost,
    check_disk,
    check_log_probs,
    check_start,
    check_vote,
    size,
)
from unbraid.doctor.tasks import check_books, check_conversations, check_mix, check_overlap, check_warmup_answers
from unbraid.doctor.trial import run_trial
from unbraid.errors import UnbraidError
from unbraid.evaluate.evaluate import spread
from unbraid.policy import Policy, load_policy
from unbraid.prepare import load_tasks, make_environment
from unbraid.recipe import Recipe

T = TypeVar("T")


def diagnose(recipe: Recipe, console: Console | None = None, run_dir: str | Path = "runs") -> list[Finding]:
    """Everything that can be said about a run before it: each finding that is not ok says what to do.

    Nothing is written and nothing that exists is changed. A check that fails in an unforeseen way is a finding too.

    Args:
        console: shows what is being done.
        run_dir: where the run would be written; only its free space is looked at.
    """
    visit = _Visit(console or Console(quiet=True))
    policy = visit.get("model", lambda: load_policy(recipe.model, recipe.chat))
    if policy is None:
        return visit.findings
    visit.check("model", lambda: check_model(recipe, policy))
    acts_in = visit.get("environment", lambda: make_environment(recipe)) if recipe.environment else None
    if recipe.environment and acts_in is None:
        return visit.findings
    tasks = visit.get("tasks", lambda: load_tasks(recipe, policy, acts_in))
    if tasks is None:
        return visit.findings
    visit.check("books", lambda: check_books(recipe, tasks))
    visit.check("tasks", lambda: check_mix(recipe, tasks))
    visit.check("overlap", lambda: check_overlap(tasks))
    visit.check("warm-up", lambda: check_warmup_answers(recipe, policy, tasks.warmup))
    visit.check("chat", lambda: check_conversations(policy, tasks))
    if recipe.sampler.engine == "vllm":
        visit.check("servers", lambda: check_servers(recipe, policy, tasks))
    if acts_in:
        visit.check("environment", lambda: check_environment(acts_in, spread(tasks.train, MAX_TASKS)))
    else:
        visit.check("reward", lambda: check_reward(recipe, policy, tasks.train))
    if any(f.level == "error" for f in visit.findings):
        return visit.findings  # a trial of a run that cannot work would say nothing
    trial = visit.get("trial", lambda: run_trial(recipe, policy, tasks))
    if trial is None:
        return visit.findings
    visit.check("log-probs", lambda: check_log_probs(recipe, trial))
    visit.check("start", lambda: check_start(recipe, trial))
    visit.check("vote on the mode", lambda: check_vote(recipe, trial))
    visit.check("constraints", lambda: check_constraints(recipe, trial))
    visit.check("cost", lambda: check_cost(recipe, trial, tasks))
    visit.check("disk", lambda: check_disk(recipe, policy, trial, Path(run_dir)))
    return visit.findings


def check_model(recipe: Recipe, policy: Policy) -> list[Finding]:
    """What is trained, in which precision, and whether anything in it is drawn at random."""
    trained, total = sum(p.numel() for _, p in policy.trainable()), policy.parameter_count()
    dtype = str(next(p for _, p in policy.trainable()).dtype).removeprefix("torch.")
    said = f"{total / 1e6:.3g} M parameters, {trained / total:.1%} trained in {dtype}, on {policy.device}"
    findings = [Finding("ok", "model", said)]
    if dtype in ("bfloat16", "float16"):
        said = f"every weight is trained in {dtype}: updates smaller than its steps are lost"
        findings.append(Finding("warning", "model", said, "set model.dtype=float32, or train an adapter"))
    layers = sum(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in policy.model.modules())
    attention = getattr(policy.model.config, "attention_dropout", 0.0)
    if layers or attention:
        said = f"the model has dropout ({layers} layers, attention {attention:g}): trainer and sampler would disagree"
        findings.append(Finding("error", "model", said, "set every dropout rate in its config.json to 0"))
    return findings


class _Visit:
    """Gathers findings; turns whatever a check raises into one."""

    def __init__(self, console: Console):
        self.console = console
        self.findings: list[Finding] = []

    def check(self, name: str, work: Callable[[], list[Finding]]) -> None:
        self.findings += self.get(name, work) or []

    def get(self, name: str, work: Callable[[], T]) -> T | None:
        """The result of `work`; None, and an error finding, if it raised."""
        with self.console.status(f"doctor: {name}"):
            try:
                return work()
            except UnbraidError as error:
                self._fail(name, str(error), "correct this first: what comes after it was not looked at")
            except torch.OutOfMemoryError as error:
                used = size(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else "all"
                advice = (
                    "lower learn.micro_batch, warmup.micro_batch_tokens or rollout.max_batch, train an adapter, or set "
                    "model.gradient_checkpointing"
                )
                self._fail(name, f"out of memory at {used} ({str(error).splitlines()[0]})", advice)
            except Exception as error:
                said = f"the check failed: {type(error).__name__}: {' '.join(str(error).split())}"
                self._fail(name, said, "the run may fail at the same place; if the recipe is right, report this")
        return None

    def _fail(self, name: str, message: str, advice: str) -> None:
        self.findings.append(Finding("error", name, message, advice))
