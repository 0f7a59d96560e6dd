"""Each operation of views beside torchvision's of the same name."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as theirs

from querykey.data.augment.ops import (
    add_noise_,
    blur,
    brighten_,
    contrast_,
    cut_,
    gray_,
    resample,
    saturate_,
    sobel,
    solarize_,
    turn_hue_,
)

ALLOWED = 2 / 255
EXACT = 5e-5
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
COLOURS = {
    "brightness": (brighten_, theirs.adjust_brightness, 2.0),
    "contrast": (contrast_, theirs.adjust_contrast, 2.0),
    "saturation": (saturate_, theirs.adjust_saturation, 2.0),
    "hue": (turn_hue_, theirs.adjust_hue, 0.5),
}


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def planes_of(images):
    return images.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def boxes_in(height, width, count, seed=1):
    """Random boxes, the first of one pixel and the last of the whole image."""
    made = torch.Generator().manual_seed(seed)
    boxes = [(height - 1, width // 2, 1, 1)]
    for _ in range(count - 2):
        h, w = (int(torch.randint(1, side + 1, (), generator=made)) for side in (height, width))
        top = int(torch.randint(0, height - h + 1, (), generator=made))
        boxes.append((top, int(torch.randint(0, width - w + 1, (), generator=made)), h, w))
    return torch.tensor([*boxes, (0, 0, height, width)])


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (28, 28, 19), (40, 50, 24), (20, 31, 48), (90, 60, 64), (130, 170, 64), (110, 90, 120),
     (200, 160, 7)],
)  # fmt: skip
def test_crop_flip_and_scale_are_one_resampling(height, width, size, interpolation, antialias):
    """Within rounding of cutting out first, then scaling, then mirroring."""
    images, boxes = draw(6, 3, height, width), boxes_in(height, width, 6)
    flips = torch.tensor([True, False, True, False, True, False])
    made = resample(
        images, boxes, size=size, flips=flips, interpolation=interpolation, antialias=antialias
    ).transpose(0, 1)
    for image, box, flip, view in zip(images, boxes.tolist(), flips, made, strict=True):
        expected = theirs.resized_crop(
            image, *box, [size, size], interpolation=MODES[interpolation], antialias=antialias
        ).clamp(0, 1)
        expected = expected.flip(-1) if flip else expected
        torch.testing.assert_close(view, expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("side", [32, 120])
def test_uint8_is_resampled_as_the_library_does(side):
    images = (draw(4, 3, side, side) * 256).to(torch.uint8)
    boxes = boxes_in(side, side, 4)
    made = resample(images, boxes, size=32).transpose(0, 1)
    for image, box, view in zip(images, boxes.tolist(), made, strict=True):
        expected = theirs.resized_crop(image, *box, [32, 32], antialias=True)
        assert (view - expected / 255).abs().max() <= ALLOWED


@pytest.mark.parametrize("side", [30, 130])
def test_no_sample_lies_outside_the_box(side):
    """What lies outside is so bright that any share of it would show."""
    images = torch.ones(1, 1, side, side)
    images[:, :, 5:14, 8:20] = 0
    for interpolation in MODES:
        for size in (6, 40):
            made = resample(images, torch.tensor([[5, 8, 9, 12]]), size=size, interpolation=interpolation)
            assert made.abs().max() == 0


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("dtype", ["float", "uint8"])
def test_colours_change_as_the_library_changes_them(name, dtype):
    ours, their, most = COLOURS[name]
    images = draw(7, 3, 13, 19)
    images[1] = images[1, :1]  # gray
    images[2, :, 0] = 0
    images[3, :2, 3] = images[3, 2, 3]
    factors = draw(7, seed=2) * most
    if name == "hue":
        factors = factors * 2 - 0.5
    if dtype == "uint8":
        images = (images * 255).round() / 255
    made = ours(planes_of(images), factors).transpose(0, 1)
    for image, factor, view in zip(images, factors.tolist(), made, strict=True):
        if dtype == "float":
            torch.testing.assert_close(view, their(image, factor), atol=EXACT, rtol=0)
        else:
            whole = their((image * 255).round().to(torch.uint8), factor)
            assert (view - whole / 255).abs().max() <= ALLOWED


def test_brightness_and_contrast_of_one_channel():
    images, factors = draw(4, 1, 9, 9), torch.tensor([0.0, 0.5, 1.0, 1.9])
    for ours, their in ((brighten_, theirs.adjust_brightness), (contrast_, theirs.adjust_contrast)):
        made = ours(planes_of(images), factors).transpose(0, 1)
        expected = [their(image, float(f)) for image, f in zip(images, factors, strict=True)]
        torch.testing.assert_close(made, torch.stack(expected), atol=EXACT, rtol=0)


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 1 / 3, 0.5])
def test_gray_has_no_hue_to_turn(turns):
    gray = draw(1, 2, 5, 5).expand(3, -1, -1, -1).contiguous()
    torch.testing.assert_close(turn_hue_(gray.clone(), torch.full((2,), turns)), gray)


def test_a_third_of_the_circle_moves_the_channels_on():
    planes = draw(3, 2, 6, 6)
    moved = turn_hue_(planes.clone(), torch.full((2,), 1 / 3))
    torch.testing.assert_close(moved, planes[[2, 0, 1]], atol=EXACT, rtol=0)


def test_gray_and_solarize():
    images = draw(3, 3, 8, 9)
    torch.testing.assert_close(
        gray_(planes_of(images)).transpose(0, 1), theirs.rgb_to_grayscale(images, 3), atol=EXACT, rtol=0
    )
    images[0, 0, 0, 0] = 0.5
    made = solarize_(planes_of(images), 0.5).transpose(0, 1)
    torch.testing.assert_close(made, theirs.solarize(images, 0.5), atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    ("size", "radius"), [(8, 1), (32, 1), (64, 3), (100, 5), (128, 6), (130, 6), (224, 11)]
)
def test_blur_is_the_library_s(size, radius):
    images, sigmas = draw(3, 3, size, size), torch.tensor([0.1, 1.0, 2.0])
    made = blur(planes_of(images), sigmas, radius).transpose(0, 1)
    for image, sigma, view in zip(images, sigmas.tolist(), made, strict=True):
        expected = theirs.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2)
        torch.testing.assert_close(view, expected, atol=EXACT, rtol=0)


def test_sobel_is_the_length_of_the_gradient():
    planes = draw(3, 2, 10, 12)
    down = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]])
    gray = F.pad(planes.mean(0)[:, None], (1, 1, 1, 1), mode="reflect")
    expected = torch.hypot(F.conv2d(gray, down[None, None]), F.conv2d(gray, down.T[None, None])) / 4
    made = sobel(planes)
    for channel in made:
        torch.testing.assert_close(channel, expected[:, 0].clamp(0, 1), atol=EXACT, rtol=0)
    assert sobel(torch.full((1, 1, 5, 5), 0.3)).abs().max() == 0


def test_noise_is_the_key_s_and_has_its_deviation():
    planes = torch.full((3, 2, 40, 40), 0.5)
    keys = torch.tensor([5, 6]).numpy().astype("uint64")
    made = add_noise_(planes.clone(), 0.1, keys)
    assert abs(float((made - 0.5).std()) - 0.1) < 0.004
    alone = add_noise_(planes[:, 1:].clone(), 0.1, keys[1:])
    assert torch.equal(made[:, 1:], alone)
    assert not torch.equal(made[:, 0], made[:, 1])


def test_a_hole_is_cut_as_the_library_erases():
    planes = draw(3, 3, 12, 12) + 1
    holes = torch.tensor([[2, 3, 4, 5], [0, 0, 0, 0], [0, 0, 12, 12]])
    made = cut_(planes.clone(), holes)
    for image, hole, before in zip(made.transpose(0, 1), holes.tolist(), planes.transpose(0, 1), strict=True):
        assert torch.equal(image, theirs.erase(before, *hole, torch.zeros(1)))
