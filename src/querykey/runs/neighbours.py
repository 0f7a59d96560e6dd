"""What queries find among rows, before and after: neighbours, the place of the right answer, intervals."""

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

__all__ = ["SHOWN_K", "Answer", "Compared", "Kind", "Looked", "Neighbourhood", "Side", "drawn", "look_among"]

ASKED = 1000
"""Queries asked at the most: enough for an interval of a point or two."""
FOUND = 10
"""Neighbours compared."""
SHOWN, SHOWN_K = 8, 5
"""Queries in a gallery, and answers to each."""
ELEMENTS = 2**24
"""Scores held at once: 64 MB, whatever the data."""
SEED = 0
"""Of what is drawn: the same features give the same report."""

Kind = Literal["labels", "pairs", "neighbours"]
"""What says which answer is right: classes, pairs, or nothing."""


class Side(NamedTuple):
    """Rows of one embedding.

    Args:
        name: Such as "frozen" or "adapted".
        rows: Of the items.
        queries: Of the queries of pairs; None without pairs.
    """

    name: str
    rows: Rows
    queries: Rows | None


@dataclass(frozen=True)
class Answer:
    """One row that was found.

    Args:
        item: Its number.
        score: Cosine.
        is_right: Whether it belongs to the query; None where nothing tells.
    """

    item: int
    score: float
    is_right: bool | None


@dataclass(frozen=True)
class Looked:
    """A query with what it finds.

    Args:
        query: Its number: among the queries of pairs, otherwise among the items.
        found: A list a side, best first.
        new: How many of the answers after were not there before.
        ranks: Where the first right answer stands, a side, from 1; none where nothing tells.
    """

    query: int
    found: Sequence[Sequence[Answer]]
    new: int = 0
    ranks: Sequence[int] = ()


@dataclass(frozen=True)
class Compared:
    """A metric, before and after.

    Args:
        name: Of the metric.
        sides: One interval a side.
        difference: Last side minus first, paired; None where there is one side.
    """

    name: str
    sides: Sequence[Interval]
    difference: Interval | None


@dataclass(frozen=True)
class Neighbourhood:
    """What queries find.

    Args:
        kind: What says which answer is right.
        asked: How many queries were asked.
        compared: Metrics.
        changed: Queries whose answers changed most, most first.
        failures: Queries whose first right answer stands lowest on the last side, lowest first.
    """

    kind: Kind
    asked: int
    compared: Sequence[Compared]
    changed: Sequence[Looked]
    failures: Sequence[Looked]


class _Found(NamedTuple):
    scores: TopScores
    items: Neighbours
    right: Tensor | None
    ranks: Tensor | None


def look_among(features: Features, sides: Sequence[Side]) -> Neighbourhood:
    """Ask the same queries on each side.

    Args:
        features: What the rows are of: their labels or pairs say which answer is right.
        sides: At least one; the last is "after".

    Returns:
        What they find.
    """
    kind, asked = _asked(features)
    found = [_find(features, kind, asked, side) for side in sides]
    looked = [_look(row, query, found) for row, query in enumerate(asked.tolist())]
    changed = sorted((one for one in looked if one.new), key=_change)
    missed = [one for one in looked if one.ranks and one.ranks[-1] > 1]
    failures = sorted(missed, key=lambda one: (-one.ranks[-1], one.query))
    return Neighbourhood(kind, len(asked), _compared(kind, found), changed[:SHOWN], failures[:SHOWN])


def drawn(count: int, most: int) -> Numbers:
    """So many numbers at the most, in order, and always the same.

    Args:
        count: They are below it.
        most: How many.

    Returns:
        Numbers.

    Example:
        >>> drawn(3, 5).tolist(), len(drawn(100, 5))
        ([0, 1, 2], 5)
    """
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randperm(count, generator=generator)[:most].sort().values


def _asked(features: Features) -> tuple[Kind, Numbers]:
    """What says what is right, and queries that have something right to find."""
    if features.pairs is not None and features.queries is not None and len(features.pairs):
        having = torch.unique(features.pairs[:, 0])
        return "pairs", having[drawn(len(having), ASKED)]
    if features.labels is not None:
        classes, counts = torch.unique(features.labels[features.labels >= 0], return_counts=True)
        having = torch.isin(features.labels, classes[counts > 1]).nonzero()[:, 0]
        if len(having):
            return "labels", having[drawn(len(having), ASKED)]
    return "neighbours", drawn(len(features), ASKED)


