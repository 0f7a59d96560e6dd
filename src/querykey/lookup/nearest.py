"""The exact best keys of each query, computed in blocks, with deterministic ties.

A block's scores are rounded differently by every matrix product, so they only propose: a few more
candidates than are wanted. These are scored again, row by row in float64, and sorted by score and
then by index. Where a key left out could tie with the last one kept, the query is scanned whole.
So block sizes, threads and the precision of the product change the time, never the list. A key that holds
NaN or infinity is never found, and a query that does finds nothing.

Products propose in bfloat16 where that is measured to be faster: a query is settled if its k-th exact score
is above the best score left out by more than the rounding could have moved it, a bound from the lengths
of the rows and of their rounding errors. The other queries are scored again in float32.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import RangeError, ShapeError, require_choice
from querykey.lookup.fast_dtype import fast_dtype
from querykey.lookup.lookup import Score
from querykey.lookup.unit_length import in_range, unit_length
from querykey.types import KeyIds, Keys, Neighbours, PerQuery, Queries, QueryIds, TopScores

__all__ = [
    "TIE", "best_first", "best_of_blocks", "in_fast_blocks", "nearest", "rough_cosines", "rows_not_finite",
    "settle", "without",
]  # fmt: skip

Answer = TypeVar("Answer")

SLACK = 8
"""Candidates beyond k: fewer near-ties than this at rank k, and no query is scanned whole."""
QUERY_BLOCK = 1024
KEY_BLOCK = 4096
QUERIES_AT_ONCE = 2**15
"""Queries that share a prepared block of keys; 12 bytes are stored for each of their candidates."""
MANY_QUERIES = 64
"""Fewer, and rounding the keys takes longer than the product saves."""
ELEMENTS = 2**25
"""Numbers of the candidates that are read at once for exact scores: k may be the number of keys."""
FEW_COPIES = 32
"""Own keys of a query up to which they are proposed and left out again; of more, products are masked."""
GROUP = 16
"""Columns of which the maximum is compared first; the fastest of 16, 32 and 64 for 28 and 201 keys."""
LEAST_SETTLED = 0.5
"""Where bfloat16 settles fewer queries, float32 proposes for the rest: near-equal rows."""
TIE = 4e-6
"""How far float32 scores of unit rows may be from the truth; two closer than this may be tied."""


@in_default_torch_state
def nearest(
    queries: Queries,
    keys: Keys,
    k: int,
    *,
    query_ids: QueryIds | None = None,
    key_ids: KeyIds | None = None,
    score: Score = "cosine",
) -> tuple[TopScores, Neighbours]:
    """The k best keys of each query, exactly.

    Args:
        queries: [queries, dim], any float dtype.
        keys: [keys, dim], any float dtype; may be memory-mapped, and is read block by block.
        k: Keys wanted per query, at least 1.
        query_ids: With `key_ids`: a query's own item is left out, every copy of it.
        key_ids: Which item each key is.
        score: "cosine" or "dot".

    Returns:
        (scores [queries, k] float32, indices [queries, k] int64), best first, ties to the lower
        index. Where fewer than k keys are eligible, the rest is -inf and -1.

    Raises:
        RangeError: If k is not positive.
        ConfigError: If score is another word.
        ShapeError: If queries and keys are not of one width.

    Example:
        >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> nearest(keys[:1], keys, 2)[1].tolist()
        [[0, 2]]
    """
    if k < 1:
        raise RangeError(f"k must be at least 1, got {k}")
    require_choice("score", score, get_args(Score))
    if queries.shape[1] != keys.shape[1]:
        raise ShapeError(
            f"queries are {queries.shape[1]} wide and keys {keys.shape[1]}; they must be the same"
        )
    own = None
    if query_ids is not None and key_ids is not None:
        own = _Own(query_ids, key_ids, _most_copies(query_ids, key_ids))
    if len(queries) == 0 or len(keys) == 0:
        nothing = torch.full((len(queries), k), -torch.inf, device=queries.device)
        return nothing, torch.full_like(nothing, -1, dtype=torch.int64)
    found = in_fast_blocks(
        queries,
        keys,
        lambda at, dtype: _nearest_of(queries[at], keys, k, own and own.rows(at), score, dtype),
    )
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found])


class _Own(NamedTuple):
    """Which item each query and each key is, of which a query's own is left out."""

    query_ids: QueryIds
    key_ids: KeyIds
    copies: int
    """The most keys that are one query's own item."""

    def rows(self, at: slice | Tensor) -> "_Own":
        """The same for some of the queries."""
        return self._replace(query_ids=self.query_ids[at])


