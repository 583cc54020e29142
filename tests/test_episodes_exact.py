"""Episodes of a random agent: what was sampled is what the trainer scores, whoever finishes first."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agents import Parrot, Style, agent_policy, agent_tasks

from unbraid.chat.types import Mode
from unbraid.learn.batch import collate
from unbraid.learn.checkpoint import CheckpointConfig, CheckpointStore
from unbraid.learn.constraint import Constraint, ConstraintConfig
from unbraid.learn.grpo import LearnConfig, Totals, micro_batch_loss
from unbraid.learn.log import read_metrics, without_wall_clock
from unbraid.learn.objective import kl_terms, score_tokens
from unbraid.learn.trainer import Training
from unbraid.policy import Policy
from unbraid.rollout.config import EnvironmentConfig, RolloutConfig
from unbraid.rollout.episodes import EpisodeRoll, Player
from unbraid.rollout.replay import reshow, response_logprobs
from unbraid.rollout.slots import SlotSampler
from unbraid.rollout.trajectory import Trajectory
from unbraid.tasks.environment import Environment
from unbraid.tasks.episode import Ended
from unbraid.tasks.reward import RewardConfig
from unbraid.tokens import Role

STYLES: list[tuple[Style, str]] = [
    ("inline", "keep"),
    ("chat", "as_served"),
    ("chat", "keep"),
    ("plain_chat", "as_served"),
]


def roller(policy: Policy, environment: Environment | None = None, history: str = "as_served", slots: int = 16) -> Any:
    config = EnvironmentConfig(name="parrot", history=history, turns=5, tokens=700)  # type: ignore[arg-type]
    player = Player(environment or Parrot(), policy.format, config, RewardConfig(), 60)
    return EpisodeRoll(player, lambda temperature: SlotSampler(policy, slots, temperature))


def trainer_logprobs(policy: Policy, trajectory: Trajectory, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(log-probs, entropies) of every token as an update computes them; 0 for the first of each sequence."""
    found: list[list[np.ndarray]] = [[], []]
    for piece in trajectory.split():
        batch = collate([piece], [0.0], policy.format.modes.position, router=policy.router)
        with torch.no_grad():
            scores = score_tokens(policy.model, batch, temperature, policy.format.modes.choice_ids)
        for values, score in zip(found, (scores.logprobs, scores.entropy), strict=True):
            values.append(np.concatenate([[0.0], score[0].float().numpy()]))
    return np.concatenate(found[0]), np.concatenate(found[1])


@pytest.mark.parametrize(("style", "history"), STYLES)
def test_sampler_and_trainer_agree_on_500_episodes_and_only_sampled_tokens_count(style: Style, history: str):
    policy, seen = agent_policy(style), Counter()
    modes = [Mode.AUTO, Mode.AUTO, Mode.THINK, Mode.NO_THINK]
    for temperature in (1.0, 0.7):
        with roller(policy, history=history) as roll:
            found = roll(agent_tasks(16), modes, temperature=temperature, seed=temperature)
        for t in found:
            logprobs, entropies = trainer_logprobs(policy, t, temperature)
            assert np.abs(t.logprobs - logprobs).max() < 1e-4
            assert np.abs(np.nan_to_num(t.entropies) - entropies)[t.sampled].max() < 1e-4
            shown = np.isin(t.roles, (Role.PROMPT, Role.OBSERVATION))
            inside = np.zeros(len(t.ids), dtype=bool)
            for r in t.responses:
                inside[r.start : r.end] = True
            assert (shown == ~inside).all() and not t.sampled[shown].any()
            assert (t.logprobs[~t.sampled] == 0).all() and np.isnan(t.entropies[~t.sampled]).all()
            assert len(t.split()) == 1 or history == "as_served"
            assert t.episode and t.episode.tokens == t.response_tokens
            seen["episodes"] += 1
            seen["responses"] += len(t.responses)
            seen["calls"] += len(t.episode.results)
            seen["replies"] += sum(turn.reply is not None for turn in t.episode.turns)
            seen[f"first mode {t.responses[0].mode}"] += 1
            seen["planted"] += int(np.isin(t.ids[t.roles == Role.OBSERVATION], policy.format.stop_ids).any())
    assert seen["episodes"] == 128  # times the parameters: 512
    assert min(seen.values()) > 8 and seen["responses"] > 150 and seen["calls"] > 20, seen


