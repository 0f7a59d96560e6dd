"""Rankings and their metrics, against loops, closed forms and each other in blocks."""

from functools import partial

import evaluation_oracles as oracle
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import ranking as ranking_module
from querykey.evaluation.ranking import GradedPairs, Ranking, measure_rankings, rankings
from querykey.evaluation.retrieval import (
    average_precision_at_r,
    hit_at,
    ndcg_at,
    r_precision,
    recall_at,
    reciprocal_rank,
)
from querykey.lookup import DensePairs, Lookup, PairRule, look_up
from querykey.lookup.unit_length import unit_length

METRICS = {
    "hit@1": partial(hit_at, k=1),
    "hit@3": partial(hit_at, k=3),
    "recall@3": partial(recall_at, k=3),
    "MAP@R": average_precision_at_r,
    "R-prec": r_precision,
    "MRR@3": partial(reciprocal_rank, k=3),
    "NDCG@3": partial(ndcg_at, k=3),
}
BY_HAND = {
    "hit@1": partial(oracle.hit_at, k=1),
    "hit@3": partial(oracle.hit_at, k=3),
    "recall@3": partial(oracle.recall_at, k=3),
    "MAP@R": oracle.average_precision_at_r,
    "R-prec": oracle.r_precision,
    "MRR@3": partial(oracle.reciprocal_rank, k=3),
    "NDCG@3": partial(oracle.ndcg_at, k=3),
}


def rows(count, dim, seed):
    """Few different values, so that ties are common."""
    drawn = torch.randint(-2, 3, (count, dim), generator=torch.Generator().manual_seed(seed)).float()
    drawn[:, 0] += 3
    return drawn


def has_rounded_ties(queries, keys):
    """Whether rounding breaks a tie, as of cosines that are 0 in exact numbers: its order is no one's."""
    scores = (unit_length(queries.double()) @ unit_length(keys.double()).T).float()
    apart = (scores[:, :, None] - scores[:, None, :]).abs()
    return bool(((apart > 0) & (apart < 1e-6)).any())


def by_label(items, labels, asked=None):
    ids = torch.arange(len(items))
    asked = ids if asked is None else asked
    return look_up(
        items[asked], items, query_ids=ids[asked], key_ids=ids, query_labels=labels[asked], key_labels=labels,
        rule=PairRule(positive="label"), score="cosine",
    )  # fmt: skip


def same(ours, theirs):
    torch.testing.assert_close(ours, torch.tensor(theirs), equal_nan=True, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 14), classes=st.integers(1, 5))
def test_label_metrics_are_those_of_the_loops(seed, count, classes):
    items = rows(count, 3, seed)
    assume(not has_rounded_ties(items, items))
    labels = torch.randint(-1, classes, (count,), generator=torch.Generator().manual_seed(seed + 1))
    ours = measure_rankings(by_label(items, labels), METRICS, depth=3)
    for name, metric in BY_HAND.items():
        theirs = []
        for i in range(count):
            eligible = [i != j and labels[i] != -1 and labels[j] != -1 for j in range(count)]
            grades = [float(eligible[j] and labels[i] == labels[j]) for j in range(count)]
            theirs.append(metric(oracle.ranked(items[i].tolist(), items.tolist(), eligible), grades))
        same(ours[name], theirs)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), queries=st.integers(1, 6), keys=st.integers(1, 12), pairs=st.integers(0, 20)
)
def test_graded_metrics_are_those_of_the_loops(seed, queries, keys, pairs):
    generator = torch.Generator().manual_seed(seed)
    triples = torch.stack(
        [torch.randint(0, high, (pairs,), generator=generator) for high in (queries, keys, 4)], dim=1
    )
    asked, items = rows(queries, 3, seed), rows(keys, 3, seed + 1)
    assume(not has_rounded_ties(asked, items))
    lookup = Lookup(asked, items, GradedPairs(triples, queries, keys), "cosine")
    ours = measure_rankings(lookup, METRICS, depth=3)
    for name, metric in BY_HAND.items():
        theirs = []
        for i in range(queries):
            grades = [0.0] * keys
            for query, key, grade in triples.tolist():
                if query == i:
                    grades[key] = max(grades[key], float(grade))
            theirs.append(metric(oracle.ranked(asked[i].tolist(), items.tolist(), [True] * keys), grades))
        same(ours[name], theirs)


@pytest.mark.parametrize(("query_block", "key_block"), [(9, 1), (11, 4), (100, 7)])
def test_blocks_change_nothing(monkeypatch, query_block, key_block):
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(40, 5, generator=generator)[torch.randint(0, 20, (40,), generator=generator)]
    labels = torch.randint(-1, 6, (40,), generator=generator)
    triples = torch.randint(0, 40, (90, 3), generator=generator) % torch.tensor([40, 40, 4])
    whole = measure_rankings(by_label(items, labels), METRICS, depth=3)
    graded = measure_rankings(Lookup(items, items, GradedPairs(triples, 40, 40), "cosine"), METRICS, depth=3)
    monkeypatch.setattr(ranking_module, "QUERY_BLOCK", query_block)
    monkeypatch.setattr(ranking_module, "KEY_BLOCK", key_block)
    for name, values in measure_rankings(by_label(items, labels), METRICS, depth=3).items():
        assert torch.equal(values.nan_to_num(-1), whole[name].nan_to_num(-1)), name
    parts = measure_rankings(Lookup(items, items, GradedPairs(triples, 40, 40), "cosine"), METRICS, depth=3)
    for name, values in parts.items():
        assert torch.equal(values.nan_to_num(-1), graded[name].nan_to_num(-1)), name