def in_fast_blocks(
    queries: Queries, keys: Keys, answer: Callable[[slice, torch.dtype], tuple[Answer, float]]
) -> list[Answer]:
    """Answer queries block by block, by products in `fast_dtype` as long as these settle most queries.

    The first block is small, to measure it: among near-equal rows every query would be multiplied twice.

    Args:
        queries: [queries, dim].
        keys: [keys, dim].
        answer: (queries, dtype of the products that propose) to (what is found, the share of the queries that
            these products settled).

    Returns:
        What is found, a block after the other.
    """
    is_large = len(queries) >= MANY_QUERIES and len(keys) >= KEY_BLOCK
    dtype = fast_dtype() if is_large and queries.device.type == "cpu" else torch.float32
    found, start = [], 0
    while start < len(queries):
        at = slice(start, start + (QUERIES_AT_ONCE if start or dtype == torch.float32 else QUERY_BLOCK))
        one, settled = answer(at, dtype)
        found.append(one)
        dtype = dtype if settled > LEAST_SETTLED else torch.float32
        start = at.stop
    return found


def rough_cosines(
    queries: Queries, keys: Keys, count: int, *, dtype: torch.dtype = torch.float32
) -> tuple[TopScores, Neighbours, PerQuery]:
    """The best cosines of each query as a matrix product rounds them: proposals, not settled.

    For callers that can bound the effect of a small difference in each score on their result and settle the
    few queries that need it: several times faster than `nearest` for many keys.

    Args:
        queries: [queries, dim], any float dtype.
        keys: [keys, dim], any float dtype; may be memory-mapped, and is read block by block.
        count: Keys wanted per query, from 1 to the number of keys.
        dtype: What the rows are rounded to before their product, float32 or bfloat16.

    Returns:
        (scores [queries, count] float32, indices [queries, count] int64, error [queries]). Best first; ties
        are in arbitrary order. The scores are within `error` of the truth, and no key left out is above the
        last of them by more: `TIE` in float32.

    Raises:
        RangeError: If count is outside 1 to the number of keys.

    Example:
        >>> rough_cosines(torch.tensor([[1.0, 0.2]]), torch.eye(2), 1)[1].tolist()
        [[0]]
    """
    if not 1 <= count <= len(keys):
        raise RangeError(f"count must be from 1 to the {len(keys)} keys, got {count}")
    if not len(queries):
        return torch.empty(0, count), torch.empty(0, count, dtype=torch.int64), torch.empty(0)
    return _propose(unit_length(queries).float(), keys, count, "cosine", dtype)


