"""The images of a source as uint8: decoded once and held where they fit, else by worker processes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querykey.data.decoding import RowDecoder, planes_of
from querykey.data.idx import ArrayImages
from querykey.data.items import Source
from querykey.data.pixel_batches import Damage, DecodedPixels, HeldPixels, PixelBatch, Pixels
from querykey.errors import DataError, RangeError, SourceError

__all__ = ["PixelBatch", "Pixels", "read_pixels"]

_SAMPLE = 64
_BLOCK = 128
"""Images that a thread decodes at a time."""
_WORTH_THREADS = 128 * 128
"""Bytes an image from which decoding takes longer than what Python does around it."""


def read_pixels(
    source: Source,
    *,
    size: int,
    memory_limit: int | None = None,
    workers: int = 2,
    notify: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Make the images of a source ready to be augmented.

    Where they fit into the memory, all are decoded once and held as uint8; otherwise each is decoded
    when it is asked for. An image whose shorter side is above 2 * size is shrunk to that, smoothed.

    Args:
        source: Of kind "image".
        size: Side of what is made of an image later, in pixels.
        memory_limit: Bytes that held images may take; a quarter of the available memory if not given.
        workers: Threads that decode what is held, or processes that decode what is not; 0: none.
        notify: Told of damaged images, and where the images are not held.
        progress: Called with (images decoded, images in all).

    Returns:
        `Pixels`; each batch is uint8 [images, channels, height, width].

    Raises:
        SourceError: If the source holds no images.
        DataError: If more than a tenth of them cannot be decoded.
        RangeError: If size, workers or the limit is out of range.

    Example:
        >>> import torch
        >>> from querykey.data.sources import read_source
        >>> pixels = read_pixels(read_source("sklearn:digits"), size=8)
        >>> images, sizes = pixels.batch(torch.tensor([0, 5]))
        >>> tuple(images.shape), sizes, pixels.channels
        ((2, 1, 8, 8), None, 1)
    """
    if source.kind != "image":
        raise SourceError(f"{source.name} holds {source.kind}s, not images; give a source of images")
    if size < 1 or workers < 0 or (memory_limit is not None and memory_limit < 0):
        raise RangeError(
            "size must be at least 1, workers and memory_limit at least 0; "
            f"got {size}, {workers} and {memory_limit}"
        )
    if not len(source):
        raise DataError(f"{source.name} holds no images; at least one is needed")
    limit = _available_memory() // 4 if memory_limit is None else memory_limit
    items: Any = source.items
    if isinstance(items, ArrayImages) and min(items.pixels.shape[1:3]) <= 2 * size:
        pixels = items.pixels if items.pixels.ndim == 3 else items.pixels.transpose(0, 3, 1, 2)
        return HeldPixels(pixels, 1 if pixels.ndim == 3 else 3, len(source), Damage(source))
    decoder = RowDecoder(items, shorter_side=2 * size, channels=3)
    rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(np.int64))
    sample = [image for image in map(decoder.one, rows.tolist()) if not isinstance(image, str)]
    mean_bytes = float(np.mean([image.nbytes for image in sample])) if sample else 0.0
    if mean_bytes * len(source) <= limit:
        threads = max(1, workers) if mean_bytes >= _WORTH_THREADS else 1
        held = _hold(source, decoder, threads=threads, limit=limit, notify=notify, progress=progress)
        if held is not None:
            return held
    channels = 1 if all(image.ndim == 2 for image in sample) else 3
    notify(
        f"the {len(source):,} images would take more than the {limit / 2**20:,.0f} MB allowed; "
        f"they are decoded anew each time they are asked for, by {workers} worker processes"
    )
    return DecodedPixels(
        source, RowDecoder(items, shorter_side=2 * size, channels=channels), channels, workers
    )


def _hold(
    source: Source,
    decoder: RowDecoder,
    *,
    threads: int,
    limit: int,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> HeldPixels | None:
    """All images decoded; None where they turn out larger than the limit."""
    damage, arrays, taken = Damage(source), [], 0
    blocks = [range(start, min(start + _BLOCK, len(source))) for start in range(0, len(source), _BLOCK)]
    with ThreadPoolExecutor(threads) as pool:
        # a few blocks ahead, so that what is dropped at the limit is little
        for block, found in zip(
            blocks, pool.map(lambda rows: [decoder.one(row) for row in rows], blocks), strict=True
        ):
            for row, image in zip(block, found, strict=True):
                if isinstance(image, str):
                    damage.add(row, image)
                else:
                    arrays.append(image)
                    taken += image.nbytes
            if progress is not None:
                progress(block.stop, len(source))
            if taken > limit:
                pool.shutdown(cancel_futures=True)
                return None
    if not arrays:
        raise DataError(f"{source.name}: no image can be decoded; the first: {damage.first}")
    channels = 1 if all(array.ndim == 2 for array in arrays) else 3
    if len(damage):
        notify(damage.text())
    images: NDArray[np.uint8] | list[NDArray[np.uint8]] = arrays
    height, width = arrays[0].shape[:2]
    if all(array.shape[:2] == (height, width) for array in arrays):
        images = np.empty((len(arrays), channels, height, width), np.uint8)
        while arrays:  # from the end, so that each array goes as soon as it is copied
            place = len(arrays) - 1
            images[place] = planes_of(arrays.pop(), channels)
    return HeldPixels(images, channels, len(source), damage)


def _available_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
