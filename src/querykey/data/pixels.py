"""The images of a source as uint8: decoded once and held where they fit, else by worker processes."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.decoding import Decoded, RowDecoder, RowLoader
from querykey.data.idx import ArrayImages
from querykey.data.items import Source
from querykey.data.pixel_batches import Damage, DecodedPixels, HeldPixels, PixelBatch, Pixels
from querykey.errors import DataError, RangeError, SourceError
from querykey.processes import processes_here

__all__ = ["PixelBatch", "Pixels", "read_pixels"]

_SAMPLE = 64
_BLOCK = 128
"""Images decoded at a time."""
_SMALL = 128 * 128
"""Bytes an image below which Python does more than the decoder."""
_WORTH_PROCESSES = 40
"""Blocks from which starting processes pays."""


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
    limit = _available_memory() // (4 * processes_here()) if memory_limit is None else memory_limit
    items: Any = source.items
    if isinstance(items, ArrayImages) and min(items.pixels.shape[1:3]) <= 2 * size:
        pixels = items.pixels if items.pixels.ndim == 3 else items.pixels.transpose(0, 3, 1, 2)
        return HeldPixels(pixels, 1 if pixels.ndim == 3 else 3, len(source), Damage(source))
    decoder = RowDecoder(items, shorter_side=2 * size, channels=None)
    rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(np.int64))
    sample = [image for image in map(decoder.one, rows.tolist()) if not isinstance(image, str)]
    mean_bytes = float(np.mean([image.nbytes for image in sample])) if sample else 0.0
    if mean_bytes * len(source) <= limit:
        blocks = [range(start, min(start + _BLOCK, len(source))) for start in range(0, len(source), _BLOCK)]
        found = _decode(decoder, blocks, workers, are_small=mean_bytes < _SMALL)
        held = _hold(source, found, limit=limit, notify=notify, progress=progress)
        if held is not None:
            return held
    channels = 1 if all(image.ndim == 2 for image in sample) else 3
    notify(
        f"the {len(source):,} images would take more than the {limit / 2**20:,.0f} MB allowed; "
        f"they are decoded anew each time they are asked for, by {workers} worker processes"
    )
    return DecodedPixels(
        source, RowDecoder(items, shorter_side=2 * size, channels=channels), channels, workers, notify
    )


def _decode(
    decoder: RowDecoder, blocks: Sequence[Sequence[int]], workers: int, *, are_small: bool
) -> Iterator[Decoded]:
    """Block after block, by as many as may work at it.

    Large images are decoded by threads. Small ones cost more in Python than in the decoder, so threads
    would wait for each other: where a process can be forked in no time, many of them are left to processes.
    """
    is_forked = multiprocessing.get_context().get_start_method() == "fork"
    if workers > 1 and are_small and is_forked and len(blocks) >= _WORTH_PROCESSES:
        yield from RowLoader(decoder, workers).stream(iter(blocks))
        return
    threads = 1 if are_small else max(1, workers)
    with ThreadPoolExecutor(threads) as pool:
        # no further ahead than there are threads, so that little is dropped at the limit of the memory
        waiting: deque[Future[Decoded]] = deque()
        for block in blocks:
            waiting.append(pool.submit(decoder.__getitems__, block))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _hold(
    source: Source,
    found: Iterator[Decoded],
    *,
    limit: int,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> HeldPixels | None:
    """All images decoded; None where they turn out larger than the limit."""
    damage, parts, taken, done = Damage(source), [], 0, 0
    for block in found:
        for row, fault in block.faults:
            damage.add(row, fault)
        # a copy of one's own: what another process made is shared memory, of which there is little
        part = _Part(block.images.numpy().copy(), block.sizes)
        parts.append(part)
        taken += part.images.nbytes
        done += len(block.rows) + len(block.faults)
        if progress is not None:
            progress(done, len(source))
        if taken > limit:
            return None
    parts = [part for part in parts if len(part.images)]
    if not parts:
        raise DataError(f"{source.name}: no image can be decoded; the first: {damage.first}")
    if len(damage):
        notify(damage.text())
    channels = max(part.images.shape[1] for part in parts)
    sides = parts[0].images.shape[2:]
    images: NDArray[np.uint8] | list[NDArray[np.uint8]]
    if all(part.sizes is None and part.images.shape[2:] == sides for part in parts):
        images = np.empty((sum(len(part.images) for part in parts), channels, *sides), np.uint8)
        end = len(images)
        while parts:  # from the end, so that each part goes as soon as it is copied
            last = parts.pop().images
            images[end - len(last) : end] = last
            end -= len(last)
    else:
        images = [image for part in parts for image in part.alone()]
    return HeldPixels(images, channels, len(source), damage)


class _Part(NamedTuple):
    """Decoded images on one canvas."""

    images: NDArray[np.uint8]
    sizes: Tensor | None

    def alone(self) -> Iterator[NDArray[np.uint8]]:
        """Each as [height, width] or [height, width, 3] without what pads it."""
        sides = [self.images.shape[2:]] * len(self.images) if self.sizes is None else self.sizes.tolist()
        for image, (height, width) in zip(self.images, sides, strict=True):
            own = image[:, :height, :width]
            yield (own[0] if len(own) == 1 else own.transpose(1, 2, 0)).copy()


def _available_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
