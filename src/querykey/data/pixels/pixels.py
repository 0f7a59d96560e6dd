"""Batches of the images of a source: out of the memory, or decoded each time."""

import multiprocessing
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.items import Source
from querykey.data.pixels.decoding import Decoded, RowDecoder, RowLoader, WorkerDiedError, lay_out
from querykey.data.readers.idx import ArrayImages
from querykey.distributed.process_group import processes_here
from querykey.errors import DamagedItemError, DataError, Notify, RangeError, SourceError
from querykey.types import Ids, ImageIds, Images, ImageSizes

__all__ = [
    "Damage",
    "DecodedPixels",
    "HeldPixels",
    "PixelBatch",
    "Pixels",
    "read_pixels",
]

_MOST_DAMAGED = 0.1
_DEATHS = 3
"""Of workers, without a batch between them, that are borne."""
_Batch = Int64[Tensor, " _"]
"""Rows; the last of many batches may be shorter."""


class PixelBatch(NamedTuple):
    """Some images."""

    images: Images
    """uint8; where sizes differ each lies at the top left of a canvas, the rest is 0."""
    sizes: ImageSizes | None
    """Height and width of each; None where all have the canvas's."""
    rows: ImageIds
    """Which rows of the source they are."""


class Pixels(ABC):
    """The images of a source by their row numbers.

    `channels` is 1 if all images are gray and 3 otherwise.
    """

    channels: int

    @property
    @abstractmethod
    def ids(self) -> Ids:
        """The rows that can be decoded."""

    @property
    @abstractmethod
    def side(self) -> int | None:
        """The shorter side of every image in pixels; None where they differ, or it is not known."""

    @property
    @abstractmethod
    def damaged(self) -> tuple[tuple[int, str], ...]:
        """The others: (row, what is wrong), in order."""

    @abstractmethod
    def __len__(self) -> int:
        """How many images can be decoded, as far as is known."""

    @abstractmethod
    def batch(self, rows: Ids) -> tuple[Images, ImageSizes | None]:
        """The images of these rows.

        Raises:
            DamagedItemError: If one cannot be decoded.
            RangeError: If there is no such row.
        """

    @abstractmethod
    def stream(self, batches: Iterable[_Batch]) -> Iterator[PixelBatch]:
        """Batch after batch in the order asked for; a damaged image is left out of its batch.

        Raises:
            DataError: If more than a tenth of the images turn out damaged, or all of one batch.
        """


