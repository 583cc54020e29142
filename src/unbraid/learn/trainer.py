"""The RL loop, top to bottom: sample, score, learn, log, validate, save."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbraid import ranks
from unbraid.chat.types import Mode
from unbraid.errors import CollapseError
from unbraid.learn.advantages import mode_votes
from unbraid.learn.ahead import Batches, Served
from unbraid.learn.batch import think_share
from unbraid.learn.checkpoint import CheckpointStore
from unbraid.learn.collapse import CollapseWatch
from unbraid.learn.constraint import Constraint
from unbraid.learn.grpo import LearnConfig, make_optimiser, mode_flags, update
from unbraid.learn.isolation import STRICT_WARNING, is_strict
from unbraid.learn.log import METRICS, NoLog, RunLog
from unbraid.learn.metrics import rollout_metrics, unread_warning
from unbraid.learn.schedule import epochs
from unbraid.policy import Policy
from unbraid.policy.sharding import shares_of, whole_state
from unbraid.rollout.config import RolloutConfig
from unbraid.rollout.scoring import Roll
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.task import Task


@dataclass
class Training:
    """Everything one run is made of. `run()` starts it, or goes on where the latest checkpoint stands.

    validate: called with the number of steps done; returns the validation accuracy and what to log.
    served: the servers that `roll` asks; None where the policy itself samples.
    ahead: draw a step's batch while the step before learns, with weights one update older (`learn.ahead`).
    monitor: looks at a step's (number, trajectories, groups) every `learn.interference_every` steps, before the weights
        move; returns what to log.
    """

    policy: Policy
    roll: Roll
    tasks: Sequence[Task]
    rollout: RolloutConfig
    learn: LearnConfig
    constraints: Sequence[Constraint]
    store: CheckpointStore
    run_dir: Path
    seed: int = 0
    validate: Callable[[int], tuple[float, dict[str, float]]] | None = None
    validate_every: int = 0
    on_step: Callable[[int, dict[str, Any]], None] = lambda step, metrics: None
    keep_rollouts: bool = True
    watch: CollapseWatch = field(default_factory=CollapseWatch)
    served: Served | None = None
    ahead: bool = False
    monitor: Callable[[int, Sequence[Trajectory], np.ndarray], dict[str, float]] | None = None

    def run(self) -> int:
        """Train to the last step; returns the step whose validation accuracy was best (the last one without any).

        Raises:
            CollapseError: a mode vanished and the recipe asks to stop then. Everything up to there is saved.
        """
        if self.learn.needs_reference:
            self.policy.freeze_reference()
        optimiser = make_optimiser(self.policy, self.learn)
        tasks = epochs(self.tasks, self.rollout.prompts, self.seed)
        batches = Batches(
            lambda step: self._draw(tasks(step), [Mode.AUTO] * self.rollout.samples, "train", step),
            self.learn.steps,
            self.policy,
            self.served,
            self.ahead,
        )
        best: dict[str, float] = {"accuracy": -1.0, "step": 0}
        checkpoint, done = ranks.first(self.store.latest), 0
        if checkpoint:
            saved = ranks.agree(lambda: self.store.restore(checkpoint, self.policy))
            done, best = checkpoint.step, saved["best"]
            trained = [p for _, p in self.policy.trainable()]
            optimiser.load_state_dict(shares_of(saved["optimiser"], trained))
            self.watch.load_state_dict(saved["watch"])
            batches.restore(saved["drawn"])
            for constraint, state in zip(self.constraints, saved["constraints"], strict=True):
                constraint.load_state_dict(state)
            self._stop_if_collapsed(done)
        # Without a checkpoint every earlier line of the log is of steps that are about to be taken again.
        logged = (self.run_dir / METRICS).exists()
        resume_step = done if checkpoint or logged else None
        with ranks.agree(lambda: RunLog(self.run_dir, resume_step) if ranks.is_first() else NoLog()) as log:
            if not done and is_strict(self.policy.model):
                log.note(STRICT_WARNING, 1, level="warning")
            for step in range(done, self.learn.steps):
                metrics = self._step(step, tasks(step), batches, optimiser, log)
                self._validate(step + 1, best, metrics)
                self._note_served(step + 1, log)
                log.step(step + 1, metrics)
                self.on_step(step + 1, metrics)
                last = step + 1 == self.learn.steps or (self.learn.stop_on_collapse and self.watch.collapsed)
                if last or (step + 1) % self.store.config.every == 0 or best["step"] == step + 1:
                    self._save(step + 1, self._state(optimiser, best), int(best["step"]) or None, batches.drawn)
                self._stop_if_collapsed(step + 1)
        return int(best["step"]) or self.learn.steps

    def _save(self, done: int, state: dict[str, Any], best: int | None, drawn: Sequence[Trajectory]) -> None:
        """One checkpoint of all ranks, by the first: they have the same weights, which is made sure of."""
        ranks.check_same(f"weights after step {done}", self.policy.digest() if ranks.world() > 1 else ())
        with self.policy.whole():
            ranks.first(lambda: self.store.save(done, self.policy, state, best, drawn))

    def _stop_if_collapsed(self, done: int) -> None:
        if self.learn.stop_on_collapse and self.watch.collapsed:
            raise CollapseError(
                f"stopped after step {done}: one mode has vanished (learn.stop_on_collapse); change the constraints or "
                f"learn.advantage_scale and start again; the run so far is in {self.run_dir}"
            )

    def _step(
        self, step: int, tasks: Sequence[Task], batches: Batches, optimiser: torch.optim.Optimizer, log: RunLog | NoLog
    ) -> dict[str, Any]:
        clock = StageClock()
        with clock("rollout"):
            batch = batches.take(step)
        self._note_served(step + 1, log)
        trajectories, groups = batch.trajectories, np.repeat(np.arange(len(tasks)), self.rollout.samples)
        # Read after the rollout: before it the servers may not have had these weights yet.
        correct = batch.staleness > 0 or ranks.first(lambda: self.served is not None and self.served.correct)
        looked: dict[str, float] = {"staleness": batch.staleness} if self.ahead else {}
        with batches.beside(step + 1, clock):
            if self.monitor and self.learn.interference_every and (step + 1) % self.learn.interference_every == 0:
                with clock("interference"):
                    looked |= self.monitor(step, trajectories, groups)
            with clock("learn"):
                result = update(
                    self.policy,
                    trajectories,
                    groups,
                    optimiser,
                    self.constraints,
                    self.learn,
                    step=step,
                    temperature=self.rollout.temperature,
                    correct=correct,
                )
        metrics = rollout_metrics(trajectories) | result.metrics | result.costs | looked
        for name in [name for name in metrics if name.startswith("learn/entropy")]:
            learned, drawn = metrics.pop(name), name.removeprefix("learn/")
            # Servers do not tell entropies: those that the trainer found of what it learned from are the next best.
            metrics[drawn] = metrics[drawn] if math.isfinite(metrics[drawn]) else learned
        if result.nothing:
            log.note(result.nothing, step + 1)
        if unread := unread_warning(metrics, step + 1):
            log.note(unread, step + 1, level="warning")
        self._watch_modes(step + 1, trajectories, groups, metrics, log)
        if self.learn.probe_every and (step + 1) % self.learn.probe_every == 0:
            with clock("probe"):
                metrics |= self._probe(tasks, step)
        if self.served:
            metrics |= self.served.metrics()
        if self.keep_rollouts:
            log.rollouts(step + 1, trajectories)
        sampled = sum(int(t.sampled.sum()) for t in trajectories)
        if self.ahead:
            metrics |= {"seconds/drawing": batch.seconds}
        rates = {"tokens_per_s/rollout": sampled / batch.seconds}
        return metrics | clock.metrics({"learn": sampled}) | rates

    def _draw(self, tasks: Sequence[Task], modes: Sequence[Mode], stream: str, step: int) -> list[Trajectory]:
        return self.roll(tasks, modes, temperature=self.rollout.temperature, seed=(self.seed, stream, step))

    def _note_served(self, step: int, log: RunLog | NoLog) -> None:
        """Put what the servers warned of into the log; soon after it was found, as what follows may end the run."""
        for message in self.served.notes() if self.served else []:
            log.note(message, step, level="warning")

    def _watch_modes(
        self,
        step: int,
        trajectories: list[Trajectory],
        groups: np.ndarray,
        metrics: dict[str, Any],
        log: RunLog | NoLog,
    ) -> None:
        """Log the predicted vote, and warn before a collapse."""
        think, valid = mode_flags(trajectories)
        rewards = np.array([t.reward for t in trajectories])
        votes = mode_votes(rewards, groups, think, valid)
        metrics |= {f"vote/{scale}": vote for scale, (vote, _) in votes.items()}
        shares = [think_share([trajectories[i] for i in np.flatnonzero(groups == g)]) for g in np.unique(groups)]
        exact = any(math.isfinite(p) for t in trajectories for r in t.responses for p in r.choice_probs)
        held = any(c.holds_choice() for c in self.constraints)
        known = [share for share in shares if math.isfinite(share)]
        for message in self.watch.see(known, None if exact else self.rollout.samples, held):
            log.note(message, step, level="warning")

    def _probe(self, tasks: Sequence[Task], step: int) -> dict[str, float]:
        """What thinking is worth now: this step's tasks answered once in each forced mode. Costs tokens only."""
        trajectories = self._draw(tasks, [Mode.NO_THINK, Mode.THINK], "probe", step)
        direct, thought = trajectories[0::2], trajectories[1::2]
        return {
            "probe/accuracy_gain": float(np.mean([t.correct for t in thought]) - np.mean([d.correct for d in direct])),
            "probe/reward_gain": float(np.mean([t.reward for t in thought]) - np.mean([d.reward for d in direct])),
            "probe/tokens": float(sum(t.response_tokens for t in trajectories)),
        }

    def _validate(self, done: int, best: dict[str, float], metrics: dict[str, Any]) -> None:
        due = self.validate_every and (done % self.validate_every == 0 or done == self.learn.steps)
        if not (due and self.validate):
            return
        clock = StageClock()
        with clock("validate"):
            accuracy, found = self.validate(done)
        metrics |= found | clock.metrics({})
        if accuracy > best["accuracy"]:
            best |= {"accuracy": accuracy, "step": done}

    def _state(self, optimiser: torch.optim.Optimizer, best: dict[str, float]) -> dict[str, Any]:
        return {
            "optimiser": whole_state(optimiser),
            "constraints": [c.state_dict() for c in self.constraints],
            "watch": self.watch.state_dict(),
            "best": dict(best),
        }


class StageClock:
    """Seconds per stage of one step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def metrics(self, tokens: dict[str, int]) -> dict[str, float]:
        """`seconds/<stage>`, and `tokens_per_s/<stage>` for the stages that `tokens` counts."""
        rates = {f"tokens_per_s/{k}": n / max(self.seconds[k], 1e-9) for k, n in tokens.items() if k in self.seconds}
        return {f"seconds/{k}": v for k, v in self.seconds.items()} | rates