def plain(trajectory: Trajectory) -> tuple[Any, ...]:
    """All of a trajectory but the clock."""
    episode = trajectory.episode
    assert episode
    arrays = [getattr(trajectory, name).tobytes() for name in ("ids", "roles", "sampled", "logprobs", "entropies")]
    results = [(r.call, r.text, r.fault) for r in episode.results]
    return (*arrays, repr(trajectory.parts), trajectory.reward, episode.ended, repr(results))


@pytest.mark.parametrize(("style", "history"), STYLES[:2])
def test_the_order_in_which_tools_answer_changes_nothing(style: Style, history: str):
    policy, rng = agent_policy(style), random.Random(0)
    tasks, modes = agent_tasks(10), [Mode.AUTO] * 3

    def run(environment: Environment, slots: int) -> list[tuple[Any, ...]]:
        with roller(policy, environment, history, slots) as roll:
            return [plain(t) for t in roll(tasks, modes, temperature=1.0, seed=7)]

    at_once = run(Parrot(), 12)
    assert run(Parrot(lambda query: rng.random() * 0.02), 12) == at_once
    assert run(Parrot(lambda query: rng.random() * 0.01), 5) == at_once  # and not even the number of slots does
    with roller(policy, None, history) as roll:
        backwards = roll(tasks[::-1], modes, temperature=1.0, seed=7)
    assert sorted(map(repr, map(plain, backwards))) == sorted(map(repr, at_once))


@pytest.mark.parametrize(("style", "history"), STYLES[:2])
def test_the_loss_of_episodes_is_the_one_written_out_by_hand(style: Style, history: str):
    policy = agent_policy(style, dtype=torch.float64)
    with roller(policy, history=history) as roll:
        found = [t for t in roll(agent_tasks(6), [Mode.AUTO] * 2, temperature=1.0, seed=3) if len(t.responses) > 1][:4]
    assert len(found) == 4
    advantages = np.array([1.0, -0.5, 0.25, -2.0])
    config = LearnConfig(kl=0.0, mode_weight=3.0)
    betas = {"think": 0.25, "no_think": 0.1}
    constraint = Constraint(ConstraintConfig(name="c", group_by="mode", target=99.0, coefficient=dict(betas)))
    responses = sum(len(t.responses) for t in found)
    modes = policy.format.modes

    wanted = torch.zeros((), dtype=torch.float64)
    for t, advantage in zip(found, advantages, strict=True):
        for start, end in t.sequences:
            ids = torch.as_tensor(t.ids[start:end])[None]
            logp = torch.log_softmax(policy.model(ids).logits[0].double(), -1)
            entropy = -(logp.exp() * logp).sum(-1)
            for r in t.responses:
                if r.context != start:
                    continue
                where = [p for p in range(r.start, r.end) if t.sampled[p]]
                for p in where:
                    ratio = torch.exp(logp[p - start - 1, t.ids[p]] - float(t.logprobs[p]))
                    weight = 3.0 if p == r.start + modes.position else 1.0
                    wanted = wanted - weight * ratio * advantage / (t.sampled.sum() * len(found))
                if r.mode is not Mode.NONE:
                    mean = torch.stack([entropy[p - start - 1] for p in where]).mean()
                    wanted = wanted - betas[r.mode.value] * mean / responses
    pieces = [(a, piece, t) for t, a in zip(found, advantages, strict=True) for piece in t.split()]
    rng = np.random.default_rng(0)
    for size in (1, 2, len(pieces)):
        order = rng.permutation(len(pieces))
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(order), size):
            part = [pieces[i] for i in order[first : first + size]]
            whole = [float(t.sampled.sum()) for _, _, t in part]
            batch = collate([p for _, p, _ in part], [a for a, _, _ in part], modes.position, tokens=whole)
            sums = Counter()
            totals = Totals(len(found), responses, sum(float(t.sampled.sum()) for t in found))
            scores = score_tokens(policy.model, batch, 1.0, modes.choice_ids)
            total = total + micro_batch_loss(scores, batch, [constraint], config, totals, sums)  # type: ignore[arg-type]
        assert total.item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize(("style", "history"), STYLES)
