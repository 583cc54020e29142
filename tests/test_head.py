"""The head at trainable positions: gradcheck, and equality with log_softmax over full logits."""

import pytest
import torch
from torch import nn

from unbraid.learn.head import Head, score_hidden


def make(bias: bool = False, scale: float = 1.0, softcap: float | None = None, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    head = Head(None, nn.Linear(5, 11, bias=bias, dtype=dtype), scale, softcap)
    hidden = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(11, (7,))


def from_full_logits(head: Head, hidden: torch.Tensor, targets: torch.Tensor, temperature: float):
    logits = head.linear(hidden) * head.scale
    if head.softcap:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1), logp[:, [2, 4]]


FORMS = [(False, 1.0, None), (True, 1.0, None), (False, 0.25, None), (True, 0.5, 1.5)]


@pytest.mark.parametrize(("bias", "scale", "softcap"), FORMS)
@pytest.mark.parametrize("chunk", [1, 3 * 11, None])
def test_gradcheck(bias: bool, scale: float, softcap: float | None, chunk: int | None):
    head, hidden, targets = make(bias, scale, softcap)

    def measured(h: torch.Tensor, *parameters: torch.Tensor):
        linear = nn.Linear(5, 11, bias=bias, dtype=h.dtype)
        linear._parameters.update(zip(("weight", "bias"), parameters, strict=False))  # type: ignore[arg-type]
        return score_hidden(Head(None, linear, scale, softcap), h, targets, 0.7, (2, 4), chunk)

    given = [p.detach().clone().requires_grad_() for p in head.linear.parameters()]
    assert torch.autograd.gradcheck(measured, (hidden, *given))


@pytest.mark.parametrize(("bias", "scale", "softcap"), FORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_equal_to_full_logits(bias: bool, scale: float, softcap: float | None, dtype: torch.dtype, tolerance: float):
    head, hidden, targets = make(bias, scale, softcap, dtype)
    ours = score_hidden(head, hidden, targets, 1.3, (2, 4), chunk=25)
    wanted = from_full_logits(head, hidden, targets, 1.3)
    weights = [torch.randn_like(w) for w in wanted]
    leaves = [hidden, *head.linear.parameters()]
    for one, other in zip(ours, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    gradients = [
        torch.autograd.grad(sum((w * s).sum() for w, s in zip(weights, scores, strict=True)), leaves)  # type: ignore[arg-type]
        for scores in (ours, wanted)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=10 * tolerance, rtol=10 * tolerance)


def test_a_frozen_head_gets_no_gradient():
    head, hidden, targets = make(bias=True)
    head.linear.requires_grad_(False)
    sum(part.sum() for part in score_hidden(head, hidden, targets, 1.0, (2,))).backward()  # type: ignore[union-attr]
    assert head.linear.weight.grad is None and hidden.grad is not None


def test_a_probability_that_underflows_has_no_entropy_and_breaks_nothing():
    head, hidden, _ = make()
    with torch.no_grad():
        head.linear.weight[3] = 1e300
        hidden[:, 0] = -hidden[:, 1:].sum(-1) - 1
    chosen, entropy, _ = score_hidden(head, hidden.detach().requires_grad_(), torch.full((7,), 3), 1.0)
    assert (chosen < -1e100).all()
    assert entropy.isfinite().all()
    (gradient,) = torch.autograd.grad(entropy.sum(), head.linear.weight)
    assert gradient.isfinite().all()
