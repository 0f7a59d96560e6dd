"""The rows of a training step: its batch, and the candidates selected from the memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from querykey.adapter.relevance import unit_rows
from querykey.dictionaries.protocol import Dictionary
from querykey.distributed.process_group import ProcessGroup
from querykey.types import FrozenRows, Ids, Labels, Numbers, Rows

__all__ = [
    "Batch",
    "Candidates",
    "Pool",
    "SelectedSlots",
    "candidates_of",
]


class Batch(NamedTuple):
    """Frozen rows of a step, each with its item id and label."""

    vectors: Rows
    ids: Ids
    labels: Labels


class SelectedSlots(NamedTuple):
    """Slots of the memory that are used in a step."""

    per_query: Tensor
    """Slots selected by each query [queries, k], padded with -1."""
    shared: Tensor
    """Slots used by all queries [rows]."""


class Candidates(NamedTuple):
    """The batch, followed by the rows selected for it, each item once."""

    vectors: Rows
    ids: Ids
    labels: Labels
    selected: Tensor
    """Which rows were selected for each query [queries, rows]."""
    batch_size: int

    @property
    def candidate_mask(self) -> Tensor:
        """Candidates of each query: the batch and the rows selected for the query [queries, rows]."""
        mask = self.selected.clone()
        mask[:, : self.batch_size] = True
        return mask


@torch.no_grad()
def candidates_of(batch: Batch, memory: Dictionary, selection: SelectedSlots) -> Candidates:
    """Combine the batch with the selected rows of the memory, each item once.

    Args:
        batch: Rows of the step; they come first, in order.
        memory: The other rows; those that another process stores are sent.
        selection: Slots of the memory, the same on every process.

    Returns:
        The `Candidates`; an item of the batch is not read from the memory again.
    """
    queries = len(selection.per_query)
    rows = torch.arange(queries)[:, None].expand_as(selection.per_query)[selection.per_query >= 0]
    slots = torch.cat([selection.per_query[selection.per_query >= 0], selection.shared])
    in_batch, at = _find(batch.ids, memory.ids[slots])
    ids, place = torch.unique(memory.ids[slots[~in_batch]], return_inverse=True)
    slot = torch.empty_like(ids).scatter_(
        0, place, slots[~in_batch]
    )  # an item may have several slots; any of them has its row
    at[~in_batch] = len(batch.ids) + place

    shared = torch.zeros(len(batch.ids) + len(ids), dtype=torch.bool)
    shared[at[len(rows) :]] = True
    selected_by = shared.expand(queries, -1).clone()  # 30 times as fast as an assignment to columns
    selected_by[rows, at[: len(rows)]] = True
    return Candidates(
        torch.cat([batch.vectors, memory.rows(slot).to(batch.vectors.dtype)]),
        torch.cat([batch.ids, ids]),
        torch.cat([batch.labels, memory.labels[slot]]),
        selected_by,
        len(batch.ids),
    )


def _find(among: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each wanted id is in `among`, and its position."""
    ids, order = among.sort()
    at = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
    return ids[at] == wanted, order[at]


class Pool:
    """The training rows, numbered from 0: unit float32, in memory if they are few.

    Args:
        vectors: Frozen rows; may be memory-mapped.
        rows: Indices of the training rows; None for all.
        labels: Class of each of `vectors`, or None.
        keep: Whether unit copies stay in memory; otherwise each batch is read from `vectors`.
    """

    BLOCK = 8192
    """Rows per block of `walk`."""

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

    def share(self, shard_group: ProcessGroup) -> Rows:
        """Unit copies of this process's shard of the rows."""
        if self.kept is not None and shard_group.world_size == 1:
            return self.kept
        return unit_rows(self.vectors, self.rows[shard_group.rank :: shard_group.world_size])

    def walk(self, ids: Numbers) -> Iterator[Batch]:
        """The rows with these numbers, `BLOCK` at a time."""
        return (self.batch(some) for some in torch.split(ids, self.BLOCK))
