"""Backward passes that have no derivative of their own, and say so."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from querykey.errors import ConfigError

__all__ = ["first_derivative_only"]


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the backward pass of an autograd function as one that cannot be differentiated.

    `once_differentiable` alone raises only where the incoming gradient needs a gradient. The one of a sum or
    a mean is a constant, so that second derivatives would come out without this function's part.

    Args:
        backward: Of a `torch.autograd.Function`.

    Returns:
        The same; it raises ConfigError under `create_graph=True`.
    """
    once: Callable[..., Any] = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        # a compiled graph has no second derivative, and PyTorch says so itself
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise ConfigError(
                "querykey's losses have no second derivatives, got create_graph=True; leave it out, or write "
                "the loss in plain torch operations on lookup.scores"
            )
        return once(ctx, *gradients)

    return checked
