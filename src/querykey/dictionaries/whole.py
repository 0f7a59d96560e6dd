"""A memory that covers the data: every item once, for good."""

import torch
from torch import Tensor

from querykey.dictionaries.rows import Held
from querykey.types import Ids, Labels, Rows

__all__ = ["WholeSet"]


class WholeSet:
    """Every item of a frozen data set: what a cross-batch memory becomes when it covers the data.

    Frozen features never change, so a row that is held need not be written again, and a batch
    has nothing to add. It reads the vectors where they lie (a memory-mapped file, for one)
    and copies nothing.

    Args:
        vectors: [items, dim]; slot i is the item with id i.
        labels: Class of each item; -1 or None where it is not known.

    Example:
        >>> whole = WholeSet(torch.eye(3))
        >>> whole.enqueue(torch.eye(3)[:1], torch.tensor([0]))
        >>> len(whole)
        3
    """

    def __init__(self, vectors: Rows, labels: Labels | None = None) -> None:
        ids = torch.arange(len(vectors))
        self._held = Held(vectors, ids, torch.full_like(ids, -1) if labels is None else labels)

    def __len__(self) -> int:
        """Items held, from the start."""
        return len(self._held.ids)

    def read(self) -> Held:
        """All items."""
        return self._held

    def age(self) -> Tensor:
        """Always 0: a frozen row is as good as new."""
        return torch.zeros_like(self._held.ids)

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Nothing: the rows are held already."""
