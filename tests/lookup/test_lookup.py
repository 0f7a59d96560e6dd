"""The look-up: which pairs count, and the same numbers whole or in blocks."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL, DensePairs, Lookup, PairRule, look_up

POSITIVE, NEGATIVE, NEITHER = "+", "-", "."


def masks(rule, query_ids, key_ids, query_labels=None, key_labels=None):
    """The rule's answer as one string a query."""
    ids = [torch.tensor(x) for x in (query_ids, key_ids)]
    labels = [None if x is None else torch.tensor(x) for x in (query_labels, key_labels)]
    positive, negative = rule.pairs(*ids, *labels)
    assert not (positive & negative).any()
    return [
        "".join(POSITIVE if p else NEGATIVE if n else NEITHER for p, n in zip(ps, ns, strict=True))
        for ps, ns in zip(positive.tolist(), negative.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("same_id", "expected"),
    [("masked", [".--.", "-.--"]), ("positive", ["+--+", "-+--"]), ("negative", ["----", "----"])],
)
def test_rule_on_ids(same_id, expected):
    """Keys 7, 8, 9, 7: an item may be there twice."""
    assert masks(PairRule(positive="id", same_id=same_id), [7, 8], [7, 8, 9, 7]) == expected


@pytest.mark.parametrize(
    ("same_id", "expected"),
    [
        ("masked", [".+-.", "+.-.", "--..", "...."]),
        ("positive", ["++-.", "++-.", "--+.", "...+"]),
        ("negative", ["-+-.", "+--.", "---.", "...-"]),
    ],
)
def test_rule_on_labels(same_id, expected):
    """Two of a class, one of another, one unlabelled; each query is also a key."""
    ids, labels = [1, 2, 3, 4], [0, 0, 5, IGNORE_LABEL]
    assert masks(PairRule(positive="label", same_id=same_id), ids, ids, labels, labels) == expected


def test_two_unlabelled_items_are_not_of_one_class():
    rule = PairRule(positive="label")
    assert masks(rule, [1], [2, 3], [IGNORE_LABEL], [IGNORE_LABEL, 0]) == [".."]
    assert masks(rule, [1], [2, 3], [0], [IGNORE_LABEL, 0]) == [".+"]


def test_the_default_rule_masks_the_own_item():
    assert PairRule() == PairRule(positive="id", same_id="masked")


def make(seed, score="dot", queries=5, keys=11):
    random = torch.Generator().manual_seed(seed)
    return look_up(
        torch.randn(queries, 3, generator=random, dtype=torch.float64),
        torch.randn(keys, 3, generator=random, dtype=torch.float64),
        query_ids=torch.randint(6, (queries,), generator=random),
        key_ids=torch.randint(6, (keys,), generator=random),
        query_labels=torch.randint(-1, 3, (queries,), generator=random),
        key_labels=torch.randint(-1, 3, (keys,), generator=random),
        rule=PairRule(positive="label", same_id="positive"),
        score=score,
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 14), score=st.sampled_from(["dot", "cosine"]))
def test_blocks_are_the_whole(seed, size, score):
    lookup = make(seed, score)
    blocks = list(lookup.blocks(size))
    assert [block.start for block in blocks] == list(range(0, 11, size))
    assert all(block.scores.shape[1] <= size for block in blocks)
    torch.testing.assert_close(torch.cat([block.scores for block in blocks], dim=1), lookup.scores)
    assert torch.equal(torch.cat([block.positive for block in blocks], dim=1), lookup.positive)
    assert torch.equal(torch.cat([block.negative for block in blocks], dim=1), lookup.negative)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), bounds=st.tuples(st.integers(0, 5), st.integers(0, 5)), dense=st.booleans())
def test_rows_are_rows_of_the_whole(seed, bounds, dense):
    start, stop = sorted(bounds)
    lookup = make(seed)
    if dense:
        lookup = lookup.with_pairs(lookup.positive, lookup.negative)
    part = lookup.rows(start, stop)
    assert len(part) == stop - start
    torch.testing.assert_close(part.scores, lookup.scores[start:stop])
    assert torch.equal(part.positive, lookup.positive[start:stop])
    assert torch.equal(part.negative, lookup.negative[start:stop])


