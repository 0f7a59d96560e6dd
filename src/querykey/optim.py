"""Schedules of the learning rate."""

import math

from querykey.errors import RangeError

__all__ = ["warm_up_cosine"]


def warm_up_cosine(step: int, *, steps: int, warm_up: int = 0) -> float:
    r"""The share of the peak learning rate at a step: a straight rise, then half a cosine to 0.

    .. math:: \min\left(1, \frac{t + 1}{w}\right) \text{ for } t < w, \qquad
              \tfrac12\left(1 + \cos\left(\pi\,\frac{t - w}{T - w}\right)\right) \text{ after}

    Args:
        step: :math:`t`, counted from 0.
        steps: :math:`T`, of the whole run, above warm_up.
        warm_up: :math:`w`, steps of the rise, from 0.

    Returns:
        A factor from 0 to 1.

    Raises:
        RangeError: If warm_up is not below steps.

    Example:
        >>> [round(warm_up_cosine(t, steps=4, warm_up=2), 2) for t in range(4)]
        [0.5, 1.0, 1.0, 0.5]

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, one period; the rise as in
        Chen et al. 2020, arXiv:2002.05709, app. B.1.
    """
    if not 0 <= warm_up < steps:
        raise RangeError(f"warm_up must be from 0 to below the {steps} steps, got {warm_up}")
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
