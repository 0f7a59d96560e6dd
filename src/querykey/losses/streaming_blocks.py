"""Softmax losses over more pairs than a matrix can hold: the same numbers, a block of keys at a time.

A softmax loss needs two things of a query's keys: the sum of the exponentials of their logits and, for the
query's gradient, the mean of the keys under the softmax. Both are accumulated from block to block ("online
softmax"): if a block has a higher maximum, the sums so far are scaled down to it. So one pass gives the loss
and the gradient of the queries, and no matrix [queries, keys] exists. The gradient of the keys takes a second
pass in backward, which computes each block of scores again instead of storing it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from querykey.errors import SecondDerivativeError
from querykey.lookup.lookup import Lookup, Pairs
from querykey.lookup.unit_length import unit_length
from querykey.losses._pair_weights import FAR, NOTHING, as_numbers, penalty
from querykey.losses.streaming import KEYS, ROWS
from querykey.types import PairMask, PerQuery

__all__ = [
    "Piece",
    "Positives",
    "Target",
    "dot_product_rows",
    "keys_of",
    "log_mean_of_positives",
    "softmax_of_blocks",
]

FEW = 50
"""Where fewer than one pair in so many is positive, positives are gathered one by one: a product with a
matrix that is nearly all 0 costs more."""


class Piece(NamedTuple):
    """A block of keys as a loss sees it."""

    start: int
    logits: Tensor
    takes_part: PairMask
    """What the keys that pull are weighed against."""
    pull: Tensor
    """How much each pair pulls [queries, keys of the block], or those at `places` [pairs], in units of
    exp(level)."""
    places: tuple[Tensor, Tensor] | None
    """(queries, keys of the block) of the pairs that pull, where they are few."""
    divisor: Tensor
    """A column: what the pull is divided by in the end is the sum of this, in the same units."""
    pulled: Tensor
    """A column: the pull times how far each logit is above what it is pulled to."""
    level: Tensor
    """A column: the maximum that exponentials are relative to. It never falls from block to block."""


def keys_of(lookup: Lookup, start: int, count: int) -> Tensor:
    """Keys start to start + count in the dtype of the queries."""
    return lookup.keys[start : start + count].to(lookup.queries.dtype)


@dataclass(frozen=True, eq=False)
class Positives:
    """Pull at a query's positives, as InfoNCE and its decoupled form do.

    Args:
        pairs: Which pairs are positive and negative.
        is_decoupled: Whether positives are left out of what they are weighed against.
        weight: A factor and a number to subtract, both of logits: a positive pulls with 2 less the
            exponential of what that gives. None: each with 1.
    """

    pairs: Pairs
    is_decoupled: bool = False
    weight: tuple[float | Tensor, Tensor] | None = None
    is_divergence = False

    def rows(self, start: int, stop: int) -> "Positives":
        """The same for queries start to stop."""
        return replace(self, pairs=self.pairs.rows(start, stop))

    def walk(self, lookup: Lookup, size: int, level: Tensor) -> Iterator[Piece]:
        """The look-up's blocks; those of `pairs`."""
        for start, logits, positive, negative in lookup.blocks(size):
            takes_part = negative if self.is_decoupled else positive | negative
            rows, columns = positive.nonzero(as_tuple=True)
            if len(rows) * FEW > positive.numel():
                pull = as_numbers(positive, level.dtype)
                count = pull.sum(dim=1, keepdim=True)
                self._weigh(pull, logits)
                pulled = (logits * pull).sum(dim=1, keepdim=True)
                yield Piece(start, logits, takes_part, pull, None, count, pulled, level)
            else:
                at, none = logits[rows, columns], torch.zeros_like(level[:, 0])
                pull = torch.ones_like(at)
                count = none.index_add(0, rows, pull)[:, None]
                self._weigh(pull, at)
                pulled = none.index_add(0, rows, at * pull)[:, None]
                yield Piece(start, logits, takes_part, pull, (rows, columns), count, pulled, level)

    def _weigh(self, pull: Tensor, logits: Tensor) -> None:
        """Of numbers that are 1 where a pair is positive and 0 elsewhere."""
        if self.weight is not None:
            factor, less = self.weight
            # Pairs that are not positive are excluded before `exp`: theirs may overflow, and inf * 0 is NaN.
            above = (logits * factor).sub_(less).add_((pull - 1.0) * FAR).clamp_(min=NOTHING).exp_()
            pull *= above.neg_().add_(2.0)


