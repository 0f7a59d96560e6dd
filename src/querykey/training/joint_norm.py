"""Batch norm of a batch in chunks: what one way back over them needs and leaves."""

import torch
from torch import Tensor

from querykey.encoders.global_batchnorm import Shared, Statistics, move_running, shared_gradient
from querykey.training.tape import Norm

__all__ = ["leaves", "move", "shared_by_rows"]


def move(norm: Norm, statistics: Statistics) -> None:
    """The running statistics, in place, as torch moves them."""
    move_running(norm.running, norm.momentum, statistics)


def leaves(norm: Norm, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Scale and shift for one way back: their gradients are the sums that batch norm's own needs."""
    blank = torch.zeros_like(statistics.mean, dtype=statistics.dtype)
    weight = blank + 1 if norm.weight is None else norm.weight.detach().clone()
    bias = blank if norm.bias is None else norm.bias.detach().clone()
    return weight.requires_grad_(), bias.requires_grad_()


def shared_by_rows(norm: Norm, statistics: Statistics, affine: tuple[Tensor, Tensor]) -> Shared:
    """The part of the gradient that the rows of all chunks have in common.

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
    return shared_gradient(statistics, affine[0], norm.eps, (scale, shift), norm.processes)


def _add_gradient(parameter: Tensor | None, gradient: Tensor) -> None:
    if parameter is not None and parameter.requires_grad:
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
