"""The exact best keys of each query, walked in blocks, with ties broken the same way every time.

A block's scores are rounded differently by every matrix product, so they only propose: a few more
candidates than asked for. These are scored again, row by row in float64, and sorted by score and
then by index. Where a key left out could tie with the last one kept, the query is scanned whole.
So block sizes and threads change the time, never the list. A key that holds NaN or infinity is never
found, and a query that does finds nothing.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.errors import RangeError
from querykey.lookup.lookup import Score
from querykey.lookup.unit_length import in_range, unit_length
from querykey.types import KeyIds, Keys, Neighbours, Queries, QueryIds, TopScores

__all__ = ["TIE", "best_first", "best_of_blocks", "nearest", "rough_cosines", "settle"]

SLACK = 8
"""Candidates beyond k: fewer near-ties than this at rank k, and no query is scanned whole."""
QUERY_BLOCK = 1024
KEY_BLOCK = 4096
TIE = 4e-6
"""How far float32 scores of unit rows may be from the truth; two closer than this may be tied."""


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

    Example:
        >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> nearest(keys[:1], keys, 2)[1].tolist()
        [[0, 2]]
    """
    if k < 1:
        raise RangeError(f"k must be at least 1, got {k}")
    own = torch.empty(len(queries), 0, dtype=torch.int64)
    if query_ids is not None and key_ids is not None:
        own = _own_columns(query_ids, key_ids)
    if len(queries) == 0:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
    blocks = [slice(i, i + QUERY_BLOCK) for i in range(0, len(queries), QUERY_BLOCK)]
    found = [_nearest_of(queries[b], keys, k, own[b], score=score) for b in blocks]
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found])


