"""Where an axis has its marks, and what is written at them."""

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["log_ticks", "ticks", "written"]

ABOUT = 5
"""Marks that an eye takes in."""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a stretch.

    Args:
        low: Its lower end.
        high: Its upper end, not below it.

    Returns:
        Rising; the first is at most `low`, the last at least `high`.

    Example:
        >>> ticks(0.13, 0.92)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high <= low:
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / ABOUT
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") + 0.0 for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Whole powers of ten inside a stretch of exponents; its ends where it has fewer than two.

    Args:
        low: Lower exponent.
        high: Upper exponent.

    Returns:
        Exponents, rising.

    Example:
        >>> log_ticks(-4.0, -1.5)
        [-4.0, -3.0, -2.0]
    """
    whole = [float(e) for e in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    return whole if len(whole) > 1 else [low, high]


def written(mark: float, marks: Sequence[float]) -> str:
    """A mark as text, with as many decimals as tell the marks apart.

    Args:
        mark: One of them.
        marks: All.

    Returns:
        Text; thousands stand apart.

    Example:
        >>> written(0.2, [0.0, 0.2, 0.4]), written(2000.0, [0.0, 1000.0, 2000.0])
        ('0.2', '2,000')
    """
    step = min((b - a for a, b in pairwise(marks)), default=1.0)
    if max(map(abs, marks)) >= 1e7 or step < 1e-6:
        return f"{mark:.3g}"
    digits = next(d for d in range(8) if abs(round(step, d) - step) < 1e-9 * max(1.0, abs(step)))
    return f"{mark:,.{digits}f}"