def test_an_episode_shown_again_is_itself_and_shown_otherwise_is_the_other(style: Style, history: str):
    policy, tasks = agent_policy(style), agent_tasks(8)
    both = {}
    for name in ("keep", "as_served"):
        with roller(policy, history=name) as roll:
            both[name] = roll(tasks, [Mode.AUTO] * 2, temperature=1.0, seed=2)
    other = "keep" if history == "as_served" else "as_served"
    tools = tuple(Parrot().schemas())
    for ours, theirs in zip(both[history], both[other], strict=True):
        task = next(replace(t, tools=tools) for t in tasks if t.id == ours.task_id)
        first = Parrot().reset(task)
        task = replace(task, messages=(*task.messages, *([{"role": "user", "content": first}] if first else [])))
        assert plain(reshow(ours, task, policy.format, history)) == plain(ours)  # type: ignore[arg-type]
        shown = reshow(ours, task, policy.format, other)
        assert np.concatenate(response_logprobs(shown, shown.logprobs)).tolist() == ours.logprobs[ours.sampled].tolist()
        again = reshow(shown, task, policy.format, history)  # type: ignore[arg-type]
        assert plain(again) == plain(ours)
        # Until the first observation both are one episode; where that is all, the other way of sampling gives the same.
        if len(ours.responses) == 1:
            assert plain(shown) == plain(theirs)


def test_a_context_that_reaches_the_models_end_ends_its_episode_only():
    policy = agent_policy("chat")
    policy.model.config.max_position_embeddings = 90
    with roller(policy) as roll:
        found = roll(agent_tasks(12), [Mode.AUTO] * 2, temperature=1.0, seed=0)
    assert all(end - start <= 90 for t in found for start, end in t.sequences)
    assert {t.episode.ended for t in found if t.episode} >= {Ended.TOKENS, Ended.ANSWER}


def test_neither_prompts_nor_observations_move_anything():
    policy = agent_policy("chat", dtype=torch.float64)
    with roller(policy) as roll:
        found = [p for t in roll(agent_tasks(8), [Mode.AUTO], temperature=1.0, seed=1) for p in t.split()]
    batch = collate(found, np.ones(len(found)), policy.format.modes.position)
    scores = score_tokens(policy.model, batch, 1.0, policy.format.modes.choice_ids)
    shown = (batch.roles == Role.PROMPT) | (batch.roles == Role.OBSERVATION)
    assert shown.any() and not batch.sampled[shown].any()
    for values in (scores.logprobs, scores.entropy, scores.choice_entropy, scores.choice_think):
        assert (values[shown] == 0).all()
    assert (kl_terms(scores.logprobs, batch.reference_logprobs)[shown] == 0).all()


def test_a_stopped_run_of_episodes_resumes_bit_for_bit(tmp_path: Path):
    def run(folder: Path, stop: int | None = None) -> Training:
        policy, rng = agent_policy("chat"), random.Random(stop)

        def on_step(step: int, metrics: dict[str, Any]) -> None:
            if step == stop:
                raise KeyboardInterrupt

        training = Training(
            policy=policy,
            roll=roller(policy, Parrot(lambda query: rng.random() * 0.003)),
            tasks=agent_tasks(6),
            rollout=RolloutConfig(prompts=3, samples=3, max_new_tokens=60),
            learn=LearnConfig(steps=4, learning_rate=1e-2, kl=0.05, minibatches=2),
            constraints=[Constraint(ConstraintConfig(name="mode", measure="choice_rate", target=0.5, coefficient=0.1))],
            store=CheckpointStore(folder / "checkpoints", CheckpointConfig(every=1, keep=2), "recipe"),
            run_dir=folder,
            on_step=on_step,
        )
        training.run()
        return training

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop=2)
    resumed = run(tmp_path / "broken")
    for (name, a), (_, b) in zip(whole.policy.trainable(), resumed.policy.trainable(), strict=True):
        assert torch.equal(a, b), name
    rows = [[without_wall_clock(row) for row in read_metrics(tmp_path / name)] for name in ("whole", "broken")]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    files = [sorted((tmp_path / name / "rollouts").iterdir()) for name in ("whole", "broken")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
