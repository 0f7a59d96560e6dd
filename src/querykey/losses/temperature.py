"""A temperature that is learned."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from querykey.errors import RangeError, SecondDerivativeError

__all__ = ["LearnedTemperature"]


class LearnedTemperature(nn.Module):
    r"""A temperature :math:`\tau = e^{-\theta}` with :math:`\theta` learned, and never below a bound.

    Learning the logarithm keeps it positive and makes its steps shares of itself. At the bound
    a gradient that would lower it further is dropped, one that raises it passes: it is
    not stuck there, as it would be behind a plain clamp, and nothing is written in forward.

    Args:
        initial: :math:`\tau` at first, from lowest; CLIP begins at 0.07.
        lowest: Bound of :math:`\tau`, > 0: CLIP keeps logits below 100 times the scores.

    Raises:
        RangeError: If initial is below lowest, lowest is not positive, or one is not finite.

    Example:
        >>> from querykey.losses import nt_xent
        >>> temperature = LearnedTemperature(initial=0.5)
        >>> view = torch.eye(2)
        >>> nt_xent(view, view, temperature=temperature()).mean().backward()
        >>> bool(temperature.log_inverse.grad < 0)  # views that agree: colder is better
        True

    Source:
        Radford et al. 2021, arXiv:2103.00020, sec. 2.5.
    """

    def __init__(self, initial: float = 0.07, *, lowest: float = 0.01) -> None:
        super().__init__()
        if not 0.0 < lowest <= initial < math.inf:
            raise RangeError(
                f"initial must be finite and at least lowest, which is > 0; got {initial} and {lowest}"
            )
        self.lowest = lowest
        self.log_inverse = nn.Parameter(torch.tensor(-math.log(initial)))

    def forward(self) -> Tensor:
        """The temperature now, a tensor of one number [] with gradient."""
        bounded: Tensor = _AtMost.apply(self.log_inverse, -math.log(self.lowest))
        return (-bounded).exp()

    def extra_repr(self) -> str:
        return f"lowest={self.lowest}"


class _AtMost(torch.autograd.Function):
    """The smaller of a number and a bound; beyond it only a gradient that leads back passes."""

    @staticmethod
    def forward(ctx: Any, number: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(number)
        ctx.bound = bound
        return number.clamp(max=bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        (number,) = ctx.saved_tensors
        passes = (number < ctx.bound) | (gradient > 0)
        return gradient * passes, None
