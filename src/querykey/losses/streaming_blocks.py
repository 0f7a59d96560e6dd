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
    "LossBlock",
    "Positives",
    "Target",
    "dot_product_rows",
    "keys_of",
    "log_mean_of_positives",
    "softmax_of_blocks",
]

FEW = 50
"""If fewer than one pair in so many is positive, positives are gathered one by one: a product with a matrix
that is nearly all 0 costs more."""


class LossBlock(NamedTuple):
    """The logits of a block of keys, the mask of the softmax, and the unnormalised target distribution."""

    start: int
    logits: Tensor
    candidates: PairMask
    """Pairs in the sum of the softmax."""
    weights: Tensor
    """Target weights [queries, keys of the block], or of the pairs at `places` [pairs], divided by
    exp(maximum)."""
    places: tuple[Tensor, Tensor] | None
    """(queries, keys of the block) of the pairs with a weight, if they are few."""
    weight_sum: Tensor
    """A column: the part of this block in the normaliser of the weights, divided by exp(maximum)."""
    weighted_logits: Tensor
    """A column: the sum of weight times logit; for a `Target`, of logit minus target logit."""
    maximum: Tensor
    """A column: the largest exponent of the weights so far. It never falls from block to block."""


def keys_of(lookup: Lookup, start: int, count: int) -> Tensor:
    """Keys start to start + count in the dtype of the queries."""
    return lookup.keys[start : start + count].to(lookup.queries.dtype)


@dataclass(frozen=True, eq=False)
class Positives:
    """Target weights at a query's positives, as in InfoNCE and its decoupled form.

    Args:
        pairs: Which pairs are positive and negative.
        is_decoupled: Whether positives are left out of the sum of the softmax.
        weight: (factor, offset): the weight of a positive is 2 - exp(factor * logit - offset). None: 1.
    """

    pairs: Pairs
    is_decoupled: bool = False
    weight: tuple[float | Tensor, Tensor] | None = None
    is_divergence = False

    def rows(self, start: int, stop: int) -> "Positives":
        """The target of queries start to stop."""
        return replace(self, pairs=self.pairs.rows(start, stop))

    def walk(self, lookup: Lookup, size: int, maximum: Tensor) -> Iterator[LossBlock]:
        """The blocks of a look-up whose pairs are `pairs`."""
        for start, logits, positive, negative in lookup.blocks(size):
            candidates = negative if self.is_decoupled else positive | negative
            rows, columns = positive.nonzero(as_tuple=True)
            if len(rows) * FEW > positive.numel():
                weights = as_numbers(positive, maximum.dtype)
                count = weights.sum(dim=1, keepdim=True)
                self._weigh(weights, logits)
                weighted_logits = (logits * weights).sum(dim=1, keepdim=True)
                yield LossBlock(start, logits, candidates, weights, None, count, weighted_logits, maximum)
            else:
                at, none = logits[rows, columns], torch.zeros_like(maximum[:, 0])
                weights = torch.ones_like(at)
                count = none.index_add(0, rows, weights)[:, None]
                self._weigh(weights, at)
                weighted_logits = none.index_add(0, rows, at * weights)[:, None]
                yield LossBlock(
                    start, logits, candidates, weights, (rows, columns), count, weighted_logits, maximum
                )

    def _weigh(self, weights: Tensor, logits: Tensor) -> None:
        """Multiply numbers that are 1 at positives and 0 elsewhere by the weights, in place."""
        if self.weight is not None:
            factor, offset = self.weight
            # Pairs that are not positive are excluded before `exp`: theirs may overflow, and inf * 0 is NaN.
            above = (logits * factor).sub_(offset).add_((weights - 1.0) * FAR).clamp_(min=NOTHING).exp_()
            weights *= above.neg_().add_(2.0)


