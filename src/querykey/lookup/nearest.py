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

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import RangeError, ShapeError, require_choice
from querykey.lookup.best_columns import BestColumns
from querykey.lookup.fast_dtype import fast_dtype
from querykey.lookup.lookup import Score
from querykey.lookup.unit_length import are_plain, in_range, unit_length
from querykey.types import KeyIds, Keys, Neighbours, PerQuery, Queries, QueryIds, TopScores

__all__ = [
    "MANY_QUERIES", "SLACK", "TIE", "best_first", "in_fast_blocks", "nearest", "rough_cosines",
    "rows_not_finite", "settle", "without",
]  # fmt: skip

Answer = TypeVar("Answer")

SLACK = 8
"""Candidates beyond k: fewer near-ties than this at rank k, and no query is scanned whole."""
QUERY_BLOCK = 1024
KEY_BLOCK = 4096
QUERIES_AT_ONCE = 2**14
"""Queries that share a prepared block of keys; up to 16 bytes are stored for each of their candidates."""
MANY_QUERIES = 64
"""Fewer, and rounding the keys takes longer than the product saves."""
ELEMENTS = 2**25
"""Numbers of the candidates that are read at once for exact scores: k may be the number of keys."""
FEW_COPIES = 32
"""Own keys of a query up to which they are proposed and left out again; of more, products are masked."""
SAMPLE, SAMPLED = 2048, 16_384
"""Keys whose scores tell what the best of all keys probably exceed, and the fewest keys of which they do."""
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
) -> tuple[TopScores, Neighbours, PerQuery, PerQuery]:
    """The best cosines of each query as a matrix product rounds them: proposals, not settled.

    For callers that can bound the effect of a small difference in each score on their result and settle the
    few queries that need it: several times faster than `nearest` for many keys.

    Args:
        queries: [queries, dim], any float dtype.
        keys: [keys, dim], any float dtype; may be memory-mapped, and is read block by block.
        count: Keys wanted per query, from 1 to the number of keys.
        dtype: What the rows are rounded to before their product, float32 or bfloat16.

    Returns:
        (scores [queries, count] float32, indices [queries, count] int64, error [queries], floor [queries]).
        Best first; ties are in arbitrary order. The scores are within `error` of the truth, `TIE` in float32,
        and no key left out is above the floor by more. Of many keys fewer may be found: the rest is -inf
        and 0.

    Raises:
        RangeError: If count is outside 1 to the number of keys.

    Example:
        >>> rough_cosines(torch.tensor([[1.0, 0.2]]), torch.eye(2), 1)[1].tolist()
        [[0]]
    """
    if not 1 <= count <= len(keys):
        raise RangeError(f"count must be from 1 to the {len(keys)} keys, got {count}")
    if not len(queries):
        return torch.empty(0, count), torch.empty(0, count, dtype=torch.int64), torch.empty(0), torch.empty(0)
    return _propose(unit_length(queries).float(), keys, count, "cosine", dtype)


