"""What a softmax loss over blocks weighs against what: the positives of a query, or a target's scores."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from querykey.lookup import Lookup, Pairs
from querykey.losses._pair_weights import FAR, NOTHING, as_numbers, penalty
from querykey.types import PairMask

__all__ = ["Piece", "Positives", "Target", "keys_of"]

FEW = 50
"""Where fewer than one pair of so many is positive, positives are taken one by one."""


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
    """A column, which never falls from block to block."""


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
            # Not to be taken from another pair, whose exponential may be beyond all numbers.
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
