"""Rank the keys of a look-up for each query, in blocks, and keep what the metrics need.

Metrics such as MAP@R look as deep as a query has relevant keys, which can be thousands. So the
whole order is wanted, not a short list. Scores are made in float64 and rounded to float32: equal
items then tie whatever the block they fall in, and ties go to the lower index.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup.lookup import Block, Lookup, Pairs
from querykey.types import PairMask, PerQuery, Scores

__all__ = ["GradedPairs", "Metric", "Ranking", "is_finite", "measure_rankings", "rankings"]

QUERY_BLOCK = 1024
KEY_BLOCK = 4096
NOT_ELIGIBLE = torch.iinfo(torch.int64).min
LOWEST_FIRST = 2**32 - 1


@dataclass(frozen=True, eq=False)
class GradedPairs:
    """(query, key, grade) triples: a key with a grade above 0 is relevant, every other one is not.

    Args:
        triples: [pairs, 3], query row, key row, grade. A pair that is there twice counts once,
            with its higher grade.
        queries: How many queries there are.
        keys: How many keys there are.

    Raises:
        ShapeError: If a row is outside its range.

    Example:
        >>> pairs = GradedPairs(torch.tensor([[0, 2, 3], [1, 0, 1]]), queries=2, keys=3)
        >>> pairs.grades(0, 3).int().tolist()
        [[0, 0, 3], [1, 0, 0]]
    """

    triples: Int64[Tensor, "pairs 3"]
    queries: int
    keys: int
    first: int = 0

    def __post_init__(self) -> None:
        for name, column, count in (("query", 0, self.queries + self.first), ("key", 1, self.keys)):
            rows = self.triples[:, column]
            if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < count):
                raise ShapeError(
                    f"pairs name {name} rows {int(rows.min())} to {int(rows.max())}, but there are {count}; "
                    "the pairs must belong to these queries and keys"
                )

    def grades(self, start: int, stop: int) -> Scores:
        """The grade of each query with keys start to stop, 0 where there is no pair."""
        query, key, grade = self.triples.T
        here = (key >= start) & (key < stop)
        dense = torch.zeros(self.queries, stop - start)
        flat = (query[here] - self.first) * (stop - start) + key[here] - start
        dense.view(-1).scatter_reduce_(0, flat, grade[here].float(), "amax")
        return dense

    def block(self, start: int, stop: int) -> tuple[PairMask, PairMask]:
        """(relevant, not relevant) of keys start to stop."""
        relevant = self.grades(start, stop) > 0
        return relevant, ~relevant

    def rows(self, start: int, stop: int) -> "GradedPairs":
        """The same for queries start to stop."""
        low, high = self.first + start, self.first + min(stop, self.queries)
        is_within = (self.triples[:, 0] >= low) & (self.triples[:, 0] < high)
        return replace(self, triples=self.triples[is_within], queries=high - low, first=low)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best keys of each query and what they are worth.

    Args:
        grades: The grade of the 1st, 2nd, ... key found; 0 is not relevant, and where there are
            fewer keys than columns.
        ideal: The same if the keys came in the best order there is.
        relevant: How many keys are relevant to each query, found or not.
    """

    grades: Float[Tensor, "queries depth"]
    ideal: Float[Tensor, "queries depth"]
    relevant: Int64[Tensor, " queries"]

    @property
    def hits(self) -> PairMask:
        """Whether the 1st, 2nd, ... key is relevant [queries, depth]."""
        return self.grades > 0

    def first(self, k: int) -> "Ranking":
        """The ranking cut after k keys.

        Raises:
            RangeError: If k is not positive or the ranking is not so deep.
        """
        if not 1 <= k <= self.grades.shape[1]:
            raise RangeError(f"the ranking is {self.grades.shape[1]} deep, got k={k}; rank at least k keys")
        return replace(self, grades=self.grades[:, :k], ideal=self.ideal[:, :k])


Metric = Callable[[Ranking], PerQuery]


