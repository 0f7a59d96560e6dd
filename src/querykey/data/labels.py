"""Encodes labels of any type as integers 0, 1, ... with class names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from querykey.errors import DataError
from querykey.lookup.lookup import IGNORE_LABEL

__all__ = ["NO_NAMES", "common_labels", "label_array", "number_labels"]

NO_NAMES: tuple[str, ...] = ()
"""The label names of a source without labels."""

_Numbered = tuple[NDArray[np.int64], tuple[str, ...]]


def number_labels(values: Any, *, what: str, names: Sequence[str] = ()) -> _Numbered:
    """Encode the classes of a column as integers.

    Classes are sorted; of integers, -1 means unlabelled, as in scikit-learn. Missing values, empty strings
    and NaN are unlabelled too.

    Args:
        values: One per item: an Arrow column, an array or a list.
        what: Their source, for messages.
        names: Names of classes 0, 1, ... from the data, including classes without an item.

    Returns:
        (labels int64 [n], -1 if unlabelled; the name of each class).

    Raises:
        DataError: If the values are not classes: decimals, lists, integers without a name.

    Example:
        >>> labels, names = number_labels(["cat", "ant", None, "cat"], what="pets.csv")
        >>> labels.tolist(), names
        ([1, 0, -1, 1], ('ant', 'cat'))
    """
    column = _one_array(values, what)
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind):
        column = pc.cast(column, pa.string())
    elif pa.types.is_floating(kind):
        column = _integers(column, what)
    elif pa.types.is_null(kind):
        column = pc.cast(column, pa.string())
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        column = _decoded(column, what)
    elif pa.types.is_uint64(kind):
        column = _signed(column)
    elif not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{what} holds {kind}, which are not classes; labels are strings or integers")

    unknown = "" if not pa.types.is_integer(column.type) else IGNORE_LABEL
    labelled = pc.and_kleene(pc.is_valid(column), pc.fill_null(pc.not_equal(column, unknown), False))
    if len(names) and pa.types.is_integer(column.type):
        return _with_names(column, labelled, what, tuple(names))
    classes = pc.unique(column.filter(labelled))
    classes = classes.take(pc.sort_indices(classes))
    numbers = pc.index_in(pc.if_else(labelled, column, None), value_set=classes)
    labels = pc.fill_null(numbers, IGNORE_LABEL).to_numpy(zero_copy_only=False).astype(np.int64)
    return labels, tuple(str(name) for name in classes.to_pylist())


def common_labels(*parts: _Numbered) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Encode the classes of several sources in the same way, by their names.

    Args:
        parts: (labels, label_names) of each source.

    Returns:
        (labels of each in the common numbering, all names in order of first appearance).

    Example:
        >>> train = np.array([0, 1]), ("ant", "cat")
        >>> test = np.array([0, -1]), ("cat",)
        >>> [labels.tolist() for labels in common_labels(train, test)[0]]
        [[0, 1], [1, -1]]
    """
    names = tuple(dict.fromkeys(name for _, part_names in parts for name in part_names))
    place = {name: number for number, name in enumerate(names)}
    numbered = []
    for labels, part_names in parts:
        # the last entry is that of index -1
        onto = np.array([*(place[name] for name in part_names), IGNORE_LABEL], dtype=np.int64)
        numbered.append(onto[labels])
    return numbered, names


def label_array(values: Any, *, what: str) -> NDArray[Any]:
    """Convert labels in any container to an array in which missing values are None or NaN.

    `np.asarray` alone loses them: `np.asarray([nan, "a"])` contains the text "nan", and masks are dropped.

    Args:
        values: A list, array, masked array, column of pandas or tensor.
        what: Their source, for messages.

    Returns:
        [n]; of dtype object if given as a list or if some are missing. More dimensions are kept.

    Raises:
        DataError: If they are not a sequence.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        if not mask.any():
            return np.asarray(values.data)
        filled = np.asarray(values.data).astype(object)
        filled[mask] = None
        return filled
    if isinstance(values, list | tuple):
        if any(isinstance(value, list | tuple) for value in values):
            return np.asarray(values, dtype=object)
        listed = np.empty(len(values), dtype=object)
        for place, value in enumerate(values):
            listed[place] = value.item() if isinstance(value, torch.Tensor | np.generic) else value
        return listed
    found = np.asarray(values)
    if found.ndim == 0:
        raise DataError(f"{what} is one value; a label for each row is needed")
    return found


def _one_array(values: Any, what: str) -> Any:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.Array):
        return values
    found = label_array(values, what=what)
    if found.dtype == object:
        found = np.array([None if _is_missing(value) else value for value in found], dtype=object)
        if len({isinstance(value, bytes) for value in found if value is not None}) == 2:
            raise DataError(
                f"{what} holds bytes and others, which cannot be classes together; decode the bytes"
            )
        if any(type(value) is int and not -(2**63) <= value < 2**63 for value in found):
            found = np.array([None if value is None else str(value) for value in found], dtype=object)
    try:
        return pa.array(found, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        kinds = sorted({type(value).__name__ for value in found.flat if value is not None})
        together = "cannot be classes together" if len(kinds) > 1 else "are not classes"
        raise DataError(
            f"{what} holds {' and '.join(kinds[:4])}, which {together}; "
            "labels are strings or integers, all of one type"
        ) from error


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT, pandas' NA, and masked values."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _integers(column: Any, what: str) -> Any:
    """Integers that are stored as decimals because some are missing."""
    column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{what} holds decimals ({column.type}), which are not classes; labels are strings or integers"
        ) from error


def _decoded(column: Any, what: str) -> Any:
    """Bytes decoded as UTF-8."""
    try:
        return pc.cast(pc.cast(column, pa.binary()), pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{what} holds bytes that are not UTF-8 text; labels are strings or integers"
        ) from error


def _signed(column: Any) -> Any:
    """Unsigned integers as signed ones; as text if one is too large."""
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowInvalid:
        return pc.cast(column, pa.string())


def _with_names(column: Any, labelled: Any, what: str, names: tuple[str, ...]) -> _Numbered:
    filled = pc.if_else(labelled, column, IGNORE_LABEL)
    labels = filled.to_numpy(zero_copy_only=False).astype(np.int64)
    if len(labels) and not (labels.min() >= IGNORE_LABEL and labels.max() < len(names)):
        raise DataError(
            f"{what} holds labels from {labels.min()} to {labels.max()}, but names {len(names)} classes; "
            f"labels must lie in 0 to {len(names) - 1}, or be -1 if unlabelled"
        )
    return labels, names