def _propose(
    queries: Tensor, keys: Tensor, count: int, score: Score, dtype: torch.dtype, own: _Own | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(scores [queries, at most count], indices, error [queries]) of products in `dtype`, without the `own`.

    Queries are ready: of length 1 for cosine. A block of keys is prepared once for all queries.
    """
    rounded = queries.to(dtype)
    best: dict[int, tuple[Tensor, Tensor]] = {}
    longest = farthest = 0.0
    centre = torch.zeros(queries.shape[1])
    for start in range(0, len(keys), KEY_BLOCK):
        block, lost = _ready_keys(keys[start : start + KEY_BLOCK], score)
        if dtype != torch.float32:
            # The mean of the keys adds the same to all scores of a query. Without it rows are shorter, and
            # the rounding errors smaller.
            centre = centre if start else block[~lost].mean(dim=0).nan_to_num()
            block = block - centre
        rounded_block = block.to(dtype)
        if dtype != torch.float32:
            longest = max(longest, _longest(block))
            farthest = max(farthest, _longest(block - rounded_block.float()))
        for first in range(0, len(queries), QUERY_BLOCK):
            scores = without(rounded[first : first + QUERY_BLOCK] @ rounded_block.T, lost)
            if own is not None:
                mine, theirs = (
                    own.query_ids[first : first + QUERY_BLOCK],
                    own.key_ids[start : start + KEY_BLOCK],
                )
                scores.masked_fill_(mine[:, None] == theirs[None, :], -torch.inf)
            best[first] = _merge(best.get(first), scores, start, count)
    parts = [_ordered(*one) for one in best.values()]
    scores, index = torch.cat([s for s, _ in parts]), torch.cat([i for _, i in parts])
    if dtype == torch.float32:
        scale = torch.ones(()) if score == "cosine" else queries.norm(dim=1) * _longest(keys)
        return scores, index, (TIE * scale).expand(len(queries))
    lengths, residuals = queries.norm(dim=1), (queries - rounded.float()).norm(dim=1)
    # Cauchy-Schwarz for the rounding errors of query and key
    error = residuals * longest + lengths * farthest + residuals * farthest
    # The score itself is rounded too. Of a key left out, only a score up to the last one kept matters: the
    # true score that a rounded one may stand for rises with it.
    highest = scores.abs().masked_fill(scores == -torch.inf, 0.0).amax(dim=1)
    error = error + torch.finfo(dtype).eps / 2 * (highest + error) + TIE * lengths * (longest + centre.norm())
    return scores + queries @ centre[:, None], index, error


def best_of_blocks(blocks: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Merge the best `count` columns out of consecutive blocks of scores [queries, columns].

    Returns:
        (scores float32, indices) [queries, at most count], best first; ties in arbitrary order.
    """
    best: tuple[Tensor, Tensor] | None = None
    start = 0
    for scores in blocks:
        best = _merge(best, scores, start, count)
        start += scores.shape[1]
    if best is None:
        raise RangeError("there are no keys; at least one is needed")
    return _ordered(*best)


def _merge(
    best: tuple[Tensor, Tensor] | None, scores: Tensor, start: int, count: int
) -> tuple[Tensor, Tensor]:
    """The best columns so far and those of one more block, whose first column is number `start`.

    Once `count` columns are stored, only what exceeds the lowest of them matters. The maxima of groups of
    columns, one pass at the speed of memory, say where that is; a top-k of the whole block takes many passes.
    """
    columns = scores.shape[1]
    if best is not None and best[0].shape[1] == count and columns % GROUP == 0 and scores.is_contiguous():
        above = _above(scores, best[0].amin(dim=1, keepdim=True))
        if above is not None:
            return _join(best, *above, start, count)
    top, at = scores.topk(min(count, columns), dim=1, sorted=False)
    top, at = top.float(), at + start
    if best is not None:
        merged = torch.cat([best[0], top], dim=1)
        top, order = merged.topk(min(count, merged.shape[1]), dim=1, sorted=False)
        at = torch.cat([best[1], at], dim=1).gather(1, order)
    return top, at


def _ordered(scores: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted once, at the end: sorting some hundreds after each block took longer than finding them."""
    scores, order = scores.sort(dim=1, descending=True)
    return scores, index.gather(1, order)


def _above(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(rows, columns, scores) of all above the row's floor, sorted by row; None if over a quarter is.

    A group is every n-th column, so that its maximum is computed over whole vectors of neighbouring columns.
    """
    rows, columns = scores.shape
    groups = columns // GROUP
    # exact: a floor is one of the scores of an earlier block, so it has their dtype
    floor = floor.to(scores.dtype)
    found = (scores.view(rows, GROUP, groups).amax(dim=1) > floor).view(-1).nonzero()[:, 0]
    if 4 * len(found) < rows * groups:
        row = found // groups
        members = (row * columns + found % groups)[:, None] + torch.arange(0, columns, groups)
        at = members[scores.view(-1)[members] > floor[row]]
    else:
        at = (scores > floor).view(-1).nonzero()[:, 0]
    if 4 * len(at) > scores.numel():
        return None
    return at // columns, at % columns, scores.view(-1)[at].float()


def _join(
    best: tuple[Tensor, Tensor], row: Tensor, column: Tensor, values: Tensor, start: int, count: int
) -> tuple[Tensor, Tensor]:
    """Add single scores, sorted by row, to the best columns of each row."""
    if not len(row):
        return best
    many = torch.bincount(row, minlength=len(best[0]))
    place = torch.arange(len(row)) - (many.cumsum(0) - many)[row]
    width = int(many.max())
    scores = torch.full((len(many), width), -torch.inf).index_put_((row, place), values)
    index = torch.zeros(len(many), width, dtype=torch.int64).index_put_((row, place), column + start)
    top, order = torch.cat([best[0], scores], dim=1).topk(count, dim=1, sorted=False)
    return top, torch.cat([best[1], index], dim=1).gather(1, order)


def settle(
    proposed: tuple[Tensor, Tensor],
    k: int,
    floor: Tensor,
    error: Tensor,
    exact: Callable[[Tensor, Tensor], Tensor],
    scan: Callable[[int], Tensor],
) -> tuple[TopScores, Neighbours]:
    """Turn proposals into the exact list: scored again, sorted by score, then by index.

    Args:
        proposed: (scores, indices) [queries, candidates] of `best_of_blocks`; -inf is not eligible.
        k: Keys wanted per query.
        floor: A score that nothing left out of the proposals exceeds [queries].
        error: How far float32 scores of a query may be from the truth [queries].
        exact: (query rows [n], candidates [n, c]) to their scores in float64 [n, c].
        scan: A query's row to the float32 scores of all keys, -inf where not eligible.

    Returns:
        (scores [queries, k] float32, indices [queries, k]), padded with -inf and -1.
    """
    top, best, unsure = _rescore(proposed, k, floor, error, exact)
    # A key that was left out may score within rounding of the k-th; without the full scan of such queries,
    # the result would depend on the block size.
    for row in (unsure & (floor > -torch.inf)).nonzero()[:, 0].tolist():
        everything = scan(row)
        near = ((everything >= top[row, -1] - error[row]) & (everything > -torch.inf)).nonzero().T
        settled = exact(torch.tensor([row]), near).float()
        top[row], best[row] = (part[0] for part in best_first(settled, near, k))
    return top, best.masked_fill(top == -torch.inf, -1)


def _rescore(
    proposed: tuple[Tensor, Tensor],
    k: int,
    floor: Tensor,
    error: Tensor,
    exact: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """(exact scores of the best k proposals, indices, whether a key left out could belong to them)."""
    rough, index = proposed
    scores = exact(torch.arange(len(rough)), index).float().masked_fill(rough == -torch.inf, -torch.inf)
    top, best = best_first(scores, index, k)
    # not "<=": a bound that is NaN, of magnitudes that the dtype cannot hold, settles nothing
    return top, best, (floor != -torch.inf) & ~(top[:, -1] - floor > error)


def best_first(scores: Tensor, index: Tensor, k: int) -> tuple[TopScores, Neighbours]:
    """The k best columns, ties to the lower index.

    Args:
        scores: [queries, columns].
        index: Of the keys they are of, likewise.
        k: Columns wanted; where there are fewer, the rest is -inf and -1.

    Returns:
        (scores, indices), both [queries, k].
    """
    index, order = index.sort(dim=1)
    scores, by_score = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, by_score)
    missing = max(0, k - index.shape[1])
    return F.pad(scores, (0, missing), value=-torch.inf)[:, :k], F.pad(index, (0, missing), value=-1)[:, :k]


def _nearest_of(
    queries: Tensor, keys: Tensor, k: int, own: _Own | None, score: Score, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], float]:
    """((scores, indices), share that the first proposals settled)."""
    queries = in_range(queries).float() if score == "cosine" else queries.float()
    ready = unit_length(queries) if score == "cosine" else queries
    # A few own keys are proposed and left out again. Of many, the proposals would be queries times copies.
    has_many = own is not None and own.copies > FEW_COPIES
    few = 0 if own is None or has_many else own.copies
    count = k + (max(SLACK, k) if dtype == torch.bfloat16 else SLACK) + few
    proposed = _propose(ready, keys, count, score, dtype, own if has_many else None)
    unusable = rows_not_finite(queries)
    parts, open_rows = [], []
    for start in range(0, len(queries), QUERY_BLOCK):
        at = slice(start, start + QUERY_BLOCK)
        rough, index, error = (one[at] for one in proposed)
        rough = rough.masked_fill(unusable[at, None], -torch.inf)
        floor = rough[:, -1] if index.shape[1] < len(keys) else torch.full((len(rough),), -torch.inf)
        if own is not None:
            rough = rough.masked_fill(own.key_ids[index] == own.query_ids[at, None], -torch.inf)
        exact, scan = _scorers(queries[at], keys, own and own.rows(at), score)
        if dtype == torch.float32:
            parts.append(settle((rough, index), k, floor, error, exact, scan))
        else:
            top, best, unsure = _rescore((rough, index), k, floor, error, exact)
            parts.append((top, best.masked_fill(top == -torch.inf, -1)))
            open_rows.append(start + unsure.nonzero()[:, 0])
    scores, found = torch.cat([s for s, _ in parts]), torch.cat([i for _, i in parts])
    if not open_rows or not len(rows := torch.cat(open_rows)):
        return (scores, found), 1.0
    rest = own and own.rows(rows)
    (scores[rows], found[rows]), _ = _nearest_of(queries[rows], keys, k, rest, score, torch.float32)
    return (scores, found), 1.0 - len(rows) / len(queries)


def _scorers(
    queries: Tensor, keys: Tensor, own: _Own | None, score: Score
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int], Tensor]]:
    """The `exact` and `scan` of `settle` for a block of queries."""

    def exact(rows: Tensor, candidates: Tensor) -> Tensor:
        return exact_scores(queries[rows], keys, candidates, score)

    def scan(row: int) -> Tensor:
        every = torch.cat(list(_product_blocks(queries[row : row + 1], keys, score)), dim=1)[0]
        return every if own is None else every.masked_fill_(own.key_ids == own.query_ids[row], -torch.inf)

    return exact, scan


