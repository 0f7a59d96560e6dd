"""Views: what is drawn, for whom, and that nobody else's presence changes it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as theirs

from querykey.data.augment.parameters import ViewParameters, draw_boxes
from querykey.data.augment.rng import keyed_bits, keyed_order, keyed_uniforms
from querykey.data.augment.views import VIEW_PRESETS, Views, plain_view, view_preset
from querykey.errors import ConfigError, DataError, RangeError, ShapeError

AT = {"seed": 3, "epoch": 2, "view": 1}
EVERYTHING = {
    "jitter_probability": 0.6, "grayscale": 0.3, "blur": 0.5, "solarize": 0.3, "cutout": 0.4, "sobel": 0.2,
    "noise": 0.4, "rotate": 0.7,
}  # fmt: skip


def draw(count, side, channels=3, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=made)


def test_the_bits_are_those_of_the_published_generator():
    """SplitMix64 from state 1234567, as its reference code prints it; here slots are its steps."""
    mask, state, expected = 2**64 - 1, 0, []
    for word in (42, 7):
        z = (state + word + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        state = z ^ (z >> 31)
    for slot in range(3):
        z = (state + (slot + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(z ^ (z >> 31))
    assert keyed_bits((42,), np.array([7]), 3)[0].tolist() == expected


def test_uniforms_are_uniform_and_every_word_of_the_key_matters():
    drawn = keyed_uniforms((0, 0, 0), np.arange(4000), 6)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    shares = np.stack([np.histogram(drawn[:, slot], bins=10, range=(0, 1))[0] for slot in range(6)])
    assert np.abs(shares - 400).max() < 100  # 5 deviations
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.08
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)):
        assert abs(np.corrcoef(drawn[:, 0], keyed_uniforms(key, np.arange(4000), 1)[:, 0])[0, 1]) < 0.08
    assert sorted(keyed_order((1, 2), 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("side", "size"), [(32, 32), (23, 19), (100, 40)])
def test_the_view_of_an_image_is_independent_of_its_batch(side, size):
    """The same bits alone, in another order, and amid another batch."""
    views = Views(size=size, **EVERYTHING)
    images, ids = draw(40, side), torch.arange(100, 140)
    whole = views(images, ids, **AT)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(views(images[order], ids[order], **AT), whole[order])
    assert torch.equal(views(images[7:8], ids[7:8], **AT), whole[7:8])
    assert torch.equal(views(images[5:22], ids[5:22], **AT), whole[5:22])


def test_the_number_of_threads_changes_no_bit():
    views = Views(size=40, **EVERYTHING)
    images, ids = draw(9, 230), torch.arange(9)
    one = views(images, ids, **AT)
    torch.set_num_threads(2)
    assert torch.equal(views(images, ids, **AT), one)


def test_views_epochs_and_seeds_differ():
    views, images, ids = view_preset("simclr", size=16, channels=3), draw(8, 16), torch.arange(8)
    made = [views(images, ids, **{**AT, name: 9}) for name in AT] + [views(images, ids, **AT)]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_the_order_of_jitters_is_the_batch_s():
    views, ids = Views(size=8), torch.arange(4)
    orders = {views.draw(ids, **AT, sizes=(8, 8), batch=batch).order for batch in range(60)}
    assert len(orders) > 15
    first, second = (views.draw(ids, **AT, sizes=(8, 8), batch=batch) for batch in (0, 1))
    assert torch.equal(first.factors, second.factors)


def test_uint8_and_float_give_the_same_view():
    images, ids = draw(16, 24), torch.arange(16)
    views = view_preset("simclr", size=24, channels=3)
    raw, scaled = views(images, ids, **AT), views(images.float() / 255, ids, **AT)
    assert (raw - scaled).abs().max() * max(views.deviation) < 1 / 255
    half = views((images.float() / 255).half(), ids, **AT)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("side", [20, 120])
def test_a_padded_canvas_gives_what_the_image_alone_gives(side):
    sizes = torch.tensor([[side, side], [side // 2, side], [side, side // 3], [9, 8]])
    alone = [draw(1, side, seed=s)[:, :, :h, :w] for s, (h, w) in enumerate(sizes.tolist())]
    canvas = torch.full((4, 3, side, side), 255, dtype=torch.uint8)
    for place, image in zip(canvas, alone, strict=True):
        place[:, : image.shape[2], : image.shape[3]] = image[0]
    views, ids = view_preset("simclr", size=16, channels=3), torch.arange(4)
    made = views(canvas, ids, **AT, sizes=sizes)
    plain = plain_view(canvas, size=16, mean=views.mean, deviation=views.deviation, sizes=sizes)
    for row, image in enumerate(alone):
        one = views(image, ids[row : row + 1], **AT)
        torch.testing.assert_close(made[row : row + 1], one, atol=1e-4, rtol=0)
        one = plain_view(image, size=16, mean=views.mean, deviation=views.deviation)
        torch.testing.assert_close(plain[row : row + 1], one, atol=1e-4, rtol=0)


def test_all_steps_in_their_order_are_the_library_s():
    """A chain of torchvision's operations with the drawn parameters gives the same view."""
    views = Views(size=24, grayscale=0.3, blur=0.5, solarize=0.3, rotate=0.5)
    images = draw(24, 30).float() / 255
    drawn = views.draw(torch.arange(24), **AT, sizes=(30, 30))
    changes = theirs.adjust_brightness, theirs.adjust_contrast, theirs.adjust_saturation, theirs.adjust_hue
    made = views.apply(images, drawn)
    for row in range(24):
        view = theirs.resized_crop(images[row], *drawn.boxes[row].tolist(), [24, 24], antialias=True)
        view = view.flip(-1) if drawn.flips[row] else view
        view = torch.rot90(view, int(drawn.turns[row]), (1, 2))
        if drawn.jitters[row]:
            for kind in drawn.order:
                view = changes[kind](view, float(drawn.factors[row, kind]))
        view = theirs.rgb_to_grayscale(view, 3) if drawn.grays[row] else view
        if drawn.sigmas[row] > 0:
            view = theirs.gaussian_blur(view, [3, 3], [float(drawn.sigmas[row])] * 2)
        view = theirs.solarize(view, 0.5) if drawn.solarized[row] else view
        expected = theirs.normalize(view, views.mean, views.deviation)
        # at the threshold of solarize a rounding may tip a pixel over
        far = (made[row] - expected).abs() > 1e-3
        assert far.float().mean() < 0.002
    for part in (drawn.jitters, drawn.grays, drawn.solarized, drawn.flips, drawn.sigmas > 0, drawn.turns > 0):
        assert 0 < part.sum() < 24


