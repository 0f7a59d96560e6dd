"""Two views in tiles of scores that stand for both of their sides."""

import oracles
import pytest
import torch
from streaming_toys import Held, rows
from torch.nn import functional as F

from querykey.lookup import Lookup
from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses import decoupled, info_nce, nt_xent, streaming_views
from querykey.losses.streaming_views import two_views

IDS = {
    "each its own": None, "in any order": torch.tensor([4, 2, 9, 0, 7]),
    "twice": torch.tensor([3, 1, 3, 7, 1]),
    "all the same": torch.zeros(5, dtype=torch.int64),
}  # fmt: skip


@pytest.fixture(params=[1, 3, 512])
def _tiles(request, monkeypatch):
    monkeypatch.setattr(streaming_views, "TILE", request.param)


def weighted(lookup, **options):
    return decoupled(lookup, sigma=0.5, **options)


def views(images=5, *, dtype=torch.float64, dim=4):
    return [rows(images, seed=seed, dtype=dtype, dim=dim).requires_grad_() for seed in (0, 1)]


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("part", [(0, 10), (0, 5), (3, 7), (8, 10), (4, 4)])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("loss", [info_nce, decoupled, weighted])
def test_gives_the_value_and_the_gradients_of_the_plain_form(loss, ids, part):
    """Of all rows and of some, in float64, each row weighed differently."""
    found = []
    for form in ("dense", "chunked"):
        leaves = views()
        temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        lookup = look_up_views(*leaves, ids=ids).rows(*part)
        assert two_views(lookup, temperature) is not None
        value = loss(lookup, temperature=temperature, form=form)
        (value * torch.arange(1, 1 + len(value))).sum().backward()
        found.append([value.detach(), temperature.grad, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("ids", [IDS["each its own"], IDS["twice"]])
def test_is_the_equation(ids):
    view_1, view_2 = views()
    costs = oracles.nt_xent(
        torch.cat([view_1, view_2]).tolist(),
        temperature=0.2,
        ids=list(range(5)) if ids is None else ids.tolist(),
    )
    chunked = nt_xent(view_1 * 3, view_2 * 0.1, temperature=0.2, ids=ids, form="chunked")
    assert chunked.tolist() == pytest.approx(costs, rel=1e-9)


@pytest.mark.parametrize("loss", [info_nce, decoupled])
def test_gradient_is_the_derivative(loss, monkeypatch):
    monkeypatch.setattr(streaming_views, "TILE", 4)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, t: loss(
            look_up_views(a, b, ids=IDS["twice"], score="cosine"), temperature=t, form="chunked"
        ),
        (*views(), temperature),
    )


@pytest.mark.parametrize("temperature", [0.03, 0.1, 0.5])
def test_float32_is_no_further_from_float64_than_the_plain_form(temperature):
    """Views that nearly agree and views that do not; root mean square over the rows."""
    found = []
    for form, dtype in (("dense", torch.float64), ("dense", torch.float32), ("chunked", torch.float32)):
        base, noise = (rows(300, seed=seed, dim=16) for seed in (0, 1))
        view_1 = base.to(dtype, copy=True).requires_grad_()
        view_2 = (base + torch.linspace(0, 1.5, 300)[:, None] * noise).to(dtype).requires_grad_()
        value = nt_xent(view_1, view_2, temperature=temperature, form=form)
        value.sum().backward()
        found.append([value.detach().double(), view_1.grad.double(), view_2.grad.double()])
    exact, dense, chunked = found
    for right, theirs, ours in zip(exact, dense, chunked, strict=True):
        faults = [(one - right).square().mean().sqrt() for one in (ours, theirs)]
        assert faults[0] <= 1.25 * faults[1] + 1e-9


def test_a_loss_near_0_keeps_its_digits():
    """Three rows at right angles: two of four negatives a row, each at a score of 0."""
    value = nt_xent(torch.eye(3), torch.eye(3), temperature=0.05, form="chunked")
    assert value.tolist() == pytest.approx([4 * 2.718281828459045**-20] * 6, rel=1e-4)


def test_rows_in_half_precision_are_scored_in_float32():
    view_1, view_2 = views(dtype=torch.bfloat16)
    value = nt_xent(view_1, view_2, temperature=0.1, form="chunked")
    assert value.dtype == torch.float32
    exact = nt_xent(view_1.double(), view_2.double(), temperature=0.1, form="dense")
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    value.sum().backward()
    assert view_1.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_logits_that_are_summed_stay_finite(sign):
    """Every positive at one end of the scale and every negative at the other."""
    ends = torch.cat([torch.ones(1, 4), -torch.ones(1, 4)]) / 2
    view_1 = ends.requires_grad_()
    lookup = look_up_views(view_1, view_1 * sign)
    assert two_views(lookup, 1 / 35.9) is not None
    value = info_nce(lookup, temperature=1 / 35.9, form="chunked")
    torch.testing.assert_close(value, info_nce(lookup, temperature=1 / 35.9, form="dense"))
    value.sum().backward()
    assert view_1.grad.isfinite().all()


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 0.02), (8.0, 1.0)])
def test_logits_too_large_for_plain_sums_are_walked_in_blocks(scale, temperature):
    """With the same numbers; a little below they are not."""
    leaves = [view * scale for view in views()]
    lookup = look_up_views(*leaves)
    assert two_views(lookup, temperature) is None
    assert two_views(lookup, 2 * temperature) is not None
    chunked, dense = (info_nce(lookup, temperature=temperature, form=form) for form in ("chunked", "dense"))
    torch.testing.assert_close(chunked, dense)


def test_other_look_ups_are_not_taken_for_two_views():
    """Not rows of the same numbers that carry their own gradient, and not pairs of another kind."""
    lookup = look_up_views(*views())
    apart = Lookup(lookup.queries.detach(), lookup.keys.detach(), lookup.pairs)
    assert two_views(apart, 0.1) is None
    assert two_views(lookup.with_pairs(lookup.positive, lookup.negative), 0.1) is None
    assert two_views(look_up_views(*views(0)), 0.1) is None
    assert nt_xent(*views(0), temperature=0.1, form="chunked").tolist() == []


def test_values_that_are_not_finite_stay_so():
    """A run has to see it."""
    view_1, view_2 = torch.eye(3), torch.eye(3)
    view_1[0, 0] = torch.nan
    assert nt_xent(view_1, view_2, temperature=0.1, form="chunked").isnan().any()


def test_one_image_has_no_negatives_and_costs_0():
    view_1, view_2 = views(1)
    for loss in (info_nce, decoupled):
        value = loss(look_up_views(view_1, view_2), temperature=0.1, form="chunked")
        assert value.tolist() == [0.0, 0.0]
        value.sum().backward()
    assert not view_1.grad.any()


def test_memory_is_linear_in_the_views(monkeypatch):
    """Nothing is larger than a tile or than the rows; forward, backward, with items twice."""
    monkeypatch.setattr(streaming_views, "TILE", 16)
    for images in (100, 200):
        leaves = views(images, dtype=torch.float32)
        with Held() as held:
            nt_xent(*leaves, temperature=0.1, ids=torch.arange(images) // 2, form="chunked").sum().backward()
        assert held.largest <= 2 * images * 4 * 4


def test_the_norm_of_a_row_does_not_matter():
    view_1, view_2 = views()
    value = nt_xent(view_1 * 5, view_2, temperature=0.1, form="chunked")
    value.sum().backward()
    torch.testing.assert_close((view_1.grad * view_1).sum(dim=1), torch.zeros(5).double())
    assert F.cosine_similarity(view_1.grad, view_2, dim=1).abs().max() > 0
