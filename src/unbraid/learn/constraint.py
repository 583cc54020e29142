"""Entropy as a constraint: one class, with saved state.

A constraint holds the entropy of groups of tokens near a target. For each response i (an episode has several), group g

    H_ig   = mean over the group's tokens of the measured entropy              (nats)
    bonus  = (1/N) Σ_i Σ_g β_g · 1[H_ig ≤ target_g] · H_ig                     (added to the objective)
    dL/dβ_g = mean of H_ig − target_g over the responses that have the group   (descent raises β below target)

Source: the objective and L_β of AutoTool (arXiv 2603.13348) with group = mode, gate = sample; entropies are token
means of the current policy. Choice: H is detached in L_β and β in the bonus, as in SAC's temperature; β stays within
[min, max]; a group without samples keeps its β.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from unbraid.chat.types import Mode
from unbraid.learn.batch import MODES, TokenBatch
from unbraid.learn.objective import Scores
from unbraid.learn.reduce import sum_counts
from unbraid.tokens import Role


class Adaptive(BaseModel):
    """A coefficient that is learned from how far the entropy is from its target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float = Field(default=0.0, ge=0)
    """Value before the first update."""
    rule: Literal["gradient", "adam", "step"] = "gradient"
    """Descent on L_β (by SGD or Adam), or a fixed step of size `learning_rate` by the sign of the gap (Skywork-OR1)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of β, or the size of the fixed step. Unpublished for AutoTool."""
    min: float = 0.0
    """Lower bound; 0 keeps the term from pushing entropy down. Unpublished; without it β goes negative."""
    max: float = Field(default=1.0, gt=0)
    """Upper bound, so that a group that vanished cannot wind β up without end. Unpublished."""

    @model_validator(mode="after")
    def _start_is_within_bounds(self) -> "Adaptive":
        if not self.min <= self.start <= self.max:
            raise ValueError(f"start {self.start:g} is not between min {self.min:g} and max {self.max:g}: move one")
        return self


class Anneal(BaseModel):
    """The target falls linearly to `to` between `start` and the end of training (shares of all steps)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float = Field(default=0.6, ge=0, lt=1)
    """Share of the training after which it falls."""
    to: float = Field(default=0.0, ge=0)
    """Target at the end, in nats."""


class ConstraintConfig(BaseModel):
    """One entropy constraint. Constraints compose: give several."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Names the constraint in logs."""
    group_by: Literal["all", "mode", "role", "mode+role"] = "all"
    """Which tokens share a target: all of them, by the mode of the response, by role, or by both."""
    measure: Literal["response", "choice", "choice_rate"] = "response"
    """Full-vocabulary entropy of every token of the group; two-way entropy of each mode choice; or two-way entropy of
    the mean choice over the batch, which lets every single choice be certain as long as both modes are in use."""
    target: float | dict[str, float] = 0.2
    """Nats; one number, or one per group (`think`, `no_think`; `reasoning`, `action`; `think/action`, …)."""
    coefficient: float | Adaptive | dict[str, float | Adaptive] = Field(default=0.0, union_mode="left_to_right")
    """β: fixed or adaptive, one or one per group. Groups that a mapping leaves out are free."""
    gate: Literal["none", "sample", "batch"] = "sample"
    """The bonus acts always, on samples at or below target (AutoTool), or while the group's mean is (Skywork-OR1)."""
    anneal: Anneal | None = None
    """Let the target go towards the end; None holds it."""


@dataclass
class _Group:
    """State of one group: β with its optimiser, and what was seen since the last update."""

    target: float
    beta: Tensor
    adaptive: Adaptive | None
    optimiser: torch.optim.Optimizer | None
    mean: float = float("nan")
    total: float = 0.0
    count: float = 0.0
    opened: float = 0.0

    def is_idle(self) -> bool:
        return self.adaptive is None and self.beta.item() == 0.0


