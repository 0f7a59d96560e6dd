"""NT-Xent: its equation, its closed forms and what leaves it as it is."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from querykey.errors import RangeError
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses import info_nce, nt_xent, triplet


def make_views(images, dim=5, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, images, dim, generator=random, dtype=torch.float64).to(dtype).unbind()


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 6), dim=st.integers(1, 5), seed=st.integers(0, 2**20),
    temperature=st.sampled_from([0.1, 0.5, 10.0]), normalised=st.booleans(), kinds=st.integers(1, 6),
)  # fmt: skip
def test_is_the_equation(images, dim, seed, temperature, normalised, kinds):
    view_1, view_2 = make_views(images, dim, seed)
    ids = torch.arange(images) % kinds
    cost = nt_xent(view_1, view_2, temperature=temperature, ids=ids, normalised=normalised)
    rows = torch.cat([view_1, view_2]).tolist()
    looped = oracles.nt_xent(rows, temperature=temperature, ids=ids.tolist(), normalised=normalised)
    torch.testing.assert_close(cost, torch.tensor(looped, dtype=torch.float64), rtol=1e-9, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(images=st.integers(2, 8), seed=st.integers(0, 2**20))
def test_permuting_images_and_swapping_views_leaves_it(images, seed):
    view_1, view_2 = make_views(images, seed=seed)
    cost = nt_xent(view_1, view_2, temperature=0.2)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    permuted = nt_xent(view_1[order], view_2[order], temperature=0.2)
    torch.testing.assert_close(permuted, cost[torch.cat([order, order + images])])
    torch.testing.assert_close(nt_xent(view_2, view_1, temperature=0.2), cost.roll(images))


@settings(max_examples=20, deadline=None)
@given(images=st.integers(2, 6), seed=st.integers(0, 2**20))
def test_scaling_and_rotation_change_nothing(images, seed):
    view_1, view_2 = make_views(images, seed=seed)
    turned, _ = torch.linalg.qr(make_views(5, seed=seed + 1)[0])
    cost = nt_xent(view_1, view_2, temperature=0.2)
    torch.testing.assert_close(nt_xent(view_1 * 3.0 @ turned, view_2 @ turned * 0.1, temperature=0.2), cost)


@settings(max_examples=20, deadline=None)
@given(images=st.integers(2, 6), seed=st.integers(0, 2**20))
def test_gradient_is_orthogonal_to_the_row(images, seed):
    view_1, view_2 = (view.requires_grad_() for view in make_views(images, seed=seed))
    nt_xent(view_1, view_2, temperature=0.1).sum().backward()
    for view in (view_1, view_2):
        assert view.grad.abs().max() > 1e-6
        torch.testing.assert_close((view.grad * view).sum(dim=1), torch.zeros(images, dtype=torch.float64))


@pytest.mark.parametrize("normalised", [True, False])
def test_gradient_is_the_derivative(normalised):
    views = [view.requires_grad_() for view in make_views(3, dim=4)]
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, t: nt_xent(a, b, temperature=t, normalised=normalised), (*views, temperature)
    )


def test_random_rows_cost_the_logarithm_of_the_other_rows():
    """In many dimensions they are all at right angles."""
    view_1, view_2 = make_views(64, dim=20000, dtype=torch.float32)
    cost = nt_xent(view_1, view_2, temperature=0.5).mean()
    assert cost.item() == pytest.approx(math.log(127), abs=0.01)


def test_one_image_costs_0_and_sends_no_gradient():
    view_1, view_2 = (view.requires_grad_() for view in make_views(1))
    cost = nt_xent(view_1, view_2, temperature=0.1)
    assert cost.tolist() == [0.0, 0.0]
    cost.sum().backward()
    assert not view_1.grad.any()


def test_no_image_costs_nothing():
    view = torch.zeros(0, 4, requires_grad=True)
    cost = nt_xent(view, view, temperature=0.1)
    assert cost.shape == (0,)
    cost.sum().backward()


def test_at_a_low_temperature_it_is_the_margin_to_the_hardest_negative():
    view_1, view_2 = make_views(6)
    found = look_up_views(F.normalize(view_1), F.normalize(view_2))
    positive = found.scores[found.positive]
    hardest = found.scores.masked_fill(~found.negative, -2.0).amax(dim=1)
    cold = nt_xent(view_1, view_2, temperature=1e-4) * 1e-4
    torch.testing.assert_close(cold, (hardest - positive).relu(), atol=1e-3, rtol=0)


def test_the_margin_loss_of_simclr_is_triplet_over_two_views():
    """Chen et al. 2020, Table 2: max(0, negative - positive + m); semi-hard below the positive."""
    view_1, view_2 = (F.normalize(view) for view in make_views(5))
    found = look_up_views(view_1, view_2)
    rows = torch.cat([view_1, view_2])
    for mining in ("all", "semi_hard"):
        expected = []
        for i in range(10):
            positive = (rows[i] @ rows[(i + 5) % 10]).item()
            negatives = [(rows[i] @ rows[k]).item() for k in range(10) if k % 5 != i % 5]
            costs = [max(0.0, n - positive + 0.4) for n in negatives if mining == "all" or n < positive]
            costs = [c for c in costs if c > 0]
            expected.append(sum(costs) / max(1, len(costs)))
        cost = triplet(found, margin=0.4, mining=mining)
        torch.testing.assert_close(cost, torch.tensor(expected, dtype=torch.float64))
        assert cost.max() > 0


def test_half_precision_and_autocast_lose_nothing():
    view_1, view_2 = make_views(8, dtype=torch.bfloat16)
    exact = nt_xent(view_1.float(), view_2.float(), temperature=0.05)
    assert torch.equal(nt_xent(view_1, view_2, temperature=0.05), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = nt_xent(view_1.requires_grad_(), view_2, temperature=0.05)
    assert torch.equal(within, exact)
    within.sum().backward()
    assert view_1.grad.dtype == torch.bfloat16


def test_far_scores_stay_finite():
    view_1 = (100.0 * make_views(4)[0].float()).requires_grad_()
    cost = nt_xent(view_1, -view_1, temperature=0.01, normalised=False)
    assert cost.isfinite().all()
    assert cost.max() > 1e5
    gradient = torch.autograd.grad(cost.sum(), view_1)[0]
    assert gradient.isfinite().all()


def test_is_info_nce_over_the_lookup():
    view_1, view_2 = make_views(4)
    found = look_up_views(view_1, view_2, score="cosine")
    torch.testing.assert_close(nt_xent(view_1, view_2, temperature=0.3), info_nce(found, temperature=0.3))


def test_refuses_a_temperature_that_is_not_positive():
    with pytest.raises(RangeError, match="temperature must be > 0 and finite, got 0"):
        nt_xent(*make_views(2), temperature=0.0)
