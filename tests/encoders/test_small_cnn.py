"""small_cnn starts from what patches of the images look like; other networks keep their weights."""

import pytest
import torch
from torch.nn import functional as F

from querykey.encoders.backbones import make_backbone
from querykey.encoders.small_cnn import SmallCNN


def smooth(count, channels, side=16, seed=0):
    """Images whose neighbouring pixels and channels are alike, as those of photographs."""
    draw = torch.Generator().manual_seed(seed)
    fine = torch.randn(count, 1, side, side, generator=draw) + 0.5 * torch.randn(
        count, channels, side, side, generator=draw
    )
    return 3 + F.avg_pool2d(fine, 3, stride=1, padding=1) + 0.2 * fine


def responses(network, images):
    """What the first convolution says at every place whose patch lies inside."""
    first = network.blocks[0][0]
    maps = F.conv2d(images, first.weight.detach(), stride=first.stride)
    return maps.transpose(0, 1).flatten(1).double()


@pytest.mark.parametrize(("channels", "width"), [(1, 18), (3, 54), (1, 6), (3, 32), (1, 40)])
def test_the_first_responses_are_decorrelated_with_unit_variance(channels, width):
    images = smooth(60, channels)
    network = SmallCNN.of_width(channels, width)
    before = network.blocks[0][0].weight.detach().clone()
    network.start_(images)
    found = responses(network, images)
    used = min(width // 2, 9 * channels)
    covariance = torch.cov(found[:used])
    variances = covariance.diagonal()
    assert float(variances.max()) <= 1.01
    strong = variances > 0.9
    assert int(strong.sum()) >= min(used, 4)  # nearly empty directions are not blown up
    correlation = covariance / (variances[:, None] * variances[None]).sqrt()
    assert float((correlation - torch.eye(used)).abs().max()) < 0.05
    weight = network.blocks[0][0].weight.detach()
    assert torch.equal(weight[used : 2 * used], -weight[:used])
    assert torch.equal(weight[2 * used :], before[2 * used :])
    assert network.blocks[0][0].weight.requires_grad


def test_the_strongest_direction_comes_first():
    images = smooth(60, 1)
    network = SmallCNN.of_width(1, 18)
    network.start_(images)
    patches = F.unfold(images, 3, stride=2).transpose(1, 2).flatten(0, 1).double()
    _, _, directions = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    first = network.blocks[0][0].weight.detach()[:9].flatten(1).double()
    cosines = F.cosine_similarity(first, directions, dim=1).abs()
    assert float(cosines[:3].min()) > 0.99


def test_images_of_one_colour_do_no_harm():
    network = SmallCNN.of_width(1, 8)
    network.start_(torch.full((4, 1, 16, 16), 0.5))
    assert network(torch.rand(4, 1, 16, 16)).isfinite().all()


def test_other_networks_keep_their_weights():
    pytest.importorskip("torchvision")
    backbone = make_backbone("torchvision:squeezenet1_1", channels=3, image_size=32, seed=0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.start_(smooth(4, 3, side=32))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