@in_default_torch_state
def measure_rankings(
    lookup: Lookup, metrics: Mapping[str, Metric], *, depth: int = 10
) -> dict[str, PerQuery]:
    """Rank once and take every metric from it; memory doesn't grow with queries x keys.

    Args:
        lookup: Positive pairs are relevant, negative ones not, and a key that is neither (the
            query's own item, an unlabelled item) is not in its ranking.
        metrics: Name to function of a `Ranking`.
        depth: Keys each ranking holds at least.

    Returns:
        Name to one number a query, NaN where the query has nothing to find.

    Raises:
        DataError: If rows are not finite or there are none.

    Example:
        >>> from querykey.evaluation.retrieval import hit_at
        >>> pairs = GradedPairs(torch.tensor([[0, 1, 1]]), queries=1, keys=2)
        >>> lookup = Lookup(torch.tensor([[1.0, 0.0]]), torch.eye(2), pairs)
        >>> metrics = {"hit@1": lambda r: hit_at(r, 1), "hit@2": lambda r: hit_at(r, 2)}
        >>> measure_rankings(lookup, metrics, depth=2)
        {'hit@1': tensor([0.]), 'hit@2': tensor([1.])}
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in metrics}
    for ranking in rankings(lookup, depth=depth):
        for name, metric in metrics.items():
            parts[name].append(metric(ranking))
    return {name: torch.cat(values) for name, values in parts.items()}


def rankings(lookup: Lookup, *, depth: int = 10) -> Iterator[Ranking]:
    """The rankings of a look-up, some queries at a time and in order.

    Each is as deep as `depth`, or as the most relevant keys that one of its queries has.

    Raises:
        DataError: If rows are not finite or there are none.
        RangeError: If depth is not positive.
    """
    if depth < 1:
        raise RangeError(f"a ranking needs depth of at least 1, got {depth}")
    if not len(lookup) or not len(lookup.keys):
        raise DataError(f"nothing to rank: {len(lookup)} queries and {len(lookup.keys)} keys; need 1 of each")
    if not (is_finite(lookup.queries) and is_finite(lookup.keys)):
        raise DataError("embeddings hold NaN or infinite numbers, which have no rank; look at the model")
    for start in range(0, len(lookup), QUERY_BLOCK):
        rows = lookup.rows(start, start + QUERY_BLOCK)
        yield _rank(replace(rows, queries=rows.queries.double()), depth)


def is_finite(rows: Tensor) -> bool:
    """Whether there is no NaN and no infinity, looked at in blocks."""
    blocks = range(0, len(rows), KEY_BLOCK)
    return all(bool(torch.isfinite(rows[i : i + KEY_BLOCK]).all()) for i in blocks)


class _Best(NamedTuple):
    order: Tensor  # [queries, depth] int64: greater is better, no two alike
    grades: Tensor  # [queries, depth]


def _rank(lookup: Lookup, depth: int) -> Ranking:
    relevant, ideal = _ideal(lookup, depth)
    depth = max(depth, int(relevant.max()))
    best: _Best | None = None
    for block in lookup.blocks(KEY_BLOCK):
        here = _top(_Best(_order(block), _block_grades(lookup.pairs, block)), depth)
        best = here if best is None else _top(_Best(*map(_beside, best, here)), depth)
    assert best is not None
    grades = best.grades.float().masked_fill(best.order == NOT_ELIGIBLE, 0.0)
    return Ranking(_widened(grades, depth), _widened(ideal, depth), relevant)


def _ideal(lookup: Lookup, depth: int) -> tuple[Tensor, Tensor]:
    """How many keys are relevant, and the greatest grades in order."""
    starts = range(0, len(lookup.keys), KEY_BLOCK)
    ends = [(start, min(start + KEY_BLOCK, len(lookup.keys))) for start in starts]
    if not isinstance(lookup.pairs, GradedPairs):
        relevant = torch.stack([lookup.pairs.block(*end)[0].sum(dim=1) for end in ends]).sum(dim=0)
        places = torch.arange(max(depth, int(relevant.max())))
        return relevant, (places[None, :] < relevant[:, None]).float()
    relevant, ideal = torch.zeros(len(lookup), dtype=torch.int64), torch.zeros(len(lookup), 0)
    for end in ends:
        grades = lookup.pairs.grades(*end)
        relevant += (grades > 0).sum(dim=1)
        both = _beside(ideal, grades)
        ideal = both.topk(min(depth, both.shape[1]), dim=1).values
    return relevant, ideal


def _block_grades(pairs: Pairs, block: Block) -> Tensor:
    """Grades where there are any; a plain positive is worth 1."""
    if isinstance(pairs, GradedPairs):
        return pairs.grades(block.start, block.start + block.scores.shape[1])
    return block.positive


def _order(block: Block) -> Tensor:
    """One int64 a pair that sorts by score and then by lower index: the float's bits, then the index."""
    # adding 0 turns -0.0, whose bits differ, into 0.0
    bits = block.scores.float().add_(0.0).view(torch.int32)
    rising = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))
    index = torch.arange(block.start, block.start + bits.shape[1])
    # in place: fresh matrices of this size cost as much as the product of the embeddings
    order = rising.long().bitwise_left_shift_(32).add_(LOWEST_FIRST - index)
    return order.masked_fill_((block.positive | block.negative).logical_not_(), NOT_ELIGIBLE)


def _top(best: _Best, depth: int) -> _Best:
    order, at = best.order.topk(min(depth, best.order.shape[1]), dim=1)
    return _Best(order, best.grades.gather(1, at))


def _beside(left: Tensor, right: Tensor) -> Tensor:
    return torch.cat([left, right], dim=1)


def _widened(values: Tensor, depth: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, max(0, depth - values.shape[1])))