def exact_scores(queries: Tensor, keys: Tensor, candidates: Tensor, score: Score) -> Tensor:
    """Scores of queries [n, dim] with their own candidates [n, c], summed in float64: [n, c]."""
    step = max(1, ELEMENTS // max(1, candidates.shape[1] * keys.shape[1]))
    if len(queries) > step:
        parts = zip(queries.split(step), candidates.split(step), strict=True)
        return torch.cat([exact_scores(some, keys, theirs, score) for some, theirs in parts])
    chosen = keys.index_select(0, candidates.clamp(min=0).flatten())
    chosen = chosen.view(*candidates.shape, keys.shape[1])
    # a copy: it is multiplied in place
    chosen = (unit_length(chosen) if score == "cosine" else chosen).to(torch.float32)
    queries = unit_length(queries) if score == "cosine" else queries
    return chosen.mul_(queries[:, None, :]).sum(dim=2, dtype=torch.float64)


def _product_blocks(queries: Tensor, keys: Tensor, score: Score) -> Iterable[Tensor]:
    ready = unit_length(queries) if score == "cosine" else queries
    for start in range(0, len(keys), KEY_BLOCK):
        block, lost = _ready_keys(keys[start : start + KEY_BLOCK], score)
        yield without(ready @ block.T, lost)


def _ready_keys(block: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """(keys in float32, of length 1 for cosine; which of them are not finite)."""
    return (unit_length(block) if score == "cosine" else block).float(), rows_not_finite(block)


def rows_not_finite(rows: Tensor) -> Tensor:
    """Which rows hold NaN or infinity.

    Args:
        rows: [rows, dim], any float dtype.

    Returns:
        [rows], bool.
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not rows.shape[1]:
        return torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    return ~(rows.amax(dim=1).isfinite() & rows.amin(dim=1).isfinite())


def without(scores: Tensor, lost: Tensor) -> Tensor:
    """Set the scores of keys that are not finite to -inf, in place: `topk` takes NaN for the largest number.

    Args:
        scores: [queries, keys].
        lost: Which keys are not finite [keys], bool.

    Returns:
        The same tensor.
    """
    return scores.masked_fill_(lost[None, :], -torch.inf) if bool(lost.any()) else scores


def _most_copies(query_ids: QueryIds, key_ids: KeyIds) -> int:
    """The largest number of keys that are one query's own item."""
    ids = key_ids.sort().values
    first, last = torch.searchsorted(ids, query_ids), torch.searchsorted(ids, query_ids, right=True)
    return int((last - first).max()) if len(query_ids) else 0


def _longest(keys: Tensor) -> float:
    """The largest length of a finite row."""
    blocks = (keys[i : i + KEY_BLOCK].float() for i in range(0, len(keys), KEY_BLOCK))
    return max(float(block.norm(dim=1).nan_to_num(0.0, 0.0).max()) for block in blocks)
