"""What training sees, what the guard keeps back, and how it scores it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from querykey.adapter.relevance import Relevance, same_items
from querykey.adapter.validation import Guard, LabelGuard, OverlapGuard, PairGuard, hold_out
from querykey.errors import DataError, ShapeError
from querykey.types import FrozenRows, Keys, Labels, Numbers, Queries

__all__ = [
    "Split",
    "TrainingPairs",
    "check_labels",
    "distinct_pairs",
    "split_items",
    "split_pairs",
    "unit_rows",
]

GUARD_ROWS = 20_000
"""Rows among which the guard looks for neighbours, at the most."""
MOST_HELD_OUT = 1_000


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """(query, document) pairs by number, each query and each document once.

    Args:
        queries: Frozen rows of the queries [queries, width].
        query_ids: Query of each pair, a row of `queries`.
        document_ids: Document of each pair, a row of the documents.
    """

    queries: FrozenRows
    query_ids: Numbers
    document_ids: Numbers


@dataclass(frozen=True, eq=False)
class Split:
    """Rows (or pairs) to train on, and the guard over the rest.

    Args:
        train: Rows of the items, or numbers of the pairs, that training sees.
        guard: Scores a transform on the others.
        sample: Frozen unit rows that training does not see, for the record of health.
    """

    train: Numbers
    guard: Guard
    sample: FrozenRows


def unit_rows(vectors: FrozenRows, rows: Numbers | None = None) -> Tensor:
    """Rows as float32 of length 1, copied out of wherever they lie.

    Args:
        vectors: [items, width], any float dtype; may be memory-mapped.
        rows: Which; all where not given.

    Returns:
        [numbers, width] float32.
    """
    chosen = vectors if rows is None else vectors[rows]
    return F.normalize(chosen.float(), dim=1)


def split_items(vectors: FrozenRows, labels: Labels | None, *, share: float, seed: int) -> Split:
    """Hold rows out, by class where the classes are many.

    Args:
        vectors: Frozen rows.
        labels: Class of each, or None.
        share: Of the rows to hold out, from 0.
        seed: Of the choice.

    Returns:
        The `Split`. Where too few rows are left over, the guard scores the rows of training.
    """
    everything = torch.arange(len(vectors))
    held = hold_out(len(vectors), share=share, most=MOST_HELD_OUT, labels=labels, seed=seed)
    if labels is not None:
        held = held[labels[held] >= 0]
    train = everything[~torch.isin(everything, held)]
    if labels is not None and not _has_pair(labels[train]):
        held, train = held[:0], everything
    known = train if labels is None else train[labels[train] >= 0]  # the others could only be wrong
    others = _some(known, GUARD_ROWS - len(held), seed)
    queries = len(held)
    if queries == 0:  # nothing to spare: the training rows are scored
        others, queries = others[:GUARD_ROWS], min(len(others), MOST_HELD_OUT)
    if labels is None:
        rows = unit_rows(vectors, torch.cat([held, others]))
        return Split(train, OverlapGuard(rows, queries), rows[:queries])
    by_class = len(held) > 0 and not torch.isin(labels[held], labels[train]).any()
    chosen = held if by_class else torch.cat([held, others])
    rows = unit_rows(vectors, chosen)
    return Split(train, LabelGuard(rows, labels[chosen], queries), rows[:queries])


def split_pairs(
    documents: FrozenRows, pairs: TrainingPairs, *, share: float, seed: int, moves_documents: bool
) -> Split:
    """Hold queries out, with all their pairs.

    Args:
        documents: Frozen rows of the documents.
        pairs: What belongs together.
        share: Of the queries to hold out, from 0.
        seed: Of the choice.
        moves_documents: Whether documents are transformed too.

    Returns:
        The `Split`, its `train` the numbers of the pairs that are left.
    """
    held = hold_out(len(pairs.queries), share=share, most=MOST_HELD_OUT // 2, labels=None, seed=seed)
    is_held = torch.isin(pairs.query_ids, held)
    train = (~is_held).nonzero()[:, 0]
    asked = held if len(held) else torch.arange(len(pairs.queries))[: MOST_HELD_OUT // 2]
    answers = torch.unique(pairs.document_ids[torch.isin(pairs.query_ids, asked)])
    others = torch.arange(len(documents))
    others = _some(others[~torch.isin(others, answers)], GUARD_ROWS - len(answers), seed)
    found = torch.cat([answers, others])
    guard = PairGuard(
        unit_rows(pairs.queries, asked),
        asked,
        unit_rows(documents, found),
        found,
        Relevance(pairs.query_ids, pairs.document_ids),
        moves_documents,
    )
    return Split(train, guard, guard.queries)


def distinct_pairs(
    queries: Queries, documents: Keys, pairs: ArrayLike | None
) -> tuple[Tensor, TrainingPairs]:
    """Name each query and each document once: equal and near-equal rows are one.

    Args:
        queries: Frozen rows of queries [queries, width].
        documents: Frozen rows of documents [documents, width].
        pairs: (query row, document row) [pairs, 2]; row i with row i where None.

    Returns:
        (the distinct documents, the pairs of distinct queries and documents).

    Raises:
        ShapeError: If rows do not match, or pairs name rows that are not there.
    """
    rows = torch.arange(len(queries))
    numbers = torch.stack([rows, rows], dim=1) if pairs is None else torch.as_tensor(np.asarray(pairs))
    if pairs is None and len(queries) != len(documents):
        raise ShapeError(
            f"{len(queries)} queries and {len(documents)} documents: row i belongs to row i, so "
            "there must be as many; or give pairs=[(query row, document row), ...]"
        )
    if numbers.ndim != 2 or numbers.shape[1] != 2 or numbers.is_floating_point() or len(numbers) == 0:
        raise ShapeError(
            "pairs must be rows of (query row, document row) as whole numbers, "
            f"got shape {list(numbers.shape)}"
        )
    if bool((numbers < 0).any() | (numbers >= torch.tensor([len(queries), len(documents)])).any()):
        raise ShapeError(
            f"pairs name rows that are not there; queries have rows 0 to {len(queries) - 1}, documents 0 to "
            f"{len(documents) - 1}"
        )
    query_of, first_query = same_items(unit_rows(queries))
    document_of, first_document = same_items(unit_rows(documents))
    linked = torch.stack([query_of[numbers[:, 0]], document_of[numbers[:, 1]]], dim=1)
    linked = torch.unique(linked, dim=0)
    return documents[first_document], TrainingPairs(queries[first_query], linked[:, 0], linked[:, 1])


def check_labels(labels: Labels, items: int) -> None:
    """Refuse labels that hold nothing to learn.

    Args:
        labels: Class of each row, -1 where it is not known.
        items: How many rows there are.

    Raises:
        DataError: If their number differs, one class only is known, or no class has two items.
    """
    if len(labels) != items:
        raise DataError(f"{len(labels)} labels for {items} rows; one for each row is needed")
    known = torch.unique(labels[labels >= 0])
    if len(known) < 2:
        raise DataError(
            f"the labels name {len(known)} class{'es' if len(known) != 1 else ''}; at least 2 are needed "
            "to tell apart. Without labels, fit(X) keeps the neighbourhoods"
        )
    if not _has_pair(labels):
        raise DataError(
            f"each of the {len(known)} classes has one item, so there is no pair to learn from; "
            "at least one class needs 2"
        )


def _has_pair(labels: Tensor) -> bool:
    known: Tensor = labels[labels >= 0]
    return len(torch.unique(known)) < len(known)


def _some(rows: Tensor, most: int, seed: int) -> Tensor:
    if len(rows) <= most:
        return rows
    return rows[torch.from_numpy(np.sort(np.random.default_rng([seed, 2]).permutation(len(rows))[:most]))]
