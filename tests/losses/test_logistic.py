"""NT-logistic: closed forms, which negatives count, far scores."""

import math

import pytest
import torch

from querykey.lookup import Lookup
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses import nt_logistic


def one_row(*scores, dtype=torch.float64):
    """The first key is positive and the others negative."""
    values = torch.tensor([scores], dtype=dtype)
    positive = torch.zeros(values.shape, dtype=torch.bool)
    positive[:, 0] = True
    return Lookup.from_scores(values.requires_grad_(), positive, ~positive)


def test_gradients_are_those_of_simclrs_table_2():
    found = one_row(0.3, 0.6)
    nt_logistic(found, temperature=0.5).sum().backward()
    pull = -1 / (1 + math.exp(0.6)) / 0.5
    push = 1 / (1 + math.exp(-1.2)) / 0.5
    assert found.queries.grad[0].tolist() == pytest.approx([pull, push])


def test_more_of_the_same_negatives_cost_the_same():
    """A mean, not a sum: the batch does not weigh negatives against the positive."""
    few, many = (nt_logistic(one_row(0.5, *[0.2] * n), temperature=0.1) for n in (1, 50))
    torch.testing.assert_close(few, many)


def test_semi_hard_takes_the_nearest_below_the_positive():
    found = one_row(0.5, 0.9, 0.4, 0.1)
    nt_logistic(found, temperature=1.0, mining="semi_hard").sum().backward()
    assert (found.queries.grad[0] != 0).tolist() == [True, False, True, False]
    tied = one_row(0.5, 0.4, 0.9, 0.4)
    nt_logistic(tied, temperature=1.0, mining="semi_hard").sum().backward()
    assert tied.queries.grad[0, 1] == tied.queries.grad[0, 3] == pytest.approx(0.5 / (1 + math.exp(-0.4)))


def test_without_a_semi_hard_negative_the_positive_is_pulled_alone():
    cost = nt_logistic(one_row(-0.9, 0.5, 0.6), temperature=1.0, mining="semi_hard")
    assert cost.item() == pytest.approx(math.log1p(math.exp(0.9)))


def test_over_two_views_negatives_are_those_of_both():
    view = torch.eye(3, dtype=torch.float64)
    cost = nt_logistic(look_up_views(view, view), temperature=0.5)
    expected = math.log1p(math.exp(-2)) + math.log(2)
    assert cost.tolist() == pytest.approx([expected] * 6)


def test_far_scores_stay_finite_and_near_0_keeps_its_digits():
    wrong, right = one_row(-1.0, 1.0, dtype=torch.float32), one_row(1.0, -1.0, dtype=torch.float32)
    assert nt_logistic(wrong, temperature=0.001).item() == pytest.approx(2000.0)
    assert nt_logistic(right, temperature=0.05).item() == pytest.approx(2 * math.exp(-20), rel=1e-3)


def test_a_learned_temperature_gets_its_gradient():
    found = look_up_views(*torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double())
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for mining in ("all", "semi_hard"):
        assert torch.autograd.gradcheck(
            lambda t, mining=mining: nt_logistic(found, temperature=t, mining=mining), temperature
        )
