"""Sources: lazy sequences of items and ids, and a fingerprint of their bytes."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chosen", "Fingerprint", "Items", "Kind", "RowNumbers", "Source", "fingerprint_files"]

Kind = Literal["image", "text", "vector"]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: items, their ids and, if there are any, labels and pairs.

    Items are decoded on access: `items[i]` reads one item.

    Args:
        name: As the user gave it.
        kind: Of an item: a PIL image in its mode, a string, or a row of numbers.
        items: Lazy for images and text; a 2-d array, memory-mapped if the format allows it,
            for vectors. `items[i]` of an image may raise `DamagedItemError`.
        ids: Unique and stable: the path inside the folder, the `_id` column, or the row number.
        labels: int64 [n], an index into `label_names`, -1 if unlabelled; None without labels.
        label_names: The classes, () without labels. Each source numbers its classes: compare by name, or
            use `common_labels`.
        fingerprint: sha256 in hex of the bytes of the data and the chosen columns.
        queries: The queries, if the data are pairs.
        pairs: int64 [m, 3]: row in `queries`, row in `items`, grade >= 1.
        left_out: Files or rows that are not among the items.
        notes: What was left out or assumed in reading, one sentence each.
    """

    name: str
    kind: Kind
    items: Sequence[Any] | NDArray[Any]
    ids: Sequence[str]
    labels: NDArray[np.int64] | None
    label_names: tuple[str, ...]
    fingerprint: str
    queries: "Source | None" = None
    pairs: NDArray[np.int64] | None = None
    left_out: Sequence[str] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def select(self, rows: NDArray[np.int64]) -> "Source":
        """Some of the items, read on access, with their ids and labels; without queries and pairs."""
        selected = hashlib.sha256(rows.tobytes()).hexdigest()
        items: Any = self.items
        return replace(
            self,
            items=Chosen(items, rows),
            ids=Chosen(self.ids, rows),
            labels=None if self.labels is None else self.labels[rows],
            fingerprint=hashlib.sha256(f"{self.fingerprint} {selected}".encode()).hexdigest(),
            queries=None,
            pairs=None,
        )


class Items(Sequence[Any]):
    """Items that are read on access; a slice is a lazy view.

    Subclasses implement `__len__` and `_read`.
    """

    def _read(self, row: int) -> Any:
        raise NotImplementedError

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> "Chosen": ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return Chosen(self, np.arange(*row.indices(len(self))))
        place = int(row) + (len(self) if row < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"row {row} of {len(self)} items")
        return self._read(place)


class Chosen(Items):
    """Some rows of another sequence, in the given order.

    Args:
        items: The sequence.
        rows: Indices.

    Example:
        >>> list(Chosen(["a", "b", "c"], np.array([2, 0])))
        ['c', 'a']
    """

    def __init__(self, items: Sequence[Any], rows: NDArray[np.int64]) -> None:
        self._items = items
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, row: int) -> Any:
        return self._items[int(self._rows[row])]


class RowNumbers(Items):
    """The ids of rows without ids: "0", "1", ..., made on access.

    Example:
        >>> RowNumbers(1_000_000)[-1]
        '999999'
    """

    def __init__(self, rows: int) -> None:
        self._length = rows

    def __len__(self) -> int:
        return self._length

    def _read(self, row: int) -> str:
        return str(row)


_BLOCK = 1 << 22


class Fingerprint:
    """A sha256 of several values, each with its length: moving a byte to the next value changes it.

    Example:
        >>> Fingerprint().text("ab").text("c").hex() == Fingerprint().text("a").text("bc").hex()
        False
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def text(self, *texts: str | None) -> "Fingerprint":
        """Add texts, such as a column, a split or an id."""
        for one in texts:
            data = b"" if one is None else one.encode("utf-8", "surrogateescape")
            self.data(data, tag=b"n" if one is None else b"t")
        return self

    def data(self, data: bytes, *, tag: bytes = b"b") -> "Fingerprint":
        """Add bytes."""
        self._digest.update(tag + len(data).to_bytes(8, "little") + data)
        return self

    def file(self, path: Path) -> "Fingerprint":
        """Add a file, a block at a time; one that cannot be read is added as such, and its item raises."""
        part = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as stream:
                while block := stream.read(_BLOCK):
                    part.update(block)
        except OSError as error:
            return self.text("unreadable", type(error).__name__)
        return self.data(part.digest(), tag=b"f")

    def array(self, array: NDArray[Any]) -> "Fingerprint":
        """Add the shape, dtype and values of an array, a block of rows at a time."""
        self.text(str(array.dtype), str(array.shape))
        rows = max(1, _BLOCK // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            self._digest.update(np.ascontiguousarray(array[start : start + rows]).data)
        return self

    def hex(self) -> str:
        """The digest so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def fingerprint_files(paths: Iterable[Path], *choices: str | None) -> str:
    """The fingerprint of files, in order, and of the chosen columns or splits."""
    digest = Fingerprint().text(*choices)
    for path in paths:
        digest.file(path)
    return digest.hex()
