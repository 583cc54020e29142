"""The local sampler: its log-probs are the trainer's, and nothing but the request decides what is drawn."""

import numpy as np
import pytest
import torch
from policies import calls_tasks, requests_for, tiny_policy
from scipy import stats

from unbraid.chat.modes import ModePrefixes
from unbraid.chat.types import Mode
from unbraid.learn.batch import collate, think_share
from unbraid.learn.objective import score_tokens
from unbraid.rollout import Finish, LocalSampler
from unbraid.rollout.randomness import stream_key, uniforms
from unbraid.rollout.scoring import draw
from unbraid.tokens import Provenance, Role

FREE_AND_FORCED = [Mode.AUTO, Mode.THINK, Mode.NO_THINK, Mode.AUTO, Mode.AUTO]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_sampler_logprobs_equal_trainer_logprobs(temperature: float, adapter: bool):
    policy = tiny_policy(adapter=adapter)
    requests = requests_for(policy, calls_tasks(8), FREE_AND_FORCED)
    trajectories = LocalSampler(policy).sample(requests, temperature=temperature, max_new_tokens=24, seed=3)
    batch = collate(trajectories, np.zeros(len(trajectories)), policy.format.modes.position)
    with torch.no_grad():
        scores = score_tokens(policy.model, batch, temperature, policy.format.modes.choice_ids)
    for row, t in enumerate(trajectories):
        drawn = np.flatnonzero(t.sampled)
        assert np.abs(scores.logprobs[row, drawn - 1].numpy() - t.logprobs[drawn]).max() < 1e-4
        assert np.abs(scores.entropy[row, drawn - 1].numpy() - t.entropies[drawn]).max() < 1e-4
        assert not t.logprobs[~t.sampled].any() and np.isnan(t.entropies[~t.sampled]).all()
        if t.forced is Mode.AUTO:
            two_way = np.array(t.choice_probs) / sum(t.choice_probs)
            entropy = -(two_way * np.log(two_way)).sum()
            assert scores.choice_entropy[row].sum().item() == pytest.approx(entropy, abs=1e-4)
            assert scores.choice_outside[row].sum().item() == pytest.approx(1 - sum(t.choice_probs), abs=1e-4)
        else:
            assert not batch.choice[row].any()


def test_a_trajectory_does_not_depend_on_company_order_or_batch_size():
    policy = tiny_policy()
    requests = requests_for(policy, calls_tasks(6), FREE_AND_FORCED)
    together = LocalSampler(policy).sample(requests, temperature=1.0, max_new_tokens=20, seed=1)
    order = np.random.default_rng(0).permutation(len(requests))
    small = LocalSampler(policy, max_batch=3).sample(
        [requests[i] for i in order], temperature=1.0, max_new_tokens=20, seed=1
    )
    for t, i in zip(small, order, strict=True):
        assert t.ids.tolist() == together[i].ids.tolist()
        assert t.task_id == together[i].task_id and t.sample == together[i].sample
        np.testing.assert_allclose(t.logprobs, together[i].logprobs, atol=1e-5)


def test_forced_modes_start_with_their_prefix_and_only_drawn_tokens_are_sampled():
    policy = tiny_policy()
    modes = policy.format.modes
    for t in LocalSampler(policy).sample(
        requests_for(policy, calls_tasks(5), FREE_AND_FORCED), temperature=1.0, max_new_tokens=12, seed=0
    ):
        prefix = modes.of(t.forced)
        assert tuple(t.response_ids[: len(prefix)]) == prefix
        assert t.sampled.tolist() == [i >= t.prompt_length + len(prefix) for i in range(len(t.ids))]
        stopped = t.ids[-1] in policy.format.stop_ids
        assert (t.finish is Finish.STOP) == stopped
        assert stopped or t.response_tokens == 12
        assert not np.isin(t.response_ids[:-1], policy.format.stop_ids).any()
        provenance = np.where(np.arange(len(t.ids)) < t.prompt_length, Provenance.PROMPT, Provenance.MODEL)
        assert t.roles.tolist() == policy.format.automaton.label(t.ids, provenance).tolist()
        assert set(t.roles[: t.prompt_length].tolist()) == {Role.PROMPT}


