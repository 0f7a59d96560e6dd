"""The guard: neighbours of held-out rows are scored, and nothing worse than the start is returned."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from querykey.adapter.relevance import Relevance
from querykey.adapter.settings import classes_are_fine
from querykey.nearest import nearest
from querykey.types import KeyIds, Keys, Labels, Queries, QueryIds, Rows

__all__ = ["Guard", "LabelGuard", "OverlapGuard", "PairGuard", "hold_out"]

BLOCK = 8192

Transform = Callable[[Tensor], Tensor]


@torch.no_grad()
def in_blocks(transform: Transform, rows: Tensor) -> Tensor:
    """Apply a transform to many rows without keeping what lies between."""
    return torch.cat([transform(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)])


@dataclass(frozen=True, eq=False)
class OverlapGuard:
    """How many of a held-out row's frozen nearest rows are still its nearest.

    Args:
        rows: Frozen unit rows; the first `queries` are held out of training.
        queries: How many.
        k: Neighbours compared.
    """

    rows: Rows
    queries: int
    k: int = 10
    name: str = "overlap with the frozen top 10"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_frozen", self._neighbours(self.rows))

    def score(self, transform: Transform) -> float:
        """Mean share from 0 to 1."""
        frozen: Tensor = self._frozen  # type: ignore[attr-defined]
        now = self._neighbours(in_blocks(transform, self.rows))
        return float((now[:, :, None] == frozen[:, None, :]).any(2).float().mean())

    def _neighbours(self, rows: Tensor) -> Tensor:
        ids = torch.arange(len(rows))
        k = min(self.k, len(rows) - 1)
        return nearest(rows[: self.queries], rows, k, query_ids=ids[: self.queries], key_ids=ids)[1]


@dataclass(frozen=True, eq=False)
class LabelGuard:
    """Recall@1 of held-out rows; precision at 10, at a thousandth of the weight, settles ties.

    Args:
        rows: Frozen unit rows; the first `queries` are held out of training.
        labels: Class of each row.
        queries: How many.
    """

    rows: Rows
    labels: Labels
    queries: int
    name: str = "Recall@1"

    def score(self, transform: Transform) -> float:
        """From 0 to 1.001."""
        rows = in_blocks(transform, self.rows)
        ids = torch.arange(len(rows))
        k = min(10, len(rows) - 1)
        found = nearest(rows[: self.queries], rows, k, query_ids=ids[: self.queries], key_ids=ids)[1]
        right = (self.labels[found] == self.labels[: self.queries, None]).double()
        return float(right[:, 0].mean() + right.mean() / 1000)


@dataclass(frozen=True, eq=False)
class PairGuard:
    """Mean reciprocal rank, to rank 10, of the first right document of held-out queries.

    Args:
        queries: Frozen unit rows of held-out queries.
        query_ids: Which query each is.
        documents: Frozen unit rows of documents.
        document_ids: Which document each is.
        relevance: Which belong together.
        moves_documents: Whether documents are transformed too.
    """

    queries: Queries
    query_ids: QueryIds
    documents: Keys
    document_ids: KeyIds
    relevance: Relevance
    moves_documents: bool
    name: str = "MRR@10"

    def score(self, transform: Transform) -> float:
        """From 0 to 1."""
        documents = in_blocks(transform, self.documents) if self.moves_documents else self.documents
        k = min(10, len(documents))
        found = nearest(in_blocks(transform, self.queries), documents, k)[1]
        relevant = self.relevance.pairs(self.query_ids, self.document_ids).positive.gather(1, found)
        rank = relevant.float().argmax(dim=1) + 1
        return float((relevant.any(dim=1) / rank).mean())


Guard = OverlapGuard | LabelGuard | PairGuard


def hold_out(items: int, *, share: float, most: int, labels: Labels | None, seed: int) -> Tensor:
    """Choose the rows that training does not see.

    Args:
        items: How many rows there are.
        share: Of the rows, from 0 to below 1.
        most: Rows at the most.
        labels: With many classes (more than the square root of the rows), whole classes are held out, so
            that the score is of classes never seen; with few, single rows.
        seed: Of the choice.

    Returns:
        Row numbers, in random order; none where there are fewer than 40 rows.
    """
    wanted = min(round(share * items), most)
    draw = np.random.default_rng([seed, 1])
    if items < 40 or wanted < 2:
        return torch.empty(0, dtype=torch.int64)
    if labels is not None and classes_are_fine(labels):
        classes, counts = torch.unique(labels[labels >= 0], return_counts=True)
        order = torch.from_numpy(draw.permutation(len(classes)))
        taken = order[: max(2, int((counts[order].cumsum(0) <= wanted).sum()))]
        rows = torch.isin(labels, classes[taken]).nonzero()[:, 0]
        return rows[torch.from_numpy(draw.permutation(len(rows)))]
    return torch.from_numpy(draw.permutation(items)[:wanted])