class Damage:
    """The damaged rows found so far."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._faults: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, row: int, error: str) -> bool:
        """Count a row.

        Returns:
            Whether it is a new one.

        Raises:
            DataError: If it is one too many.
        """
        is_new = row not in self._faults
        self._faults.setdefault(row, error)
        if len(self._faults) > _MOST_DAMAGED * len(self._source):
            raise DataError(
                f"{self._source.name}: more than a tenth of the {len(self._source):,} images cannot be "
                f"decoded; mend them or take them out; the first: {self.first}"
            )
        return is_new

    @property
    def first(self) -> str:
        """What is wrong with the first of them."""
        return self._faults[min(self._faults)]

    def listed(self) -> tuple[tuple[int, str], ...]:
        """(row, what is wrong), in order."""
        return tuple(sorted(self._faults.items()))

    def text(self) -> str:
        """All of it in a sentence."""
        count = len(self)
        verb = "image cannot be decoded and is" if count == 1 else "images cannot be decoded and are"
        return f"{count:,} of {len(self._source):,} {verb} left out; the first: {self.first}"


PixelArrays = NDArray[np.uint8] | list[NDArray[np.uint8]]


class HeldPixels(Pixels):
    """All images in memory: one array where they have one size, else an array each."""

    def __init__(self, images: PixelArrays, channels: int, rows: int, damage: Damage) -> None:
        self._images, self.channels = images, channels
        self._damaged = damage.listed()
        lost = {row for row, _ in self._damaged}
        kept = np.array([row for row in range(rows) if row not in lost], dtype=np.int64)
        self._kept = torch.from_numpy(kept)
        self._places = np.full(rows, -1, np.int64)
        self._places[kept] = np.arange(len(kept))

    @property
    def side(self) -> int | None:
        return None if isinstance(self._images, list) else min(self._images.shape[-2:])

    @property
    def damaged(self) -> tuple[tuple[int, str], ...]:
        return self._damaged

    @property
    def ids(self) -> Ids:
        return self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, rows: Ids) -> tuple[Images, ImageSizes | None]:
        asked = rows.cpu().numpy()
        _check_rows(asked, len(self._places))
        places = self._places[asked]
        if (places < 0).any():
            raise DamagedItemError(dict(self.damaged)[int(asked[places < 0][0])])
        return self._at(places)

    def stream(self, batches: Iterable[_Batch]) -> Iterator[PixelBatch]:
        for rows in batches:
            asked = rows.cpu().numpy()
            _check_rows(asked, len(self._places))
            places = self._places[asked]
            kept = torch.from_numpy(asked[places >= 0])
            if not len(kept) and len(asked):
                raise DataError(f"no image of a batch can be decoded: {dict(self.damaged)[int(asked[0])]}")
            yield PixelBatch(*self._at(places[places >= 0]), kept)

    def _at(self, places: NDArray[np.int64]) -> tuple[Images, ImageSizes | None]:
        if isinstance(self._images, list):
            return lay_out([self._images[place] for place in places], self.channels)
        chosen = self._images[places]
        return torch.from_numpy(chosen if chosen.ndim == 4 else chosen[:, None]), None


class DecodedPixels(Pixels):
    """Images decoded each time they are asked for; streams by worker processes."""

    def __init__(
        self, source: Source, decoder: RowDecoder, channels: int, workers: int, notify: Notify
    ) -> None:
        self._decoder, self.channels, self._workers, self._notify = decoder, channels, workers, notify
        self._damage = Damage(source)
        self._idle: list[RowLoader] = []
        self._rows = len(source)

    @property
    def side(self) -> int | None:
        return None

    @property
    def damaged(self) -> tuple[tuple[int, str], ...]:
        return self._damage.listed()

    @property
    def ids(self) -> Ids:
        lost = torch.tensor([row for row, _ in self.damaged], dtype=torch.int64)
        rows = torch.arange(self._rows)
        return rows[~torch.isin(rows, lost)]

    def __len__(self) -> int:
        return self._rows - len(self._damage)

    def batch(self, rows: Ids) -> tuple[Images, ImageSizes | None]:
        _check_rows(rows.cpu().numpy(), self._rows)
        found = self._decoder.__getitems__(rows.tolist())
        if found.faults:
            self._note(found)
            raise DamagedItemError(found.faults[0][1])
        return found.images, found.sizes

    def stream(self, batches: Iterable[_Batch]) -> Iterator[PixelBatch]:
        if self._workers == 0:
            for found in (self._decoder.__getitems__(rows) for rows in self._asked(batches)):
                yield self._note(found)
            return
        wanted, waiting, deaths = self._asked(batches), deque[list[int]](), 0

        def asked_now() -> Iterator[list[int]]:
            yield from tuple(waiting)  # what workers that died had not given yet
            for rows in wanted:
                waiting.append(rows)
                yield rows

        while True:
            # a stream within a stream, such as a look at held-out images amid training, has its own workers
            loader = self._idle.pop() if self._idle else RowLoader(self._decoder, self._workers)
            try:
                for found in loader.stream(asked_now()):
                    waiting.popleft()
                    deaths = 0
                    yield self._note(found)
            except WorkerDiedError as error:
                deaths += 1
                if deaths > _DEATHS:
                    raise DataError(
                        f"processes that decode images end before their time, {deaths} times in a row "
                        f"({error}); take fewer workers or a smaller batch if the memory is short"
                    ) from error
                self._notify(f"a process that decodes images has ended ({error}); it is started again")
                continue
            # only if it was read to its end: workers in the middle of a batch are not reused
            self._idle.append(loader)
            return

    def _asked(self, batches: Iterable[_Batch]) -> Iterator[list[int]]:
        for rows in batches:
            _check_rows(rows.cpu().numpy(), self._rows)
            yield rows.tolist()

    def _note(self, found: Decoded) -> PixelBatch:
        for row, error in found.faults:
            if self._damage.add(row, error):
                self._notify(f"{error}; it is left out from here on")
        if not len(found.rows) and found.faults:
            raise DataError(f"no image of a batch can be decoded: {found.faults[0][1]}")
        return PixelBatch(found.images, found.sizes, found.rows)


def _check_rows(rows: NDArray[np.int64], count: int) -> None:
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise RangeError(f"rows are from 0 to {count - 1}, got {rows.min()} to {rows.max()}")


_SAMPLE = 64
_BLOCK = 128
"""Images decoded at a time."""
_SMALL = 128 * 128
"""Bytes an image below which Python does more than the decoder."""
_WASTEFUL = 16
"""Times the pixels of its images that a batch may take before it is said."""
_WORTH_PROCESSES = 40
"""Blocks from which starting processes pays."""


def read_pixels(
    source: Source,
    *,
    size: int,
    channels: int | None = None,
    memory_limit: int | None = None,
    workers: int = 2,
    notify: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """Make the images of a source ready to be augmented.

    Where they fit into the memory, all are decoded once and held as uint8; otherwise each is decoded
    when it is asked for. An image whose shorter side is above 2 * size is shrunk to that, smoothed. A thin
    image is shrunk until its longer side is at most 8 * size, or 512: a batch takes the product of its
    widest and its tallest image.

    Args:
        source: Of kind "image".
        size: Side of what is made of an image later, in pixels.
        channels: 1: colour is made gray; 3: gray is repeated; None: 1 if all images are gray, else 3.
        memory_limit: Bytes that held images may take; a quarter of the available memory if not given.
        workers: Threads that decode what is held, or processes that decode what is not; 0: none.
        notify: Called for damaged images, and if the images are not kept in memory.
        progress: Called with (images decoded, images in all).

    Returns:
        `Pixels`; each batch is uint8 [images, channels, height, width].

    Raises:
        SourceError: If the source holds no images.
        DataError: If more than a tenth of them cannot be decoded.
        RangeError: If size, workers or the limit is out of range.

    Example:
        >>> import torch
        >>> from querykey.data.readers.open import read_source
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
        if channels in (None, planes := 1 if pixels.ndim == 3 else 3):
            return HeldPixels(pixels, planes, len(source), Damage(source))
    decoder = RowDecoder(items, shorter_side=2 * size, channels=channels)
    rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(np.int64))
    sample = [image for image in map(decoder.one, rows.tolist()) if not isinstance(image, str)]
    mean_bytes = float(np.mean([image.nbytes for image in sample])) if sample else 0.0
    if mean_bytes * len(source) <= limit:
        blocks = [range(start, min(start + _BLOCK, len(source))) for start in range(0, len(source), _BLOCK)]
        found = _decode(decoder, blocks, workers, are_small=mean_bytes < _SMALL)
        held = _hold(source, found, limit=limit, notify=notify, progress=progress)
        if held is not None:
            return held
    channels = channels or (1 if all(image.ndim == 2 for image in sample) else 3)
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
        for row, error in block.faults:
            damage.add(row, error)
        # a copy of one's own: what another process made is shared memory, of which there is little
        part = _part_of(block)
        parts.append(part)
        taken += part.nbytes
        done += len(block.rows) + len(block.faults)
        if progress is not None:
            progress(done, len(source))
        if taken > limit:
            return None
    parts = [part for part in parts if len(part)]
    if not parts:
        raise DataError(f"{source.name}: no image can be decoded; the first: {damage.first}")
    if len(damage):
        notify(damage.text())
    channels = max(part.channels for part in parts)
    sides = parts[0].sides
    images: PixelArrays
    if sides is not None and all(part.sides == sides for part in parts):
        images = np.empty((sum(map(len, parts)), channels, *sides), np.uint8)
        end = len(images)
        while parts:  # from the end, so that each part goes as soon as it is copied
            last = parts.pop().whole
            assert last is not None
            images[end - len(last) : end] = last
            end -= len(last)
    else:
        images = [image for part in parts for image in part.alone()]
        _note_thin(source, images, notify)
    return HeldPixels(images, channels, len(source), damage)


