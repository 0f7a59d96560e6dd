"""Losses over more keys than a matrix of scores can hold: the same numbers, a block of keys at a time.

What a softmax loss needs of a query's keys is a sum of exponentials and, for the query's gradient,
the keys' mean under it. Both can be carried from block to block: where a higher score turns up,
what was summed before is scaled down. So one walk gives the value and the gradient of the
queries, and no matrix [queries, keys] exists; the keys' own gradient takes a second walk backward.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from querykey.errors import RangeError
from querykey.lookup import Block, Lookup, Pairs
from querykey.losses._pair_weights import FAR, NOTHING, as_numbers, penalty
from querykey.losses.info_nce import check_temperature
from querykey.types import PairMask, PerQuery

__all__ = ["streamed_info_nce"]

ROWS = 1024
"""Queries that are walked together: what is held at once is this by a block."""


def streamed_info_nce(lookup: Lookup, *, temperature: float | Tensor, block: int) -> PerQuery:
    r"""`info_nce` with memory that grows with the keys, not with queries times keys.

    Value and gradients are those of `info_nce` but for rounding, with any pairs, many positives and a
    learned temperature. Held at once are the scores and masks of 1,024 queries and `block` keys.

    Args:
        lookup: Scores in [-1, 1] with their pairs; the rows in any float dtype, computed in float32 at
            least.
        temperature: :math:`\tau > 0`, dimensionless. A tensor of one number gets a gradient.
        block: Keys at a time, at least 1; 2,048 to 8,192 for a few hundred queries on a processor.

    Returns:
        Nats per query [queries], not reduced. A query with no positive costs exactly 0 and sends no
        gradient.

    Raises:
        RangeError: If temperature is not a positive number, or block is below 1.
        ShapeError: If temperature is a tensor of more than one number.

    Example:
        >>> from querykey.lookup import Lookup
        >>> mask = torch.tensor([[True, False, False, False]])
        >>> streamed_info_nce(Lookup.from_scores(torch.zeros(1, 4), mask, ~mask), temperature=0.1, block=3)
        tensor([1.3863])

    Source:
        The loss: see `info_nce`. The sum carried along: Milakov and Gimelshein 2018, arXiv:1805.02867,
        algorithm 3; with the mean of the keys: Rabe and Staats 2021, arXiv:2112.05682, section 2.
    """
    check_temperature("temperature", temperature)
    if block < 1:
        raise RangeError(f"a block needs at least 1 key, got block={block}")
    with torch.autocast(lookup.queries.device.type, enabled=False):
        queries, keys = _rows_of(lookup)
        value: Tensor = _Streamed.apply(queries / temperature, keys, lookup.pairs, block)
    return value


def _rows_of(lookup: Lookup) -> tuple[Tensor, Tensor]:
    """Queries in float32 at least and keys, of which the scores are dot products."""
    queries = lookup.queries.float() if lookup.queries.element_size() < 4 else lookup.queries
    if lookup.score == "dot":
        return queries, lookup.keys  # keys of another dtype are converted block by block
    return F.normalize(queries, dim=1), F.normalize(lookup.keys.to(queries.dtype), dim=1)


class _Walked(NamedTuple):
    """What one walk over all keys gives of some queries, each a column."""

    value: Tensor
    log_sum: Tensor
    """Of exp(logit) over all pairs."""
    pull: Tensor
    """The weight of one positive: 1 / their number, 0 where there is none."""
    slope: Tensor | None
    """The value's derivative by the query [queries, dim]."""


