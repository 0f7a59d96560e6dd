"""The rows that a fit sees."""

from collections.abc import Iterator

import torch

from querykey.adapter.relevance import unit_rows
from querykey.adapter.union import Batch
from querykey.processes import Processes
from querykey.types import FrozenRows, Labels, Numbers, Rows

__all__ = ["Pool"]


class Pool:
    """The rows that training sees, numbered from 0: unit float32, in memory where they are few.

    Args:
        vectors: Frozen rows; may be memory-mapped.
        rows: Which of them; all where None.
        labels: Class of each of `vectors`, or None.
        keep: Whether unit copies are kept; otherwise each batch is read from where it lies.
    """

    BLOCK = 8192
    """Rows that are walked at once."""

    def __init__(
        self, vectors: FrozenRows, rows: Numbers | None, labels: Labels | None, *, keep: bool
    ) -> None:
        self.rows = torch.arange(len(vectors)) if rows is None else rows
        self.labels = torch.full((len(self.rows),), -1) if labels is None else labels[self.rows]
        self.vectors = vectors
        self.kept = unit_rows(vectors, self.rows) if keep else None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, ids: Numbers) -> Batch:
        """The rows with these numbers."""
        vectors = (
            unit_rows(self.vectors, self.rows[ids]) if self.kept is None else self.kept.index_select(0, ids)
        )
        return Batch(vectors, ids, self.labels[ids])

    def share(self, dealt: Processes) -> Rows:
        """Unit copies of the rows that this process has of all."""
        if self.kept is not None and dealt.count == 1:
            return self.kept
        return unit_rows(self.vectors, self.rows[dealt.rank :: dealt.count])

    def walk(self, ids: Numbers) -> Iterator[Batch]:
        """The rows with these numbers, `BLOCK` at a time."""
        return (self.batch(some) for some in torch.split(ids, self.BLOCK))
