"""What every backbone promises, asked of each of them."""

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from querykey.encoders.backbones import load_backbone_weights, make_backbone
from querykey.encoders.small_cnn import SmallCNN
from querykey.errors import ConfigError, MissingPathError, RangeError, SourceError


@dataclass(frozen=True)
class Case:
    spec: str
    dim: int
    library: Any = None  # the same network, with its classifier
    classifier: str = ""
    image_size: int = 32
    stem: str = "auto"


CASES = [
    Case("small_cnn", 256),
    Case("small_cnn:4", 32, image_size=28),
    Case("small_cnn:4x2", 32, image_size=28),
    Case("torchvision:resnet18", 512, torchvision.models.resnet18, "fc."),
    Case("torchvision:resnet18", 512, torchvision.models.resnet18, "fc.", stem="plain"),
    Case("torchvision:mobilenet_v3_small", 1024, torchvision.models.mobilenet_v3_small, "classifier.3.", 40),
    Case("timm:test_resnet", 96, lambda: timm.create_model("test_resnet"), "fc."),
    Case("timm:test_vit", 64, lambda: timm.create_model("test_vit", img_size=32), "head."),
    Case("own_backbones:own", 6),
]
OWN = """
import torch

def own():
    return torch.nn.Sequential(torch.nn.LazyConv2d(6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

def map_of_features():
    return torch.nn.LazyConv2d(2, 3)
"""

each = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.spec}, {case.stem}")


@pytest.fixture(autouse=True, scope="module")
def _own_backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_backbones.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def made(case, *, channels=3, seed=0, **more):
    options = {"image_size": case.image_size, "stem": case.stem} | more
    return make_backbone(case.spec, channels=channels, seed=seed, **options)


def some_images(case, count=4, channels=3):
    size = case.image_size
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(7))


@each
def test_one_row_an_image_the_same_every_time_in_eval_mode(case):
    backbone = made(case)
    assert backbone.training
    backbone.eval()
    images = some_images(case)
    h = backbone(images)
    assert (backbone.spec, backbone.dim, list(h.shape)) == (case.spec, case.dim, [4, case.dim])
    assert torch.equal(h, backbone(images))
    torch.testing.assert_close(backbone(images[:1]), h[:1], atol=1e-5, rtol=1e-4)


@each
def test_gradients_reach_all_parameters(case):
    backbone = made(case)
    weights = torch.randn(4, case.dim, generator=torch.Generator().manual_seed(1))
    (backbone(some_images(case)) * weights).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@each
