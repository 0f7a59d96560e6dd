"""Contrastive and triplet: closed forms, margins and refusals."""

import math

import pytest
import torch

from querykey.errors import RangeError
from querykey.lookup import Lookup
from querykey.losses import contrastive, triplet


def find(scores, positives):
    """The first `positives` keys are positive and the others negative."""
    scores = torch.tensor([scores], dtype=torch.float64).requires_grad_()
    positive = torch.arange(scores.shape[1])[None, :] < positives
    return scores, Lookup.from_scores(scores, positive, ~positive)


def test_cosine_contrastive_by_hand():
    scores, lookup = find([1.0, 0.6, 0.2, 0.8, 0.7, 0.5, -1.0], 3)
    cost = contrastive(lookup, positive_margin=1.0, negative_margin=0.5)
    torch.testing.assert_close(cost, torch.tensor([(0.4 + 0.8) / 2 + (0.8 + 0.7) / 2], dtype=torch.float64))
    cost.sum().backward()
    assert scores.grad.tolist() == [[0.0, -0.5, -0.5, 0.5, 0.5, 0.0, 0.0]]


def test_euclidean_contrastive_by_hand():
    """Unit rows at 60 degrees are 1 apart, at 90 degrees sqrt(2)."""
    scores, lookup = find([0.5, 0.5, 0.0], 1)
    cost = contrastive(lookup, positive_margin=0.25, negative_margin=1.5, distance="euclidean")
    expected = 0.75**2 + (0.5**2 + (1.5 - math.sqrt(2)) ** 2) / 2
    torch.testing.assert_close(cost, torch.tensor([expected], dtype=torch.float64))
    cost.sum().backward()
    assert (scores.grad < 0).tolist() == [[True, False, False]]


def test_euclidean_without_a_positive_margin_pulls_by_the_squared_distance():
    scores, lookup = find([0.25], 1)
    cost = contrastive(lookup, positive_margin=0.0, negative_margin=1.0, distance="euclidean")
    torch.testing.assert_close(cost, torch.tensor([1.5], dtype=torch.float64))
    cost.sum().backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-2.0]], dtype=torch.float64))


@pytest.mark.parametrize(("distance", "margins"), [("cosine", (1.0, 0.5)), ("euclidean", (0.0, 1.0))])
def test_a_margin_that_is_not_given_is_that_of_its_distance(distance, margins):
    _, lookup = find([0.9, 0.2, 0.6, 0.4], 2)
    given = contrastive(lookup, positive_margin=margins[0], negative_margin=margins[1], distance=distance)
    assert torch.equal(contrastive(lookup, distance=distance), given)
    other = contrastive(lookup, positive_margin=0.25, distance=distance)
    assert not torch.equal(other, given)


def test_euclidean_is_finite_for_equal_rows():
    """The root is infinitely steep at distance 0."""
    scores, lookup = find([1.0, 1.0], 1)
    cost = contrastive(lookup, positive_margin=0.0, negative_margin=1.0, distance="euclidean")
    cost.sum().backward()
    assert cost.tolist() == [1.0]
    assert scores.grad[0, 0] == 0.0
    assert 0.0 < scores.grad[0, 1] < math.inf


def test_trap_the_cost_does_not_grow_with_the_memory():
    """The released cross-batch memory sums: ten times the memory, ten times the cost."""
    scores = [0.5, 0.9, 0.6]
    _, small = find(scores, 1)
    _, large = find(scores[:1] + scores[1:] * 10, 1)
    options = {"positive_margin": 1.0, "negative_margin": 0.5}
    torch.testing.assert_close(contrastive(large, **options), contrastive(small, **options))


