"""Scores of rows in half precision, and under autocast, are float32, in all forms of a loss."""

import pytest
import torch
from torch.nn import functional as F

from querykey.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.lookup.top_k import top_k
from querykey.losses import info_nce, score_distillation, triplet


def rows(count, seed, dtype=torch.float32):
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)), dim=1).to(dtype)


def looked_up(queries, keys):
    numbers = torch.arange(max(len(queries), len(keys)))
    return look_up(
        queries, keys, query_ids=numbers[: len(queries)], key_ids=numbers[: len(keys)],
        query_labels=numbers[: len(queries)] % 7, key_labels=numbers[: len(keys)] % 7,
        rule=PairRule(positive="label"),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dense_and_chunked_forms_agree_on_half_rows(dtype):
    lookup = looked_up(rows(20, 0, dtype), rows(400, 1, dtype))
    dense, chunked = (info_nce(lookup, temperature=0.05, form=form) for form in ("dense", "chunked"))
    torch.testing.assert_close(dense, chunked, rtol=1e-5, atol=1e-5)


def test_dense_and_chunked_forms_agree_under_autocast():
    lookup, target = looked_up(rows(20, 0), rows(400, 1)), looked_up(rows(20, 2), rows(400, 1))
    wanted = score_distillation(lookup, target, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for form in ("dense", "chunked"):
            again = looked_up(rows(20, 0), rows(400, 1)), looked_up(rows(20, 2), rows(400, 1))
            found = score_distillation(*again, temperature=0.05, form=form)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_top_k_of_half_rows_is_that_of_their_float32_values(dtype):
    queries, keys = rows(50, 0, dtype), rows(5000, 1, dtype)
    found = top_k(looked_up(queries, keys), 10, "similar")
    assert torch.equal(found, top_k(looked_up(queries.float(), keys.float()), 10, "similar"))


def test_a_tie_with_the_nearest_positive_is_not_semi_hard():
    """Copies of the positive among the negatives, in other blocks of keys, at other places of a product."""
    keys = rows(9000, 1)
    keys[[17, 4100, 8999]] = keys[5].clone()
    positive = torch.zeros(3, 9000, dtype=torch.bool)
    positive[:, 5] = True
    queries = F.normalize(keys[5] + 0.3 * rows(3, 2), dim=1)
    lookup = Lookup(queries, keys, DensePairs(positive, ~positive))
    assert not torch.isin(top_k(lookup, 20, "semi_hard"), torch.tensor([5, 17, 4100, 8999])).any()


def test_a_tie_costs_a_soft_semi_hard_triplet_nothing():
    for value in torch.linspace(-0.9, 0.9, 181).tolist():
        scores = torch.tensor([[value, value]])
        lookup = Lookup.from_scores(scores, torch.tensor([[True, False]]), torch.tensor([[False, True]]))
        assert float(triplet(lookup, margin=0.2, mining="semi_hard", soft=True)) == 0