def test_greedy_equals_argmax_of_the_full_forward():
    policy = tiny_policy(dtype=torch.float64)
    for t in LocalSampler(policy).sample(
        requests_for(policy, calls_tasks(4), [Mode.AUTO]), temperature=0.0, max_new_tokens=16, seed=0
    ):
        with torch.no_grad():
            best = policy.model(input_ids=torch.tensor(t.ids)[None]).logits[0].argmax(-1).numpy()
        assert best[t.prompt_length - 1 : -1].tolist() == t.response_ids.tolist()


def test_first_tokens_follow_the_models_distribution():
    policy = tiny_policy(sharp=0.6)
    request = requests_for(policy, calls_tasks(1), [Mode.AUTO])[0]
    draws = [request.__class__(request.task, request.prompt_ids, sample) for sample in range(4000)]
    trajectories = LocalSampler(policy, max_batch=4000).sample(draws, temperature=0.8, max_new_tokens=2, seed=5)
    counts = np.bincount([t.response_ids[0] for t in trajectories], minlength=len(policy.tokenizer))
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([request.prompt_ids])).logits[0, -1]
    expected = 4000 * torch.softmax(logits.double() / 0.8, -1).numpy()
    frequent = expected >= 5
    observed = np.append(counts[frequent], counts[~frequent].sum())
    wanted = np.append(expected[frequent], expected[~frequent].sum())
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_uniforms_are_uniform_and_independent_of_neighbours():
    keys = np.array([stream_key("seed", task, sample) for task in range(200) for sample in range(8)])
    assert len(set(keys.tolist())) == len(keys)
    grid = np.stack([uniforms(keys, position) for position in range(50)])
    assert grid.min() >= 0 and grid.max() < 1
    assert stats.kstest(grid.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02
    assert uniforms(keys[3:4], 7)[0] == grid[7, 3]


def test_other_seeds_and_samples_draw_other_tokens():
    policy = tiny_policy(sharp=0.1)
    requests = requests_for(policy, calls_tasks(4), [Mode.AUTO] * 4)
    one, two = (
        LocalSampler(policy).sample(requests, temperature=1.0, max_new_tokens=12, seed=seed) for seed in ("a", "b")
    )
    assert all(a.ids.tolist() != b.ids.tolist() for a, b in zip(one, two, strict=True))
    assert len({tuple(t.ids.tolist()) for t in one}) == len(one)


def test_a_task_that_comes_twice_is_answered_anew():
    policy = tiny_policy(sharp=0.1)
    task = calls_tasks(1)[0]
    modes = [Mode.AUTO] * 3
    drawn = draw(LocalSampler(policy), policy.format, [task, task], modes, temperature=1.0, max_new_tokens=12)
    assert len({tuple(t.ids.tolist()) for t in drawn}) == 6
    assert [t.sample for t in drawn] == list(range(6))


def test_a_response_that_starts_otherwise_than_both_modes_makes_no_choice():
    # Both modes start with one more id, as in `<think>`, then `\n` or `\n\n`.
    policy = tiny_policy(sharp=0.05)
    think, no_think = policy.format.modes.choice_ids
    stop = policy.format.stop_ids[0]
    shared = next(i for i in range(len(policy.tokenizer)) if i not in (think, no_think, stop))
    policy.format.modes = ModePrefixes((shared, think), (shared, no_think))
    requests = requests_for(policy, calls_tasks(12), [Mode.AUTO] * 24)
    trajectories = LocalSampler(policy).sample(requests, temperature=1.0, max_new_tokens=6, seed=0)
    starts = np.array([t.response_ids[0] == shared for t in trajectories])
    assert starts.any() and not starts.all()
    assert np.isfinite([t.choice_probs for t in trajectories]).all(-1).tolist() == starts.tolist()
    batch = collate(trajectories, np.zeros(len(trajectories)), 1, before_choice=policy.format.modes.shared)
    assert batch.choice.any(-1).tolist() == starts.tolist()
    chosen = [t for t, starts_so in zip(trajectories, starts, strict=True) if starts_so]
    assert think_share(trajectories) == pytest.approx(think_share(chosen))