def test_boxes_are_drawn_as_asked():
    sizes = np.tile([[40, 60]], (3000, 1))
    boxes = draw_boxes(
        keyed_uniforms((1,), np.arange(3000), 22), sizes, scale=(0.2, 0.5), ratio=(0.75, 4 / 3)
    )
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 60).all()
    share, ratio = height * width / 2400, width / height
    assert share.min() > 0.19
    assert share.max() < 0.52
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    assert abs(np.log(ratio).mean()) < 0.02
    assert abs(share.mean() - 0.35) < 0.01
    assert top.max() > 15
    assert left.max() > 25
    assert top.min() == left.min() == 0


def test_a_box_that_never_fits_is_the_middle():
    sizes = np.array([[4, 400], [400, 4], [1, 1]])
    boxes = draw_boxes(keyed_uniforms((1,), np.arange(3), 22), sizes, scale=(1.0, 1.0), ratio=(0.75, 4 / 3))
    assert boxes.tolist() == [[0, 197, 4, 5], [197, 0, 5, 4], [0, 0, 1, 1]]


def test_probabilities_and_ranges_are_met():
    views = Views(size=16, blur=0.5, solarize=0.1, cutout=0.25, sobel=0.05, noise=0.3, rotate=1.0)
    drawn = views.draw(torch.arange(4000), **AT, sizes=(16, 16))
    shares = {"flips": 0.5, "jitters": 0.8, "grays": 0.2, "solarized": 0.1, "edges": 0.05, "noisy": 0.3}
    for name, share in shares.items():
        assert abs(getattr(drawn, name).float().mean() - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert abs((drawn.sigmas > 0).float().mean() - 0.5) < 0.035
    assert drawn.sigmas[drawn.sigmas > 0].min() >= 0.1
    assert drawn.sigmas.max() <= 2
    for column, (low, high) in enumerate([(0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2)]):
        factors = drawn.factors[:, column]
        assert low <= factors.min() < low + 0.01
        assert high - 0.01 < factors.max() <= high
    assert torch.bincount(drawn.turns).min() > 850
    cut = drawn.holes[drawn.holes[:, 2] > 0]
    assert abs(len(cut) / 4000 - 0.25) < 0.03
    assert (cut[:, 2:] == 8).all()
    assert cut[:, :2].max() == 8


def test_a_whole_image_with_nothing_else_is_only_normalised():
    images = draw(3, 12)
    views = Views(size=12, crop_scale=None, flip=0.0, jitter=(0.0,) * 4, grayscale=0.0)
    made = views(images, torch.arange(3), **AT)
    expected = theirs.normalize(images.float() / 255, views.mean, views.deviation)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    plain = plain_view(images, size=12, mean=views.mean, deviation=views.deviation)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
    boxes = torch.tensor([[0, 0, 12, 12]] * 3)
    torch.testing.assert_close(
        views.apply(images, ViewParameters.plain(boxes)), expected, atol=1e-5, rtol=1e-5
    )
    # a hole is the mean
    holed = dataclasses.replace(ViewParameters.plain(boxes), holes=torch.tensor([[1, 2, 3, 4]] * 3))
    assert views.apply(images, holed)[:, :, 1:4, 2:6].abs().max() == 0


def test_the_plain_view_is_scaled_and_cut_in_the_middle():
    image = (draw(1, 50).float() / 255)[:, :, :, :34]
    made = plain_view(image, size=17, mean=(0.0,) * 3, deviation=(1.0,) * 3)
    expected = theirs.center_crop(theirs.resize(image, [25, 17], antialias=True), [17, 17])
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_the_layout_is_as_asked():
    views, images, ids = Views(size=8), draw(5, 8), torch.arange(5)
    plain = views(images, ids, **AT)
    last = views(images, ids, **AT, memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)
    strided = views(images.contiguous(memory_format=torch.channels_last), ids, **AT)
    torch.testing.assert_close(strided, plain)


@pytest.mark.parametrize("name", VIEW_PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_recipes_make_views_survive_json_and_say_what_they_do(name, channels):
    if channels == 1 and name not in {"grayscale", "digits"}:
        with pytest.raises(ConfigError, match='one channel do not have; use "grayscale"'):
            view_preset(name, size=16, channels=1)
        return
    views = view_preset(name, size=16, channels=channels)
    made = views(draw(4, 20, channels), torch.arange(4), **AT)
    assert made.shape == (4, channels, 16, 16)
    assert made.isfinite().all()
    assert Views.from_dict(json.loads(json.dumps(dataclasses.asdict(views)))) == views
    said = views.describe()
    assert f"crop {views.crop_scale[0]:g} to 1 of the area" in said
    assert ("flip p 0.5" in said) == (name != "digits")
    assert ("blur p 0.5, sigma 0.1 to 2, kernel 3" in said) == (name in {"simclr", "moco_v2"})
    assert ("hue" in said) == any(views.jitter)


def test_strength_scales_the_jitter():
    assert view_preset("simclr", size=8, channels=3, strength=0.5) == dataclasses.replace(
        view_preset("small_images", size=8, channels=3), blur=0.5
    )
    assert view_preset("small_images", size=8, channels=3, strength=1.0).jitter == (0.8, 0.8, 0.8, 0.2)
    assert view_preset("moco_v1", size=8, channels=3, strength=2.0).jitter == (0.8, 0.8, 0.8, 0.5)
    assert not any(view_preset("simclr", size=8, channels=3, strength=0.0).jitter)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"flip": 1.5}, RangeError, "flip is a probability, from 0 to 1; got 1.5"),
        ({"blur": math.nan}, RangeError, "blur is a probability"),
        ({"size": 0}, RangeError, "size must be at least 1 pixel, got 0"),
        ({"crop_scale": (0.5, 0.2)}, RangeError, "crop_scale is two numbers, rising"),
        ({"crop_scale": (0.5, 1.2)}, RangeError, "at most 1; got"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, RangeError, "hue .at most 0.5."),
        ({"jitter": (0.1, 0.1, -0.1, 0.1)}, RangeError, "jitter is four numbers"),
        ({"cutout_share": 2.0}, RangeError, "cutout_share must be from 0 to 1"),
        ({"noise_deviation": -1.0}, RangeError, "noise_deviation must be at least 0"),
        ({"mean": (0.5,), "deviation": (0.2,)}, ConfigError, "no saturation and no hue and no grayscale"),
        ({"mean": (0.5, 0.5)}, ConfigError, "one number for each of 1 or 3 channels"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Views(**{"size": 8, **settings})


def test_unknown_names_get_the_nearest_name():
    with pytest.raises(ConfigError, match=r"there are no views 'simcrl' .nearest: 'simclr'."):
        view_preset("simcrl", size=8, channels=3)
    with pytest.raises(ConfigError, match=r"no setting 'blurr' .nearest: 'blur'."):
        Views.from_dict({"size": 8, "blurr": 1.0})
    with pytest.raises(ConfigError, match="1 or 3 channels, got 4"):
        view_preset("simclr", size=8, channels=4)
    with pytest.raises(RangeError, match="strength"):
        view_preset("simclr", size=8, channels=3, strength=-1.0)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.full((2, 3, 8, 8), torch.nan), DataError, "from 0 to 1 and finite"),
        (torch.full((2, 3, 8, 8), 255.0), DataError, "divide by 255, or give uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), DataError, "uint8 .0 to 255. or float"),
        (torch.zeros(2, 1, 8, 8), ShapeError, "1 channels and mean and deviation are for 3"),
        (torch.zeros(2, 3, 0, 8), ShapeError, "each at least 1"),
    ],
)
def test_images_that_cannot_be_used_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        Views(size=8)(images, torch.arange(2), **AT)
    with pytest.raises(error, match=message):
        plain_view(images, size=8, mean=(0.5,) * 3, deviation=(0.5,) * 3)


def test_parameters_of_other_images_are_refused():
    views, images = Views(size=8), draw(2, 8)
    with pytest.raises(ShapeError, match="1 ids for 2 images"):
        views(images, torch.arange(1), **AT)
    with pytest.raises(ShapeError, match="outside its image"):
        views.apply(images, views.draw(torch.arange(2), **AT, sizes=(30, 30)))
    with pytest.raises(ShapeError, match="as many sizes"):
        views.draw(torch.arange(2), **AT, sizes=torch.tensor([[8, 8]]))
    with pytest.raises(ShapeError, match="as many boxes"):
        views.apply(images, views.draw(torch.arange(3), **AT, sizes=(8, 8)))
