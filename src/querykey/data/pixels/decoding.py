"""Images decoded row by row and laid side by side, in this process or in another."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from querykey.errors import DamagedItemError
from querykey.io.images import plain_pixels

__all__ = ["Decoded", "RowDecoder", "RowLoader", "WorkerDiedError", "lay_out"]


class WorkerDiedError(RuntimeError):
    """A process that decodes images ended before its time: it was killed, or it ran out of memory."""


class Decoded(NamedTuple):
    """Some rows of a source as a batch."""

    images: Tensor
    """uint8 [images, channels, height, width]; smaller images lie at the top left, the rest is 0."""
    sizes: Tensor | None
    """int64 [images, 2], height and width of each; None where all fill the canvas."""
    rows: Tensor
    """int64 [images]: the rows that could be decoded, in the order asked for."""
    faults: list[tuple[int, str]]
    """The rows that could not, and why."""


class RowDecoder(Dataset[Any]):
    """The images of a source by their rows, whole batches at a time.

    Args:
        items: PIL images by row, read on access.
        shorter_side: Of an image at most, in pixels; larger ones are shrunk.
        channels: 1 or 3; None: 3 for a batch with a colour in it, else 1.
    """

    def __init__(self, items: Sequence[Any], *, shorter_side: int, channels: int | None) -> None:
        self._items, self._shorter_side, self._channels = items, shorter_side, channels

    def __len__(self) -> int:
        return len(self._items)

    def one(self, row: int) -> NDArray[np.uint8] | str:
        """An image [height, width] or [height, width, 3], or what is wrong with it."""
        try:
            return plain_pixels(self._items[row], shorter_side=self._shorter_side)
        except DamagedItemError as error:
            return str(error)

    def __getitem__(self, row: int) -> Decoded:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Decoded:
        """A batch; what cannot be decoded is left out."""
        found = [(row, self.one(row)) for row in rows]
        whole = [(row, image) for row, image in found if not isinstance(image, str)]
        arrays = [image for _, image in whole]
        channels = self._channels or (3 if any(array.ndim == 3 for array in arrays) else 1)
        images, sizes = lay_out(arrays, channels)
        kept = torch.tensor([row for row, _ in whole], dtype=torch.int64)
        return Decoded(images, sizes, kept, [(row, text) for row, text in found if isinstance(text, str)])


def lay_out(arrays: Sequence[NDArray[np.uint8]], channels: int) -> tuple[Tensor, Tensor | None]:
    """Images as one batch (images, sizes) of so many channels: gray is repeated, colour made gray."""
    sides = torch.tensor([array.shape[:2] for array in arrays], dtype=torch.int64).reshape(-1, 2)
    height, width = (int(side) for side in sides.amax(dim=0)) if len(arrays) else (1, 1)
    canvas = np.zeros((len(arrays), channels, height, width), np.uint8)
    for place, array in zip(canvas, arrays, strict=True):
        place[:, : array.shape[0], : array.shape[1]] = _planes_of(array, channels)
    is_mixed = bool((sides != sides[:1]).any())
    return torch.from_numpy(canvas), sides if is_mixed else None


def _planes_of(array: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """[height, width] or [height, width, 3] as [channels or 1, height, width]."""
    if array.ndim == 2:
        return array[None]
    if channels == 3:
        return array.transpose(2, 0, 1)
    gray: NDArray[np.float64] = array @ np.array([0.299, 0.587, 0.114])
    return np.round(gray).astype(np.uint8)[None]


class _Asked(Sampler[list[int]]):
    """The batches of rows that are wanted next."""

    def __init__(self) -> None:
        self.batches: Iterator[Sequence[int]] = iter(())

    def __iter__(self) -> Iterator[list[int]]:
        return (list(rows) for rows in self.batches)


class RowLoader:
    """Worker processes that decode batches in the order asked for; they live as long as this does.

    Args:
        decoder: What they run.
        workers: How many, >= 1.
    """

    def __init__(self, decoder: RowDecoder, workers: int) -> None:
        self._asked = _Asked()
        self._loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_sampler=self._asked,
            num_workers=workers,
            collate_fn=_whole_batch,
            persistent_workers=True,
            generator=torch.Generator(),  # seeds the workers; the default generator is not advanced
        )

    def stream(self, batches: Iterator[Sequence[int]]) -> Iterator[Decoded]:
        """Each batch of rows; one stream at a time.

        Raises:
            WorkerDiedError: If a worker ended before its time; the stream and its workers are then of no use.
        """
        self._asked.batches = batches
        try:
            with _own_handler_of_ends():
                found = iter(self._loader)
            yield from found
        except (RuntimeError, OSError, EOFError) as error:  # of a worker, or of the pipe that led to it
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise WorkerDiedError(str(error).split("\n", maxsplit=1)[0]) from error


@contextmanager
def _own_handler_of_ends() -> Iterator[None]:
    """Keep torch from raising wherever the program is when a worker ends: its stream finds out by itself."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, former)


def _whole_batch(batch: Any) -> Any:
    """A batch comes whole from the decoder: there is nothing to put together."""
    return batch
