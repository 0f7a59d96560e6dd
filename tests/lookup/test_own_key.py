"""Each query's own key among the rows of a dictionary."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from querykey.errors import ConfigError, ShapeError
from querykey.lookup.lookup import OwnKeyPairs, Pairs, look_up_own_key
from querykey.losses.info_nce import info_nce

SAME = ("masked", "positive", "negative")
few_ids = st.lists(st.integers(-1, 3), max_size=6)


def expected(ids, stored_ids, same_id):
    """(positive, negative), pair by pair."""
    masks = torch.zeros(2, len(ids), len(ids) + len(stored_ids), dtype=torch.bool)
    for i, item in enumerate(ids):
        masks[0, i, i] = True
        for j, other in enumerate(stored_ids, len(ids)):
            if item != other or other == -1:
                masks[1, i, j] = True
            elif same_id != "masked":
                masks[int(same_id == "negative"), i, j] = True
    return masks


def numbers(values):
    return torch.tensor(values, dtype=torch.int64)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(few_ids, few_ids, st.sampled_from(SAME), st.integers(0, 12), st.integers(0, 12))
def test_whole_in_rows_and_in_blocks_it_is_the_definition(ids, stored_ids, same_id, first, more):
    pairs = OwnKeyPairs(ids=numbers(ids), stored_ids=numbers(stored_ids), same_id=same_id)
    masks = expected(ids, stored_ids, same_id)
    every = len(ids) + len(stored_ids)
    start, stop = min(first, every), min(first + more, every)
    for part, rows in (
        (pairs, slice(None)),
        (pairs.rows(start, stop), slice(start, stop)),
        (pairs.rows(1, 99).rows(1, 4), slice(2, 5)),
    ):
        for columns in (slice(0, every), slice(start, stop)):
            found = part.block(columns.start, columns.stop)
            assert torch.equal(torch.stack(found), masks[:, rows, columns])


def test_every_query_has_one_positive_and_the_stored_rows_as_negatives():
    keys, held = draw(3, 4, seed=1), draw(5, 4, seed=2)
    found = look_up_own_key(
        draw(3, 4), keys, ids=numbers([4, 5, 6]), stored_vectors=held, stored_ids=numbers([4, 9, -1, 6, 4])
    )
    assert isinstance(found.pairs, Pairs)
    assert torch.equal(found.keys, torch.cat([keys, held]))
    assert found.positive.sum(dim=1).tolist() == [1, 1, 1]
    assert found.negative.sum(dim=1).tolist() == [3, 5, 4]
    assert not found.negative[:, :3].any()
    walked = torch.cat([block.negative for block in found.rows(1, 3).blocks(2)], dim=1)
    assert torch.equal(walked, found.negative[1:3])


def test_the_loss_is_a_cross_entropy_over_1_and_k_candidates():
    q, k, held = draw(3, 4), draw(3, 4, seed=1), draw(6, 4, seed=2)
    found = look_up_own_key(q, k, ids=torch.arange(3), stored_vectors=held, stored_ids=torch.arange(6) + 3)
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ held.T], dim=1) / 0.2
    wanted = torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.int64), reduction="none")
    torch.testing.assert_close(info_nce(found, temperature=0.2), wanted)


def test_with_an_empty_dictionary_the_loss_is_0_without_gradient():
    q = draw(3, 4).requires_grad_()
    found = look_up_own_key(
        q, draw(3, 4, seed=1), ids=torch.arange(3), stored_vectors=torch.zeros(0, 4), stored_ids=numbers([])
    )
    loss = info_nce(found, temperature=0.1)
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0]
    assert not q.grad.any()


def test_a_dictionary_that_changes_afterwards_changes_nothing():
    """A queue is read without a copy and then written."""
    held, stored_ids = draw(2, 4), numbers([7, 8])
    q = draw(1, 4, seed=1).requires_grad_()
    found = look_up_own_key(
        q, draw(1, 4, seed=2), ids=numbers([7]), stored_vectors=held, stored_ids=stored_ids
    )
    before = found.scores.detach().clone()
    held.zero_()
    stored_ids.fill_(7)
    info_nce(found, temperature=0.1).sum().backward()
    assert torch.equal(found.scores, before)
    assert found.negative.int().tolist() == [[0, 0, 1]]


def test_scores_and_dtypes():
    found = look_up_own_key(
        2 * draw(2, 4).double(), draw(2, 4, seed=1).double(), ids=torch.arange(2),
        stored_vectors=draw(3, 4, seed=2), stored_ids=torch.arange(3), score="cosine",
    )  # fmt: skip
    assert found.scores.dtype == torch.float64
    assert float(found.scores.abs().max()) <= 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"keys": torch.zeros(2, 4)}, ShapeError,
            "queries are [3, 4] and their keys [2, 4]; row i of the keys must be the key of query i",
        ),
        (
            {"stored_vectors": torch.zeros(5, 3)}, ShapeError,
            "queries are 4 wide and stored rows 3; they must be the same",
        ),
        ({"ids": torch.arange(2)}, ShapeError, "ids has 2 entries for 3 rows; one for each is needed"),
        (
            {"stored_ids": torch.arange(4)}, ShapeError,
            "stored_ids has 4 entries for 5 rows; one for each is needed",
        ),
        (
            {"same_id": "ignored"}, ConfigError,
            "same_id must be masked, positive or negative; got 'ignored'",
        ),
    ],
)  # fmt: skip
def test_refuses_what_does_not_fit(change, error, message):
    given = {
        "queries": torch.zeros(3, 4), "keys": torch.zeros(3, 4), "ids": torch.arange(3),
        "stored_vectors": torch.zeros(5, 4), "stored_ids": torch.arange(5),
    } | change  # fmt: skip
    with pytest.raises(error) as raised:
        # Unwrapped: the type checks that the test-suite turns on would speak first.
        inspect.unwrap(look_up_own_key)(given.pop("queries"), given.pop("keys"), **given)
    assert str(raised.value) == message
