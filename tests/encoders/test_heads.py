"""The FC layer: where it starts and what it keeps."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from querykey.adapter.closed_forms import Affine, principal_components
from querykey.adapter.tasks import start_form
from querykey.encoders.heads import FCLayer, orthogonal
from querykey.errors import RangeError
from querykey.evaluation.moments import moments, principal


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(200, 6, generator=generator) * torch.arange(1, 7) + 0.5, dim=1)


def test_the_centred_start_is_scikit_learns_pca(rows):
    layer = FCLayer(6, 3)
    form = principal_components(moments(rows), 3, centred=True)
    layer.set_affine_(form.weight, form.bias)
    expected = torch.from_numpy(PCA(3).fit_transform(rows.double().numpy())).float()
    torch.testing.assert_close(layer.project(rows).abs(), expected.abs(), atol=1e-5, rtol=1e-4)


def test_the_uncentred_start_keeps_dot_products_best(rows):
    """No other projection of this rank is nearer to the scores (Eckart and Young 1936)."""
    layer = FCLayer(6, 3)
    form = principal_components(moments(rows), 3, centred=False)
    layer.set_affine_(form.weight, form.bias)
    left = (rows @ rows.T - layer.project(rows) @ layer.project(rows).T).norm()
    singular = torch.linalg.svdvals(rows.double())[3:]
    assert left.item() == pytest.approx(singular.pow(4).sum().sqrt().item(), rel=1e-4)


def test_at_full_width_every_start_keeps_the_scores(rows):
    forms = (
        principal_components(moments(rows), 6, centred=False),
        Affine(orthogonal(6, 6, seed=0), torch.zeros(6)),
    )
    for form in forms:
        layer = FCLayer(6, 6)
        layer.set_affine_(form.weight, form.bias)
        torch.testing.assert_close(layer(rows) @ layer(rows).T, rows @ rows.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "two_layer"])
def test_two_layers_start_as_one(kind, rows):
    one, other = FCLayer(6, 4), FCLayer(6, 4, kind=kind)
    for layer in (one, other):
        form = principal_components(moments(rows), 4, centred=False)
        layer.set_affine_(form.weight, form.bias)
    assert torch.equal(one(rows), other(rows))


def test_two_layers_learn_in_both(rows):
    layer = FCLayer(6, 4, kind="two_layer")
    form = principal_components(moments(rows), 4, centred=False)
    layer.set_affine_(form.weight, form.bias)
    layer(rows)[:, 0].sum().backward()
    assert layer.out.weight.grad.abs().sum() > 0
    assert layer.weight.grad.abs().sum() > 0


def test_rows_come_out_with_length_one(rows):
    layer = FCLayer(6, 2)
    layer.set_affine_(orthogonal(2, 6, seed=1), torch.zeros(2))
    torch.testing.assert_close(layer(rows).norm(dim=1), torch.ones(200))


def test_moments_do_not_depend_on_the_blocks(rows, monkeypatch):
    whole = principal(moments(rows).covariance)
    monkeypatch.setattr("querykey.evaluation.moments.BLOCK", 7)
    for a, b in zip(whole, principal(moments(rows).covariance), strict=True):
        torch.testing.assert_close(a, b)


def test_trap_5_7_the_start_fits_when_dim_is_not_the_width(rows):
    """One published adapter copies an identity [in, out] into a weight [out, in]."""
    layer = FCLayer(6, 2)
    form = start_form("identity", 2, 6, seed=0)["identity"](None)
    layer.set_affine_(form.weight, form.bias)
    assert layer.project(rows).equal(rows[:, :2])


def test_a_residual_layer_takes_a_closed_form_too(rows):
    form = principal_components(moments(rows), 6, centred=True)
    one, other = FCLayer(6, 6), FCLayer(6, 6, kind="residual")
    for layer in (one, other):
        layer.set_affine_(form.weight, form.bias)
    torch.testing.assert_close(one(rows), other(rows))


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(RangeError, match="dim must be from 1 to the width of the features, 4; got 5"):
        FCLayer(4, 5)
    with pytest.raises(RangeError, match="a residual FC layer keeps the width: dim must be 4, got 3"):
        FCLayer(4, 3, kind="residual")
