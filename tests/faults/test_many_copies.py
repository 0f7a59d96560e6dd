"""Memory by the product of two worst sides: one item with many copies, and as many neighbours as keys."""

import pytest
import torch
from streaming_toys import Held

from querykey.lookup import nearest as search
from querykey.lookup.nearest import nearest

ROWS = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))


def expected(queries, ids, k):
    unit = torch.nn.functional.normalize(ROWS.double(), dim=1)
    scores = (unit[:queries] @ unit.T).masked_fill(ids[:queries, None] == ids[None, :], -torch.inf)
    return scores.topk(k, dim=1).indices


def test_an_item_with_many_copies_is_left_out_without_queries_times_copies():
    ids = torch.arange(2000)
    ids[:1000] = 0  # as many empty texts, or blank images, are one item
    with Held() as held:
        found = nearest(ROWS[:50], ROWS, 5, query_ids=ids[:50], key_ids=ids)[1]
    assert found.equal(expected(50, ids, 5))
    assert held.largest <= 4 * 50 * 2000  # 12 times, and copies times more in a comparison, before


@pytest.mark.parametrize("copies", [1, 32, 33])
def test_few_copies_and_many_are_left_out_alike(copies):
    ids = torch.arange(2000)
    ids[:copies] = 0
    found = nearest(ROWS[:50], ROWS, 5, query_ids=ids[:50], key_ids=ids)[1]
    assert found.equal(expected(50, ids, 5))


def test_as_many_neighbours_as_keys_are_read_in_parts(monkeypatch):
    whole = nearest(ROWS[:30], ROWS[:500], 500)
    monkeypatch.setattr(search, "ELEMENTS", 4000)
    with Held() as held:
        found = nearest(ROWS[:30], ROWS[:500], 500)
    assert all(part.equal(other) for part, other in zip(found, whole, strict=True))
    assert held.largest < 16 * 30 * 508  # 4 numbers of each candidate before
