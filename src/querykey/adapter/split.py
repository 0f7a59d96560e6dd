"""Split the data of a fit into training rows and held-out queries. Copies are never on both sides."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import ArrayLike
from torch import Tensor

from querykey.adapter.relevance import NEAR_EQUAL, same_items, unit_rows
from querykey.adapter.validation import copies_of
from querykey.errors import DataError, ShapeError
from querykey.types import FrozenRows, Keys, Labels, Numbers, Queries

__all__ = [
    "Fold",
    "TrainingPairs",
    "check_labels",
    "class_folds",
    "distinct_pairs",
    "known_folds",
    "numbered_pairs",
    "query_folds",
    "renumbered_pairs",
    "row_fold",
]

FOLDS = 5
FOLDED_ROWS, FOLDED_QUERIES = 3_000, 1_000
"""Labelled rows, and queries, up to which each is held out once; above, one part is."""
MOST_HELD_OUT = 2_000
LEAST_CLASSES = 10
"""Classes below which nothing can be said of classes that a fit has not met."""


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
class Fold:
    """A held-out set and its queries; the other rows are fitted on.

    Args:
        held_out: Rows (or queries of pairs) that are not used in the fit.
        queries: The queries among them, one of each group of copies.
    """

    held_out: Numbers
    queries: Int64[Tensor, " queries"]


def known_folds(
    rows: FrozenRows, labels: Labels, *, share: float, seed: int, without: Numbers | None = None
) -> list[Fold]:
    """Hold out rows of the training classes: five folds up to 3,000 labelled rows, otherwise one set.

    Args:
        rows: Frozen rows of all items.
        labels: Class of each, -1 if unknown.
        share: Fraction to hold out in one set; 0: nothing is held out.
        seed: Random seed.
        without: Rows that are no queries, since their whole class is held out.

    Returns:
        Folds whose queries have another row, not a copy, of their class.
    """
    allowed = labels >= 0
    if without is not None:
        allowed[without] = False
    known = allowed.nonzero()[:, 0]
    draw = np.random.default_rng([seed, 1])
    if share == 0 or len(known) < 2:
        return []
    if int((labels >= 0).sum()) > FOLDED_ROWS:
        wanted = min(round(share * len(known)), MOST_HELD_OUT)
        return _nonempty([_one_part(rows, known[_shuffled(draw, len(known))], wanted)])
    items, first = same_items(unit_rows(rows, known))
    members: list[list[int]] = [[] for _ in range(FOLDS)]
    place = 0
    groups = torch.from_numpy(draw.permutation(len(first)))
    of_class = labels[known[first[groups]]]
    for label in torch.unique(of_class):
        own = groups[of_class == label]
        if len(own) < 2:  # nothing else to find
            continue
        for group in own.tolist():
            members[place % FOLDS].append(group)
            place += 1
    return _nonempty([_fold_of(known, items, first, torch.tensor(some)) for some in members])


def class_folds(rows: FrozenRows, labels: Labels, *, share: float, seed: int) -> list[Fold]:
    """Hold out all rows of some classes: five folds up to 3,000 labelled rows, otherwise one set.

    Args:
        rows: Frozen rows of all items.
        labels: Class of each, -1 if unknown.
        share: Fraction to hold out in one set; 0: nothing is held out.
        seed: Random seed.

    Returns:
        Folds; none if fewer than ten classes have two rows.
    """
    known = (labels >= 0).nonzero()[:, 0]
    classes, counts = torch.unique(labels[known], return_counts=True)
    classes, counts = classes[counts > 1], counts[counts > 1]
    if share == 0 or len(classes) < LEAST_CLASSES:
        return []
    draw = np.random.default_rng([seed, 4])
    order = classes[_shuffled(draw, len(classes))]
    if len(known) > FOLDED_ROWS:
        parts = [order[: max(2, round(share * len(classes)))]]
    else:
        parts = [order[i::FOLDS] for i in range(FOLDS)]
    folds = []
    for part in parts:
        held_out = torch.isin(labels, part).nonzero()[:, 0]
        queries = held_out[_shuffled(draw, len(held_out))[:MOST_HELD_OUT]]
        _, first = same_items(unit_rows(rows, queries))
        folds.append(Fold(held_out, queries[first].sort().values))
    return _nonempty(folds)


def row_fold(rows: FrozenRows, *, share: float, seed: int, most: int = MOST_HELD_OUT) -> list[Fold]:
    """Hold out a part of rows that have no labels, and all copies of them.

    Args:
        rows: Frozen rows.
        share: To hold out; 0: nothing is.
        seed: Of the draw.
        most: Rows at the most.

    Returns:
        One fold, or none where there are fewer than two queries.
    """
    wanted = min(round(share * len(rows)), most)
    if wanted < 2:
        return []
    order = _shuffled(np.random.default_rng([seed, 1]), len(rows))
    fold = _one_part(rows, order, wanted)
    return [fold] if len(fold.queries) >= 2 and len(fold.held_out) < len(rows) - 1 else []


def query_folds(queries: int, answered: Numbers, *, share: float, seed: int) -> list[Fold]:
    """Hold queries out, with all their pairs: five folds up to 1,000 queries, one part above.

    Args:
        queries: How many there are.
        answered: Those that have a document; the others are neither queries nor fitted on.
        share: To hold out in one part; 0: nothing is.
        seed: Of the draw.

    Returns:
        Folds; none where fewer than 10 queries have an answer.
    """
    assert int(answered.max()) < queries
    order = answered[_shuffled(np.random.default_rng([seed, 1]), len(answered))]
    if share == 0 or len(order) < 2 * FOLDS:
        return []
    if len(order) > FOLDED_QUERIES:
        parts = [order[: min(round(share * len(order)), MOST_HELD_OUT)]]
    else:
        parts = [order[i::FOLDS] for i in range(FOLDS)]
    return _nonempty([Fold(part.sort().values, part.sort().values) for part in parts])


def distinct_pairs(
    queries: Queries, documents: Keys, pairs: ArrayLike | None
) -> tuple[Tensor, TrainingPairs, str | None]:
    """Name each query and each document once: equal and near-equal rows are one.

    Args:
        queries: Frozen rows of queries [queries, width].
        documents: Frozen rows of documents [documents, width].
        pairs: (query row, document row) [pairs, 2]; row i with row i where None.

    Returns:
        (the distinct documents, the pairs of distinct queries and documents, how many rows were merged or
        None). Queries without a pair are left out; documents without one stay, for they can be found.

    Raises:
        ShapeError: If rows do not match, or pairs name rows that are not there.
    """
    rows = torch.arange(len(queries))
    numbers = torch.stack([rows, rows], dim=1) if pairs is None else pairs
    if pairs is None and len(queries) != len(documents):
        raise ShapeError(
            f"{len(queries)} queries and {len(documents)} documents: row i belongs to row i, so "
            "there must be as many; or give pairs=[(query row, document row), ...]"
        )
    numbers = numbered_pairs(numbers, len(queries), len(documents))
    there, place = torch.unique(numbers[:, 0], return_inverse=True)
    queries = queries[there]
    query_of, first_query = same_items(unit_rows(queries))
    document_of, first_document = same_items(unit_rows(documents))
    linked = torch.stack([query_of[place], document_of[numbers[:, 1]]], dim=1)
    linked = torch.unique(linked, dim=0)
    merged = {
        "queries": len(queries) - len(first_query), "documents": len(documents) - len(first_document),
    }  # fmt: skip
    counts = " and ".join(f"{count:,} {side}" for side, count in merged.items() if count)
    note = f"merged {counts} with another one, at a cosine of {NEAR_EQUAL} or more" if counts else None
    training = TrainingPairs(queries[first_query], linked[:, 0], linked[:, 1])
    return documents[first_document], training, note


def numbered_pairs(pairs: ArrayLike, queries: int, documents: int) -> Tensor:
    """Check pairs of row numbers.

    Args:
        pairs: (query row, document row) [pairs, 2].
        queries: Number of queries.
        documents: Number of documents.

    Returns:
        int64 [pairs, 2].

    Raises:
        ShapeError: If they are no pairs of whole numbers, or name rows that are not there.
    """
    if isinstance(pairs, Tensor):
        pairs = pairs.detach().cpu()
        pairs = pairs.double() if pairs.is_floating_point() else pairs
    if np.ma.is_masked(pairs):
        raise ShapeError("pairs is a masked array with missing numbers; leave out the pairs that have one")
    given = np.asarray(pairs)
    if given.dtype == object and all(isinstance(v, int | np.integer) for v in given.flat):
        given = given.astype(np.int64)
    if given.ndim != 2 or given.shape[1] != 2 or given.dtype.kind not in "iu" or len(given) == 0:
        raise ShapeError(
            "pairs must be rows of (query row, document row) as whole numbers, "
            f"got {given.dtype} of shape {list(given.shape)}"
        )
    numbers = torch.from_numpy(given.astype(np.int64))
    if bool((numbers < 0).any() | (numbers >= torch.tensor([queries, documents])).any()):
        raise ShapeError(
            f"pairs name rows that are not there; queries have rows 0 to {queries - 1}, documents 0 to "
            f"{documents - 1}"
        )
    return numbers


def renumbered_pairs(pairs: Tensor, kept: Tensor) -> Tensor:
    """Renumber pairs after rows are left out.

    Args:
        pairs: (query, row) by number [pairs, 2].
        kept: Mask of the remaining rows [rows].

    Returns:
        int64 [remaining pairs, 2].
    """
    there = pairs[kept[pairs[:, 1]]]
    return torch.stack([there[:, 0], (kept.cumsum(0) - 1)[there[:, 1]]], dim=1)


def check_labels(labels: Labels, items: int) -> None:
    """Check that labels have at least two classes.

    Args:
        labels: Class of each row, -1 if unknown.
        items: Number of rows.

    Raises:
        DataError: If their number differs, or there are fewer than two classes.
    """
    if len(labels) != items:
        raise DataError(f"{len(labels)} labels for {items} rows; one for each row is needed")
    known = torch.unique(labels[labels >= 0])
    if len(known) < 2:
        raise DataError(
            f"the labels name {len(known)} class{'es' if len(known) != 1 else ''}; at least 2 are needed "
            "to separate. Without labels, fit(X) preserves neighbourhoods"
        )


def _one_part(rows: Tensor, order: Tensor, wanted: int) -> Fold:
    """Hold out rows in this order, each with its copies, until there are `wanted`."""
    held_out = torch.zeros(len(rows), dtype=torch.bool)
    queries = []
    for number, copies in zip(order[:wanted].tolist(), copies_of(rows, order[:wanted]), strict=True):
        if int(held_out.sum()) >= wanted:
            break
        if not held_out[number]:
            queries.append(number)
            held_out[copies] = True
    return Fold(held_out.nonzero()[:, 0], torch.tensor(sorted(queries), dtype=torch.int64))


def _fold_of(known: Tensor, items: Tensor, first: Tensor, groups: Tensor) -> Fold:
    if not len(groups):
        return Fold(known[:0], known[:0])
    return Fold(known[torch.isin(items, groups)], known[first[groups]].sort().values)


def _nonempty(folds: list[Fold]) -> list[Fold]:
    return [fold for fold in folds if len(fold.queries)]


def _shuffled(draw: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(draw.permutation(count))
