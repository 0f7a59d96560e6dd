"""A memory that covers the data: every item once, for good."""

import torch
from torch import Tensor

from querykey.dealing import rows_of_dealt
from querykey.dictionaries.rows import Held
from querykey.processes import ALONE, Processes
from querykey.types import Ids, Labels, Numbers, Rows

__all__ = ["WholeSet"]


class WholeSet:
    """Every item of a frozen data set: what a cross-batch memory becomes when it covers the data.

    Frozen features never change, so a row that is held need not be written again, and a batch
    has nothing to add. It reads the vectors where they lie (a memory-mapped file, for one)
    and copies nothing.

    Args:
        vectors: [items, dim]; slot i is the item with id i. Of several processes those of its share.
        labels: Class of each item of all, -1 where it is not known; None: of none, and one process holds all.
        processes: Among which the rows are dealt, row i with process i mod N; one alone holds all.

    Example:
        >>> whole = WholeSet(torch.eye(3), torch.tensor([7, 7, -1]))
        >>> whole.enqueue(torch.eye(3)[:1], torch.tensor([0]))
        >>> len(whole)
        3
    """

    def __init__(self, vectors: Rows, labels: Labels | None = None, *, processes: Processes = ALONE) -> None:
        self.labels = torch.full((len(vectors),), -1) if labels is None else labels
        self.ids, self.processes = torch.arange(len(self.labels)), processes
        own = slice(processes.rank, None, processes.count)
        self._held = Held(vectors, self.ids[own], self.labels[own])

    def __len__(self) -> int:
        """Items held, from the start."""
        return len(self.ids)

    def read(self) -> Held:
        """All items, or this process's share of them."""
        return self._held

    def rows(self, slots: Numbers) -> Rows:
        """The rows of some items, whichever process holds them: [slots, dim], a copy."""
        return rows_of_dealt(self._held.vectors, slots, self.processes)

    def age(self) -> Tensor:
        """Always 0: a frozen row is as good as new."""
        return torch.zeros_like(self.ids)

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Nothing: the rows are held already."""
