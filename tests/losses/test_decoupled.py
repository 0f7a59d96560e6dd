"""DCL and DCLW: closed forms, weights held fixed, what is refused."""

import math

import oracles
import pytest
import torch
from torch.nn import functional as F

from querykey.errors import RangeError
from querykey.lookup import Lookup
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses import decoupled, info_nce, nt_xent


def views(images, seed=0):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, images, 6, generator=random, dtype=torch.float64)
    return [F.normalize(view) for view in rows]


def as_published(view_1, view_2, *, temperature, sigma):
    """The mean over both directions of the two-view form, written for B pairs."""
    images, total = len(view_1), 0.0
    for one, two in ((view_1, view_2), (view_2, view_1)):
        positives = (one * two).sum(dim=1)
        weights = torch.ones_like(positives)
        if sigma is not None:
            weights = 2 - images * torch.softmax(positives / sigma, dim=0)
        for i in range(images):
            others = [k for k in range(images) if k != i]
            negatives = torch.cat([one[others] @ one[i], two[others] @ one[i]]) / temperature
            total += torch.logsumexp(negatives, dim=0) - weights[i] * positives[i] / temperature
    return total / (2 * images)


@pytest.mark.parametrize("sigma", [None, 0.5, 0.05])
def test_over_two_views_is_the_published_form(sigma):
    view_1, view_2 = views(7)
    cost = decoupled(look_up_views(view_1, view_2), temperature=0.1, sigma=sigma).mean()
    torch.testing.assert_close(cost, as_published(view_1, view_2, temperature=0.1, sigma=sigma))


def test_is_info_nce_without_the_positive_below():
    """exp(NT-Xent) = 1 + exp(DCL), with one positive."""
    view_1, view_2 = views(5)
    full = nt_xent(view_1, view_2, temperature=0.2)
    cost = decoupled(look_up_views(view_1, view_2), temperature=0.2)
    torch.testing.assert_close(full, F.softplus(cost))


def test_negatives_of_a_found_positive_keep_their_gradient():
    scores = torch.tensor([[0.99, 0.0, 0.0]], requires_grad=True)
    positive = torch.tensor([[True, False, False]])
    for loss, least in ((decoupled, 9.9), (info_nce, 0.0)):
        scores.grad = None
        loss(Lookup.from_scores(scores, positive, ~positive), temperature=0.1).sum().backward()
        pulled = -scores.grad[0, 0].item()
        assert pulled > least
    assert pulled < 0.01


def test_weights_average_1_and_carry_no_gradient():
    """The gradient is that of the cost with its weights held."""
    view_1, view_2 = views(4)
    found = look_up_views(view_1, view_2)
    scores = found.scores.detach().requires_grad_()
    decoupled(
        Lookup.from_scores(scores, found.positive, found.negative), temperature=0.3, sigma=0.5
    ).sum().backward()
    base, step = found.scores.tolist(), 1e-6
    all_positives = found.scores[found.positive].tolist()
    for i in range(8):
        for k in range(8):
            costs = []
            for sign in (1, -1):
                row = list(base[i])
                row[k] += sign * step
                kinds = list(zip(row, base[i], found.positive[i], found.negative[i], strict=True))
                costs.append(
                    oracles.decoupled(
                        [s for s, _, p, _ in kinds if p], [s for s, _, _, n in kinds if n],
                        temperature=0.3, sigma=0.5, all_positives=all_positives,
                        weights_from=[s for _, s, p, _ in kinds if p],
                    )
                )  # fmt: skip
            assert scores.grad[i, k].item() == pytest.approx((costs[0] - costs[1]) / 2 / step, abs=1e-6)
    weights = -0.3 * scores.grad[found.positive]
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights.std() > 0.1


def test_weights_of_equal_positives_are_1():
    positive = torch.tensor([[True, False, False], [False, True, False]])
    found = Lookup.from_scores(torch.where(positive, 0.7, 0.2), positive, ~positive)
    torch.testing.assert_close(
        decoupled(found, temperature=0.1, sigma=0.01), decoupled(found, temperature=0.1)
    )


@pytest.mark.parametrize("sigma", [1e-7, 1e4])
def test_weights_stay_finite_at_any_width(sigma):
    view_1, view_2 = (view.float().requires_grad_() for view in views(5))
    cost = decoupled(look_up_views(view_1, view_2), temperature=0.1, sigma=sigma)
    cost.sum().backward()
    assert cost.isfinite().all()
    assert view_1.grad.isfinite().all()


def test_one_image_has_no_negatives_and_no_loss():
    view_1, view_2 = views(1)
    for sigma in (None, 0.5):
        assert decoupled(look_up_views(view_1, view_2), temperature=0.1, sigma=sigma).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_width_that_is_not_positive(sigma):
    with pytest.raises(RangeError) as error:
        decoupled(look_up_views(*views(2)), temperature=0.1, sigma=sigma)
    assert str(error.value) == (
        f"sigma must be > 0 and finite, or None for equal weights, got {sigma}; 0.5 is usual"
    )