class _Part:
    """Decoded images: one array where they have one size, else an array each, without what pads it."""

    def __init__(self, whole: NDArray[np.uint8] | None, own: list[NDArray[np.uint8]], channels: int) -> None:
        self.whole, self._own, self.channels = whole, own, channels

    def __len__(self) -> int:
        return len(self._own) if self.whole is None else len(self.whole)

    @property
    def nbytes(self) -> int:
        return sum(image.nbytes for image in self._own) if self.whole is None else self.whole.nbytes

    @property
    def sides(self) -> tuple[int, ...] | None:
        return None if self.whole is None else self.whole.shape[2:]

    def alone(self) -> Iterator[NDArray[np.uint8]]:
        """Each as [height, width] or [height, width, 3]."""
        if self.whole is None:
            yield from self._own
            return
        for image in self.whole:
            yield (image[0] if len(image) == 1 else image.transpose(1, 2, 0)).copy()


def _part_of(block: Decoded) -> _Part:
    images = block.images.numpy()
    if block.sizes is None:
        return _Part(images.copy(), [], images.shape[1])
    own = []
    for image, (height, width) in zip(images, block.sizes.tolist(), strict=True):
        cut = image[:, :height, :width]
        own.append((cut[0] if len(cut) == 1 else cut.transpose(1, 2, 0)).copy())
    return _Part(None, own, images.shape[1])


def _note_thin(source: Source, images: list[NDArray[np.uint8]], notify: Callable[[str], None]) -> None:
    """Say that a batch may be large, before it is."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    mean = sum(image.shape[0] * image.shape[1] for image in images) / len(images)
    if height * width > _WASTEFUL * mean:
        notify(
            f"{source.name}: images are up to {height} pixels high and up to {width} wide; a batch with both "
            f"takes {height * width / mean:.0f} times the memory of its pixels; crop the longest ones if the "
            "memory is short"
        )


def _available_memory() -> int:
    """Bytes that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
