"""Batch norm over chunks: statistics of all of them, and the gradient that goes through these."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.errors import ShapeError
from querykey.training.tape import Norm

__all__ = [
    "Shared",
    "Statistics",
    "joined",
    "leaves",
    "move",
    "normalised",
    "shared_by_rows",
    "statistics_of",
    "subtract_shared",
]


class Statistics(NamedTuple):
    """Rows times places, mean and biased variance a channel in float64, and the dtype to compute in."""

    values: int
    mean: Tensor
    variance: Tensor
    dtype: torch.dtype


def normalised(
    rows: Tensor, statistics: Statistics, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """One chunk's rows by the statistics of all; scale and shift pass gradients, the statistics do not."""
    mean, variance = (value.to(statistics.dtype) for value in (statistics.mean, statistics.variance))
    return F.batch_norm(rows, mean, variance, weight, bias, training=False, eps=eps)


def statistics_of(rows: Tensor) -> Statistics:
    """Of one chunk."""
    count = rows.numel() // rows.shape[1]
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    mean, variance = torch.zeros(2, rows.shape[1], dtype=dtype, device=rows.device).unbind()
    if count == 1:
        return Statistics(1, rows.reshape(-1).double(), variance.double(), dtype)
    torch.batch_norm_update_stats(rows.to(mean.dtype), mean, variance, 1.0)  # gives the unbiased one
    return Statistics(count, mean.double(), variance.double() * (count - 1) / count, dtype)


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Of all chunks, in their order."""
    count = sum(part.values for part in parts)
    if count < 2:
        raise ShapeError("batch norm in train mode needs more than one value a channel; give a larger batch")
    mean = sum((part.mean * part.values for part in parts), torch.zeros_like(parts[0].mean)) / count
    squares = ((part.variance + (part.mean - mean) ** 2) * part.values for part in parts)
    return Statistics(count, mean, sum(squares, torch.zeros_like(mean)) / count, parts[0].dtype)


def move(norm: Norm, statistics: Statistics) -> None:
    """The running statistics, in place, as torch moves them."""
    if norm.running is None:
        return
    count = statistics.values
    new = (statistics.mean, statistics.variance * count / (count - 1))
    for running, value in zip(norm.running, new, strict=True):
        running.mul_(1 - norm.momentum).add_(value.to(running.dtype), alpha=norm.momentum)


def leaves(norm: Norm, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Scale and shift for one way back: their gradients are the sums that batch norm's own needs."""
    blank = torch.zeros_like(statistics.mean, dtype=statistics.dtype)
    weight = blank + 1 if norm.weight is None else norm.weight.detach().clone()
    bias = blank if norm.bias is None else norm.bias.detach().clone()
    return weight.requires_grad_(), bias.requires_grad_()


class Shared(NamedTuple):
    """What reaches a row through mean and variance: slope * row + level, for each channel in float64."""

    slope: Tensor
    level: Tensor


def shared_by_rows(norm: Norm, statistics: Statistics, affine: tuple[Tensor, Tensor]) -> Shared:
    r"""The part of the gradient that all chunks have in common.

    With :math:`\hat x = r (x - \mu)`, :math:`r` one over the deviation, and sums over the whole batch,
    :math:`\frac{\gamma r}{N} \left(\sum dy + \hat x \sum dy\, \hat x\right)`.

    Args:
        norm: Its scale and shift also get their gradients here.
        statistics: Of the whole batch.
        affine: The `leaves` with which all chunks went back.

    Returns:
        What to subtract from the gradient of each row.
    """
    scale, shift = (leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in affine)
    _add_gradient(norm.weight, scale)
    _add_gradient(norm.bias, shift)
    inverse = (statistics.variance + norm.eps).rsqrt()
    outer = affine[0].detach().double() * inverse / statistics.values
    slope = outer * inverse * scale.double()
    return Shared(slope, outer * shift.double() - slope * statistics.mean)


@torch.no_grad()
def subtract_shared(gradient: Tensor, rows: Tensor, shared: Shared) -> None:
    """Take the common part off one chunk's gradient, in place."""
    slope, level = (part.to(gradient.dtype).view([1, -1] + [1] * (rows.ndim - 2)) for part in shared)
    gradient.addcmul_(rows, slope, value=-1).sub_(level)


def _add_gradient(parameter: Tensor | None, gradient: Tensor) -> None:
    if parameter is not None and parameter.requires_grad:
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