def rough_cosines(queries: Queries, keys: Keys, count: int) -> tuple[TopScores, Neighbours]:
    """The best cosines of each query as a matrix product rounds them: proposals that nobody has settled.

    For whoever can bound what a difference of `TIE` in each score does to their result, and settles the few
    queries where it matters: several times faster than `nearest` where many keys are wanted.

    Args:
        queries: [queries, dim], any float dtype.
        keys: [keys, dim], any float dtype; may be memory-mapped, and is read once, block by block.
        count: Keys wanted per query, from 1 to the number of keys.

    Returns:
        (scores [queries, count] float32, indices [queries, count] int64), best first. A score is within
        `TIE` of the truth; ties are in no certain order.

    Raises:
        RangeError: If count is outside 1 to the number of keys.

    Example:
        >>> rough_cosines(torch.tensor([[1.0, 0.2]]), torch.eye(2), 1)[1].tolist()
        [[0]]
    """
    if not 1 <= count <= len(keys):
        raise RangeError(f"count must be from 1 to the {len(keys)} keys, got {count}")
    # torch's top-k is fast where a row has 64 times as many columns
    size = max(KEY_BLOCK, 64 * count)
    rows = max(1, QUERY_BLOCK * KEY_BLOCK // size)
    unit = unit_length(queries).float()
    best: dict[int, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(keys), size):
        block, lost = _unit_keys(keys[start : start + size])
        index = torch.arange(start, start + len(block))[None, :]
        for first in range(0, len(unit), rows):
            found = [(_without(unit[first : first + rows] @ block.T, lost), index)]
            best[first] = best_of_blocks([best[first], *found] if start else found, count)
    if not best:
        return torch.empty(0, count), torch.empty(0, count, dtype=torch.int64)
    return torch.cat([s for s, _ in best.values()]), torch.cat([i for _, i in best.values()])


def best_of_blocks(blocks: Iterable[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """Merge the best `count` columns out of blocks of (scores, indices), both [queries, columns].

    Returns:
        (scores, indices) [queries, at most count], best first; ties in no certain order.
    """
    best: tuple[Tensor, Tensor] | None = None
    for scores, index in blocks:
        top, at = scores.topk(min(count, scores.shape[1]), dim=1)
        index = index.expand(len(scores), -1).gather(1, at)  # noqa: PLW2901 - the block's own names
        if best is not None:
            merged = torch.cat([best[0], top], dim=1)
            top, at = merged.topk(min(count, merged.shape[1]), dim=1)
            index = torch.cat([best[1], index], dim=1).gather(1, at)  # noqa: PLW2901
        best = top, index
    if best is None:
        raise RangeError("there are no keys to look among; at least one is needed")
    return best


def settle(
    proposed: tuple[Tensor, Tensor],
    k: int,
    floor: Tensor,
    exact: Callable[[Tensor, Tensor], Tensor],
    scan: Callable[[int], Tensor],
    scale: float = 1.0,
) -> tuple[TopScores, Neighbours]:
    """Turn proposals into the exact list: scored again, sorted by score, then by index.

    Args:
        proposed: (scores, indices) [queries, candidates] of `best_of_blocks`; -inf is not eligible.
        k: Keys wanted per query.
        floor: A score that nothing left out of the proposals exceeds [queries].
        exact: (query rows [n], candidates [n, c]) to their scores in float64 [n, c].
        scan: A query's row to the float32 scores of all keys, -inf where not eligible.
        scale: The largest length of a query times that of a key; 1 for cosine.

    Returns:
        (scores [queries, k] float32, indices [queries, k]), padded with -inf and -1.
    """
    rough, index = proposed
    rows = torch.arange(len(rough))
    scores = exact(rows, index).float().masked_fill(rough == -torch.inf, -torch.inf)
    top, best = best_first(scores, index, k)
    # A key that was left out may score within rounding of the k-th; without the full scan of such queries,
    # the result would depend on the block size and the engine.
    unsure = (floor > -torch.inf) & (top[:, -1] - floor <= TIE * scale)
    for row in unsure.nonzero()[:, 0].tolist():
        everything = scan(row)
        near = ((everything >= top[row, -1] - TIE * scale) & (everything > -torch.inf)).nonzero().T
        settled = exact(rows[row : row + 1], near).float()
        top[row], best[row] = (part[0] for part in best_first(settled, near, k))
    return top, best.masked_fill(top == -torch.inf, -1)


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


def _nearest_of(queries: Tensor, keys: Tensor, k: int, own: Tensor, *, score: Score) -> tuple[Tensor, Tensor]:
    """The exact list of one block of queries; `own` are the columns that are left out, or -1."""
    queries = in_range(queries).float() if score == "cosine" else queries.float()
    count = k + SLACK + own.shape[1]
    rough, index = best_of_blocks(_product_blocks(queries, keys, score), count)
    if bool((unusable := _not_finite(queries)).any()):
        rough = rough.masked_fill(unusable[:, None], -torch.inf)
    floor = rough[:, -1] if index.shape[1] < len(keys) else torch.full((len(queries),), -torch.inf)
    rough = rough.masked_fill((index[:, :, None] == own[:, None, :]).any(2), -torch.inf)

    def exact(rows: Tensor, candidates: Tensor) -> Tensor:
        return exact_scores(queries[rows], keys, candidates, score)

    def scan(row: int) -> Tensor:
        every = torch.cat([s for s, _ in _product_blocks(queries[row : row + 1], keys, score)], dim=1)[0]
        every[own[row][own[row] >= 0]] = -torch.inf
        return every

    scale = 1.0 if score == "cosine" else float(queries.norm(dim=1).max()) * _longest(keys)
    return settle((rough, index), k, floor, exact, scan, scale)


def exact_scores(queries: Tensor, keys: Tensor, candidates: Tensor, score: Score) -> Tensor:
    """Scores of queries [n, dim] with their own candidates [n, c], summed in float64: [n, c]."""
    chosen = keys.index_select(0, candidates.clamp(min=0).flatten())
    chosen = chosen.view(*candidates.shape, keys.shape[1])
    # a copy: it is multiplied in place
    chosen = (unit_length(chosen) if score == "cosine" else chosen).to(torch.float32)
    queries = unit_length(queries) if score == "cosine" else queries
    return chosen.mul_(queries[:, None, :]).sum(dim=2, dtype=torch.float64)


def _product_blocks(queries: Tensor, keys: Tensor, score: Score) -> Iterable[tuple[Tensor, Tensor]]:
    ready = unit_length(queries) if score == "cosine" else queries
    for start in range(0, len(keys), KEY_BLOCK):
        block = keys[start : start + KEY_BLOCK]
        block, lost = _unit_keys(block) if score == "cosine" else (block.float(), _not_finite(block))
        yield _without(ready @ block.T, lost), torch.arange(start, start + len(block))[None, :]


def _unit_keys(block: Tensor) -> tuple[Tensor, Tensor]:
    return unit_length(block).float(), _not_finite(block)


def _not_finite(rows: Tensor) -> Tensor:
    """Which rows hold NaN or infinity [rows]."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    peak: Tensor = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1)
    return ~peak.isfinite()


def _without(scores: Tensor, lost: Tensor) -> Tensor:
    """Scores with those of keys that are not finite at -inf: `topk` takes NaN for the largest number."""
    return scores.masked_fill_(lost[None, :], -torch.inf) if bool(lost.any()) else scores


def _own_columns(query_ids: QueryIds, key_ids: KeyIds) -> Tensor:
    """Where each query's own item stands among the keys: [queries, most copies], -1 where fewer."""
    ids, order = key_ids.sort(stable=True)
    first, last = torch.searchsorted(ids, query_ids), torch.searchsorted(ids, query_ids, right=True)
    copies = int((last - first).max()) if len(query_ids) else 0
    at = first[:, None] + torch.arange(copies)
    return torch.where(at < last[:, None], order[at.clamp(max=len(order) - 1)], -1)


def _longest(keys: Tensor) -> float:
    return max(
        float(keys[i : i + KEY_BLOCK].float().norm(dim=1).max()) for i in range(0, len(keys), KEY_BLOCK)
    )
