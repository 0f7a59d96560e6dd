"""Overlap, alignment, uniformity and effective rank."""

import math

import evaluation_oracles as oracle
import pytest
import torch

from querykey.errors import DataError, RangeError, ShapeError
from querykey.evaluation import geometry
from querykey.evaluation.geometry import (
    alignment,
    class_alignment,
    effective_rank,
    neighbour_overlap,
    uniformity,
)


def rows(count=37, dim=4, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Every test here walks several blocks, and the last one isn't full."""
    monkeypatch.setattr(geometry, "BLOCK", 5)


def test_overlap_counts_whatever_the_order_and_skips_what_is_not_there():
    found = torch.tensor([[1, 2, 3], [4, 5, -1], [7, 8, 9], [1, -1, -1]])
    wanted = torch.tensor([[3, 1, 0], [5, 4, -1], [1, 2, 3], [-1, -1, -1]])
    overlap = neighbour_overlap(found, wanted)
    assert overlap[:3].tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert overlap[3].isnan()


def test_overlap_needs_the_same_queries():
    with pytest.raises(ShapeError, match="of 1 and of 2 queries"):
        neighbour_overlap(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))


def test_alignment_is_that_of_the_loops_and_ignores_length():
    left, right = rows(seed=1), rows(seed=2)
    by_hand = sum(oracle.apart(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)) / len(left)
    assert alignment(left, right) == pytest.approx(by_hand)
    assert alignment(left * 7, right) == pytest.approx(by_hand)
    assert alignment(left, left) == pytest.approx(0, abs=1e-12)
    assert alignment(left, -left) == pytest.approx(4)


def test_class_alignment_is_the_mean_over_all_pairs_of_a_class():
    items = rows()
    labels = torch.randint(-1, 5, (37,), generator=torch.Generator().manual_seed(3))
    assert class_alignment(items, labels) == pytest.approx(
        oracle.class_alignment(items.tolist(), labels.tolist())
    )


def test_class_alignment_takes_labels_of_any_size():
    assert class_alignment(torch.eye(3), torch.tensor([2**50, 2**50, -1])) == pytest.approx(2.0)


def test_uniformity_is_that_of_the_loops():
    items = rows()
    assert uniformity(items) == pytest.approx(oracle.uniformity(items.tolist(), 2.0))
    assert uniformity(items, t=0.5) == pytest.approx(oracle.uniformity(items.tolist(), 0.5))


def test_uniformity_of_one_point_is_zero():
    assert uniformity(torch.ones(12, 3)) == pytest.approx(0, abs=1e-9)


def test_uniformity_of_many_rows_is_that_of_a_seeded_draw():
    items = rows(100)
    drawn = uniformity(items, max_rows=30, seed=1)
    assert drawn == uniformity(items, max_rows=30, seed=1)
    assert drawn != uniformity(items, max_rows=30, seed=2)
    assert drawn == pytest.approx(uniformity(items), abs=0.3)


def test_effective_rank_of_known_spectra():
    axes = torch.eye(8)[:, :6]
    assert effective_rank(axes) == pytest.approx(6)
    assert effective_rank(torch.ones(20, 6)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 6)) == 0.0
    two = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(two) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert effective_rank(two, unit=True) == pytest.approx(2)


def test_effective_rank_is_that_of_the_singular_values():
    items = rows(23, 6)
    singular = torch.linalg.svdvals(items.double())
    share = singular / singular.sum()
    assert effective_rank(items) == pytest.approx(float((-(share * share.log()).sum()).exp()))


def test_rounding_errors_of_the_gram_matrix_add_no_dimension():
    """One direction in a space of 512: the rounding of the 511 others must not add up."""
    line = torch.linspace(1, 2, 30)[:, None].double() * rows(1, 512).double()
    assert effective_rank(line) == pytest.approx(1, abs=1e-9)


def test_bad_input_is_one_message():
    with pytest.raises(ShapeError, match="need the same shape"):
        alignment(rows(3), rows(2))
    with pytest.raises(DataError, match="at least 1 positive pair"):
        alignment(rows(0), rows(0))
    with pytest.raises(DataError, match="two rows of one class"):
        class_alignment(rows(3), torch.tensor([0, 1, -1]))
    with pytest.raises(DataError, match="at least 2 rows, got 1"):
        uniformity(rows(1))
    with pytest.raises(RangeError, match="above 0, got 0"):
        uniformity(rows(), t=0.0)
    with pytest.raises(DataError, match="at least 1 row"):
        effective_rank(rows(0))
