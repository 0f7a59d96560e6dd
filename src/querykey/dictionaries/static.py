"""Dictionaries without a memory of steps: the batch, and a complete frozen data set."""

import torch
from torch import Tensor

from querykey.dictionaries.protocol import MemoryRows
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup, gather_rows
from querykey.types import Ids, Labels, Numbers, Rows

__all__ = [
    "InBatch",
    "WholeSet",
]


class InBatch:
    """The batch of this step and nothing else: contrastive learning without a memory.

    Example:
        >>> batch = InBatch()
        >>> batch.enqueue(torch.ones(2, 3), torch.tensor([4, 5]))
        >>> batch.enqueue(torch.ones(1, 3), torch.tensor([6]))
        >>> batch.read().ids.tolist()
        [6]
    """

    processes = SINGLE_PROCESS

    def __init__(self) -> None:
        self._stored = MemoryRows(
            torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        )

    def __len__(self) -> int:
        """Rows stored now."""
        return len(self._stored.ids)

    def read(self) -> MemoryRows:
        """The rows of the last `enqueue`."""
        return self._stored

    @property
    def ids(self) -> Ids:
        """Which items they are."""
        return self._stored.ids

    @property
    def labels(self) -> Labels:
        """Their classes."""
        return self._stored.labels

    def rows(self, slots: Numbers) -> Rows:
        """Some of them: [slots, dim], a copy."""
        return self._stored.vectors.index_select(0, slots)

    def age(self) -> Tensor:
        """Always 0: int64 [filled]."""
        return torch.zeros_like(self._stored.ids)

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """Replace the stored rows by these."""
        self._stored = MemoryRows(
            vectors.detach(), ids, torch.full_like(ids, -1) if labels is None else labels
        )


class WholeSet:
    """Every item of a frozen data set: a cross-batch memory that covers the data.

    Frozen features never change, so a stored row need not be written again, and a batch
    has nothing to add. The vectors are not copied; they may be memory-mapped.

    Args:
        vectors: [items, dim]; slot i is the item with id i; with several processes, the shard of this one.
        labels: Class of each item of all, -1 if unlabelled; None: all unlabelled, on a single process.
        processes: Over which the rows are sharded, row i on process i mod N.

    Example:
        >>> whole = WholeSet(torch.eye(3), torch.tensor([7, 7, -1]))
        >>> whole.enqueue(torch.eye(3)[:1], torch.tensor([0]))
        >>> len(whole)
        3
    """

    def __init__(
        self, vectors: Rows, labels: Labels | None = None, *, processes: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.labels = torch.full((len(vectors),), -1) if labels is None else labels
        self.ids, self.processes = torch.arange(len(self.labels)), processes
        local = slice(processes.rank, None, processes.world_size)
        self._stored = MemoryRows(vectors, self.ids[local], self.labels[local])

    def __len__(self) -> int:
        """Items stored, from the start."""
        return len(self.ids)

    def read(self) -> MemoryRows:
        """All items, or the shard of this process."""
        return self._stored

    def rows(self, slots: Numbers) -> Rows:
        """The rows of some items, from the processes that store them: [slots, dim], a copy."""
        return gather_rows(self._stored.vectors, slots, self.processes)

    def age(self) -> Tensor:
        """Always 0: frozen rows do not age."""
        return torch.zeros_like(self.ids)

    def enqueue(self, vectors: Rows, ids: Ids, labels: Labels | None = None) -> None:
        """No operation: the rows are stored already."""
