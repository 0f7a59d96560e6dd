"""The debiased and the hard-negative loss: what they equal, their floor and their gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from querykey.errors import RangeError
from querykey.lookup import Lookup
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses import debiased, hard_negative, info_nce, nt_xent


def views(images, seed=0):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, images, 4, generator=random, dtype=torch.float64)
    return [F.normalize(view) for view in rows]


def one_row(*scores):
    """The first key is positive and the others negative."""
    values = torch.tensor([scores], dtype=torch.float64)
    positive = torch.zeros(values.shape, dtype=torch.bool)
    positive[:, 0] = True
    return Lookup.from_scores(values.requires_grad_(), positive, ~positive)


@settings(max_examples=20, deadline=None)
@given(images=st.integers(1, 6), seed=st.integers(0, 2**20), temperature=st.sampled_from([0.05, 0.5, 2.0]))
def test_without_correction_and_weights_it_is_nt_xent(images, seed, temperature):
    one, two = ([view.clone().requires_grad_() for view in views(images, seed)] for _ in range(2))
    found = look_up_views(*one, score="cosine")
    ours = hard_negative(found, temperature=temperature, tau_plus=0.0, beta=0.0)
    theirs = nt_xent(*two, temperature=temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(c.sum(), v) for c, v in ((ours, one), (theirs, two))]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), keys=st.integers(2, 9))
def test_without_correction_and_weights_it_is_info_nce_over_any_lookup(seed, keys):
    random = torch.Generator().manual_seed(seed)
    scores = (torch.rand(4, keys, generator=random, dtype=torch.float64) * 2 - 1).requires_grad_()
    kinds = torch.randint(3, (4, keys), generator=random)
    one, two = (Lookup.from_scores(scores, kinds == 1, kinds == 2) for _ in range(2))
    ours = hard_negative(one, temperature=0.3, tau_plus=0.0, beta=0.0)
    theirs = info_nce(two, temperature=0.3)
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(cost.sum(), scores)[0] for cost in (ours, theirs))
    torch.testing.assert_close(mine, other)


def as_published(view_1, view_2, *, temperature, tau_plus, beta):
    """The released form, for 2B rows with one positive each."""
    rows, images = torch.cat([view_1, view_2]), len(view_1)
    total = 0.0
    for i in range(2 * images):
        pos = torch.exp(rows[i] @ rows[(i + images) % (2 * images)] / temperature)
        neg = torch.stack(
            [
                torch.exp(rows[i] @ rows[k] / temperature)
                for k in range(2 * images)
                if k % images != i % images
            ]
        )
        imp = neg**beta
        count = 2 * images - 2
        rest = ((imp * neg).sum() / imp.mean() - tau_plus * count * pos) / (1 - tau_plus)
        rest = rest.clamp(min=count * math.exp(-1 / temperature))
        total = total - torch.log(pos / (pos + rest))
    return total / (2 * images)


@pytest.mark.parametrize("temperature", [0.2, 0.5])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_over_two_views_value_and_gradient_are_the_published_form(temperature, tau_plus, beta):
    options = {"temperature": temperature, "tau_plus": tau_plus, "beta": beta}
    gradients, costs = [], []
    for loss in (lambda a, b: hard_negative(look_up_views(a, b), **options).mean(),
                 lambda a, b: as_published(a, b, **options)):  # fmt: skip
        pair = [view.clone().requires_grad_() for view in views(4, seed=3)]
        cost = loss(*pair)
        costs.append(cost)
        gradients.append(torch.stack(torch.autograd.grad(cost, pair)))
    torch.testing.assert_close(*costs)
    torch.testing.assert_close(*gradients)


def test_debiased_is_hard_negative_without_weights():
    found = look_up_views(*views(5))
    torch.testing.assert_close(
        debiased(found, temperature=0.5, tau_plus=0.2),
        hard_negative(found, temperature=0.5, tau_plus=0.2, beta=0.0),
    )


def test_the_floor_is_what_negatives_on_the_far_side_would_add():
    """A near positive is taken off the far negatives more often than they can bear."""
    found = one_row(0.9, -0.8, -0.9, -0.7)
    cost = debiased(found, temperature=0.5, tau_plus=0.3)
    expected = math.log1p(3 * math.exp(-2) / math.exp(1.8))
    assert cost.item() == pytest.approx(expected)
    cost.sum().backward()
    assert not found.queries.grad[0, 1:].any()
    assert found.queries.grad[0, 0] < 0


def test_hard_negatives_cost_more_and_are_pushed_more():
    pushed, costs = [], []
    for beta in (0.0, 1.0, 4.0):
        found = one_row(0.5, 0.4, -0.4, -0.5)
        cost = hard_negative(found, temperature=0.5, tau_plus=0.0, beta=beta)
        pushed.append(torch.autograd.grad(cost.sum(), found.queries)[0][0].tolist())
        costs.append(cost.item())
    assert costs == sorted(costs)
    assert pushed[0][1] < pushed[1][1]
    assert pushed[0][3] > 0 > pushed[1][3]  # the weights' own gradient


def test_with_a_large_beta_the_hardest_negative_has_all_weight():
    cost = hard_negative(one_row(0.5, 0.4, -0.4, -0.5), temperature=0.5, tau_plus=0.0, beta=200.0)
    assert cost.item() == pytest.approx(math.log1p(3 * math.exp((0.4 - 0.5) / 0.5)))


@pytest.mark.parametrize("scores", [(0.5, 0.4, -0.4, -0.5), (0.9, -0.8, -0.9, -0.7)])
def test_a_learned_temperature_gets_its_gradient_at_the_floor_too(scores):
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    found = one_row(*scores)
    assert torch.autograd.gradcheck(
        lambda s, t: hard_negative(
            Lookup.from_scores(s, found.positive, found.negative), temperature=t, tau_plus=0.3, beta=0.5
        ),
        (found.queries, temperature),
    )


@pytest.mark.parametrize("temperature", [0.01, 0.005])
def test_far_scores_stay_finite_in_float32(temperature):
    scores = torch.tensor([[-1.0, 1.0, 0.9], [1.0, -1.0, -0.9]], requires_grad=True)
    positive = torch.tensor([[True, False, False]] * 2)
    cost = hard_negative(
        Lookup.from_scores(scores, positive, ~positive), temperature=temperature, tau_plus=0.1, beta=2.0
    )
    cost.sum().backward()
    assert cost[0].item() == pytest.approx(2 / temperature + math.log(2 / 0.9), rel=1e-4)
    assert cost[1].item() == 0.0
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tau_plus": 1.0},
            (
                "tau_plus must be from 0 to below 1, got 1.0; "
                "it is the share of negatives of the query's own class, about 1 / classes"
            ),
        ),
        ({"beta": -0.5}, "beta must be >= 0 and finite, got -0.5; 1 is usual"),
        ({"temperature": 0.0}, "temperature must be > 0 and finite, got 0.0; 0.05 to 0.5 is usual"),
    ],
)
def test_refuses_numbers_outside_their_range(options, message):
    with pytest.raises(RangeError) as error:
        hard_negative(one_row(0.5, 0.1), **({"temperature": 0.5} | options))
    assert str(error.value) == message