@dataclass(frozen=True, eq=False)
class Target:
    """Pull towards the softmax of other scores over the pairs that count for them.

    Args:
        lookup: Of which the scores are logits, and both positives and negatives count.
    """

    lookup: Lookup
    is_divergence = True
    """Whether the target's own entropy is taken off."""

    @property
    def pairs(self) -> Pairs:
        """Which pairs count."""
        return self.lookup.pairs

    def rows(self, start: int, stop: int) -> "Target":
        """The same for queries start to stop."""
        return Target(self.lookup.rows(start, stop))

    def walk(self, lookup: Lookup, size: int, level: Tensor) -> Iterator[Piece]:
        """The look-up's blocks beside the target's; its pairs are the target's."""
        for start, wanted, positive, negative in self.lookup.blocks(size):
            logits = lookup.queries @ keys_of(lookup, start, wanted.shape[1]).T
            takes_part = positive | negative
            numbers = as_numbers(takes_part, level.dtype)
            at = wanted.to(level.dtype)
            shifted = at + penalty(numbers)
            level = torch.maximum(level, shifted.amax(dim=1, keepdim=True))
            pull = shifted.sub_(level).clamp_(min=NOTHING).exp_().mul_(numbers)
            count = pull.sum(dim=1, keepdim=True)
            pulled = (logits - at).mul_(pull).sum(dim=1, keepdim=True)
            yield Piece(start, logits, takes_part, pull, None, count, pulled, level)


def softmax_of_blocks(lookup: Lookup, temperature: float | Tensor, terms: Positives | Target) -> PerQuery:
    r"""A softmax loss, without a matrix of its scores.

    .. math:: \ell_i = \log \sum_a e^{s_{ia} / \tau} - \sum_p c_{ip} s_{ip} / \tau

    over the pairs *a* that take part, with the pull *c* of `terms`, and less the entropy of *c* where that
    is a `Target`.

    Args:
        lookup: Scores; its pairs are not read, those of `terms` are.
        temperature: Above 0.
        terms: What the loss weighs against what.

    Returns:
        Per query [queries]; 0 and no gradient where no pair takes part or none pulls.

    Source:
        The sum carried along: Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3; with the mean of
        the keys: Rabe and Staats 2021, arXiv:2112.05682, section 2.
    """
    with torch.autocast(lookup.queries.device.type, enabled=False):
        queries, keys = dot_product_rows(lookup)
        value: Tensor = _Chunked.apply(queries / temperature, keys, terms)
    return value


def dot_product_rows(lookup: Lookup) -> tuple[Tensor, Tensor]:
    """Queries in float32 at least and keys, of which the scores are dot products."""
    queries = lookup.queries.float() if lookup.queries.element_size() < 4 else lookup.queries
    if lookup.score == "dot":
        return queries, lookup.keys  # keys of another dtype are converted block by block
    return unit_length(queries), unit_length(lookup.keys.to(queries.dtype))


def _parts(lookup: Lookup) -> Iterator[tuple[slice, Lookup]]:
    """The queries that are processed together, part by part; at least one part."""
    for start in range(0, max(1, len(lookup)), ROWS):
        rows = slice(start, min(start + ROWS, len(lookup)))
        yield rows, lookup.rows(rows.start, rows.stop)


@torch.no_grad()
def log_mean_of_positives(lookup: Lookup, sigma: float) -> Tensor:
    """Log of the mean of exp(score / sigma) over all positive pairs of the whole look-up, without gradient.

    Args:
        lookup: The whole, or some of its rows.
        sigma: Above 0.

    Returns:
        One number.
    """
    whole = lookup if lookup.whole is None else lookup.whole
    queries, keys = dot_product_rows(whole)
    sums, count = [], queries.new_zeros(())
    for _, part in _parts(Lookup(queries, keys, whole.pairs)):
        for _, scores, is_positive, _ in part.blocks(KEYS):
            positive = as_numbers(is_positive, scores.dtype)
            sums.append(scores.div_(sigma).add_(penalty(positive)).flatten().logsumexp(dim=0))
            count += positive.sum()
    return torch.stack(sums).logsumexp(dim=0) - count.clamp(min=1.0).log() if sums else count


class _Walked(NamedTuple):
    """Results of one pass over all keys for some queries, each a column."""

    value: Tensor
    log_sum: Tensor
    """Of exp(logit) over the pairs that take part."""
    level: Tensor
    """Of the pull."""
    share: Tensor
    """What the pull is multiplied by, 0 where the loss of the query is 0."""
    slope: Tensor
    """The value's derivative by the query [queries, dim]; empty if it is not needed."""


