"""The head between h and the loss."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from querykey.encoders.backbones import make_backbone
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import ConfigError, RangeError

H = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def head(**options):
    return ProjectionHead(8, **({"dim": 4, "seed": 3} | options))


def weights(module):
    return [layer[0].weight for layer in module.layers]


def standardised(rows):
    return (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()


def test_none_is_h_itself():
    module = head(kind="none")
    assert module.dim == 8
    assert module(H) is H
    assert not list(module.parameters())


def test_linear_with_batch_norm_has_no_bias_and_no_shift():
    module = head(kind="linear")
    torch.testing.assert_close(module(H), standardised(H @ weights(module)[0].T))
    assert list(module.state_dict())[:2] == ["layers.0.0.weight", "layers.0.1.weight"]
    assert not any("bias" in name for name, _ in module.named_parameters())


def test_two_layers_as_the_authors_code_has_them():
    module = head()
    first, second = weights(module)
    expected = standardised(F.relu(standardised(H @ first.T)) @ second.T)
    torch.testing.assert_close(module(H), expected)
    assert [name for name, _ in module.named_parameters() if "bias" in name] == ["layers.0.1.bias"]


def test_two_layers_without_batch_norm_as_moco_v2_has_them():
    module = head(batch_norm=False)
    (first, second), (one, two) = weights(module), [layer[0].bias for layer in module.layers]
    torch.testing.assert_close(module(H), F.relu(H @ first.T + one) @ second.T + two)


@pytest.mark.parametrize("last_norm", ["plain", "none"])
def test_the_heads_of_moco_v3(last_norm):
    module = head(hidden=5, last_norm=last_norm)
    first, second = weights(module)
    out = F.relu(standardised(H @ first.T)) @ second.T
    torch.testing.assert_close(module(H), standardised(out) if last_norm == "plain" else out)
    names = [name for name, _ in module.named_parameters()]
    assert names == ["layers.0.0.weight", "layers.0.1.weight", "layers.0.1.bias", "layers.1.0.weight"]


def test_the_last_norm_changes_no_first_weight():
    first = [weights(head(last_norm=kind)) for kind in ("scale", "plain", "none")]
    assert all(torch.equal(*pair) for other in first[1:] for pair in zip(first[0], other, strict=True))


def test_three_layers_and_the_output_of_each():
    module = head(layers=3, hidden=5).eval()
    assert [list(weight.shape) for weight in weights(module)] == [[5, 8], [5, 5], [4, 5]]
    assert module.layer(H, 0) is H
    assert bool((module.layer(H, 1) >= 0).all())
    torch.testing.assert_close(module.layer(H, 1), F.relu(module.layers[0][:2](H)))
    torch.testing.assert_close(module.layer(H, 3), module(H))
    assert module(H).min() < 0


def test_the_default_is_as_wide_as_h_and_128_out():
    module = ProjectionHead(16, seed=0)
    assert [list(weight.shape) for weight in weights(module)] == [[16, 16], [128, 16]]


def test_same_seed_same_bits_and_the_callers_generator_stays():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = head(), head(), head(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(one)[0], weights(same)[0])
    assert not torch.equal(weights(one)[0], weights(other)[0])


def test_h_and_z_together():
    backbone = make_backbone("small_cnn:1", channels=1, image_size=8, seed=0)
    encoder = ViewEncoder(backbone, head(batch_norm=False)).eval()
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    h, z = encoder(images)
    assert torch.equal(h, backbone(images))
    assert torch.equal(h, encoder.encode(images))
    assert torch.equal(z, encoder.head(h))
    assert not torch.allclose(z.norm(dim=1), torch.ones(3))


def test_what_is_refused():
    with pytest.raises(RangeError, match="2 or 3 layers, got 4"):
        head(layers=4)
    with pytest.raises(RangeError, match=r"must be >= 1, got 8, 0 and 4"):
        head(hidden=0)
    with pytest.raises(RangeError, match="has 2 layers; got layer 3"):
        head().layer(H, 3)
    with pytest.raises(
        ConfigError, match="last_norm of a projection head is scale, plain or none; got 'shift'"
    ):
        inspect.unwrap(ProjectionHead.__init__)(ProjectionHead(8, seed=0), 8, last_norm="shift", seed=0)
    backbone = make_backbone("small_cnn:2", channels=1, image_size=8, seed=0)
    with pytest.raises(RangeError, match=r"gives h of width 16, the projection head takes 8"):
        ViewEncoder(backbone, head())
