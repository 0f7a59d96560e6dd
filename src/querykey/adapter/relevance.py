"""(query, document) pairs: which documents belong to which query, many to many."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from querykey.errors import ShapeError
from querykey.lookup import DensePairs
from querykey.nearest import nearest
from querykey.types import Ids, KeyIds, Numbers, QueryIds, Rows

__all__ = ["Relevance", "RelevantPairs", "same_items"]

NEAR_EQUAL = 0.9999
"""Cosine from which two rows are one item: float16 copies of a text and its twin with another comma."""


class Relevance:
    """Which documents belong to which query, as a sparse list.

    Args:
        query_ids: Of each pair, from 0.
        document_ids: Of each pair, from 0.

    Raises:
        ShapeError: If the two differ in length.

    Example:
        >>> relevance = Relevance(torch.tensor([0, 0, 1]), torch.tensor([4, 5, 4]))
        >>> relevance.pairs(torch.tensor([0, 1]), torch.tensor([4, 5])).positive.tolist()
        [[True, True], [True, False]]
    """

    def __init__(self, query_ids: Numbers, document_ids: Numbers) -> None:
        if len(query_ids) != len(document_ids):
            raise ShapeError(
                f"{len(query_ids)} queries and {len(document_ids)} documents make no pairs; need as many"
            )
        order = torch.argsort(query_ids, stable=True)
        self.documents = document_ids[order]
        queries = int(query_ids.max()) + 1 if len(query_ids) else 0
        self.first = torch.searchsorted(query_ids[order], torch.arange(queries + 1))

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


def same_items(rows: Rows, *, near_equal: float = NEAR_EQUAL, neighbours: int = 8) -> tuple[Ids, Numbers]:
    """Give equal and near-equal rows one id, so that no query meets its own answer as a negative.

    Args:
        rows: [rows, dim].
        near_equal: Cosine from which two rows are the same item.
        neighbours: How many nearest rows of each are compared.

    Returns:
        (id of each row, counted from 0 in the order of first appearance; first row of each id).

    Example:
        >>> same_items(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))[0].tolist()
        [0, 1, 0]
    """
    ids = torch.arange(len(rows))
    scores, index = nearest(rows, rows, min(neighbours, len(rows)), query_ids=ids, key_ids=ids)
    left = ids[:, None].expand_as(index)[scores >= near_equal]
    right = index[scores >= near_equal]
    links = coo_array(
        (np.ones(len(left), dtype=bool), (left.numpy(), right.numpy())), shape=(len(rows), len(rows))
    )
    groups = connected_components(links, directed=False)[1]
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return torch.from_numpy(rank[inverse]), torch.from_numpy(np.sort(first))
