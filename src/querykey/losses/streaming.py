"""Plain or streamed: whether a loss holds the matrix of its scores or walks it in blocks."""

from typing import Literal, get_args

from querykey.errors import ConfigError
from querykey.lookup.lookup import Lookup
from querykey.lookup.two_view_pairs import TwoViewPairs

__all__ = ["Form", "chosen_form", "is_streamed", "loss_bytes", "takes_streamed"]

Form = Literal["auto", "plain", "streamed"]
"""How a loss is computed; the numbers are the same but for rounding. "auto" goes by `is_streamed`."""

PAIRS, PAIRS_OF_VIEWS = 2**22, 2**19
"""Scores from which on streaming is the faster form, of any look-up and of two views in themselves: where a
matrix of them leaves the processor's cache (benchmarks/losses.py)."""

PLAIN_BYTES = 26
"""Of memory for each score: six matrices of numbers and two of masks are held at once."""

ROWS, KEYS = 256, 2048
"""Queries and keys that are walked together: what is held at once is a few matrices of this size."""


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


def chosen_form(
    form: Form, queries: int, keys: int, *, of_views: bool = False
) -> Literal["plain", "streamed"]:
    """The form in which a loss is computed: as it is wanted, or by `is_streamed`.

    Args:
        form: As its caller wants it.
        queries: Of a look-up.
        keys: Of it.
        of_views: As for `is_streamed`.
    """
    if form != "auto":
        return form
    return "streamed" if is_streamed(queries, keys, of_views=of_views) else "plain"


def loss_bytes(queries: int, keys: int, width: int, form: Form) -> int:
    """How much memory a loss takes beside its queries and keys, forward and backward, roughly.

    Args:
        queries: Of a look-up.
        keys: Of it.
        width: Of their rows, in float32.
        form: In which it is computed; "auto" goes by `is_streamed`.

    Returns:
        Bytes.

    Example:
        >>> loss_bytes(8192, 8192, 128, "plain") >> 20, loss_bytes(8192, 8192, 128, "streamed") >> 20
        (1664, 37)
    """
    if chosen_form(form, queries, keys) == "plain":
        return PLAIN_BYTES * queries * keys
    copies = 3 * 4 * width * (queries + keys)
    return copies + PLAIN_BYTES * min(queries, ROWS) * min(keys, KEYS)


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
    if lookup.shard_group.world_size > 1:  # a share of the keys: its matrix is a share too
        return False
    of_views = isinstance(lookup.pairs, TwoViewPairs)
    return chosen_form(form, len(lookup), len(lookup.keys), of_views=of_views) == "streamed"
