"""Memory by the product of two worst sides: a wide and a tall image among many cost what they hold."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from querykey.data.pixels.decoding import RowDecoder
from querykey.data.pixels.pixels import read_pixels
from querykey.data.readers.open import read_source
from querykey.io.images import longest_side, plain_pixels

SIZES = [(8000, 32), (32, 8000), *[(32, 32)] * 62]


def put(folder, sizes=SIZES):
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number:03d}.png")
    return read_source(folder)


def test_two_thin_images_among_many_take_no_product_of_their_sides(tmp_path):
    source, said = put(tmp_path), []
    tracemalloc.start()
    pixels = read_pixels(source, size=32, workers=0, notify=said.append)
    images, sizes = pixels.batch(torch.arange(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20  # 12.3 GB before
    assert images.shape == (64, 3, 512, 512)
    assert sizes[:3].tolist() == [[2, 512], [512, 2], [32, 32]]
    assert len(said) == 1
    assert "up to 512 pixels high and up to 512 wide; a batch with both takes" in said[0]


def test_images_that_are_held_count_for_the_limit_what_they_hold(tmp_path):
    source = put(tmp_path)
    held = 62 * 32 * 32 * 3 + 2 * 512 * 2 * 3
    assert read_pixels(source, size=32, workers=0, memory_limit=2 * held).side is None
    said = []
    read_pixels(source, size=32, workers=0, memory_limit=2 * held, notify=said.append)
    assert "are decoded on each access" not in " ".join(said)


@pytest.mark.parametrize("sizes", [[(4000, 16), (16, 4000)], [(2000, 1), (1, 2000)]])
def test_a_batch_that_is_decoded_anew_is_bounded_too(sizes, tmp_path):
    source = put(tmp_path, sizes)
    decoded = RowDecoder(source.items, shorter_side=64, channels=3).__getitems__([0, 1])
    assert decoded.images.shape == (2, 3, 512, 512)


@pytest.mark.parametrize(("size", "side"), [((400, 300), 64), ((90, 300), 100), ((64, 64), 64)])
def test_other_images_are_as_they_were(size, side):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    want = image
    if min(image.size) > side:
        scale = side / min(image.size)
        want = image.resize(
            tuple(round(one * scale) for one in image.size), Image.Resampling.BILINEAR, reducing_gap=3.0
        )
    assert max(want.size) <= longest_side(side)
    assert np.array_equal(plain_pixels(image, shorter_side=side), np.asarray(want))
