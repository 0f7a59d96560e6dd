"""A toy loss: the squared distance of every score from 1 (positives) or 0 (negatives)."""

from querykey.lookup.lookup import Lookup
from querykey.types import PerQuery


def squared(lookup: Lookup, *, weight: float = 1.0) -> PerQuery:
    """Sum of squared errors of each query, with its negatives weighted."""
    pull = ((1 - lookup.scores).square() * lookup.positive).sum(dim=1)
    push = (lookup.scores.square() * lookup.negative).sum(dim=1)
    return pull + weight * push
