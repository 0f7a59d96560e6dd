"""The best columns out of blocks of scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import RangeError
from querykey.lookup import best_columns as module
from querykey.lookup.best_columns import BestColumns, best_of_blocks


def collected(scores, block, best):
    for start in range(0, scores.shape[1], block):
        best.add(scores[:, start : start + block].contiguous(), start)
    return best.ordered()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 40),
    block=st.sampled_from([5, 16, 64, 400]),
    shift=st.sampled_from([-5.0, 0.0, 5.0]),
    order=st.sampled_from(["random", "rising", "falling"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    share=st.sampled_from([None, 0.0, 0.9, 0.99, 1.0]),
    is_tight=st.booleans(),
)
def test_they_are_those_of_a_sort_down_to_the_floor(seed, count, block, shift, order, dtype, share, is_tight):
    """Floors that leave out nothing, much and all; scores that rise from block to block; little room."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 400, generator=draw) + shift
    if order != "random":
        scores = scores.sort(dim=1, descending=order == "falling").values
    scores = scores.to(dtype)
    floor = None if share is None else scores.float().quantile(share, dim=1, keepdim=True).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARE", -count if is_tight else module.SPARE)
        found, index, left_out = collected(scores, block, BestColumns(count, floor))
    every, order = scores.float().sort(dim=1, descending=True)
    for row in range(6):
        values = found[row][found[row] > -torch.inf]
        assert values.tolist() == every[row, : len(values)].tolist()
        assert scores[row].float()[index[row, : len(values)]].tolist() == values.tolist()
        assert len(set(index[row, : len(values)].tolist())) == len(values)
        others = scores[row].float().clone()
        others[index[row, : len(values)]] = -torch.inf
        assert others.max() <= left_out[row]
        if share is None:
            assert len(values) == count
            assert left_out[row] == every[row, count - 1]


def test_all_columns_leave_out_nothing():
    found, _, floor = collected(torch.randn(3, 20), 7, BestColumns(20))
    assert found.shape == (3, 20)
    assert (floor <= found[:, -1]).all()
    assert (collected(torch.randn(3, 20), 7, BestColumns(30))[2] == -torch.inf).all()


@pytest.mark.parametrize("by_groups", [True, False])
def test_nan_is_above_no_floor(by_groups):
    scores = torch.rand(4, 64)
    scores[:, 3], scores[1, 5] = torch.nan, torch.inf
    at, many, values = module._above(scores, torch.full((4, 1), 0.98), by_groups=by_groups)
    want = (scores > 0.98).view(-1).nonzero()[:, 0]
    assert at.tolist() == want.tolist()
    assert many.tolist() == (scores > 0.98).sum(1).tolist()
    assert torch.equal(values, scores.view(-1)[want])


def test_no_blocks_are_refused():
    with pytest.raises(RangeError, match="there are no keys"):
        best_of_blocks([], 3)
