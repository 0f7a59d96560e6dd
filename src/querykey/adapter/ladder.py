"""Several sizes of one vector: each is a prefix of the largest, scaled to length 1."""

from collections.abc import Sequence

import torch

from querykey.adapter.validation import HeldOutQueries, Scorer, Transform
from querykey.lookup.unit_length import unit_length
from querykey.types import PerQuery

__all__ = ["prefix", "rank_sizes"]


def prefix(transform: Transform, size: int) -> Transform:
    """Compose a transform with truncation to `size` numbers and scaling to length 1.

    Args:
        transform: Maps rows to unit rows [rows, dim].
        size: From 1 to dim.

    Returns:
        A map from rows to unit rows [rows, size].
    """
    return lambda rows: unit_length(transform(rows)[:, :size])


def rank_sizes(
    scorer: Scorer, transform: Transform, held_out: HeldOutQueries, sizes: Sequence[int]
) -> dict[str, PerQuery]:
    """Ranking metrics, averaged over the sizes.

    Args:
        scorer: Validation of the task.
        transform: Maps rows to unit rows of the largest size.
        held_out: The held-out queries.
        sizes: Largest first.

    Returns:
        Metric to one value per query.
    """
    if len(sizes) == 1:
        return scorer.ranks(transform, held_out)
    every = [scorer.ranks(prefix(transform, size), held_out) for size in sizes]
    return {name: torch.stack([one[name] for one in every]).mean(dim=0) for name in every[0]}
