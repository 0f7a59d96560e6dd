"""Nearest neighbours of sampled queries in one or two embeddings: retrieval metrics and examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from querykey.evaluation.intervals import Interval, bootstrap, paired_difference
from querykey.features.features import Features
from querykey.lookup.nearest import nearest
from querykey.lookup.unit_length import unit_length
from querykey.types import Neighbours, Numbers, Rows, TopScores

__all__ = [
    "Answer",
    "Kind",
    "MetricComparison",
    "Neighbourhood",
    "QueryResult",
    "Side",
    "compare_neighbours",
    "first_neighbours",
    "sample_indices",
]

MAX_QUERIES = 1000
"""Enough for an interval of one or two percentage points."""
FOUND = 10
"""Neighbours of a query that metrics use."""
SHOWN, SHOWN_K = 8, 5
"""Queries in a gallery, and neighbours shown for each."""
ELEMENTS = 2**24
"""Scores in memory at once: 64 MB."""
SEED = 0
"""A fixed seed, so that the same features give the same report."""

Kind = Literal["labels", "pairs", "neighbours"]
"""Source of the relevance judgements: classes, pairs, or none."""


class Side(NamedTuple):
    """Rows of one embedding.

    Args:
        name: Such as "frozen" or "adapted".
        rows: The items [items, dim].
        queries: The queries of pairs [queries, dim]; None without pairs.
    """

    name: str
    rows: Rows
    queries: Rows | None


@dataclass(frozen=True)
class Answer:
    """One neighbour of a query.

    Args:
        item: Its row number.
        score: Cosine similarity.
        is_right: Whether it is a positive of the query; None without relevance judgements.
    """

    item: int
    score: float
    is_right: bool | None


@dataclass(frozen=True)
class QueryResult:
    """A query and its neighbours.

    Args:
        query: Its row number: among the queries of pairs, otherwise among the items.
        found: One list of neighbours per side, best first.
        new: How many neighbours of the last side are not among those of the first.
        ranks: Rank of the first positive, per side, from 1; empty without relevance judgements.
    """

    query: int
    found: Sequence[Sequence[Answer]]
    new: int = 0
    ranks: Sequence[int] = ()


@dataclass(frozen=True)
class MetricComparison:
    """A metric on each side.

    Args:
        name: Name of the metric.
        sides: One interval per side.
        difference: Last side minus first, paired; None if there is one side.
    """

    name: str
    sides: Sequence[Interval]
    difference: Interval | None


@dataclass(frozen=True)
class Neighbourhood:
    """Metrics and examples of nearest neighbours.

    Args:
        kind: Source of the relevance judgements.
        num_queries: Number of queries.
        metrics: Metrics of all queries.
        changed: Queries whose neighbours changed most, most first.
        failures: Queries whose first positive has the lowest rank on the last side, worst first.
    """

    kind: Kind
    num_queries: int
    metrics: Sequence[MetricComparison]
    changed: Sequence[QueryResult]
    failures: Sequence[QueryResult]


class _Found(NamedTuple):
    scores: TopScores
    items: Neighbours
    right: Tensor | None
    ranks: Tensor | None


def compare_neighbours(features: Features, sides: Sequence[Side]) -> Neighbourhood:
    """Search the same queries on each side.

    Args:
        features: The features; their labels or pairs are the relevance judgements.
        sides: At least one; the first is "before", the last "after".

    Returns:
        Metrics and examples.
    """
    kind, queries = _choose_queries(features)
    found = [_find(features, kind, queries, side) for side in sides]
    results = [_result(row, query, found) for row, query in enumerate(queries.tolist())]
    changed = sorted((one for one in results if one.new), key=_change)
    missed = [one for one in results if one.ranks and one.ranks[-1] > 1]
    failures = sorted(missed, key=lambda one: (-one.ranks[-1], one.query))
    return Neighbourhood(kind, len(queries), _metrics(kind, found), changed[:SHOWN], failures[:SHOWN])


def sample_indices(count: int, most: int) -> Numbers:
    """A sorted random sample of indices, without replacement and with a fixed seed.

    Args:
        count: Indices are below it.
        most: Size of the sample; with fewer indices, all of them.

    Returns:
        Indices [at most `most`].

    Example:
        >>> sample_indices(3, 5).tolist(), len(sample_indices(100, 5))
        ([0, 1, 2], 5)
    """
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(count, generator=generator)[:most].sort().values


def _choose_queries(features: Features) -> tuple[Kind, Numbers]:
    """The source of the relevance judgements, and a sample of queries that have a positive."""
    if features.pairs is not None and features.queries is not None and len(features.pairs):
        candidates = torch.unique(features.pairs[:, 0])
        return "pairs", candidates[sample_indices(len(candidates), MAX_QUERIES)]
    if features.labels is not None:
        classes, counts = torch.unique(features.labels[features.labels >= 0], return_counts=True)
        candidates = torch.isin(features.labels, classes[counts > 1]).nonzero()[:, 0]
        if len(candidates):
            return "labels", candidates[sample_indices(len(candidates), MAX_QUERIES)]
    return "neighbours", sample_indices(len(features), MAX_QUERIES)


def _find(features: Features, kind: Kind, chosen: Numbers, side: Side) -> _Found:
    rows, count = side.rows, len(side.rows)
    if kind == "pairs":
        assert side.queries is not None
        queries = side.queries[chosen]
        scores, index = nearest(queries, rows, min(FOUND, count))
    else:
        queries = rows[chosen]
        k, ids = min(FOUND, count - 1), torch.arange(count)
        scores, index = nearest(queries, rows, k, query_ids=chosen, key_ids=ids)
    if kind == "neighbours":
        return _Found(scores, index, None, None)
    unit, at_once = unit_length(rows).float(), max(1, ELEMENTS // count)
    right, ranks = [], []
    for start in range(0, len(chosen), at_once):
        block = slice(start, start + at_once)
        is_right = _is_right(features, kind, chosen[block])
        every = unit_length(queries[block]).float() @ unit.T
        best = every.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        if kind == "labels":
            every[torch.arange(len(every)), chosen[block]] = -torch.inf
        right.append(is_right.gather(1, index[block]))
        counted = 1 + ((every > best) & ~is_right).sum(dim=1)
        # within the neighbours found the rank is exact, including ties; beyond them it is a count
        place, beyond = right[-1].int().argmax(dim=1) + 1, counted.clamp(min=index.shape[1] + 1)
        ranks.append(torch.where(right[-1].any(dim=1), place, beyond))
    return _Found(scores, index, torch.cat(right), torch.cat(ranks))


def _is_right(features: Features, kind: Kind, queries: Numbers) -> Tensor:
    """The positives of each query [queries, items]."""
    if kind == "labels":
        assert features.labels is not None
        right = features.labels[queries, None] == features.labels
        right[torch.arange(len(queries)), queries] = False
        return right
    assert features.pairs is not None
    place = torch.full((int(features.pairs[:, 0].max()) + 1,), -1)
    place[queries] = torch.arange(len(queries))
    pairs = features.pairs[place[features.pairs[:, 0]] >= 0]
    right = torch.zeros(len(queries), len(features), dtype=torch.bool)
    right[place[pairs[:, 0]], pairs[:, 1]] = True
    return right


def first_neighbours(scores: Tensor, index: Tensor, right: Tensor | None) -> list[Answer]:
    """The first neighbours of one query.

    Args:
        scores: Best first [k].
        index: Their row numbers [k]; -1 where there are fewer.
        right: Whether each is a positive [k]; None without relevance judgements.
    """
    return [
        Answer(int(index[place]), float(scores[place]), None if right is None else bool(right[place]))
        for place in range(min(SHOWN_K, len(index)))
        if index[place] >= 0
    ]


def _result(row: int, query: int, found: Sequence[_Found]) -> QueryResult:
    lists = [
        first_neighbours(side.scores[row], side.items[row], None if side.right is None else side.right[row])
        for side in found
    ]
    before, after = ({answer.item for answer in side} for side in (lists[0], lists[-1]))
    ranks = [int(side.ranks[row]) for side in found if side.ranks is not None]
    return QueryResult(query, lists, len(after - before), ranks)


def _change(result: QueryResult) -> tuple[int, int, int]:
    """Sort key: most new neighbours first, then the largest change in the number of positives."""
    before, after = (sum(answer.is_right is True for answer in result.found[side]) for side in (0, -1))
    return -result.new, -abs(after - before), result.query


def _metrics(kind: Kind, found: Sequence[_Found]) -> list[MetricComparison]:
    right = [side.right for side in found if side.right is not None]
    width = found[0].items.shape[1]
    match kind:
        case "neighbours":
            if len(found) < 2:
                return []
            both = found[-1].items[:, :, None] == found[0].items[:, None, :]
            return [
                MetricComparison(f"overlap@{width}", [bootstrap(both.any(dim=2).double().mean(dim=1))], None)
            ]
        case "labels":
            columns = {
                "R@1": [side[:, 0].double() for side in right],
                f"precision@{width}": [side.double().mean(dim=1) for side in right],
            }
        case "pairs":
            columns = {
                f"MRR@{FOUND}": [_reciprocal(side) for side in right],
                "R@1": [side[:, 0].double() for side in right],
            }
    compared = []
    for name, sides in columns.items():
        difference = paired_difference(sides[-1], sides[0]) if len(sides) > 1 else None
        compared.append(MetricComparison(name, [bootstrap(side) for side in sides], difference))
    return compared


def _reciprocal(right: Tensor) -> Tensor:
    """1 / rank of each query's first positive, 0 if none was found."""
    return right.any(dim=1) / (right.int().argmax(dim=1) + 1).double()
