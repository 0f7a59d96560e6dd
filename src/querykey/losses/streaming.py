"""Plain or streamed: whether a loss holds the matrix of its scores or walks it in blocks."""

from typing import Literal, get_args

from querykey.errors import ConfigError
from querykey.lookup import Lookup
from querykey.two_views import TwoViewPairs

__all__ = ["Form", "is_streamed", "takes_streamed"]

Form = Literal["auto", "plain", "streamed"]
"""How a loss is computed; the numbers are the same but for rounding. "auto" goes by `is_streamed`."""

PAIRS, PAIRS_OF_VIEWS = 2**22, 2**19
"""Scores from which on streaming is the faster form, of any look-up and of two views in themselves: where a
matrix of them leaves the processor's cache (benchmarks/losses.py)."""


def is_streamed(queries: int, keys: int, *, of_views: bool = False) -> bool:
    """Which form of a loss is faster, by the size of its look-up alone: the same on every machine.

    Args:
        queries: Of a look-up.
        keys: Of it.
        of_views: Whether it is two views looked up in themselves, of which each score counts twice.

    Returns:
        Whether it is to be streamed.

    Example:
        >>> is_streamed(256, 256), is_streamed(8192, 8192)
        (False, True)
    """
    return queries * keys >= (PAIRS_OF_VIEWS if of_views else PAIRS)


def takes_streamed(lookup: Lookup, form: Form) -> bool:
    """Whether a loss is to be streamed.

    Args:
        lookup: What it is of.
        form: As its caller wants it.

    Raises:
        ConfigError: If there is no such form.
    """
    if form not in get_args(Form):
        raise ConfigError(f"form must be one of {', '.join(get_args(Form))}; got {form!r}")
    if form == "auto":
        of_views = isinstance(lookup.pairs, TwoViewPairs)
        return is_streamed(len(lookup), len(lookup.keys), of_views=of_views)
    return form == "streamed"
