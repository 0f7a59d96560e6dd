"""Two views looked up in one another."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.errors import ShapeError
from querykey.lookup.lookup import Pairs
from querykey.lookup.two_view_pairs import TwoViewPairs, look_up_views


def expected(ids):
    """(positive, negative) by the definition, pair by pair."""
    images = len(ids)
    rows = range(2 * images)
    positive = [[(i + images) % (2 * images) == k for k in rows] for i in rows]
    negative = [[ids[i % images] != ids[k % images] for k in rows] for i in rows]
    return tuple(
        torch.tensor(mask, dtype=torch.bool).reshape(2 * images, 2 * images) for mask in (positive, negative)
    )


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 5), max_size=7), first=st.integers(0, 16), more=st.integers(0, 16))
def test_every_block_of_every_part_is_the_definition(ids, first, more):
    pairs = TwoViewPairs(ids=torch.tensor(ids, dtype=torch.int64))
    positive, negative = expected(ids)
    start, stop = min(first, 2 * len(ids)), min(first + more, 2 * len(ids))
    for part, rows in (
        (pairs, slice(None)),
        (pairs.rows(start, stop), slice(start, stop)),
        (pairs.rows(1, 99).rows(1, 4), slice(2, 5)),
    ):
        for columns in (slice(0, 2 * len(ids)), slice(start, stop)):
            found = part.block(columns.start, columns.stop)
            assert torch.equal(found[0], positive[rows, columns])
            assert torch.equal(found[1], negative[rows, columns])


def test_has_the_interface_of_any_look_up():
    random = torch.Generator().manual_seed(0)
    views = torch.randn(2, 5, 3, generator=random)
    found = look_up_views(*views, score="cosine")
    assert isinstance(found.pairs, Pairs)
    assert len(found) == 10
    assert torch.equal(found.queries, views.reshape(10, 3))
    assert torch.equal(found.positive, found.positive.T)
    assert torch.equal(found.negative, found.negative.T)
    assert found.positive.sum(dim=1).tolist() == [1] * 10
    assert found.negative.sum(dim=1).tolist() == [8] * 10
    assert not found.positive.diagonal().any()
    assert not found.negative.diagonal().any()
    walked = list(found.rows(3, 7).blocks(4))
    assert torch.equal(torch.cat([block.positive for block in walked], dim=1), found.positive[3:7])
    torch.testing.assert_close(torch.cat([block.scores for block in walked], dim=1), found.scores[3:7])


def test_an_item_that_is_there_twice_is_not_its_own_negative():
    ids = torch.tensor([4, 9, 4])
    found = look_up_views(torch.zeros(3, 2), torch.zeros(3, 2), ids=ids)
    assert found.positive[0].int().tolist() == [0, 0, 0, 1, 0, 0]
    assert found.negative[0].int().tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_of_one_or_none(images):
    found = look_up_views(torch.ones(images, 4), torch.ones(images, 4))
    assert found.positive.sum() == 2 * images
    assert not found.negative.any()
    assert found.scores.shape == (2 * images, 2 * images)


@pytest.mark.parametrize(
    ("views", "ids", "message"),
    [
        (
            ((3, 4), (2, 4)), None,
            "the first view is [3, 4] and the second [2, 4]; row i of both must show the same image",
        ),
        (
            ((3, 4), (3, 5)), None,
            "the first view is [3, 4] and the second [3, 5]; row i of both must show the same image",
        ),
        (((3, 4), (3, 4)), 2, "ids has 2 entries for 3 rows a view; one for each is needed"),
    ],
)  # fmt: skip
def test_refuses_what_does_not_fit(views, ids, message):
    view_1, view_2 = (torch.zeros(shape) for shape in views)
    with pytest.raises(ShapeError) as error:
        # Unwrapped: the type checks that the test-suite turns on would speak first.
        inspect.unwrap(look_up_views)(view_1, view_2, ids=None if ids is None else torch.arange(ids))
    assert str(error.value) == message