def _find(features: Features, kind: Kind, asked: Numbers, side: Side) -> _Found:
    rows, count = side.rows, len(side.rows)
    if kind == "pairs":
        assert side.queries is not None
        asks = side.queries[asked]
        scores, index = nearest(asks, rows, min(FOUND, count))
    else:
        asks = rows[asked]
        scores, index = nearest(
            asks, rows, min(FOUND, count - 1), query_ids=asked, key_ids=torch.arange(count)
        )
    if kind == "neighbours":
        return _Found(scores, index, None, None)
    unit, at_once = unit_length(rows).float(), max(1, ELEMENTS // count)
    right, ranks = [], []
    for start in range(0, len(asked), at_once):
        part = slice(start, start + at_once)
        is_right = _is_right(features, kind, asked[part])
        every = unit_length(asks[part]).float() @ unit.T
        best = every.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        if kind == "labels":
            every[torch.arange(len(every)), asked[part]] = -torch.inf
        right.append(is_right.gather(1, index[part]))
        counted = 1 + ((every > best) & ~is_right).sum(dim=1)
        # among those found the place is exact, ties and all; beyond them it is counted
        place, beyond = right[-1].int().argmax(dim=1) + 1, counted.clamp(min=index.shape[1] + 1)
        ranks.append(torch.where(right[-1].any(dim=1), place, beyond))
    return _Found(scores, index, torch.cat(right), torch.cat(ranks))


def _is_right(features: Features, kind: Kind, asked: Numbers) -> Tensor:
    """Which items each query should find [queries, items]."""
    if kind == "labels":
        assert features.labels is not None
        right = features.labels[asked, None] == features.labels
        right[torch.arange(len(asked)), asked] = False
        return right
    assert features.pairs is not None
    place = torch.full((int(features.pairs[:, 0].max()) + 1,), -1)
    place[asked] = torch.arange(len(asked))
    own = features.pairs[place[features.pairs[:, 0]] >= 0]
    right = torch.zeros(len(asked), len(features), dtype=torch.bool)
    right[place[own[:, 0]], own[:, 1]] = True
    return right


def _look(row: int, query: int, found: Sequence[_Found]) -> Looked:
    lists = []
    for scores, index, right, _ in found:
        lists.append([
            Answer(item, score, None if right is None else bool(right[row, place]))
            for place, (item, score) in enumerate(zip(index[row].tolist(), scores[row].tolist(), strict=True))
            if item >= 0 and place < SHOWN_K
        ])  # fmt: skip
    before, after = ({answer.item for answer in side} for side in (lists[0], lists[-1]))
    ranks = [int(side.ranks[row]) for side in found if side.ranks is not None]
    return Looked(query, lists, len(after - before), ranks)


def _change(looked: Looked) -> tuple[int, int, int]:
    """What changed most comes first: more new answers, then more right ones won or lost."""
    before, after = (sum(answer.is_right is True for answer in looked.found[side]) for side in (0, -1))
    return -looked.new, -abs(after - before), looked.query


def _compared(kind: Kind, found: Sequence[_Found]) -> list[Compared]:
    right = [side.right for side in found if side.right is not None]
    width = found[0].items.shape[1]
    match kind:
        case "neighbours":
            if len(found) < 2:
                return []
            both = found[-1].items[:, :, None] == found[0].items[:, None, :]
            return [Compared(f"overlap@{width}", [bootstrap(both.any(dim=2).double().mean(dim=1))], None)]
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
    return [
        Compared(
            name, [bootstrap(side) for side in sides],
            paired_difference(sides[-1], sides[0]) if len(sides) > 1 else None,
        )
        for name, sides in columns.items()
    ]  # fmt: skip


def _reciprocal(right: Tensor) -> Tensor:
    """1 / place of each query's first right answer, 0 where none was found."""
    return right.any(dim=1) / (right.int().argmax(dim=1) + 1).double()