@dataclass(frozen=True, eq=False)
class Target:
    """The softmax of other scores as target, as in distillation.

    Args:
        lookup: Its scores are the logits of the target; positives and negatives both count.
    """

    lookup: Lookup
    is_divergence = True
    """Whether the entropy of the target is subtracted."""

    @property
    def pairs(self) -> Pairs:
        """The pairs of the target."""
        return self.lookup.pairs

    def rows(self, start: int, stop: int) -> "Target":
        """The target of queries start to stop."""
        return Target(self.lookup.rows(start, stop))

    def walk(self, lookup: Lookup, size: int, maximum: Tensor) -> Iterator[LossBlock]:
        """The blocks of a look-up beside those of the target, with the pairs of the target."""
        for start, target_logits, positive, negative in self.lookup.blocks(size):
            logits = lookup.queries @ keys_of(lookup, start, target_logits.shape[1]).T
            candidates = positive | negative
            numbers = as_numbers(candidates, maximum.dtype)
            at = target_logits.to(maximum.dtype)
            shifted = at + penalty(numbers)
            maximum = torch.maximum(maximum, shifted.amax(dim=1, keepdim=True))
            weights = shifted.sub_(maximum).clamp_(min=NOTHING).exp_().mul_(numbers)
            count = weights.sum(dim=1, keepdim=True)
            weighted_logits = (logits - at).mul_(weights).sum(dim=1, keepdim=True)
            yield LossBlock(start, logits, candidates, weights, None, count, weighted_logits, maximum)


def softmax_of_blocks(lookup: Lookup, temperature: float | Tensor, target: Positives | Target) -> PerQuery:
    r"""A softmax loss, without a matrix of its scores.

    .. math:: \ell_i = \log \sum_a e^{s_{ia} / \tau} - \sum_p c_{ip} s_{ip} / \tau

    over the candidates *a*, with the normalised target weights *c*; less the entropy of *c* for a `Target`.

    Args:
        lookup: Gives the scores; pairs are those of `target`.
        temperature: Above 0.
        target: The target weights and the candidates.

    Returns:
        Per query [queries]; 0 and no gradient without a candidate or without a target weight.

    Source:
        The running sum: Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3; with the mean of
        the keys: Rabe and Staats 2021, arXiv:2112.05682, section 2.
    """
    with torch.autocast(lookup.queries.device.type, enabled=False):
        queries, keys = dot_product_rows(lookup)
        value: Tensor = _Chunked.apply(queries / temperature, keys, target)
    return value


def dot_product_rows(lookup: Lookup) -> tuple[Tensor, Tensor]:
    """Queries in float32 at least and keys, of which the scores are dot products."""
    queries = lookup.queries.float() if lookup.queries.element_size() < 4 else lookup.queries
    if lookup.score == "dot":
        return queries, lookup.keys  # keys of another dtype are converted block by block
    return unit_length(queries), unit_length(lookup.keys.to(queries.dtype))


def _parts(lookup: Lookup) -> Iterator[tuple[slice, Lookup]]:
    """The queries in parts that are processed together; at least one part."""
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


class _Pass(NamedTuple):
    """Results of one pass over all keys for some queries, each a column."""

    value: Tensor
    log_sum: Tensor
    """Log of the sum of exp(logit) over the candidates."""
    maximum: Tensor
    """The largest exponent of the target weights."""
    scale: Tensor
    """What normalises the target weights; 0 where the loss of the query is 0."""
    query_gradient: Tensor
    """Derivative of the value by the query [queries, dim]; empty if it is not needed."""


