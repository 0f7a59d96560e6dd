"""Types with a range for the fields of settings (`config.settings` checks it), and lists of whole numbers."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from querykey.errors import ConfigError

__all__ = [
    "LARGEST",
    "AtLeastTwo",
    "Count",
    "NonNegative",
    "Positive",
    "PositiveInt",
    "Probability",
    "ProbabilityBelowOne",
    "Side",
    "whole_numbers",
]

LARGEST = 2**31 - 1
"""Largest integer: counts of rows, steps or images, and seeds, are far below."""

Count = Annotated[int, Ge(0), Le(LARGEST)]
PositiveInt = Annotated[int, Gt(0), Le(LARGEST)]
AtLeastTwo = Annotated[int, Ge(2), Le(LARGEST)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Ge(0), Le(1)]
ProbabilityBelowOne = Annotated[float, Ge(0), Lt(1)]
Side = Annotated[int, Ge(8), Le(4096)]
"""Side of an image or a view in pixels."""


def whole_numbers(given: Any, *, name: str) -> tuple[int, ...]:
    """Whole numbers from a list, an array or a tensor, or from one number.

    Args:
        given: The numbers; None: none.
        name: Of the parameter, for the message.

    Returns:
        The numbers, each once, in the order given.

    Raises:
        ConfigError: If they are something else.

    Example:
        >>> whole_numbers(np.array([256, 128]), name="dims")
        (256, 128)
    """
    if given is None:
        return ()
    try:
        many = list(given) if np.iterable(given) else [given]
        return tuple(dict.fromkeys(map(_whole, many)))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # NaN, infinity, a tensor of many
        raise ConfigError(f"{name} must be whole numbers, such as [8] or [8, 1], got {given!r}") from None


def _whole(one: Any) -> int:
    whole = int(one)
    if isinstance(one, bool | np.bool_ | str | bytes) or whole != one:
        raise ValueError(one)
    return whole