def test_a_query_with_nothing_to_find_is_nan_and_others_are_not():
    items = torch.eye(3)
    found = measure_rankings(by_label(items, torch.tensor([5, 5, 6])), METRICS, depth=3)
    for values in found.values():
        assert values.isnan().tolist() == [False, False, True]


def test_unlabelled_items_are_neither_queries_nor_relevant():
    """The unlabelled twin is nearest, but nobody knows whether it is right."""
    items = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    found = measure_rankings(by_label(items, torch.tensor([2, -1, 2])), {"hit@1": METRICS["hit@1"]})["hit@1"]
    assert found.nan_to_num(-1).tolist() == [1.0, -1.0, 1.0]


def test_an_old_copy_of_the_same_item_is_not_a_find():
    items = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    ids, labels = torch.tensor([7, 7, 8, 9]), torch.tensor([0, 0, 0, 1])
    lookup = look_up(
        items, items, query_ids=ids, key_ids=ids, query_labels=labels, key_labels=labels,
        rule=PairRule(positive="label"), score="cosine",
    )  # fmt: skip
    assert measure_rankings(lookup, {"hit": METRICS["hit@1"]})["hit"][:2].tolist() == [0.0, 0.0]


def test_ties_go_to_the_lower_index_even_between_plus_and_minus_zero():
    # products of 1e-60 are 0 in float32, with the sign of what they were
    keys = torch.tensor([[-1e-30], [1e-30], [-1e-30]])
    queries = torch.tensor([[1e-30], [-1e-30]])
    for first in range(3):
        pairs = GradedPairs(torch.tensor([[0, first, 1], [1, first, 1]]), queries=2, keys=3)
        found = measure_rankings(
            Lookup(queries, keys, pairs), {"mrr": partial(reciprocal_rank, k=3)}, depth=3
        )
        same(found["mrr"], [1 / (first + 1)] * 2)


def test_negative_scores_are_ranked_too():
    queries, keys = torch.tensor([[1.0]]), torch.tensor([[-3.0], [-1.0], [-2.0]])
    for place, key in enumerate([1, 2, 0], start=1):
        pairs = GradedPairs(torch.tensor([[0, key, 1]]), queries=1, keys=3)
        same(measure_rankings(Lookup(queries, keys, pairs), {"mrr": reciprocal_rank})["mrr"], [1 / place])


def test_trap_5_11_half_precision_rows_make_no_ties():
    """The scores 1.0005 and 1.0 are one number in bfloat16, and the wrong key would come first."""
    queries = torch.tensor([[1.0, 2**-5]], dtype=torch.bfloat16)
    keys = torch.tensor([[1.0, 0.0], [1.0, 2**-6]], dtype=torch.bfloat16)
    pairs = GradedPairs(torch.tensor([[0, 1, 1]]), queries=1, keys=2)
    assert measure_rankings(Lookup(queries, keys, pairs), {"hit": METRICS["hit@1"]})["hit"].tolist() == [1.0]


def test_map_at_r_looks_deeper_than_ten():
    """25 of a class: R-precision needs the 24 nearest, whatever depth was asked for."""
    items = torch.nn.functional.normalize(
        torch.randn(50, 4, generator=torch.Generator().manual_seed(3)), dim=1
    )
    items[:25, 0] += 10
    labels = (torch.arange(50) >= 25).long()
    found = measure_rankings(by_label(items, labels), METRICS, depth=3)
    assert found["R-prec"][:25].tolist() == [1.0] * 25
    assert found["MAP@R"][:25].tolist() == pytest.approx([1.0] * 25)
    assert found["MAP@R"][25:].mean() < 1


def test_gain_is_linear_as_in_trec_eval():
    """With gains of 2^g - 1 this would be 0.7098."""
    pairs = GradedPairs(torch.tensor([[0, 1, 3], [0, 0, 1]]), queries=1, keys=2)
    lookup = Lookup(torch.tensor([[1.0, 0.5]]), torch.eye(2), pairs)
    assert measure_rankings(lookup, {"n": partial(ndcg_at, k=2)}, depth=2)["n"].item() == pytest.approx(
        0.7967, abs=1e-4
    )


def test_the_best_and_the_worst_order():
    perfect = Ranking(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2]))
    hopeless = Ranking(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2]))
    for metric in METRICS.values():
        assert metric(perfect).item() == 1.0
        assert metric(hopeless).item() == 0.0


def test_a_ranking_cut_too_short_says_so():
    shallow = Ranking(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([3]))
    with pytest.raises(RangeError, match="2 deep, got k=5; rank at least k keys"):
        hit_at(shallow, 5)
    with pytest.raises(RangeError, match="2 deep, got k=3"):
        average_precision_at_r(shallow)
    with pytest.raises(RangeError, match="got k=0"):
        recall_at(shallow, 0)


def test_bad_input_is_one_message():
    pairs = DensePairs(torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(DataError, match="NaN or infinite"):
        list(rankings(Lookup(torch.tensor([[float("nan"), 0.0]]), torch.eye(2), pairs)))
    with pytest.raises(DataError, match="NaN or infinite"):
        list(rankings(Lookup(torch.eye(2)[:1], torch.full((2, 2), torch.inf), pairs)))
    with pytest.raises(DataError, match="0 queries and 2 keys"):
        list(rankings(Lookup(torch.empty(0, 2), torch.eye(2), pairs)))
    with pytest.raises(RangeError, match="at least 1, got 0"):
        list(rankings(Lookup(torch.eye(2)[:1], torch.eye(2), pairs), depth=0))
    with pytest.raises(ShapeError, match=r"key rows 2 to 2, but there are 2"):
        GradedPairs(torch.tensor([[0, 2, 1]]), queries=1, keys=2)
    with pytest.raises(ShapeError, match="query rows -1 to -1"):
        GradedPairs(torch.tensor([[-1, 0, 1]]), queries=1, keys=2)