class _Chunked(torch.autograd.Function):
    """The loss of logits that are dot products; backward computes the gradient of the keys block by block."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, target: Positives | Target) -> Tensor:
        with_query_gradient, with_keys = ctx.needs_input_grad[:2]
        passes = [
            _walk(part, target.rows(rows.start, rows.stop), with_query_gradient=with_query_gradient)
            for rows, part in _parts(Lookup(queries, keys, target.pairs))
        ]
        value, log_sum, maximum, scale, query_gradient = (
            torch.cat(columns) for columns in zip(*passes, strict=True)
        )
        ctx.target = target
        ctx.save_for_backward(
            query_gradient, *((queries, keys, log_sum, maximum, scale) if with_keys else ())
        )
        return value[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        query_gradient, *rest = ctx.saved_tensors
        to_queries = gradient[:, None] * query_gradient if ctx.needs_input_grad[0] else None
        to_keys = None
        if rest:
            queries, keys, *columns = rest
            to_keys = torch.zeros_like(keys, dtype=queries.dtype)
            with torch.autocast(keys.device.type, enabled=False):
                for rows, part in _parts(Lookup(queries, keys, ctx.target.pairs)):
                    log_sum, maximum, scale = (column[rows] for column in columns)
                    target = ctx.target.rows(rows.start, rows.stop)
                    _add_key_gradient(to_keys, part, target, log_sum, maximum, scale, gradient[rows, None])
            to_keys = to_keys.to(keys.dtype)
        return to_queries, to_keys, None


def _walk(lookup: Lookup, target: Positives | Target, *, with_query_gradient: bool) -> _Pass:
    queries = lookup.queries
    column = queries.new_zeros(len(queries), 1)
    top, total = column - FAR, column.clone()
    maximum, count, weighted_logits = column - FAR, column.clone(), column.clone()
    mean, target_mean = (
        queries.new_zeros(queries.shape if with_query_gradient else (0, 0)) for _ in range(2)
    )
    for block in target.walk(lookup, KEYS, maximum):
        keys = keys_of(lookup, block.start, block.logits.shape[1])
        # rescale the sums so far from the old maximum to the new one
        rescale_weights = (maximum - block.maximum).clamp_(min=NOTHING).exp_()
        maximum = block.maximum
        count.mul_(rescale_weights).add_(block.weight_sum)
        weighted_logits.mul_(rescale_weights).add_(block.weighted_logits)

        numbers = as_numbers(block.candidates, queries.dtype)
        shifted = block.logits.add_(penalty(numbers))
        # two maxima: `top` of the candidates, `maximum` of the weights, since a target has other scores
        higher = torch.maximum(top, shifted.amax(dim=1, keepdim=True))
        shifted.sub_(higher).clamp_(min=NOTHING).exp_().mul_(numbers)
        rescale_softmax = top.sub_(higher).clamp_(min=NOTHING).exp_()
        total.mul_(rescale_softmax).add_(shifted.sum(dim=1, keepdim=True))
        top = higher
        if with_query_gradient:
            mean.mul_(rescale_softmax).addmm_(shifted, keys)
            target_mean.mul_(rescale_weights)
            if block.places is None:
                target_mean.addmm_(block.weights, keys)
            else:
                rows, columns = block.places
                target_mean.index_add_(0, rows, keys[columns] * block.weights[:, None])
    counts = ((count > 0) & (total > 0)).to(queries.dtype)
    scale = counts / count.clamp(min=1.0)  # a count is 0 only where the loss is 0: no division by 0
    log_total = total.clamp_(min=1.0).log()
    # Subtract the maxima from each other first: the loss near 0 is the difference of two large numbers,
    # and adding either to a small logarithm would round its digits away.
    if target.is_divergence:
        value = (log_total - count.clamp(min=1.0).log()) + ((top - maximum) - weighted_logits * scale)
    else:
        value = log_total + (top - weighted_logits * scale)
    if with_query_gradient:
        mean.mul_(counts / total).sub_(target_mean.mul_(scale))
    return _Pass(value * counts, top + log_total, maximum, scale, mean)


def _add_key_gradient(
    to_keys: Tensor,
    lookup: Lookup,
    target: Positives | Target,
    log_sum: Tensor,
    maximum: Tensor,
    scale: Tensor,
    gradient: Tensor,
) -> None:
    """Add to the gradient of key a: over these queries, the sum of (softmax_ia - scale_i weight_ia) q_i."""
    # the saved log-sum makes each block of the softmax by itself: this pass needs no running maximum
    softmax_queries, target_queries = (
        lookup.queries * (gradient * scale.sign()),
        lookup.queries * (gradient * scale),
    )
    for block in target.walk(lookup, KEYS, maximum):
        numbers = as_numbers(block.candidates, to_keys.dtype)
        shifted = block.logits.add_(penalty(numbers)).sub_(log_sum)
        shifted.clamp_(min=NOTHING).exp_().mul_(numbers)
        part = to_keys[block.start : block.start + shifted.shape[1]]
        if block.places is None:
            shifted.addcmul_(block.weights, scale, value=-1)
        else:
            rows, columns = block.places
            part.index_add_(0, columns, target_queries[rows] * block.weights[:, None], alpha=-1)
        part.addmm_(shifted.T, softmax_queries)
