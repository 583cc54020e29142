"""Entropy constraints in TRL's GRPO: the loss is TRL's without them and ours with them, on the same batch."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy
from trl.trainer.grpo_trainer import GRPOTrainer
from trl_worlds import CHAT, chat_format, chat_model, chat_tokenizer, grpo_config, lengths, prompts

from unbraid.chat.types import Mode
from unbraid.errors import CheckpointError, MissingExtraError, ModelError
from unbraid.lab.calls_chat import CHAT as CALLS
from unbraid.learn.advantages import group_advantages
from unbraid.learn.batch import collate
from unbraid.learn.config import LearnConfig
from unbraid.learn.constraint import Adaptive, Constraint, ConstraintConfig
from unbraid.learn.grpo import SUMS, Totals, micro_batch_loss
from unbraid.learn.objective import score_tokens
from unbraid.policy import Policy
from unbraid.rollout import Trajectory
from unbraid.rollout.trajectory import Finish
from unbraid.tokens import Provenance, Role
from unbraid.trl import ConstrainedGRPOTrainer, release
from unbraid.trl.constrained import RESPONSES, SHARE, STATE_FILE
from unbraid.trl.rows import batch_of, count, responses_of

CONSTRAINTS = {
    "decoupled": ConstraintConfig(
        name="decoupled", group_by="mode", target={"no_think": 4.0, "think": 4.2},
        coefficient={"no_think": 0.3, "think": Adaptive(start=0.4, learning_rate=0.05, max=10)},
    ),
    "roles": ConstraintConfig(
        name="roles", group_by="mode+role", target=4.0, coefficient=Adaptive(start=0.2, rule="adam"), gate="none"
    ),
    "choice": ConstraintConfig(name="choice", measure="choice", target=0.6, coefficient=0.5, gate="none"),
    "rate": ConstraintConfig(
        name="rate", measure="choice_rate", target=0.69, coefficient=Adaptive(start=0.5, rule="step", learning_rate=0.1)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> tuple[Policy, list[Trajectory], np.ndarray]:
    """A policy, and what it sampled, made to begin in either mode or in none; some of it is cut off."""
    policy = tiny_policy()
    trajectories, groups = sampled_batch(policy, prompts=3, samples=4, budget=12)
    think, no_think = policy.format.modes.choice_ids
    call = policy.format.automaton.delimiters[1].open
    for number, trajectory in enumerate(trajectories):
        response = trajectory.ids[trajectory.prompt_length :]
        response[0] = (think, no_think, call, no_think, think)[number % 5]
        response[len(response) // 2] = call
        if number % 4:
            response[-1] = policy.format.stop_ids[0]
        trajectory.finish = Finish.STOP if number % 4 else Finish.LENGTH
        trajectory.mode = policy.format.read(response.tolist(), truncated=not number % 4).mode
        written = np.arange(len(trajectory.ids)) >= trajectory.prompt_length
        origin = np.where(written, Provenance.MODEL, Provenance.PROMPT)
        trajectory.roles = policy.format.automaton.label(trajectory.ids, origin)
    return policy, trajectories, groups


def as_inputs(trajectories: list[Trajectory], advantages: np.ndarray, pad: int) -> dict[str, torch.Tensor]:
    """Trajectories as TRL holds its samples."""
    before = [t.ids[: t.prompt_length] for t in trajectories]
    after = [t.ids[t.prompt_length :] for t in trajectories]
    sides = {"prompt": (before, True), "completion": (after, False)}
    found: dict[str, torch.Tensor] = {}
    for name, (rows, left) in sides.items():
        width = max(map(len, rows))
        for kind, values in (("ids", rows), ("mask", [np.ones_like(row) for row in rows])):
            fill = pad if kind == "ids" else 0
            gaps = [np.full(width - len(row), fill) for row in rows]
            joined = [np.concatenate([g, v] if left else [v, g]) for g, v in zip(gaps, values, strict=True)]
            found[f"{name}_{kind}"] = torch.from_numpy(np.stack(joined))
    old = np.zeros(found["completion_ids"].shape, dtype=np.float32)
    for row, t in enumerate(trajectories):
        old[row, : len(after[row])] = t.logprobs[t.prompt_length :]
    found |= {"advantages": torch.from_numpy(advantages).float(), "old_per_token_logps": torch.from_numpy(old)}
    return found | {"num_items_in_batch": found["completion_mask"].sum()}


def trainer_of(policy: Policy, folder: Path, *constraints: ConstraintConfig, kind: Any = ConstrainedGRPOTrainer) -> Any:
    extra = {"constraints": constraints, "chat": CALLS} if kind is ConstrainedGRPOTrainer else {}
    trainer = kind(
        model=policy.model, reward_funcs=lengths, args=grpo_config(folder), train_dataset=prompts(),
        processing_class=policy.tokenizer, **extra,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    policy.model.train()
    return trainer


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_counts(inputs: dict[str, torch.Tensor], format: Any) -> dict[str, torch.Tensor]:
    counted = count(inputs, format)
    share = counted.think / counted.free if counted.free else math.nan
    return inputs | {RESPONSES: torch.tensor(counted.responses / counted.sequences), SHARE: torch.tensor(share)}


def test_without_constraints_the_loss_is_trls(world: tuple, tmp_path: Path):
    policy, trajectories, groups = world
    inputs = as_inputs(trajectories, group_advantages(np.arange(12.0) % 5, groups, "group"), 0)
    plain = trainer_of(policy, tmp_path, kind=GRPOTrainer)
    theirs = plain._compute_loss(policy.model, inputs)
    first = gradients(policy.model, theirs)
    free = ConstraintConfig(name="free", group_by="mode", target=1.0, coefficient=0.0)
    for constraints in ((), (free,)):
        trainer = trainer_of(policy, tmp_path, *constraints)
        ours = trainer._compute_loss(policy.model, with_counts(inputs, policy.format))
        assert ours.item() == theirs.item()
        second = gradients(policy.model, ours)
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("names", [("decoupled",), ("roles", "choice"), ("rate",)])
def test_with_constraints_the_loss_is_ours(world: tuple, names: tuple[str, ...], tmp_path: Path):
    policy, trajectories, groups = world
    advantages = group_advantages(np.arange(12.0) % 5, groups, "batch")
    configs = [CONSTRAINTS[name] for name in names]
    modes = policy.format.modes
    share = with_counts(as_inputs(trajectories, advantages, 0), policy.format)[SHARE].item()
    batch = collate(trajectories, advantages, modes.position, think_share=share, before_choice=modes.shared)
    own = [Constraint(config) for config in configs]
    policy.model.train()
    scores = score_tokens(policy.model, batch, 1.0, modes.choice_ids)
    totals, sums = Totals(12, 12, float(batch.sampled.sum())), dict.fromkeys(SUMS, 0.0)
    expected = micro_batch_loss(scores, batch, own, LearnConfig(averaging="sample"), totals, sums)
    first = gradients(policy.model, expected)
    assert any(constraint.bonus(batch, scores, 12).item() for constraint in map(Constraint, configs))

    trainer = trainer_of(policy, tmp_path, *configs)
    inputs = with_counts(as_inputs(trajectories, advantages, 0), policy.format)
    loss = trainer._compute_loss(policy.model, inputs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    second = gradients(policy.model, loss)
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-5, rtol=1e-4)
    for constraint, mine in zip(own, trainer.constraints, strict=True):
        logged = constraint.update(0.5)
        assert trainer._metrics["train"].keys() >= logged.keys()
        for name, value in logged.items():
            assert trainer._metrics["train"][name][-1] == pytest.approx(value, abs=1e-5), name
        assert mine.state_dict()["groups"].keys() == constraint.state_dict()["groups"].keys()


def test_micro_batches_change_nothing(world: tuple, tmp_path: Path):
    policy, trajectories, groups = world
    advantages = group_advantages(np.arange(12.0) % 5, groups, "batch")
    inputs = with_counts(as_inputs(trajectories, advantages, 0), policy.format)
    trainer = trainer_of(policy, tmp_path, CONSTRAINTS["decoupled"], CONSTRAINTS["rate"])
    whole = gradients(policy.model, trainer._compute_loss(policy.model, inputs))
    betas = [c.state_dict() for c in trainer.constraints]
    again = trainer_of(policy, tmp_path, CONSTRAINTS["decoupled"], CONSTRAINTS["rate"])
    again.current_gradient_accumulation_steps = 3
    total = {}
    for part in range(3):
        again.accelerator.gradient_state._set_sync_gradients(part == 2)
        rows = slice(4 * part, 4 * part + 4)
        piece = {name: value[rows] if value.ndim else value for name, value in inputs.items()}
        for name, gradient in gradients(policy.model, again._compute_loss(policy.model, piece)).items():
            total[name] = total.get(name, 0) + gradient
    for name, gradient in whole.items():
        torch.testing.assert_close(total[name], gradient, atol=1e-5, rtol=1e-4)
    for one, two in zip(betas, (c.state_dict() for c in again.constraints), strict=True):
        for group, state in one["groups"].items():
            assert two["groups"][group]["beta"] == pytest.approx(state["beta"], abs=1e-6)


def test_rows_are_read_as_they_were_written(world: tuple):
    policy, trajectories, _ = world
    inputs = as_inputs(trajectories, np.zeros(12), 0)
    found = batch_of(inputs, policy.format, 0.5)
    modes = policy.format.modes
    width = found.sampled.shape[1]
    for row, t in enumerate(trajectories):
        own = collate([t], [0.0], modes.position, before_choice=modes.shared)
        end = min(width, len(t.ids) - t.prompt_length)
        for name in ("sampled", "roles", "mode", "choice", "response"):
            mine = getattr(found, name)[row, :end]
            assert torch.equal(mine, getattr(own, name)[0, t.prompt_length - 1 :][:end]), name


def test_forced_modes_and_results_of_tools():
    format = chat_format()
    tokens = format.encode
    opened = format.prompt_ids([{"role": "user", "content": "Tomorrow?"}])
    call = tokens('<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call><|im_end|>')
    result = tokens("\n<|im_start|>user\n<tool_response>\n<think>\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    answer = tokens("<think>\nSunny\n</think>\n\n20 degrees<|im_end|>")
    forced = [*opened, *format.prefix_ids(Mode.NO_THINK)]
    ids = np.array([*call, *result, *answer])
    drawn = np.array([True] * len(call) + [False] * len(result) + [True] * len(answer))
    first, second = responses_of(np.array(forced), ids, drawn, format)
    assert (first.mode, first.forced, first.choice) == (Mode.NO_THINK, Mode.NO_THINK, -1)
    assert first.roles[1:-1].tolist() == [Role.ACTION] * (len(call) - 2) and first.roles[0] == Role.REASONING
    assert (second.mode, second.forced) == (Mode.THINK, Mode.AUTO)
    assert second.choice == len(call) + len(result) + format.modes.position
    cut = responses_of(np.array(forced), ids[:5], drawn[:5], format)
    assert [part.mode for part in cut] == [Mode.NONE]
    thought = np.array(answer[len(format.prefix_ids(Mode.THINK)) :])
    before = np.array([*opened, *format.prefix_ids(Mode.THINK)])
    thinking = responses_of(before, thought, np.ones_like(thought), format)
    assert [(part.mode, part.forced) for part in thinking] == [(Mode.THINK, Mode.THINK)]


def test_a_run_stopped_and_resumed_ends_as_an_unbroken_one(tmp_path: Path):
    config = ConstraintConfig(
        name="short", group_by="mode", target=7.0, coefficient=Adaptive(start=0.1, rule="adam", learning_rate=0.05)
    )
    ends = {(chat_tokenizer().eos_token_id,): 4.0}  # a random model would hardly ever stop

    def run(folder: str, steps: int, resume: str | None = None) -> Any:
        trainer = ConstrainedGRPOTrainer(
            model=chat_model(), reward_funcs=lengths, train_dataset=prompts(8), constraints=[config], chat=CHAT,
            processing_class=chat_tokenizer(modes=True),
            args=grpo_config(
                tmp_path / folder, max_steps=steps, save_strategy="steps", save_steps=2,
                generation_kwargs={"sequence_bias": ends}, chat_template_kwargs={"mode": "no_think"},
            ),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole", 4)
    run("broken", 2)
    rest = run("broken", 4, str(tmp_path / "broken" / "checkpoint-2"))
    logged = [row for row in whole.state.log_history if "constraint/short/no_think/coefficient" in row]
    betas = [row["constraint/short/no_think/coefficient"] for row in logged]
    assert len(set(betas)) == 4 and min(betas) >= 0.1
    one, two = (trainer.constraints[0].state_dict()["groups"]["no_think"] for trainer in (whole, rest))
    assert (one["beta"], one["mean"]) == (two["beta"], two["mean"])
    for (name, one), two in zip(whole.model.named_parameters(), rest.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0, msg=name)

    checkpoint = tmp_path / "broken" / "checkpoint-2"
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match="does not hold these constraints"):
        rest._load_optimizer_and_scheduler(str(checkpoint))


def test_two_bonuses_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="leave TRL's own bonus off"):
        ConstrainedGRPOTrainer(
            model=chat_model(), reward_funcs=lengths, train_dataset=prompts(), processing_class=chat_tokenizer(),
            args=grpo_config(tmp_path, entropy_coef=0.1), constraints=[CONSTRAINTS["decoupled"]],
            chat=CHAT,
        )  # fmt: skip


def test_logits_that_are_capped_have_no_choice_to_constrain(tmp_path: Path):
    model = chat_model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match=r"cannot be had with the model's final_logit_softcapping"):
        ConstrainedGRPOTrainer(
            model=model, reward_funcs=lengths, train_dataset=prompts(), processing_class=chat_tokenizer(),
            args=grpo_config(tmp_path), constraints=[CONSTRAINTS["choice"]], chat=CHAT,
        )  # fmt: skip


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert release.check_release().startswith("1.16.")
    monkeypatch.setattr(release, "version", lambda _: "1.17.2")
    with pytest.raises(MissingExtraError, match=r"this is TRL 1\.17\.2: pip install 'trl==1\.16\.\*'"):
        release.check_release()
