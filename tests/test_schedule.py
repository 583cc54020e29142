"""Learning rates and data order: pure functions of the step."""

from collections import Counter

import pytest

from unbraid.learn.schedule import epochs, rate_at


def test_rate_rises_linearly_then_follows_its_decay():
    assert [rate_at(s, 100, 1.0, 10, "constant") for s in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert rate_at(55, 100, 1.0, 10, "cosine") == pytest.approx(0.05 + 0.95 * 0.5)
    assert rate_at(55, 100, 1.0, 10, "linear") == pytest.approx(0.05 + 0.95 * 0.5)
    for decay in ("linear", "cosine"):
        rates = [rate_at(s, 100, 2.0, 0, decay) for s in range(101)]
        assert rates == sorted(rates, reverse=True)
        assert (rates[0], rates[-1]) == pytest.approx((2.0, 0.1))


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 25])
def test_every_pass_takes_every_item_once(batch: int):
    at = epochs(list(range(10)), batch, seed=3)
    stream = [item for step in range(20) for item in at(step)]
    for start in range(0, len(stream) - 9, 10):
        assert sorted(stream[start : start + 10]) == list(range(10))
    assert len(Counter(tuple(stream[i : i + 10]) for i in range(0, len(stream) - 9, 10))) > 1 or len(stream) < 20


def test_a_batch_is_a_function_of_its_step_alone():
    forward, backward = epochs(list("abcdefgh"), 3, seed=1), epochs(list("abcdefgh"), 3, seed=1)
    assert [forward(s) for s in range(12)] == [backward(s) for s in reversed(range(12))][::-1]
    assert [epochs(list("abcdefgh"), 3, seed=2)(s) for s in range(12)] != [forward(s) for s in range(12)]


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="nothing to train on"):
        epochs([], 4, seed=0)
