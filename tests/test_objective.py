"""The objective against a plain float64 loop over tokens, with gradients checked by finite differences."""

import math

import numpy as np
import pytest
import torch
from policies import sampled_batch, tiny_policy

from unbraid.learn.batch import collate
from unbraid.learn.objective import kl_terms, policy_terms, score_tokens, token_weights


def test_scores_equal_full_logits_token_by_token():
    policy = tiny_policy(dtype=torch.float64)
    trajectories, _ = sampled_batch(policy, temperature=0.7)
    modes = policy.format.modes
    batch = collate(trajectories, np.zeros(len(trajectories)), modes.position)
    scores = score_tokens(policy.model, batch, 0.7, modes.choice_ids)
    for row, t in enumerate(trajectories):
        logits = policy.model(input_ids=torch.tensor(t.ids)[None]).logits[0] / 0.7
        for at in range(1, len(t.ids)):
            p = torch.softmax(logits[at - 1], -1).tolist()
            if not t.sampled[at]:
                assert not batch.sampled[row, at - 1] and scores.logprobs[row, at - 1] == 0
                continue
            assert scores.logprobs[row, at - 1].item() == pytest.approx(math.log(p[t.ids[at]]), abs=1e-9)
            assert scores.entropy[row, at - 1].item() == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-9)
            if at == t.prompt_length + modes.position:
                pair = [p[i] for i in modes.choice_ids]
                two = [q / sum(pair) for q in pair]
                entropy = -sum(q * math.log(q) for q in two)
                assert scores.choice_entropy[row, at - 1].item() == pytest.approx(entropy, abs=1e-9)
                assert scores.choice_outside[row, at - 1].item() == pytest.approx(1 - sum(pair), abs=1e-9)


def test_score_gradients_pass_gradcheck():
    policy = tiny_policy(dtype=torch.float64, layers=1)
    trajectories, _ = sampled_batch(policy, prompts=2, samples=2, budget=5)
    batch = collate(trajectories, np.zeros(len(trajectories)), policy.format.modes.position)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    head = policy.model.lm_head.weight.detach().clone()
    direction = torch.randn(8, *head.shape, dtype=torch.float64) * 0.1

    def measured(w: torch.Tensor) -> torch.Tensor:
        moved = head + torch.einsum("k,kvd->vd", w, direction)

        def model(**inputs: torch.Tensor) -> object:
            return torch.func.functional_call(policy.model, {"lm_head.weight": moved}, kwargs=inputs)

        scores = score_tokens(model, batch, 1.3, policy.format.modes.choice_ids)
        return torch.stack([scores.logprobs.sum(), scores.entropy.sum(), scores.choice_entropy.sum()])

    assert torch.autograd.gradcheck(measured, (weight,))


def test_policy_terms_equal_the_formula_and_know_where_they_clip():
    rng = np.random.default_rng(0)
    new, old = (torch.tensor(rng.normal(size=(30, 7))) * 0.4 for _ in range(2))
    advantages = torch.tensor(rng.normal(size=30))
    terms, clipped = policy_terms(new, old, advantages, 0.2, 0.3)
    for i in range(30):
        for t in range(7):
            ratio, a = math.exp(new[i, t] - old[i, t]), advantages[i].item()
            bounded = min(max(ratio, 0.8), 1.3)
            assert terms[i, t].item() == pytest.approx(-min(ratio * a, bounded * a))
            assert bool(clipped[i, t]) == ((a > 0 and ratio > 1.3) or (a < 0 and ratio < 0.8))


def test_k3_is_an_unbiased_estimate_of_the_kl():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    terms = kl_terms(torch.tensor(np.log(p)), torch.tensor(np.log(q))).numpy()
    assert (p * terms).sum() == pytest.approx((p * np.log(p / q)).sum())
    assert (terms >= 0).all()


@pytest.mark.parametrize("averaging", ["sample", "token"])
def test_token_weights_are_the_stated_means(averaging: str):
    policy = tiny_policy()
    trajectories, _ = sampled_batch(policy)
    batch = collate(trajectories, np.zeros(len(trajectories)), policy.format.modes.position)
    lengths = [int(t.sampled.sum()) for t in trajectories]
    weights = token_weights(batch, averaging, len(trajectories), sum(lengths))  # type: ignore[arg-type]
    values = torch.rand(weights.shape, dtype=torch.float64)
    rows = [values[i][batch.sampled[i]].tolist() for i in range(len(trajectories))]
    chosen = token_weights(batch, averaging, len(trajectories), sum(lengths), mode_weight=7.0)  # type: ignore[arg-type]
    torch.testing.assert_close(chosen, torch.where(batch.choice, 7.0, 1.0) * weights)
    by_sample = sum(sum(r) / len(r) for r in rows) / len(rows)
    by_token = sum(map(sum, rows)) / sum(lengths)
    wanted = by_sample if averaging == "sample" else by_token
    assert (weights * values).sum().item() == pytest.approx(wanted, abs=1e-12)