class Constraint:
    """A constraint at work: `bonus` on every micro-batch, then `update` once per optimiser step."""

    def __init__(self, config: ConstraintConfig):
        self.config = config
        self.progress = 0.0
        self._groups = {name: self._new_group(name) for name in self._names()}

    def is_idle(self) -> bool:
        """True if the constraint can neither act nor learn, whatever is sampled."""
        return all(group.is_idle() for group in self._groups.values())

    def holds_choice(self) -> bool:
        """True if the constraint acts on the choice of mode."""
        return self.config.measure != "response" and not self.is_idle()

    def bonus(self, batch: TokenBatch, scores: Scores, responses: float) -> Tensor:
        """This micro-batch's share of the bonus, a scalar with gradient; also gathers what `update` needs.

        Args:
            responses: N, the number of responses in the whole batch (over micro-batches and ranks).
        """
        bonus = torch.zeros((), dtype=torch.float64, device=batch.ids.device)
        values, eligible = {
            "response": (scores.entropy, batch.sampled),
            "choice": (scores.choice_entropy, batch.choice),
            "choice_rate": (scores.choice_think, batch.choice),
        }[self.config.measure]
        for name, group in self._groups.items():
            mask = eligible & self._members(name, batch)
            count = _per_response(mask.double(), batch)
            has = count > 0
            lever = _per_response(values.double() * mask, batch) / count.clamp(min=1)
            entropy = lever.detach()
            if self.config.measure == "choice_rate":
                # H(p̄) of the mean p̄ = Σ p_i / N is not a sum over samples, but its gradient is: dH/dp̄ · dp_i / N.
                # NaN where no response of the batch made the choice.
                has = has & batch.think_share.isfinite()[:, None]
                share = batch.think_share[:, None].nan_to_num(0.5).clamp(1e-6, 1 - 1e-6)
                lever = lever * torch.log((1 - share) / share)
                entropy = -(share * share.log() + (1 - share) * (1 - share).log()).expand(has.shape)
            below = has & (entropy <= self._target(group))
            gate = {"none": has, "sample": below, "batch": has & self._batch_gate(group)}[self.config.gate]
            bonus = bonus + group.beta.item() * (lever * gate).sum() / responses
            group.total += float(entropy[has].sum())
            group.count += float(has.sum())
            group.opened += float(gate.sum())
        return bonus

    def update(self, progress: float) -> dict[str, float]:
        """Learn β from the batch just used, as all ranks saw it, then forget it; returns what to log.

        Args:
            progress: share of the training done, in [0, 1]; moves an annealed target.
        """
        logged: dict[str, float] = {}
        seen = iter(sum_counts([n for g in self._groups.values() for n in (g.total, g.count, g.opened)]))
        for name, group in self._groups.items():
            group.total, group.count, group.opened = next(seen), next(seen), next(seen)
            target = self._target(group)
            if group.count:
                group.mean = group.total / group.count
                self._learn(group, group.mean - target)
                logged[f"constraint/{self.config.name}/{name}/entropy"] = group.mean
                logged[f"constraint/{self.config.name}/{name}/gate_open"] = group.opened / group.count
            logged[f"constraint/{self.config.name}/{name}/coefficient"] = group.beta.item()
            logged[f"constraint/{self.config.name}/{name}/target"] = target
            group.total = group.count = group.opened = 0.0
        self.progress = progress
        return logged

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit (taken between steps)."""
        groups = {
            name: {
                "beta": group.beta.item(),
                "mean": group.mean,
                "optimiser": group.optimiser.state_dict() if group.optimiser else None,
            }
            for name, group in self._groups.items()
        }
        return {"progress": self.progress, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = state["progress"]
        for name, saved in state["groups"].items():
            group = self._groups[name]
            group.beta.data.fill_(saved["beta"])
            group.mean = saved["mean"]
            if group.optimiser:
                group.optimiser.load_state_dict(saved["optimiser"])

    def _names(self) -> list[str]:
        modes = [Mode.NO_THINK.value, Mode.THINK.value]
        roles = [Role.REASONING.name.lower(), Role.ACTION.name.lower()]
        possible = {
            "all": ["all"],
            "mode": modes,
            "role": roles,
            "mode+role": [f"{mode}/{role}" for mode in modes for role in roles],
        }[self.config.group_by]
        for field in ("target", "coefficient"):
            value = getattr(self.config, field)
            unknown = set(value) - set(possible) if isinstance(value, dict) else set()
            if unknown:
                raise ValueError(
                    f"constraint '{self.config.name}': {field} names {sorted(unknown)}, but group_by "
                    f"'{self.config.group_by}' has the groups {possible}"
                )
        target, beta = self.config.target, self.config.coefficient
        return [
            name
            for name in possible
            if (not isinstance(target, dict) or name in target) and (not isinstance(beta, dict) or name in beta)
        ]

    def _new_group(self, name: str) -> _Group:
        target, coefficient = self.config.target, self.config.coefficient
        beta = coefficient[name] if isinstance(coefficient, dict) else coefficient
        adaptive = beta if isinstance(beta, Adaptive) else None
        value = torch.tensor(adaptive.start if adaptive else float(beta), dtype=torch.float64)  # type: ignore[arg-type]
        optimiser = None
        if adaptive and adaptive.rule != "step":
            kind = torch.optim.Adam if adaptive.rule == "adam" else torch.optim.SGD
            optimiser = kind([value.requires_grad_()], lr=adaptive.learning_rate)
        return _Group(target[name] if isinstance(target, dict) else target, value, adaptive, optimiser)

    def _members(self, name: str, batch: TokenBatch) -> Tensor:
        """(B, L) bool: the targets that belong to a group. Responses without a mode belong to no mode group."""
        members = torch.ones_like(batch.sampled)
        for part in name.split("/"):
            if part in (Mode.THINK, Mode.NO_THINK):
                members = members & (batch.mode == MODES.index(Mode(part)))
            elif part != "all":
                members = members & (batch.roles == Role[part.upper()])
        if self.config.measure == "response" or self.config.group_by in ("mode", "mode+role"):
            members = members & (batch.mode != MODES.index(Mode.NONE))
        return members

    def _target(self, group: _Group) -> float:
        anneal = self.config.anneal
        if anneal is None or self.progress <= anneal.start:
            return group.target
        share = min(1.0, (self.progress - anneal.start) / (1 - anneal.start))
        return group.target + share * (anneal.to - group.target)

    def _batch_gate(self, group: _Group) -> bool:
        # The mean of this step is known only after its last micro-batch: the last step's mean decides.
        return not group.mean > self._target(group)

    def _learn(self, group: _Group, gap: float) -> None:
        if group.adaptive is None:
            return
        if group.optimiser:
            group.beta.grad = torch.tensor(gap, dtype=torch.float64)
            group.optimiser.step()
        else:
            sign = (gap < 0) - (gap > 0)
            group.beta.data += group.adaptive.learning_rate * sign
        group.beta.data.clamp_(group.adaptive.min, group.adaptive.max)


def _per_response(values: Tensor, batch: TokenBatch) -> Tensor:
    """Sums of `values` (B, L) over the targets of each response, (B, R) with R the most responses of a row."""
    places = batch.response.clamp(min=0)
    rows = values.new_zeros((len(values), int(places.max()) + 1 if places.numel() else 1))
    return rows.scatter_add(1, places, values * (batch.response >= 0))
