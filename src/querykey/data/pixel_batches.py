"""Batches of the images of a source: out of the memory, or decoded each time."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.decoding import Decoded, RowDecoder, RowLoader, WorkerDiedError, lay_out
from querykey.data.items import Source
from querykey.errors import DamagedItemError, DataError, RangeError
from querykey.types import Ids, ImageIds, Images, ImageSizes

__all__ = ["Damage", "DecodedPixels", "HeldPixels", "PixelBatch", "Pixels"]

_MOST_DAMAGED = 0.1
_DEATHS = 3
"""Of workers, without a batch between them, that are borne."""
Notify = Callable[[str], None]
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

    def add(self, row: int, fault: str) -> bool:
        """Count a row.

        Returns:
            Whether it is a new one.

        Raises:
            DataError: If it is one too many.
        """
        is_new = row not in self._faults
        self._faults.setdefault(row, fault)
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


class HeldPixels(Pixels):
    """All images in memory: one array where they have one size, else an array each."""

    def __init__(self, images: NDArray[np.uint8] | list[NDArray[np.uint8]], channels: int, rows: int,
                 damage: Damage) -> None:  # fmt: skip
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
            except WorkerDiedError as fault:
                deaths += 1
                if deaths > _DEATHS:
                    raise DataError(
                        f"processes that decode images end before their time, {deaths} times in a row "
                        f"({fault}); take fewer workers or a smaller batch if the memory is short"
                    ) from fault
                self._notify(f"a process that decodes images has ended ({fault}); it is started again")
                continue
            # only where it was read to its end: workers amid a batch are not taken up again
            self._idle.append(loader)
            return

    def _asked(self, batches: Iterable[_Batch]) -> Iterator[list[int]]:
        for rows in batches:
            _check_rows(rows.cpu().numpy(), self._rows)
            yield rows.tolist()

    def _note(self, found: Decoded) -> PixelBatch:
        for row, fault in found.faults:
            if self._damage.add(row, fault):
                self._notify(f"{fault}; it is left out from here on")
        if not len(found.rows) and found.faults:
            raise DataError(f"no image of a batch can be decoded: {found.faults[0][1]}")
        return PixelBatch(found.images, found.sizes, found.rows)


def _check_rows(rows: NDArray[np.int64], count: int) -> None:
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise RangeError(f"rows are from 0 to {count - 1}, got {rows.min()} to {rows.max()}")
