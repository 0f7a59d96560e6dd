"""The exact nearest keys: the same list whatever the block and the ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import RangeError
from querykey.lookup import nearest as module
from querykey.lookup.nearest import nearest, rough_cosines


def by_hand(queries, keys, k, query_ids=None, key_ids=None):
    """Every score in float64, sorted by (-score, index)."""
    q, x = (torch.nn.functional.normalize(t.double(), dim=1) for t in (queries, keys))
    lists = []
    for i, row in enumerate((q @ x.T).float().tolist()):
        allowed = [j for j in range(len(row)) if key_ids is None or key_ids[j] != query_ids[i]]
        best = sorted(allowed, key=lambda j: (-row[j], j))[:k]
        lists.append(best + [-1] * (k - len(best)))
    return lists


@pytest.mark.parametrize("key_block", [3, 7, 4096])
def test_equals_the_sorted_list(key_block, monkeypatch):
    monkeypatch.setattr(module, "KEY_BLOCK", key_block)
    monkeypatch.setattr(module, "QUERY_BLOCK", 5)
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(13, 8, generator=generator), torch.randn(101, 8, generator=generator)
    assert nearest(queries, keys, 6)[1].tolist() == by_hand(queries, keys, 6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 12))
def test_ties_go_to_the_lower_index_even_where_everything_ties(directions, k):
    """Four directions only: nearly every key has many exact copies, more than the slack."""
    keys = torch.eye(4)[torch.tensor(directions)]
    assert nearest(keys[:3], keys, k)[1].tolist() == by_hand(keys[:3], keys, k)


def test_every_copy_of_the_own_item_is_left_out():
    generator = torch.Generator().manual_seed(1)
    keys, ids = torch.randn(30, 4, generator=generator), torch.arange(30) // 3
    found = nearest(keys, keys, 5, query_ids=ids, key_ids=ids)[1]
    assert found.tolist() == by_hand(keys, keys, 5, ids.tolist(), ids.tolist())
    assert not (ids[found] == ids[:, None]).any()


def test_fewer_keys_than_k_are_padded():
    scores, index = nearest(
        torch.ones(1, 2), torch.ones(2, 2), 4, query_ids=torch.tensor([0]), key_ids=torch.tensor([0, 1])
    )
    assert index.tolist() == [[1, -1, -1, -1]]
    assert scores[0, 1:].tolist() == [-torch.inf] * 3


def test_dot_does_not_scale_rows():
    keys = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert nearest(torch.tensor([[1.0, 0.0]]), keys, 1, score="dot")[1].item() == 1
    assert nearest(torch.tensor([[1.0, 0.0]]), keys, 1, score="cosine")[1].item() == 0


def test_half_precision_keys_are_scored_in_float32():
    keys = torch.tensor([[0.5, 0.1], [0.5, 0.2]], dtype=torch.float16)
    scores, index = nearest(torch.tensor([[1.0, 0.4]]), keys, 2)
    assert scores.dtype == torch.float32
    assert index.tolist() == [[1, 0]]


def test_k_below_one_is_refused():
    with pytest.raises(RangeError, match="k must be at least 1, got 0"):
        nearest(torch.ones(1, 2), torch.ones(1, 2), 0)


@pytest.mark.parametrize("key_block", [3, 4096])
def test_rough_cosines_are_the_best_ones_within_the_rounding(key_block, monkeypatch):
    monkeypatch.setattr(module, "KEY_BLOCK", key_block)
    monkeypatch.setattr(module, "QUERY_BLOCK", 70)
    generator = torch.Generator().manual_seed(0)
    queries, keys = 9 * torch.randn(13, 8, generator=generator), torch.randn(501, 8, generator=generator)
    scores, index = rough_cosines(queries, keys, 6)
    assert index.tolist() == by_hand(queries, keys, 6)
    exact = torch.nn.functional.cosine_similarity(queries[:, None].double(), keys[index].double(), dim=2)
    assert (scores - exact).abs().max() < module.TIE
    everything, _ = rough_cosines(queries, keys, 501)
    assert (everything.diff(dim=1) <= 0).all()


def test_rough_cosines_need_a_count_that_there_is():
    assert [len(part) for part in rough_cosines(torch.empty(0, 2), torch.eye(2), 1)] == [0, 0]
    for count in (0, 3):
        with pytest.raises(RangeError, match=f"from 1 to the 2 keys, got {count}"):
            rough_cosines(torch.ones(1, 2), torch.eye(2), count)