class _Streamed(torch.autograd.Function):
    """info_nce of logits that are dot products."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, pairs: Pairs, block: int) -> Tensor:
        with_slope, with_keys = ctx.needs_input_grad[:2]
        lookup = Lookup(queries, keys, pairs)
        parts = [_walk(part, block, with_slope=with_slope) for _, part in _parts(lookup)]
        if not parts:
            parts = [_walk(lookup, block, with_slope=with_slope)]
        value = torch.cat([part.value for part in parts])
        log_sum = torch.cat([part.log_sum for part in parts])
        pull = torch.cat([part.pull for part in parts])
        slope = torch.cat([part.slope for part in parts if part.slope is not None]) if with_slope else None
        ctx.pairs, ctx.block = pairs, block
        ctx.save_for_backward(slope, *((queries, keys, log_sum, pull) if with_keys else ()))
        return value[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        slope, *rest = ctx.saved_tensors
        to_queries = None if slope is None else gradient[:, None] * slope
        to_keys = None
        if rest:
            queries, keys, log_sum, pull = rest
            lookup = Lookup(queries, keys, ctx.pairs)
            to_keys = torch.zeros_like(keys, dtype=queries.dtype)
            with torch.autocast(keys.device.type, enabled=False):
                for rows, part in _parts(lookup):
                    _push_keys(to_keys, part, ctx.block, log_sum[rows], pull[rows], gradient[rows, None])
            to_keys = to_keys.to(keys.dtype)
        return to_queries, to_keys, None, None


def _parts(lookup: Lookup) -> Iterator[tuple[slice, Lookup]]:
    for start in range(0, len(lookup), ROWS):
        rows = slice(start, min(start + ROWS, len(lookup)))
        yield rows, lookup.rows(rows.start, rows.stop)


def _walk(lookup: Lookup, block: int, *, with_slope: bool) -> _Walked:
    queries = lookup.queries
    column = queries.new_zeros(len(queries), 1)
    top, total, positives, found = column - FAR, column.clone(), column.clone(), column.clone()
    mean, wanted = torch.zeros_like(queries), torch.zeros_like(queries)
    for piece in lookup.blocks(block):
        keys = _keys_of(lookup, piece)
        places, share = _positives(piece.positive, queries.dtype)
        found += (piece.scores[:, places] * share).sum(dim=1, keepdim=True)
        positives += share.sum(dim=1, keepdim=True)

        takes_part = as_numbers(piece.positive | piece.negative, queries.dtype)
        shifted = piece.scores.add_(penalty(takes_part))
        higher = torch.maximum(top, shifted.amax(dim=1, keepdim=True))
        shifted.sub_(higher).clamp_(min=NOTHING).exp_().mul_(takes_part)
        fade = top.sub_(higher).clamp_(min=NOTHING).exp_()
        total.mul_(fade).add_(shifted.sum(dim=1, keepdim=True))
        top = higher
        if with_slope:
            mean.mul_(fade).addmm_(shifted, keys)
            wanted.addmm_(share, keys[places])
    total.clamp_(min=1.0)  # below 1 only where no pair takes part
    log_total, has_positive = total.log(), positives.clamp(max=1.0)
    pull = has_positive / positives.clamp_(min=1.0)
    # The top goes out first: a loss near 0 keeps its digits.
    value = (log_total + (top - found * pull)) * has_positive
    slope = mean.mul_(has_positive / total).sub_(wanted.mul_(pull)) if with_slope else None
    return _Walked(value, top + log_total, pull, slope)


def _push_keys(
    to_keys: Tensor, lookup: Lookup, block: int, log_sum: Tensor, pull: Tensor, gradient: Tensor
) -> None:
    """Add these queries' part of the keys' gradient."""
    pushing = lookup.queries * (gradient * pull.sign())
    pulling = lookup.queries * (gradient * pull)
    for piece in lookup.blocks(block):
        places, share = _positives(piece.positive, to_keys.dtype)
        takes_part = as_numbers(piece.positive | piece.negative, to_keys.dtype)
        shifted = piece.scores.add_(penalty(takes_part)).sub_(log_sum)
        shifted.clamp_(min=NOTHING).exp_().mul_(takes_part)
        part = to_keys[piece.start : piece.start + shifted.shape[1]]
        part.addmm_(shifted.T, pushing)
        part.index_add_(0, places, share.T @ pulling, alpha=-1)


def _keys_of(lookup: Lookup, piece: Block) -> Tensor:
    return lookup.keys[piece.start : piece.start + piece.scores.shape[1]].to(lookup.queries.dtype)


def _positives(positive: PairMask, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The keys of a block that are positive to any query, and to which: numbers [queries, those keys]."""
    places = positive.any(dim=0).nonzero()[:, 0]
    return places, as_numbers(positive[:, places], dtype)