def test_cosine_is_the_dot_product_of_normalised_rows():
    lookup = make(0, "cosine")
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (lookup.queries, lookup.keys)]
    torch.testing.assert_close(lookup.scores, unit[0] @ unit[1].T)
    assert lookup.scores.abs().max() <= 1 + 1e-12


def test_a_zero_row_scores_0_not_nan():
    lookup = Lookup(torch.zeros(1, 2), torch.eye(2), DensePairs(*torch.zeros(2, 1, 2).bool()), "cosine")
    assert lookup.scores.tolist() == [[0.0, 0.0]]


def test_keys_are_scored_in_the_dtype_of_the_queries():
    lookup = Lookup(torch.eye(2), torch.eye(2).half(), DensePairs(*torch.zeros(2, 2, 2).bool()))
    assert lookup.scores.dtype == torch.float32
    assert next(lookup.blocks(1)).scores.dtype == torch.float32


def test_gradient_reaches_queries_and_keys():
    queries, keys = torch.eye(2, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    lookup = Lookup(queries, keys, DensePairs(*torch.zeros(2, 2, 3).bool()))
    lookup.scores.sum().backward()
    assert queries.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert keys.grad.tolist() == [[1.0, 1.0]] * 3


def test_from_scores_keeps_the_given_scores():
    scores = torch.tensor([[0.1, -0.7, 0.3]])
    positive = torch.tensor([[True, False, False]])
    lookup = Lookup.from_scores(scores, positive, ~positive)
    assert torch.equal(lookup.scores, scores)
    assert torch.equal(torch.cat([block.scores for block in lookup.blocks(2)], dim=1), scores)
    assert torch.equal(lookup.positive, positive)
    assert torch.equal(lookup.negative, ~positive)


def test_with_pairs_keeps_computed_scores():
    lookup = make(1)
    known = lookup.scores
    other = lookup.with_pairs(lookup.negative, lookup.positive)
    assert other.scores is known
    assert torch.equal(other.positive, lookup.negative)
    assert torch.equal(lookup.with_pairs(lookup.positive, lookup.negative).positive, lookup.positive)


@pytest.mark.parametrize("size", [0, -3])
def test_refuses_a_block_without_keys(size):
    with pytest.raises(RangeError) as error:
        next(make(0).blocks(size))
    assert str(error.value) == f"a block needs at least 1 key, got size={size}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keys": torch.zeros(4, 5)}, "queries are 3 wide and keys 5; they must be the same"),
        ({"query_ids": torch.arange(3)}, "query_ids has 3 entries for 2 rows; one for each is needed"),
        ({"key_ids": torch.arange(3)}, "key_ids has 3 entries for 4 rows; one for each is needed"),
        ({"query_labels": torch.arange(1)}, "query_labels has 1 entries for 2 rows; one for each is needed"),
        ({"key_labels": torch.arange(5)}, "key_labels has 5 entries for 4 rows; one for each is needed"),
        (
            {"query_labels": None},
            'PairRule(positive="label") needs labels of queries and keys; got none',
        ),
        ({"key_labels": None}, 'PairRule(positive="label") needs labels of queries and keys; got none'),
    ],
)
def test_refuses_what_does_not_fit(changed, message):
    fitting = {
        "queries": torch.zeros(2, 3), "keys": torch.zeros(4, 3), "query_ids": torch.arange(2),
        "key_ids": torch.arange(4), "query_labels": torch.arange(2), "key_labels": torch.arange(4),
    }  # fmt: skip
    with pytest.raises(ShapeError) as error:
        # Unwrapped: the type checks that the test-suite turns on would speak first.
        inspect.unwrap(look_up)(**(fitting | changed), rule=PairRule(positive="label"))
    assert str(error.value) == message


def test_a_rule_on_labels_without_labels_is_refused_by_the_rule_too():
    ids = torch.arange(2)
    with pytest.raises(ShapeError) as error:
        PairRule(positive="label").pairs(ids, ids, None, ids)
    assert str(error.value) == 'PairRule(positive="label") needs labels of queries and keys; got none'
