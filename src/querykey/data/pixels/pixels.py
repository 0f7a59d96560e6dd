"""Batches of the images of a source, from memory or decoded on access."""

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
"""Workers that may die without a batch between them."""
_Batch = Int64[Tensor, " _"]
"""Indices of rows; the last batch may be shorter."""


class PixelBatch(NamedTuple):
    """Some images."""

    images: Images
    """uint8; if sizes differ, each is at the top left of a canvas, and the rest is 0."""
    sizes: ImageSizes | None
    """Height and width of each; None if all have those of the canvas."""
    rows: ImageIds
    """Their rows in the source."""


class Pixels(ABC):
    """The images of a source, by row.

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
        """The shorter side of every image in pixels; None if they differ, or it is not known."""

    @property
    @abstractmethod
    def damaged(self) -> tuple[tuple[int, str], ...]:
        """The other rows: (row, reason), in order."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images that can be decoded, as far as is known."""

    @abstractmethod
    def batch(self, rows: Ids) -> tuple[Images, ImageSizes | None]:
        """The images of these rows.

        Raises:
            DamagedItemError: If one cannot be decoded.
            RangeError: If a row does not exist.
        """

    @abstractmethod
    def stream(self, batches: Iterable[_Batch]) -> Iterator[PixelBatch]:
        """The batches, in order; a damaged image is left out of its batch.

        Raises:
            DataError: If more than a tenth of the images turn out damaged, or all of one batch.
        """


class Damage:
    """The damaged rows so far."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, row: int, error: str) -> bool:
        """Add a row.

        Returns:
            Whether it is new.

        Raises:
            DataError: If there are too many.
        """
        is_new = row not in self._reasons
        self._reasons.setdefault(row, error)
        if len(self._reasons) > _MOST_DAMAGED * len(self._source):
            raise DataError(
                f"{self._source.name}: more than a tenth of the {len(self._source):,} images cannot be "
                f"decoded; repair or remove them; the first: {self.first}"
            )
        return is_new

    @property
    def first(self) -> str:
        """The reason of the first of them."""
        return self._reasons[min(self._reasons)]

    def listed(self) -> tuple[tuple[int, str], ...]:
        """(row, reason), in order."""
        return tuple(sorted(self._reasons.items()))

    def text(self) -> str:
        """A summary for a message."""
        count = len(self)
        verb = "image cannot be decoded and is" if count == 1 else "images cannot be decoded and are"
        return f"{count:,} of {len(self._source):,} {verb} left out; the first: {self.first}"


PixelArrays = NDArray[np.uint8] | list[NDArray[np.uint8]]


class HeldPixels(Pixels):
    """All images in memory: one array if they have the same size, else one array each."""

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
        wanted = rows.cpu().numpy()
        _check_rows(wanted, len(self._places))
        places = self._places[wanted]
        if (places < 0).any():
            raise DamagedItemError(dict(self.damaged)[int(wanted[places < 0][0])])
        return self._at(places)

    def stream(self, batches: Iterable[_Batch]) -> Iterator[PixelBatch]:
        for rows in batches:
            wanted = rows.cpu().numpy()
            _check_rows(wanted, len(self._places))
            places = self._places[wanted]
            kept = torch.from_numpy(wanted[places >= 0])
            if not len(kept) and len(wanted):
                raise DataError(f"no image of a batch can be decoded: {dict(self.damaged)[int(wanted[0])]}")
            yield PixelBatch(*self._at(places[places >= 0]), kept)

    def _at(self, places: NDArray[np.int64]) -> tuple[Images, ImageSizes | None]:
        if isinstance(self._images, list):
            return lay_out([self._images[place] for place in places], self.channels)
        chosen = self._images[places]
        return torch.from_numpy(chosen if chosen.ndim == 4 else chosen[:, None]), None


class DecodedPixels(Pixels):
    """Images decoded on access; streams are decoded by worker processes."""

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
            for found in (self._decoder.__getitems__(rows) for rows in self._checked(batches)):
                yield self._note(found)
            return
        wanted, waiting, deaths = self._checked(batches), deque[list[int]](), 0

        def pending() -> Iterator[list[int]]:
            yield from tuple(waiting)  # batches that died workers have not returned
            for rows in wanted:
                waiting.append(rows)
                yield rows

        while True:
            # a stream within a stream, such as an evaluation during training, has separate workers
            loader = self._idle.pop() if self._idle else RowLoader(self._decoder, self._workers)
            try:
                for found in loader.stream(pending()):
                    waiting.popleft()
                    deaths = 0
                    yield self._note(found)
            except WorkerDiedError as error:
                deaths += 1
                if deaths > _DEATHS:
                    raise DataError(
                        f"processes that decode images died {deaths} times in a row "
                        f"({error}); use fewer workers or a smaller batch if memory is short"
                    ) from error
                self._notify(f"a process that decodes images died ({error}); it is restarted")
                continue
            # only after its last batch: workers in the middle of a batch are not reused
            self._idle.append(loader)
            return

    def _checked(self, batches: Iterable[_Batch]) -> Iterator[list[int]]:
        for rows in batches:
            _check_rows(rows.cpu().numpy(), self._rows)
            yield rows.tolist()

    def _note(self, found: Decoded) -> PixelBatch:
        for row, error in found.faults:
            if self._damage.add(row, error):
                self._notify(f"{error}; it is left out from now on")
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
"""Bytes per image below which the overhead of Python exceeds the decoding."""
_WASTEFUL = 16
"""Padded pixels of a batch, relative to those of its images, above which a warning is given."""
_WORTH_PROCESSES = 40
"""Number of blocks from which starting processes is worth it."""


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
    """Prepare the images of a source for augmentation.

    If they fit into memory, all are decoded once and stored as uint8; otherwise each is decoded on access. An
    image whose shorter side is above 2 * size is resized to that, with antialiasing. The longer side of a
    thin image is limited to 8 * size, or 512, since a batch is as wide as its widest and as high as its
    highest image.

    Args:
        source: Of kind "image".
        size: Side of the views in pixels.
        channels: 1: converted to gray; 3: gray is repeated; None: 1 if all images are gray, else 3.
        memory_limit: Bytes for images in memory; by default a quarter of the available memory.
        workers: Threads that decode images into memory, or processes that decode on access; 0: none.
        notify: Called for damaged images, and if the images do not fit into memory.
        progress: Called with (decoded images, all images).

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
        stored = _in_memory(source, found, limit=limit, notify=notify, progress=progress)
        if stored is not None:
            return stored
    channels = channels or (1 if all(image.ndim == 2 for image in sample) else 3)
    notify(
        f"the {len(source):,} images would take more than the {limit / 2**20:,.0f} MB allowed; "
        f"they are decoded on each access, by {workers} worker processes"
    )
    return DecodedPixels(
        source, RowDecoder(items, shorter_side=2 * size, channels=channels), channels, workers, notify
    )


