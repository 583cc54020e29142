"""The growing cache holds what the concatenating cache of transformers holds, whatever is appended and selected."""

import pytest
import torch
from transformers import DynamicCache

from unbraid.rollout.cache import growing_cache


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_dynamic_cache(seed: int):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs, rows = growing_cache(), DynamicCache(), 5
    for step in range(60):
        tokens = 40 if step == 0 else int(torch.randint(1, 4, (), generator=generator))
        for layer in range(2):
            keys, values = (torch.randn(rows, 3, tokens, 4, generator=generator) for _ in range(2))
            both = zip(ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True)
            for mine, wanted in both:
                assert torch.equal(mine, wanted)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if step % 7 == 0:
            chosen = torch.randint(rows, (int(torch.randint(2, 9, (), generator=generator)),), generator=generator)
            ours.batch_select_indices(chosen)
            theirs.batch_select_indices(chosen)
            rows = len(chosen)


def test_a_step_writes_into_the_room_there_is():
    cache = growing_cache()
    keys, _ = cache.update(torch.ones(2, 1, 10, 3), torch.ones(2, 1, 10, 3), 0)
    later, _ = cache.update(torch.zeros(2, 1, 1, 3), torch.zeros(2, 1, 1, 3), 0)
    assert later.shape[-2] == 11 and later.data_ptr() == keys.data_ptr()
    cache.batch_select_indices(torch.tensor([0]))
    fewer, _ = cache.update(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 3), 0)
    assert fewer.shape[:3] == (1, 1, 12) and fewer.data_ptr() == keys.data_ptr()
