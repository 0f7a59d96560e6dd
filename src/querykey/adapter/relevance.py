"""(query, document) pairs: which documents belong to which query, many to many."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from querykey.errors import ShapeError
from querykey.lookup.lookup import DensePairs
from querykey.lookup.unit_length import unit_length
from querykey.types import FrozenRows, Ids, KeyIds, Numbers, QueryIds, Rows

__all__ = ["NEAR_EQUAL", "Relevance", "RelevantPairs", "same_items", "unit_rows"]

NEAR_EQUAL = 0.9999
"""Cosine from which two rows are one item: float16 copies of a text and its twin with another comma."""
BLOCK = 1024


class Relevance:
    """Which documents belong to which query, as a sparse list.

    Args:
        query_ids: Of each pair, from 0.
        document_ids: Of each pair, from 0.
        queries: How many queries there are; None: up to the last that has a pair.

    Raises:
        ShapeError: If the two differ in length.

    Example:
        >>> relevance = Relevance(torch.tensor([0, 0, 1]), torch.tensor([4, 5, 4]))
        >>> relevance.pairs(torch.tensor([0, 1]), torch.tensor([4, 5])).positive.tolist()
        [[True, True], [True, False]]
    """

    def __init__(self, query_ids: Numbers, document_ids: Numbers, *, queries: int | None = None) -> None:
        if len(query_ids) != len(document_ids):
            raise ShapeError(
                f"{len(query_ids)} queries and {len(document_ids)} documents make no pairs; need as many"
            )
        order = torch.argsort(query_ids, stable=True)
        self.documents = document_ids[order]
        if queries is None:
            queries = int(query_ids.max()) + 1 if len(query_ids) else 0
        self.first = torch.searchsorted(query_ids[order], torch.arange(queries + 1))

    def documents_of(self, query: int) -> Numbers:
        """The documents of one query, none where it has no pair."""
        return self.documents[self.first[query] : self.first[query + 1]]

    def pairs(self, query_ids: QueryIds, key_ids: KeyIds) -> DensePairs:
        """Relevant documents are positive, all others negative, as masks [queries, keys]."""
        first, last = self.first[query_ids], self.first[query_ids + 1]
        rows = torch.repeat_interleave(torch.arange(len(query_ids)), last - first)
        offsets = torch.arange(len(rows)) - torch.repeat_interleave(
            (last - first).cumsum(0) - (last - first), last - first
        )
        documents = self.documents[first[rows] + offsets]

        distinct, column = torch.unique(key_ids, return_inverse=True)
        relevant = torch.zeros(len(query_ids), len(distinct), dtype=torch.bool)
        if len(distinct):
            at = torch.searchsorted(distinct, documents).clamp(max=len(distinct) - 1)
            there = distinct[at] == documents
            relevant[rows[there], at[there]] = True
        positive = relevant[:, column]
        return DensePairs(positive, ~positive)


@dataclass(frozen=True, eq=False)
class RelevantPairs:
    """The pairs of a relevance, made block by block for a `Lookup`."""

    relevance: Relevance
    query_ids: QueryIds
    key_ids: KeyIds

    def block(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(positive, negative) of keys start to stop."""
        pairs = self.relevance.pairs(self.query_ids, self.key_ids[start:stop])
        return pairs.positive, pairs.negative

    def rows(self, start: int, stop: int) -> "RelevantPairs":
        """The same for queries start to stop."""
        return replace(self, query_ids=self.query_ids[start:stop])


def unit_rows(vectors: FrozenRows, rows: Numbers | None = None) -> Tensor:
    """Rows as float32 of length 1, copied out of wherever they lie.

    Args:
        vectors: [items, width], any float dtype; may be memory-mapped.
        rows: Which; all where not given.

    Returns:
        [numbers, width] float32.
    """
    chosen = vectors if rows is None else vectors[rows]
    return unit_length(chosen).float()


def same_items(rows: Rows, *, near_equal: float = NEAR_EQUAL) -> tuple[Ids, Numbers]:
    """Give equal and near-equal rows one id, so that no query meets its own answer as a negative.

    A row joins the first row before it that is near enough and stands for itself: a chain of rows, each
    near the next, does not become one item.

    Args:
        rows: Unit rows [rows, dim].
        near_equal: Cosine from which two rows are the same item.

    Returns:
        (id of each row, counted from 0 in the order of first appearance; first row of each id).

    Example:
        >>> same_items(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))[0].tolist()
        [0, 1, 0]
    """
    ids = torch.empty(len(rows), dtype=torch.int64)
    first = torch.empty(0, dtype=torch.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        own = _nearest_representative(block, rows, first, near_equal)
        open_rows = (own < 0).nonzero()[:, 0]
        among = (block[open_rows] @ block[open_rows].T >= near_equal).tril(-1)
        kept = torch.ones(len(open_rows), dtype=torch.bool)
        # in order: whether a row stands for itself depends on those before it alone
        for row in among.any(dim=1).nonzero()[:, 0].tolist():
            before = (among[row] & kept).nonzero()[:, 0]
            if len(before):
                kept[row], own[open_rows[row]] = False, -2 - int(before[0])
        number = kept.cumsum(0) - 1 + len(first)
        own[open_rows[kept]] = number[kept]
        joined = own < -1
        own[joined] = number[-2 - own[joined]]
        first = torch.cat([first, start + open_rows[kept]])
        ids[start : start + len(block)] = own
    return ids, first


def _nearest_representative(block: Tensor, rows: Tensor, first: Tensor, near_equal: float) -> Tensor:
    """The id of the first representative that is near enough to each row of a block; -1 where none is."""
    own = torch.full((len(block),), -1)
    for start in range(0, len(first), 8 * BLOCK):
        near = block @ rows[first[start : start + 8 * BLOCK]].T >= near_equal
        found = near.any(dim=1) & (own < 0)
        own[found] = near[found].int().argmax(dim=1) + start
    return own