def _decode(
    decoder: RowDecoder, blocks: Sequence[Sequence[int]], workers: int, *, are_small: bool
) -> Iterator[Decoded]:
    """Decode block after block, by threads or processes.

    Large images are decoded by threads. For small ones the overhead of Python dominates, so threads would
    wait for each other: many small images are decoded by processes if these can be forked.
    """
    is_forked = multiprocessing.get_context().get_start_method() == "fork"
    if workers > 1 and are_small and is_forked and len(blocks) >= _WORTH_PROCESSES:
        yield from RowLoader(decoder, workers).stream(iter(blocks))
        return
    threads = 1 if are_small else max(1, workers)
    with ThreadPoolExecutor(threads) as pool:
        # at most as many blocks ahead as threads, so that little is wasted at the memory limit
        waiting: deque[Future[Decoded]] = deque()
        for block in blocks:
            waiting.append(pool.submit(decoder.__getitems__, block))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _in_memory(
    source: Source,
    found: Iterator[Decoded],
    *,
    limit: int,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> HeldPixels | None:
    """All images, decoded; None if they exceed the limit."""
    damage, parts, taken, done = Damage(source), [], 0, 0
    for block in found:
        for row, error in block.faults:
            damage.add(row, error)
        # a copy: arrays of another process are in shared memory, which is small
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
        while parts:  # from the end, so that each part is freed once it is copied
            last = parts.pop().whole
            assert last is not None
            images[end - len(last) : end] = last
            end -= len(last)
    else:
        images = [image for part in parts for image in part.alone()]
        _note_thin(source, images, notify)
    return HeldPixels(images, channels, len(source), damage)


class _Part:
    """Decoded images: one array if they have the same size, else one array each, without padding."""

    def __init__(
        self, whole: NDArray[np.uint8] | None, single: list[NDArray[np.uint8]], channels: int
    ) -> None:
        self.whole, self._single, self.channels = whole, single, channels

    def __len__(self) -> int:
        return len(self._single) if self.whole is None else len(self.whole)

    @property
    def nbytes(self) -> int:
        return sum(image.nbytes for image in self._single) if self.whole is None else self.whole.nbytes

    @property
    def sides(self) -> tuple[int, ...] | None:
        return None if self.whole is None else self.whole.shape[2:]

    def alone(self) -> Iterator[NDArray[np.uint8]]:
        """Each as [height, width] or [height, width, 3]."""
        if self.whole is None:
            yield from self._single
            return
        for image in self.whole:
            yield (image[0] if len(image) == 1 else image.transpose(1, 2, 0)).copy()


def _part_of(block: Decoded) -> _Part:
    images = block.images.numpy()
    if block.sizes is None:
        return _Part(images.copy(), [], images.shape[1])
    single = []
    for image, (height, width) in zip(images, block.sizes.tolist(), strict=True):
        cut = image[:, :height, :width]
        single.append((cut[0] if len(cut) == 1 else cut.transpose(1, 2, 0)).copy())
    return _Part(None, single, images.shape[1])


def _note_thin(source: Source, images: list[NDArray[np.uint8]], notify: Callable[[str], None]) -> None:
    """Warn if a batch may be large because of padding."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    mean = sum(image.shape[0] * image.shape[1] for image in images) / len(images)
    if height * width > _WASTEFUL * mean:
        notify(
            f"{source.name}: images are up to {height} pixels high and up to {width} wide; a batch with both "
            f"takes {height * width / mean:.0f} times the memory of its pixels; crop the longest ones if "
            "memory is short"
        )


def _available_memory() -> int:
    """Bytes that can be allocated without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