class _Chunked(torch.autograd.Function):
    """Of logits that are dot products."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, terms: Positives | Target) -> Tensor:
        with_slope, with_keys = ctx.needs_input_grad[:2]
        walked = [
            _walk(part, terms.rows(rows.start, rows.stop), with_slope=with_slope)
            for rows, part in _parts(Lookup(queries, keys, terms.pairs))
        ]
        value, log_sum, level, share, slope = (torch.cat(columns) for columns in zip(*walked, strict=True))
        ctx.terms = terms
        ctx.save_for_backward(slope, *((queries, keys, log_sum, level, share) if with_keys else ()))
        return value[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        slope, *rest = ctx.saved_tensors
        to_queries = gradient[:, None] * slope if ctx.needs_input_grad[0] else None
        to_keys = None
        if rest:
            queries, keys, *columns = rest
            to_keys = torch.zeros_like(keys, dtype=queries.dtype)
            with torch.autocast(keys.device.type, enabled=False):
                for rows, part in _parts(Lookup(queries, keys, ctx.terms.pairs)):
                    log_sum, level, share = (column[rows] for column in columns)
                    terms = ctx.terms.rows(rows.start, rows.stop)
                    _push_keys(to_keys, part, terms, log_sum, level, share, gradient[rows, None])
            to_keys = to_keys.to(keys.dtype)
        return to_queries, to_keys, None


def _walk(lookup: Lookup, terms: Positives | Target, *, with_slope: bool) -> _Walked:
    queries = lookup.queries
    column = queries.new_zeros(len(queries), 1)
    top, total = column - FAR, column.clone()
    level, count, pulled = column - FAR, column.clone(), column.clone()
    mean, wanted = (queries.new_zeros(queries.shape if with_slope else (0, 0)) for _ in range(2))
    for piece in terms.walk(lookup, KEYS, level):
        keys = keys_of(lookup, piece.start, piece.logits.shape[1])
        # sums so far are relative to the old maximum; these factors make them relative to the new one
        lift = (level - piece.level).clamp_(min=NOTHING).exp_()
        level = piece.level
        count.mul_(lift).add_(piece.divisor)
        pulled.mul_(lift).add_(piece.pulled)

        numbers = as_numbers(piece.takes_part, queries.dtype)
        shifted = piece.logits.add_(penalty(numbers))
        # two maxima: `top` of the pairs that take part, `level` of the pull, since a target has other scores
        higher = torch.maximum(top, shifted.amax(dim=1, keepdim=True))
        shifted.sub_(higher).clamp_(min=NOTHING).exp_().mul_(numbers)
        fade = top.sub_(higher).clamp_(min=NOTHING).exp_()
        total.mul_(fade).add_(shifted.sum(dim=1, keepdim=True))
        top = higher
        if with_slope:
            mean.mul_(fade).addmm_(shifted, keys)
            wanted.mul_(lift)
            if piece.places is None:
                wanted.addmm_(piece.pull, keys)
            else:
                rows, columns = piece.places
                wanted.index_add_(0, rows, keys[columns] * piece.pull[:, None])
    counts = ((count > 0) & (total > 0)).to(queries.dtype)
    share = counts / count.clamp(min=1.0)  # a count is 0 only where the loss is 0: no division by 0
    log_total = total.clamp_(min=1.0).log()
    # Subtract the maxima from each other first: the loss near 0 is the difference of two large numbers,
    # and adding either to a small logarithm would round its digits away.
    if terms.is_divergence:
        value = (log_total - count.clamp(min=1.0).log()) + ((top - level) - pulled * share)
    else:
        value = log_total + (top - pulled * share)
    if with_slope:
        mean.mul_(counts / total).sub_(wanted.mul_(share))
    return _Walked(value * counts, top + log_total, level, share, mean)


def _push_keys(
    to_keys: Tensor,
    lookup: Lookup,
    terms: Positives | Target,
    log_sum: Tensor,
    level: Tensor,
    share: Tensor,
    gradient: Tensor,
) -> None:
    """Add these queries' part of the gradient of key a: sum over i of (softmax_ia - share_i pull_ia) q_i."""
    # the saved log-sum makes each block of the softmax by itself: this pass needs no running maximum
    pushing, pulling = lookup.queries * (gradient * share.sign()), lookup.queries * (gradient * share)
    for piece in terms.walk(lookup, KEYS, level):
        numbers = as_numbers(piece.takes_part, to_keys.dtype)
        shifted = piece.logits.add_(penalty(numbers)).sub_(log_sum)
        shifted.clamp_(min=NOTHING).exp_().mul_(numbers)
        part = to_keys[piece.start : piece.start + shifted.shape[1]]
        if piece.places is None:
            shifted.addcmul_(piece.pull, share, value=-1)
        else:
            rows, columns = piece.places
            part.index_add_(0, columns, pulling[rows] * piece.pull[:, None], alpha=-1)
        part.addmm_(shifted.T, pushing)
