"""Multi-similarity and circle: mining, closed forms and gradients."""

import math

import oracles
import pytest
import torch

from querykey.errors import RangeError
from querykey.lookup import Lookup
from querykey.losses import circle, multi_similarity


def find(scores, positives):
    """The first `positives` keys are positive and the others negative."""
    scores = torch.tensor([scores], dtype=torch.float64).requires_grad_()
    positive = torch.arange(scores.shape[1])[None, :] < positives
    return scores, Lookup.from_scores(scores, positive, ~positive)


def test_mining_keeps_the_pairs_within_epsilon_of_the_other_side():
    """Positives below .5 + .1 and negatives above .4 - .1."""
    scores, lookup = find([0.9, 0.55, 0.4, 0.5, 0.35, 0.25], 3)
    multi_similarity(lookup, epsilon=0.1).sum().backward()
    assert (scores.grad != 0).tolist() == [[False, True, True, True, True, False]]


def test_a_query_that_is_far_better_than_epsilon_costs_exactly_0():
    scores, lookup = find([0.95, 0.9, 0.6, 0.1], 2)
    cost = multi_similarity(lookup, epsilon=0.1)
    cost.sum().backward()
    assert cost.tolist() == [0.0]
    assert scores.grad.tolist() == [[0.0] * 4]


def test_without_mining_every_pair_pulls():
    scores, lookup = find([0.95, 0.9, 0.6, 0.1], 2)
    multi_similarity(lookup, epsilon=None).sum().backward()
    assert (scores.grad < 0).tolist() == [[True, True, False, False]]
    assert (scores.grad > 0).tolist() == [[False, False, True, True]]


def test_the_weight_of_a_pair_is_the_paper_s():
    """A negative's weight is its exponential among those of its row and 1."""
    scores, lookup = find([0.4, 0.6, 0.5], 1)
    multi_similarity(lookup, alpha=2.0, beta=10.0, base=0.5).sum().backward()
    pull = math.exp(0.2) / (1 + math.exp(0.2))
    total = 1 + math.exp(1.0) + math.exp(0.0)
    expected = [[-pull, math.exp(1.0) / total, math.exp(0.0) / total]]
    torch.testing.assert_close(scores.grad, torch.tensor(expected, dtype=torch.float64))


def test_an_easy_query_does_not_overflow_where_nothing_is_kept():
    """No positive, so nothing is mined; exp(500 * 0.5) is beyond float32 all the same."""
    scores = torch.ones(1, 3, requires_grad=True)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    cost = multi_similarity(Lookup.from_scores(scores, nothing, ~nothing), beta=500.0)
    cost.sum().backward()
    assert cost.tolist() == [0.0]
    assert scores.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_circle_gradient_holds_the_weights_fixed():
    row = [0.7, 0.2, 0.1, -0.3, -0.9]
    scores, lookup = find(row, 2)
    circle(lookup, margin=0.4, gamma=8.0).sum().backward()

    def cost(moved):
        return oracles.circle(moved[:2], moved[2:], margin=0.4, gamma=8.0, weights_from=(row[:2], row[2:]))

    step = 1e-6
    slopes = []
    for i in range(len(row)):
        up, down = list(row), list(row)
        up[i], down[i] = row[i] + step, row[i] - step
        slopes.append((cost(up) - cost(down)) / (2 * step))
    torch.testing.assert_close(scores.grad, torch.tensor([slopes], dtype=torch.float64), rtol=1e-6, atol=1e-8)
    assert scores.grad[0, -1] == 0.0  # below -m a negative is left alone


def test_circle_costs_little_where_every_pair_is_at_its_optimum():
    _, lookup = find([1.0, 0.0], 1)
    cost = circle(lookup, margin=0.25, gamma=256.0)
    torch.testing.assert_close(cost, torch.tensor([math.exp(-256 * 2 * 0.0625)], dtype=torch.float64))


@pytest.mark.parametrize("margin", [0.0, 1.0, math.nan])
def test_circle_refuses_a_margin_outside_0_to_1(margin):
    _, lookup = find([0.5, 0.5], 1)
    with pytest.raises(RangeError) as error:
        circle(lookup, margin=margin)
    assert str(error.value) == (
        f"margin must be above 0 and below 1, got {margin}; 0.4 is usual for retrieval"
    )


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
def test_refuses_a_sharpness_that_is_not_positive(name, value):
    _, lookup = find([0.5, 0.5], 1)
    loss = circle if name == "gamma" else multi_similarity
    with pytest.raises(RangeError) as error:
        loss(lookup, **{name: value})
    assert str(error.value) == f"{name} must be > 0 and finite, got {value}"


@pytest.mark.parametrize("epsilon", [-0.1, math.nan])
def test_refuses_an_epsilon_below_0(epsilon):
    _, lookup = find([0.5, 0.5], 1)
    with pytest.raises(RangeError) as error:
        multi_similarity(lookup, epsilon=epsilon)
    assert str(error.value) == f"epsilon must be >= 0, got {epsilon}; None selects all pairs"