def test_same_seed_same_bits_and_the_callers_generator_stays(case):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = made(case), made(case), made(case, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    states = [backbone.state_dict() for backbone in (one, same, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


@each
def test_gray_images(case):
    backbone = made(case, channels=1).eval()
    assert list(backbone(some_images(case, channels=1)).shape) == [4, case.dim]


@pytest.mark.parametrize("case", [case for case in CASES if case.library], ids=lambda case: case.spec)
def test_keys_are_the_librarys_own_and_a_file_with_a_classifier_fits(case, tmp_path):
    backbone, library = made(case, stem="auto" if case.spec.endswith("vit") else "plain"), case.library()
    kept = {key: value for key, value in library.state_dict().items() if not key.startswith(case.classifier)}
    assert list(backbone.network.state_dict()) == list(kept)

    torch.save({"state_dict": {f"module.{key}": value for key, value in library.state_dict().items()}},
               tmp_path / "whole.pth")  # fmt: skip
    load_backbone_weights(backbone, tmp_path / "whole.pth")
    assert all(torch.equal(backbone.network.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize(
    "spec", ["torchvision:resnet18", "timm:resnet18", "timm:resnet18d", "timm:test_resnet"]
)
def test_the_small_stem_keeps_every_pixel(spec):
    small = make_backbone(spec, channels=1, image_size=28, seed=0)
    assert small.stem == "small"
    assert isinstance(small.network.maxpool, nn.Identity)
    strides = [layer.stride for layer in small.network.conv1.modules() if isinstance(layer, nn.Conv2d)]
    kernels = [layer.kernel_size for layer in small.network.conv1.modules() if isinstance(layer, nn.Conv2d)]
    assert set(strides) == {(1, 1)}
    assert set(kernels) == {(3, 3)}
    assert make_backbone(spec, channels=1, image_size=64, seed=0).stem == "plain"
    assert make_backbone(spec, channels=1, image_size=64, stem="small", seed=0).stem == "small"


def test_wider_is_every_stage():
    wide = make_backbone("timm:test_resnet:2x", channels=3, image_size=32, seed=0)
    assert wide.network.layer1[0].conv1.out_channels == 128
    assert wide.dim == 1024


def test_first_weights_of_a_gray_network_are_those_of_red():
    color, gray = (
        make_backbone("torchvision:resnet18", channels=channels, image_size=64, seed=0) for channels in (3, 1)
    )
    assert torch.equal(gray.network.conv1.weight, color.network.conv1.weight[:, :1])


def test_convolutions_of_a_block_after_the_first_keep_its_places():
    images = torch.zeros(1, 3, 32, 32)
    shallow, deep = (SmallCNN.of_size(3, size) for size in ("4", "4x3"))
    assert deep.blocks(images).shape == shallow.blocks(images).shape == (1, 32, 4, 4)
    counts = [sum(isinstance(one, nn.Conv2d) for one in network.modules()) for network in (shallow, deep)]
    assert counts == [4, 12]


def test_no_dropout_is_left_before_h():
    backbone = make_backbone("torchvision:mobilenet_v2", channels=3, image_size=32, seed=0)
    assert not any(isinstance(module, nn.Dropout) for module in backbone.network.classifier)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet81", "timm has no network 'resnet81'; similar names: .*resnet18"),
        ("torchvision:resnet81", "torchvision has no network 'resnet81'; similar names: .*resnet18"),
        ("resnet18", "there is no backbone 'resnet18'; give timm:NAME, torchvision:NAME, small_cnn"),
        ("small_cnn:wide", "after small_cnn: comes a width"),
        ("small_cnn:0", "after small_cnn: comes a width"),
        ("small_cnn:8x", "convolutions of a block, at most 9, as in small_cnn:64x2"),
        ("small_cnn:8x10", "convolutions of a block, at most 9"),
        ("timm:resnet18@file.pth", "give a file of weights as init"),
        ("timm:test_vit:2x", "timm:test_vit:2x cannot be made"),
        ("timm:test_vit", "timm:test_vit cannot (be made|take)"),
        ("own_backbones:nothing", "own_backbones has no callable 'nothing'"),
        ("own_backbones:map_of_features", r"returned shape \[1, 2, 28, 28\] for 1 items"),
    ],
)
def test_what_cannot_be_made(spec, message):
    with pytest.raises((SourceError, ValueError), match=message):
        make_backbone(spec, channels=3, image_size=30, seed=0)


def test_what_is_refused():
    with pytest.raises(RangeError, match="channels must be >= 1, got 0"):
        make_backbone("small_cnn", channels=0, image_size=32, seed=0)
    with pytest.raises(ConfigError, match="small_cnn has no small stem, only ResNets have"):
        make_backbone("small_cnn", channels=3, image_size=32, stem="small", seed=0)


def test_files_that_do_not_fit(tmp_path):
    backbone = make_backbone("small_cnn:2", channels=3, image_size=32, seed=0)
    with pytest.raises(
        MissingPathError, match="there is no such file; give a file with weights of small_cnn:2"
    ):
        load_backbone_weights(backbone, tmp_path / "none.pth")
    state = make_backbone("small_cnn:2", channels=1, image_size=32, seed=1).network.state_dict()
    torch.save(state, tmp_path / "gray.pth")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(
        SourceError, match=r"blocks\.0\.0\.weight is \[2, 1, 3, 3\] in the file and \[2, 3, 3, 3\]"
    ):
        load_backbone_weights(backbone, tmp_path / "gray.pth")
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "strange.pth")
    with pytest.raises(SourceError, match=r"weights are missing and 1 are not the model's"):
        load_backbone_weights(backbone, tmp_path / "strange.pth")
    torch.save({"model": {"step": 3}}, tmp_path / "step.pth")
    with pytest.raises(SourceError, match="step is a int, not a tensor"):
        load_backbone_weights(backbone, tmp_path / "step.pth")


def test_another_stem_is_reported(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r.pth")
    backbone = make_backbone("torchvision:resnet18", channels=3, image_size=32, seed=0)
    with pytest.raises(SourceError, match=r"conv1\.weight is \[64, 3, 7, 7\].*needs stem = plain"):
        load_backbone_weights(backbone, tmp_path / "r.pth")
