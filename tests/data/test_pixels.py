"""Images of a source as uint8: held or decoded by workers, of any mode and size."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from querykey.data.items import Chosen, RowNumbers, Source
from querykey.data.pixels.decoding import RowDecoder
from querykey.data.pixels.pixels import read_pixels
from querykey.data.readers.images import EncodedImages
from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError, DataError, RangeError, SourceError
from querykey.io.images import plain_pixels

BROKEN = b"\x89PNG\r\n\x1a\n and then nothing"


def array(height, width, seed=0, channels=3):
    made = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return made if channels == 3 else made[..., 0]


def png(values, **options):
    stream = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def source_of(cells, kind="image"):
    items = (
        EncodedImages(cells, [f"image {row}" for row in range(len(cells))], Path())
        if kind == "image"
        else cells
    )
    return Source(
        name="mine", kind=kind, items=items, ids=RowNumbers(len(cells)), labels=None, label_names=(),
        fingerprint="0",
    )  # fmt: skip


def both(source, **options):
    """Held, and decoded in this process."""
    yield read_pixels(source, **options)
    yield read_pixels(source, memory_limit=0, workers=0, **options)


def test_images_of_one_size_are_one_batch():
    values = [array(9, 7, seed) for seed in range(6)]
    for pixels in both(source_of([png(one) for one in values]), size=8):
        assert len(pixels) == 6
        assert pixels.channels == 3
        assert pixels.ids.tolist() == list(range(6))
        assert pixels.damaged == ()
        images, sizes = pixels.batch(torch.tensor([4, 1, 4]))
        assert sizes is None
        assert images.dtype == torch.uint8
        expected = np.stack([values[4], values[1], values[4]]).transpose(0, 3, 1, 2)
        assert np.array_equal(images.numpy(), expected)


def test_a_batch_is_a_copy():
    pixels = read_pixels(source_of([png(array(4, 4))]), size=4)
    pixels.batch(torch.tensor([0]))[0].zero_()
    assert pixels.batch(torch.tensor([0]))[0].any()


def test_images_of_several_sizes_lie_at_the_top_left():
    values = [array(5, 9, 1), array(8, 4, 2), array(6, 6, 3, channels=1)]
    for pixels in both(source_of([png(one) for one in values]), size=8):
        images, sizes = pixels.batch(torch.arange(3))
        assert images.shape == (3, 3, 8, 9)
        assert sizes.tolist() == [[5, 9], [8, 4], [6, 6]]
        for image, (height, width), one in zip(images.numpy(), sizes.tolist(), values, strict=True):
            shown = one.transpose(2, 0, 1) if one.ndim == 3 else np.stack([one] * 3)
            assert np.array_equal(image[:, :height, :width], shown)
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
        alone, sizes = pixels.batch(torch.tensor([1]))
        assert alone.shape == (1, 3, 8, 4)
        assert sizes is None


def test_gray_images_have_one_channel_and_a_colour_makes_three():
    gray = png(array(5, 5, channels=1))
    for pixels in both(source_of([gray] * 3), size=5):
        assert pixels.channels == 1
        assert pixels.batch(torch.arange(3))[0].shape == (3, 1, 5, 5)
    for pixels in both(source_of([gray, png(array(5, 5)), gray]), size=5):
        images = pixels.batch(torch.arange(3))[0]
        assert pixels.channels == 3
        assert torch.equal(images[0, 0], images[0, 2])


def modes():
    base = Image.fromarray(array(6, 5))
    clear = base.convert("RGBA")
    clear.putalpha(0)
    half = Image.new("LA", (5, 6), (0, 0))
    wide = Image.fromarray(array(6, 5, channels=1).astype(np.uint16) * 257)
    one_bit = base.convert("1")
    frames = io.BytesIO()
    base.quantize(8).save(frames, "GIF", save_all=True, append_images=[Image.new("P", (5, 6))])
    yield "RGBA", png(clear), np.full((6, 5, 3), 255, np.uint8)
    yield "LA", png(half), np.full((6, 5), 255, np.uint8)
    yield "palette", png(base.quantize(8)), np.asarray(base.quantize(8).convert("RGB"))
    yield "16 bits", png(wide), array(6, 5, channels=1)
    yield "1 bit", png(one_bit), np.asarray(one_bit.convert("L"))
    yield "animated", frames.getvalue(), np.asarray(Image.open(io.BytesIO(frames.getvalue())).convert("RGB"))
    stream = io.BytesIO()
    Image.new("CMYK", (5, 6), (0, 0, 0, 255)).save(stream, "TIFF")
    yield "CMYK", stream.getvalue(), np.zeros((6, 5, 3), np.uint8)
    see_through = png(Image.new("RGB", (5, 6), (1, 2, 3)), transparency=(1, 2, 3))
    yield "RGB with a clear colour", see_through, np.full((6, 5, 3), 255, np.uint8)


@pytest.mark.parametrize(("data", "expected"), [pytest.param(*rest, id=name) for name, *rest in modes()])
def test_every_mode_becomes_gray_or_three_colours(data, expected):
    found = RowDecoder(source_of([data]).items, shorter_side=100, channels=3).one(0)
    assert np.array_equal(found, expected)


def test_a_mode_that_cannot_be_converted_is_damage():
    class Odd(Image.Image):
        mode = "LAB"

        def convert(self, mode):
            raise ValueError(f"conversion to {mode} not supported")

    with pytest.raises(DamagedItemError, match="mode LAB cannot be converted: conversion to RGB"):
        plain_pixels(Odd())


def test_large_images_are_shrunk_to_twice_the_size():
    board = np.kron(np.indices((30, 60)).sum(0) % 2, np.ones((2, 2), int)).astype(np.uint8) * 255
    for pixels in both(source_of([png(board)] * 2), size=10):
        images, _ = pixels.batch(torch.arange(2))
        assert images.shape == (2, 1, 20, 40)
        assert (images[:, :, 2:-2, 2:-2].float() - 127.5).abs().max() < 40  # smoothed, not picked
    assert read_pixels(source_of([png(board)]), size=30).batch(torch.tensor([0]))[0].shape == (1, 1, 60, 120)


def damaged_source(count=40, broken=(3, 17)):
    return source_of([BROKEN if row in broken else png(array(4, 4, row)) for row in range(count)])


def test_held_images_that_are_damaged_are_left_out_with_one_note():
    notes = []
    pixels = read_pixels(damaged_source(), size=4, notify=notes.append)
    assert len(notes) == 1
    assert notes[0].startswith(
        "2 of 40 images cannot be decoded and are left out; the first: image 3 cannot be"
    )
    assert len(pixels) == 38
    assert 3 not in pixels.ids.tolist()
    assert len(pixels.ids) == 38
    assert [row for row, _ in pixels.damaged] == [3, 17]
    expected = png(array(4, 4, 39))
    assert np.array_equal(
        pixels.batch(torch.tensor([39]))[0][0].numpy().transpose(1, 2, 0),
        np.asarray(Image.open(io.BytesIO(expected))),
    )
    with pytest.raises(DamagedItemError, match="image 17"):
        pixels.batch(torch.tensor([1, 17]))


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_a_stream_gives_the_batches_asked_for_less_what_is_damaged(workers):
    limit = {} if workers is None else {"memory_limit": 0, "workers": workers}
    pixels = read_pixels(damaged_source(), size=4, **limit)
    asked = [torch.tensor([5, 3, 9]), torch.tensor([17, 2]), torch.tensor([39]), torch.tensor([5, 3, 9])]
    for _ in range(2):
        found = list(pixels.stream(iter(asked)))
        assert [batch.rows.tolist() for batch in found] == [[5, 9], [2], [39], [5, 9]]
        for batch in found:
            assert torch.equal(batch.images, pixels.batch(batch.rows)[0])
    assert [row for row, _ in pixels.damaged] == [3, 17]
    assert len(pixels) == len(pixels.ids) == 38


def test_a_stream_may_run_within_another():
    pixels = read_pixels(
        source_of([png(array(4, 4, row)) for row in range(8)]), size=4, memory_limit=0, workers=1
    )
    rows = torch.arange(8)
    outer = pixels.stream(iter(rows.split(2)))
    first = next(outer)
    inner = [batch.rows.tolist() for batch in pixels.stream(iter(rows.split(4)))]
    assert inner == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [first.rows.tolist(), *(batch.rows.tolist() for batch in outer)] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]


def test_an_endless_stream_is_read_as_far_as_it_is_asked():
    def endless():
        while True:
            yield torch.tensor([0])

    pixels = read_pixels(source_of([png(array(4, 4))]), size=4, memory_limit=0, workers=1)
    stream = pixels.stream(endless())
    assert [next(stream).rows.tolist() for _ in range(5)] == [[0]] * 5


def test_too_much_damage_is_an_error():
    message = "more than a tenth of the 40 images cannot be decoded; .* the first: image 0"
    source = damaged_source(broken=range(5))
    with pytest.raises(DataError, match=message):
        read_pixels(source, size=4)
    stream = read_pixels(source, size=4, memory_limit=0, workers=0).stream([torch.arange(40)])
    with pytest.raises(DataError, match=message):
        next(stream)
    with pytest.raises(DataError, match="no image of a batch can be decoded: image 3"):
        list(read_pixels(damaged_source(), size=4).stream([torch.tensor([3])]))


def test_idx_images_are_taken_as_they_are(tmp_path):
    values = array(20, 6 * 5, channels=1).reshape(20, 6, 5)
    header = bytes((0, 0, 8, 3)) + np.array(values.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + values.tobytes())
    source = read_source(tmp_path)
    pixels = read_pixels(source, size=5, memory_limit=0)
    images, sizes = pixels.batch(torch.tensor([19, 0]))
    assert sizes is None
    assert pixels.channels == 1
    assert np.array_equal(images[:, 0].numpy(), values[[19, 0]])
    some = Source(name="some", kind="image", items=Chosen(source.items, np.array([7, 3])), ids=["7", "3"],
                  labels=None, label_names=(), fingerprint="")  # fmt: skip
    assert np.array_equal(read_pixels(some, size=5).batch(torch.tensor([0]))[0][0, 0].numpy(), values[7])


def test_parquet_images_can_be_read_in_another_process(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": png(array(4, 4, row)), "path": None} for row in range(12)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "train.parquet", row_group_size=5)
    source = read_source(tmp_path / "train.parquet")
    held = read_pixels(source, size=4)
    decoder = copy.deepcopy(RowDecoder(source.items, shorter_side=8, channels=3))  # as a process gets it
    rows = torch.tensor([11, 0, 5])
    assert torch.equal(decoder.__getitems__(rows.tolist()).images, held.batch(rows)[0])
    (batch,) = read_pixels(source, size=4, memory_limit=0, workers=1).stream([rows])
    assert torch.equal(batch.images, held.batch(rows)[0])


def test_decoded_images_are_reported_and_progress_counted():
    notes, steps = [], []
    source = source_of([png(array(64, 64, row)) for row in range(300)])
    read_pixels(source, size=64, memory_limit=2**20, notify=notes.append)
    assert len(notes) == 1
    assert notes[0] == (
        "the 300 images would take more than the 1 MB allowed; they are decoded on each access, "
        "by 2 worker processes"
    )
    read_pixels(source, size=64, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(128, 300), (256, 300), (300, 300)]


def test_many_small_images_are_decoded_by_processes(monkeypatch):
    """The same as in this process, gray and colour, damage and all."""
    values = [array(4, 3, row, channels=1 if row < 20 else 3) for row in range(40)]
    source = source_of([BROKEN if row == 7 else png(one) for row, one in enumerate(values)])
    here = read_pixels(source, size=4)
    monkeypatch.setattr("querykey.data.pixels.pixels._WORTH_PROCESSES", 2)
    monkeypatch.setattr("querykey.data.pixels.pixels._BLOCK", 10)
    there = read_pixels(source, size=4)
    assert there.channels == 3
    assert torch.equal(there.ids, here.ids)
    assert torch.equal(there.batch(there.ids)[0], here.batch(here.ids)[0])
    assert there.damaged == here.damaged


def test_a_sample_that_misleads_does_not_fill_the_memory():
    """Images between those of the sample are larger."""
    small, large = png(array(2, 2)), png(array(40, 40))
    source = source_of([small if row % 2 == 0 else large for row in range(127)])
    notes = []
    pixels = read_pixels(source, size=64, memory_limit=50_000, workers=0, notify=notes.append)
    assert len(notes) == 1
    assert "decoded on each access" in notes[0]
    assert pixels.batch(torch.tensor([1]))[0].shape == (1, 3, 40, 40)


def test_what_is_no_image_is_refused():
    with pytest.raises(SourceError, match="mine holds texts, not images"):
        read_pixels(source_of(["a", "b"], kind="text"), size=8)
    with pytest.raises(SourceError, match="mine holds vectors, not images"):
        read_pixels(source_of(np.zeros((2, 3)), kind="vector"), size=8)
    with pytest.raises(DataError, match="no images"):
        read_pixels(source_of([]), size=8)
    source = source_of([png(array(4, 4))])
    with pytest.raises(RangeError, match="size must be at least 1"):
        read_pixels(source, size=0)
    for pixels in both(source, size=4):
        with pytest.raises(RangeError, match="rows are from 0 to 0, got 1 to 1"):
            pixels.batch(torch.tensor([1]))