def _propose(
    queries: Tensor, keys: Tensor, count: int, score: Score, dtype: torch.dtype, own: _Own | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(scores [queries, at most count], indices, error [queries], floor [queries]) of products in `dtype`.

    The score of a key that is left out is at most the floor. Queries are ready: of length 1 for cosine. A
    block of keys is prepared once for all queries.
    """
    rounded = queries.to(dtype)
    sample, longest, farthest = _sample(len(keys), len(queries), count), 0.0, 0.0
    # The mean of the keys adds the same to all scores of a query. Without it rows are shorter, and the
    # rounding errors smaller.
    centre = torch.zeros(queries.shape[1])
    if dtype != torch.float32:
        block, lost = _ready_keys(keys[slice(KEY_BLOCK) if sample is None else sample], score)
        centre = block[~lost].mean(dim=0).nan_to_num()
    floors: list[Tensor | None] = [None] * len(torch.split(rounded, QUERY_BLOCK))
    if sample is not None:
        rows, lost = _ready_keys(keys[sample], score)
        rows, rank = (rows - centre).to(dtype), _rank(count * len(rows) / len(keys))
        for number, some in enumerate(torch.split(rounded, QUERY_BLOCK)):
            scores = _without_own(without(some @ rows.T, lost), own, number, sample)
            floors[number] = scores.topk(rank, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    best = [BestColumns(count, floor) for floor in floors]
    for start in range(0, len(keys), KEY_BLOCK):
        block, lost = _ready_keys(keys[start : start + KEY_BLOCK], score)
        if dtype != torch.float32:
            block = block - centre
        rounded_block = block.to(dtype)
        if dtype != torch.float32:
            longest = max(longest, _longest(block))
            farthest = max(farthest, _longest(block - rounded_block.float()))
        for number, (some, one) in enumerate(zip(torch.split(rounded, QUERY_BLOCK), best, strict=True)):
            scores = without(some @ rounded_block.T, lost)
            one.add(_without_own(scores, own, number, slice(start, start + KEY_BLOCK)), start)
    scores, index, floor = _joined([one.ordered() for one in best], min(count, len(keys)))
    if dtype == torch.float32:
        scale = torch.ones(()) if score == "cosine" else queries.norm(dim=1) * _longest(keys)
        return scores, index, (TIE * scale).expand(len(queries)), floor
    lengths, residuals = queries.norm(dim=1), (queries - rounded.float()).norm(dim=1)
    # Cauchy-Schwarz for the rounding errors of query and key
    error = residuals * longest + lengths * farthest + residuals * farthest
    # The score itself is rounded too. Of a key left out, only a score up to the last one kept matters: the
    # true score that a rounded one may stand for rises with it.
    highest = torch.cat([scores, floor[:, None]], dim=1)
    highest = highest.abs().masked_fill(highest == -torch.inf, 0.0).amax(dim=1)
    error = error + torch.finfo(dtype).eps / 2 * (highest + error) + TIE * lengths * (longest + centre.norm())
    shift = queries @ centre
    return scores + shift[:, None], index, error, floor + shift


def _sample(keys: int, queries: int, count: int) -> slice | None:
    """Keys that tell about how high a score is among the best; None where that does not pay."""
    is_large = queries >= MANY_QUERIES and keys >= SAMPLED and 4 * count <= keys
    return slice(None, None, keys // SAMPLE) if is_large else None


def _rank(expected: float) -> int:
    """The rank in the sample that seldom is above the wanted one: 1.5 standard deviations and some more."""
    return math.ceil(expected + 1.5 * math.sqrt(expected) + 3)


def _without_own(scores: Tensor, own: _Own | None, block: int, keys: slice) -> Tensor:
    """Scores of a block of queries with those of a query's own item at -inf."""
    if own is None:
        return scores
    mine = own.query_ids[QUERY_BLOCK * block : QUERY_BLOCK * (block + 1)]
    return scores.masked_fill_(mine[:, None] == own.key_ids[keys][None, :], -torch.inf)


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lists of blocks of queries, filled up to one width."""
    scores = [F.pad(one, (0, width - one.shape[1]), value=-torch.inf) for one, _, _ in parts]
    index = [F.pad(one, (0, width - one.shape[1])) for _, one, _ in parts]
    return torch.cat(scores), torch.cat(index), torch.cat([floor for _, _, floor in parts])


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
        rough, index, error, floor = (one[at] for one in proposed)
        rough = rough.masked_fill(unusable[at, None], -torch.inf)
        floor = floor.masked_fill(unusable[at], -torch.inf)
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
        parts = zip(torch.split(queries, step), torch.split(candidates, step), strict=True)
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
    if score == "cosine" and block.dtype == torch.float32:
        lengths = torch.linalg.vector_norm(block, dim=1, keepdim=True)
        if are_plain(lengths):  # the same bits as by `unit_length`, in a third of the passes
            return block / lengths, torch.zeros(len(block), dtype=torch.bool)
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
