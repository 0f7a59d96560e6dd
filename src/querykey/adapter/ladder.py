"""Several sizes of one vector: each is the first numbers of the largest, scaled to length 1."""

from collections.abc import Sequence

import torch
from torch import Tensor

from querykey.adapter.validation import HeldOutQueries, Question, Transform
from querykey.lookup.unit_length import unit_length
from querykey.types import PerQuery

__all__ = ["ask_sizes", "prefix", "rank_sizes"]


def prefix(transform: Transform, size: int) -> Transform:
    """A transform to the first `size` numbers of what another gives, scaled to length 1.

    Args:
        transform: Rows to unit rows [rows, dim].
        size: From 1 to dim.

    Returns:
        Rows to unit rows [rows, size].
    """
    return lambda rows: unit_length(transform(rows)[:, :size])


def ask_sizes(
    question: Question, transform: Transform, asked: HeldOutQueries, sizes: Sequence[int]
) -> Tensor:
    """A question about each size.

    Args:
        question: Of the task.
        transform: Rows to unit rows of the largest size.
        asked: Which queries are asked.
        sizes: Largest first.

    Returns:
        [queries, temperatures] of one size, [queries, temperatures, sizes] of several.
    """
    if len(sizes) == 1:
        return question.ask(transform, asked)
    every = [question.ask(prefix(transform, size), asked) for size in sizes]
    return torch.stack(every, dim=2)


def rank_sizes(
    question: Question, transform: Transform, asked: HeldOutQueries, sizes: Sequence[int]
) -> dict[str, PerQuery]:
    """The ranking metrics of a question, each the mean over the sizes.

    Args:
        question: Of the task.
        transform: Rows to unit rows of the largest size.
        asked: Which queries are asked.
        sizes: Largest first.

    Returns:
        Metric to a number a query.
    """
    if len(sizes) == 1:
        return question.ranks(transform, asked)
    every = [question.ranks(prefix(transform, size), asked) for size in sizes]
    return {name: torch.stack([one[name] for one in every]).mean(dim=0) for name in every[0]}
