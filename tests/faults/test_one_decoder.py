"""One decoder for every way in: files of a source, PIL images, paths, bytes, arrays and tensors."""

import io
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from frozen_toys import image_encoder
from PIL import Image

from querykey import Adapter, load_encoder, pretrain
from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError
from querykey.features.embed import embed
from querykey.io.images import as_image, plain_pixels

ROWS = 64
SIDE = 8


def pixels(row, channels=None):
    draw = np.random.default_rng(row)
    shape = (SIDE, SIDE + 4) if channels is None else (SIDE, SIDE + 4, channels)
    slope = np.linspace(0, 200, SIDE).reshape(SIDE, *([1] * (len(shape) - 1)))
    return (slope + draw.integers(0, 55, shape)).astype(np.uint8)


def sideways(row):
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.fromarray(pixels(row, 3)), {"exif": exif, "quality": 95}


FORMATS = {
    "gray png": lambda row: (Image.fromarray(pixels(row)), "png", {}),
    "colour png": lambda row: (Image.fromarray(pixels(row, 3)), "png", {}),
    "16-bit png": lambda row: (Image.fromarray(pixels(row).astype(np.uint16) * 257), "png", {}),
    "palette gif": lambda row: (Image.fromarray(pixels(row, 3)).convert("P"), "gif", {}),
    "transparent png": lambda row: (Image.fromarray(pixels(row, 4)), "png", {}),
    "gray with alpha": lambda row: (Image.fromarray(pixels(row, 4)).convert("LA"), "png", {}),
    "bits": lambda row: (Image.fromarray(pixels(row)).convert("1"), "png", {}),
    "jpeg": lambda row: (Image.fromarray(pixels(row, 3)), "jpg", {"quality": 95}),
    "CMYK jpeg": lambda row: (Image.fromarray(pixels(row, 3)).convert("CMYK"), "jpg", {}),
    "jpeg turned by EXIF": lambda row: (sideways(row)[0], "jpg", sideways(row)[1]),
    "float tiff": lambda row: (Image.fromarray(pixels(row).astype(np.float32) / 255), "tif", {}),
    "16-bit tiff": lambda row: (Image.fromarray(pixels(row).astype(np.uint16) * 257), "tif", {}),
    "webp": lambda row: (Image.fromarray(pixels(row, 3)), "webp", {"lossless": True}),
    "bmp": lambda row: (Image.fromarray(pixels(row, 3)), "bmp", {}),
}


def put(folder, kind, rows=range(ROWS)):
    for row in rows:
        image, ending, options = FORMATS[kind](row)
        path = folder / "ab"[row % 2] / f"{row:02d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    return folder


@pytest.mark.parametrize("kind", FORMATS)
def test_images_of_any_format_and_mode_are_embedded_and_fitted(kind, tmp_path):
    source = read_source(put(tmp_path / "images", kind))
    encoder = image_encoder()
    features = embed(source, encoder, tmp_path / "f")
    assert len(features) == ROWS
    paths = [tmp_path / "images" / identity for identity in source.ids]
    with ExitStack() as files:
        pictures = [files.enter_context(Image.open(path)) for path in paths]
        for given in (paths, [str(path) for path in paths], [path.read_bytes() for path in paths], pictures):
            torch.testing.assert_close(encoder.encode(given), features.vectors, rtol=0, atol=1e-6)
    adapter = Adapter(dim=2, steps=0, batch_size=8, validation_fraction=0.0).fit(features, features.labels)
    assert adapter.transform(features).shape == (ROWS, 2)


@pytest.fixture(scope="module")
def pretrained():
    return load_encoder(
        pretrain(
            "sklearn:digits",
            method="simclr",
            backbone="small_cnn:4",
            batch_size=32,
            **{"head.dim": 16},
            precision="float32",
            layout="contiguous",
            held_out=40,
            num_evals=0,
            views="digits",
            **{"views.size": 8},
            steps=1,
        )
    )


@pytest.mark.parametrize("kind", ["16-bit png", "jpeg turned by EXIF", "float tiff", "transparent png"])
def test_a_pretrained_encoder_sees_what_a_source_gives(kind, pretrained, tmp_path):
    source = read_source(put(tmp_path, kind, rows=range(4)))
    want = pretrained.encode(source.items)
    given = [Image.open(tmp_path / identity) for identity in source.ids]
    assert torch.equal(pretrained.encode(given), want)
    assert torch.equal(pretrained.encode([tmp_path / identity for identity in source.ids]), want)


@pytest.mark.parametrize(
    "array",
    [
        pixels(0).astype(np.uint16) * 257,
        pixels(0).astype(np.float32) / 255,
        pixels(0).astype(np.float64),
        pixels(0).astype(np.int64),
        pixels(0)[..., None],
        pixels(0)[None],
        torch.from_numpy(pixels(0)),
        torch.from_numpy(pixels(0))[None] / 255,
    ],
    ids=lambda array: f"{array.dtype} {tuple(array.shape)}",
)
def test_an_array_or_a_tensor_is_the_image_it_shows(array):
    assert np.array_equal(plain_pixels(array), pixels(0))


def test_colours_may_be_first_or_last():
    colour = pixels(0, 3)
    assert np.array_equal(plain_pixels(colour), colour)
    assert np.array_equal(plain_pixels(torch.from_numpy(colour).permute(2, 0, 1)), colour)


def test_the_image_of_the_caller_stays_as_it_is(tmp_path):
    image, options = sideways(0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    given = Image.open(stream)
    assert as_image(given).size == (SIDE, SIDE + 4)
    assert given.size == (SIDE + 4, SIDE)
    turned = as_image(given)
    assert as_image(turned) is turned


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "is a int; give a PIL image, an array, a tensor, or the path or bytes"),
        (np.zeros((5, 4, 2), np.uint8), r"shape \[5, 4, 2\] is no image"),
        (np.zeros((0, 4), np.uint8), r"shape \[0, 4\] is no image"),
        (np.full((2, 2), np.nan), "not finite"),
        (np.zeros((2, 2), complex), "its numbers must be real"),
        ("nowhere.png", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_image_is_one_message(value, message):
    with pytest.raises(DamagedItemError, match=message):
        image_encoder().encode([value])
