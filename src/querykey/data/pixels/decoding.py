"""Decodes rows of a source into batches, in this process or in worker processes."""

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
    """A worker process died: it was killed, or it ran out of memory."""


class Decoded(NamedTuple):
    """Some rows of a source as a batch."""

    images: Tensor
    """uint8 [images, channels, height, width]; smaller images are at the top left, and the rest is 0."""
    sizes: Tensor | None
    """int64 [images, 2], height and width of each; None if all fill the canvas."""
    rows: Tensor
    """int64 [images]: the decoded rows, in the given order."""
    faults: list[tuple[int, str]]
    """The other rows, with the reason."""


class RowDecoder(Dataset[Any]):
    """Decodes batches of images of a source, by row.

    Args:
        items: PIL images by row, read on access.
        shorter_side: Maximum in pixels; larger images are resized.
        channels: 1 or 3; None: 3 for a batch with a colour image, else 1.
    """

    def __init__(self, items: Sequence[Any], *, shorter_side: int, channels: int | None) -> None:
        self._items, self._shorter_side, self._channels = items, shorter_side, channels

    def __len__(self) -> int:
        return len(self._items)

    def one(self, row: int) -> NDArray[np.uint8] | str:
        """An image [height, width] or [height, width, 3], or the reason why it cannot be decoded."""
        try:
            return plain_pixels(self._items[row], shorter_side=self._shorter_side)
        except DamagedItemError as error:
            return str(error)

    def __getitem__(self, row: int) -> Decoded:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Decoded:
        """A batch, without images that cannot be decoded."""
        found = [(row, self.one(row)) for row in rows]
        decoded = [(row, image) for row, image in found if not isinstance(image, str)]
        arrays = [image for _, image in decoded]
        channels = self._channels or (3 if any(array.ndim == 3 for array in arrays) else 1)
        images, sizes = lay_out(arrays, channels)
        rows_read = torch.tensor([row for row, _ in decoded], dtype=torch.int64)
        return Decoded(
            images, sizes, rows_read, [(row, text) for row, text in found if isinstance(text, str)]
        )


def lay_out(arrays: Sequence[NDArray[np.uint8]], channels: int) -> tuple[Tensor, Tensor | None]:
    """Images as a batch (images, sizes) with given channels: gray is repeated, colour converted to gray."""
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


class _Batches(Sampler[list[int]]):
    """The batches of rows of the current stream."""

    def __init__(self) -> None:
        self.batches: Iterator[Sequence[int]] = iter(())

    def __iter__(self) -> Iterator[list[int]]:
        return (list(rows) for rows in self.batches)


class RowLoader:
    """Worker processes that decode batches in order; they live as long as this object.

    Args:
        decoder: Run by the workers.
        workers: Number of processes, >= 1.
    """

    def __init__(self, decoder: RowDecoder, workers: int) -> None:
        self._batches = _Batches()
        self._loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_sampler=self._batches,
            num_workers=workers,
            collate_fn=_identity,
            persistent_workers=True,
            generator=torch.Generator(),  # seeds the workers; the default generator is not advanced
        )

    def stream(self, batches: Iterator[Sequence[int]]) -> Iterator[Decoded]:
        """Each batch of rows; one stream at a time.

        Raises:
            WorkerDiedError: If a worker died; the stream and its workers cannot be used afterwards.
        """
        self._batches.batches = batches
        try:
            with _without_child_handler():
                found = iter(self._loader)
            yield from found
        except (RuntimeError, OSError, EOFError) as error:  # of a worker, or of the pipe to it
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise WorkerDiedError(str(error).split("\n", maxsplit=1)[0]) from error


@contextmanager
def _without_child_handler() -> Iterator[None]:
    """Restore the handler of SIGCHLD, so that PyTorch does not raise in other code when a worker dies."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, former)


def _identity(batch: Any) -> Any:
    """The decoder returns complete batches: nothing to collate."""
    return batch