@pytest.mark.parametrize(
    ("distance", "margins", "ranges"),
    [
        ("cosine", (1.1, 0.5), "positive_margin in (-1, 1] and negative_margin in [0, 1)"),
        ("cosine", (1.0, -0.1), "positive_margin in (-1, 1] and negative_margin in [0, 1)"),
        ("cosine", (math.nan, 0.5), "positive_margin in (-1, 1] and negative_margin in [0, 1)"),
        ("euclidean", (-0.1, 1.0), "positive_margin in [0, 2) and negative_margin in (0, 2]"),
        ("euclidean", (0.0, 2.5), "positive_margin in [0, 2) and negative_margin in (0, 2]"),
    ],
)
def test_contrastive_refuses_margins_of_the_other_distance(distance, margins, ranges):
    _, lookup = find([0.5, 0.5], 1)
    with pytest.raises(RangeError) as error:
        contrastive(lookup, positive_margin=margins[0], negative_margin=margins[1], distance=distance)
    assert str(error.value) == (
        f"{distance} distance needs {ranges}, got {margins[0]} and {margins[1]}; "
        "the two distances have different units"
    )


def test_triplets_by_hand():
    """Positives .5 and .9; negatives .75, .375 and 0; margin .25."""
    cases = {
        "all": ((0.5 + 0.125 + 0.1) / 3, [-2 / 3, -1 / 3, 2 / 3, 1 / 3, 0.0]),
        "hard": (0.5, [-1.0, 0.0, 1.0, 0.0, 0.0]),
        "semi_hard": ((0.125 + 0.1) / 2, [-0.5, -0.5, 0.5, 0.5, 0.0]),
    }
    for mining, (expected, gradient) in cases.items():
        scores, lookup = find([0.5, 0.9, 0.75, 0.375, 0.0], 2)
        cost = triplet(lookup, margin=0.25, mining=mining)
        torch.testing.assert_close(cost, torch.tensor([expected], dtype=torch.float64))
        cost.sum().backward()
        torch.testing.assert_close(scores.grad, torch.tensor([gradient], dtype=torch.float64))


def test_ties_are_not_semi_hard_and_cost_the_margin():
    _, lookup = find([0.5, 0.5, 0.5], 2)
    assert triplet(lookup, margin=0.25, mining="semi_hard").tolist() == [0.0]
    assert triplet(lookup, margin=0.25, mining="all").tolist() == [0.25]
    assert triplet(lookup, margin=0.0, mining="all").tolist() == [0.0]


def test_a_margin_lost_in_rounding_selects_nothing():
    scores, lookup = find([0.5, 0.5, 0.5], 2)
    triplet(lookup, margin=1e-20, mining="semi_hard").sum().backward()
    assert scores.grad.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("mining", ["all", "hard"])
def test_soft_margin_at_a_tie_is_one_bit(mining):
    _, lookup = find([0.5, 0.5, 0.5], 2)
    cost = triplet(lookup, margin=0.0, mining=mining, soft=True)
    torch.testing.assert_close(cost, torch.tensor([math.log(2)], dtype=torch.float64))


@pytest.mark.parametrize("mining", ["all", "semi_hard"])
def test_many_positives_are_walked_in_parts(mining):
    """25 positives of 40 keys: one query is done at once, 2,500 queries take three rounds."""
    scores, lookup = find([i * 7 % 40 / 40 for i in range(40)], 25)
    alone = triplet(lookup, margin=0.5, mining=mining, soft=True)
    alone.sum().backward()
    many = scores.detach().repeat(2500, 1).requires_grad_()
    positive = lookup.positive.expand(2500, 40)
    cost = triplet(Lookup.from_scores(many, positive, ~positive), margin=0.5, mining=mining, soft=True)
    cost.sum().backward()
    torch.testing.assert_close(cost, alone.expand(2500))
    torch.testing.assert_close(many.grad, scores.grad.expand(2500, 40))


@pytest.mark.parametrize(
    ("mining", "margin", "needed"),
    [("all", -0.1, ">= 0"), ("hard", math.nan, ">= 0"), ("semi_hard", 0.0, "> 0")],
)
def test_triplet_refuses_a_margin_that_selects_nothing(mining, margin, needed):
    _, lookup = find([0.5, 0.5], 1)
    with pytest.raises(RangeError) as error:
        triplet(lookup, margin=margin, mining=mining)
    assert str(error.value) == (
        f"margin must be {needed} with {mining} triplets, got {margin}; 0.05 to 0.2 is usual"
    )
