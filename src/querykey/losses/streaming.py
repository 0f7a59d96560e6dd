"""Plain or streamed: whether a loss holds the matrix of its scores or walks it in blocks."""

from typing import Literal, get_args

from querykey.errors import ConfigError
from querykey.lookup import Lookup

__all__ = ["Form", "is_streamed", "takes_streamed"]

Form = Literal["auto", "plain", "streamed"]
"""How a loss is computed; the numbers are the same but for rounding. "auto" goes by `is_streamed`."""

PAIRS = 2**18
"""Scores from which on streaming is the faster form (benchmarks/losses.py)."""


def is_streamed(queries: int, keys: int) -> bool:
    """Which form of a loss is faster, by the size of its look-up alone: everywhere the same.

    Args:
        queries: Of a look-up.
        keys: Of it.

    Returns:
        False where its scores fit the processor's cache.

    Example:
        >>> is_streamed(64, 64), is_streamed(8192, 8192)
        (False, True)
    """
    return queries * keys >= PAIRS


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
        return is_streamed(len(lookup), len(lookup.keys))
    return form == "streamed"
