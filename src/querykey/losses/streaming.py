"""Dense or chunked: whether a loss stores the matrix of its scores or computes it in blocks."""

import warnings
from typing import Any, Literal, get_args

from querykey.errors import ConfigError
from querykey.lookup.lookup import Lookup
from querykey.lookup.two_view_pairs import TwoViewPairs

__all__ = ["Form", "chosen_form", "current_form", "is_chunked", "loss_bytes", "takes_chunked"]

Form = Literal["auto", "dense", "chunked"]
"""How a loss is computed; the values are equal up to rounding. "auto": as `is_chunked` says."""

RENAMED: dict[str, Form] = {"plain": "dense", "streamed": "chunked"}
"""Names of version 0.1; they warn, and go with the next version."""

CHUNKED_FROM, CHUNKED_FROM_OF_VIEWS = 2**22, 2**19
"""Numbers of scores from which the chunked form is faster, of any look-up and of two views in themselves: a
matrix of so many leaves the processor's cache (benchmarks/losses.py)."""

DENSE_BYTES = 26
"""Memory per score: six matrices of numbers and two of masks exist at once."""

ROWS, KEYS = 256, 2048
"""Queries and keys of one block: a few matrices of this size exist at once."""


def is_chunked(queries: int, keys: int, *, of_views: bool = False) -> bool:
    """Whether the chunked form of a loss is faster, by the size of its look-up alone.

    Args:
        queries: Number of queries.
        keys: Number of keys.
        of_views: Whether two views are looked up in each other, where each score counts twice.

    Returns:
        The same on every machine.

    Example:
        >>> is_chunked(256, 256), is_chunked(8192, 8192)
        (False, True)
    """
    return queries * keys >= (CHUNKED_FROM_OF_VIEWS if of_views else CHUNKED_FROM)


def current_form(form: Any, *, warn: bool = True) -> Any:
    """The current name of a form.

    Args:
        form: A current name, or one of version 0.1: "plain" or "streamed".
        warn: Whether an old name warns; False when a saved run is read.

    Returns:
        The current name; an unknown name is returned unchanged.
    """
    if form not in RENAMED:
        return form
    if warn:
        message = f"form={form!r} is named {RENAMED[form]!r} now; the old name goes with the next version"
        warnings.warn(message, FutureWarning, stacklevel=3)
    return RENAMED[form]


def chosen_form(
    form: Form, queries: int, keys: int, *, of_views: bool = False
) -> Literal["dense", "chunked"]:
    """The form in which a loss is computed: the given one, or by `is_chunked`.

    Args:
        form: The form that was requested.
        queries: Number of queries.
        keys: Number of keys.
        of_views: As for `is_chunked`.

    Raises:
        ConfigError: If there is no such form.
    """
    form = current_form(form)
    _require_known(form)
    if form != "auto":
        return form
    return "chunked" if is_chunked(queries, keys, of_views=of_views) else "dense"


def loss_bytes(queries: int, keys: int, width: int, form: Form) -> int:
    """The approximate memory of a loss besides its queries and keys, forward and backward.

    Args:
        queries: Number of queries.
        keys: Number of keys.
        width: Width of their rows, in float32.
        form: How it is computed; "auto": as `is_chunked` says.

    Returns:
        Bytes.

    Example:
        >>> loss_bytes(8192, 8192, 128, "dense") >> 20, loss_bytes(8192, 8192, 128, "chunked") >> 20
        (1664, 37)
    """
    if chosen_form(form, queries, keys) == "dense":
        return DENSE_BYTES * queries * keys
    copies = 3 * 4 * width * (queries + keys)
    return copies + DENSE_BYTES * min(queries, ROWS) * min(keys, KEYS)


def takes_chunked(lookup: Lookup, form: Form) -> bool:
    """Whether a loss uses the chunked form.

    Args:
        lookup: The look-up of the loss.
        form: The form that was requested.

    Raises:
        ConfigError: If there is no such form.
    """
    form = current_form(form)
    _require_known(form)
    if lookup.shard_group.world_size > 1:  # each process has a shard of the keys, so its matrix is smaller
        return False
    of_views = isinstance(lookup.pairs, TwoViewPairs)
    return chosen_form(form, len(lookup), len(lookup.keys), of_views=of_views) == "chunked"


def _require_known(form: str) -> None:
    if form not in get_args(Form):
        raise ConfigError(f"form must be one of {', '.join(get_args(Form))}; got {form!r}")
