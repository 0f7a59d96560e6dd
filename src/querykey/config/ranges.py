"""Types with a range, for the fields of settings; `config.settings` checks the range."""

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

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
