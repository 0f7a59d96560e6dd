"""What a source is, and the lazy sequences its items and ids are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chosen", "Items", "Kind", "RowNumbers", "Source"]

Kind = Literal["image", "text", "vector"]


@dataclass(frozen=True, eq=False)
class Source:
    """What the user has: items, their ids and, where there are any, labels and pairs.

    Nothing is decoded before it is asked for: `items[i]` reads one item.

    Args:
        name: How the user named it.
        kind: What an item is: a PIL image (its mode kept), a string, or a row of numbers.
        items: Lazy for images and text; a 2-d array, memory-mapped where the format allows,
            for vectors. `items[i]` of an image may raise `DamagedItemError`.
        ids: Unique and stable: the path inside the folder, the `_id` column, or the row number.
        labels: int64 [n], an index into `label_names`, -1 where unknown; None without labels.
        label_names: The classes, () without labels. Two sources number their classes
            separately: compare by name, or with `common_labels`.
        fingerprint: sha256 in hex over the data's bytes and what was chosen of them.
        queries: The query side, where the data are pairs.
        pairs: int64 [m, 3]: row in `queries`, row in `items`, grade >= 1.
        left_out: Files or rows that were given and are not among the items.
        notes: What was left out or assumed in reading, a sentence each.
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
        """How many items there are."""
        return len(self.items)


class Items(Sequence[Any]):
    """Items read one at a time; a slice is a view that has read nothing yet.

    A child gives `__len__` and `_read`.
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
    """Some rows of another sequence, in the order given.

    Args:
        items: What is chosen from.
        rows: Places in it.

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
    """The ids of rows that have none: "0", "1", ... without a string kept for each.

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
