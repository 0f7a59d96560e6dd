"""Vectors in files of arrays, and the check that they are finite and not zero."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.items import RowNumbers, Source, fingerprint_files
from querykey.data.labels import NO_NAMES, number_labels
from querykey.data.readers.grammar import Wanted, nearest_words
from querykey.data.readers.mapped import Arrays, open_arrays
from querykey.errors import DataError, ShapeError, SourceError

__all__ = ["read_arrays", "require_finite_rows"]

_BLOCK_BYTES = 1 << 24
_SHOWN = 5


def read_arrays(path: Path, *, name: str, wanted: Wanted) -> Source:
    """Read vectors from .npy, .npz or .safetensors.

    They are mapped into memory where the format allows it.

    Args:
        path: The file.
        name: How the user named it.
        wanted: `column`: the array of the vectors, needed if there are several and none is named X.
            `label_column`: the array of the labels; y if there is one.

    Returns:
        A source of kind "vector"; `items` is [n, dim] in the dtype of the file.

    Raises:
        SourceError: If the file is damaged, holds Python objects, or the array does not exist.
        ShapeError: If the array is not [n, dim] with n and dim >= 1.
    """
    if path.suffix.lower() == ".npy":
        wanted.allow(what=f"{path}, a single array,")
    else:
        wanted.allow("column", "label_column", what=str(path))
    arrays = open_arrays(path)
    label_column = wanted.label_column
    chosen = _choose(arrays, wanted.column, path)
    vectors = _rows(arrays[chosen](), f"{path}: {chosen}" if len(arrays) > 1 else str(path))
    if label_column is None and "y" in arrays and chosen != "y":
        label_column = "y"
    labels, names = None, NO_NAMES
    if label_column is not None:
        values = arrays[_choose(arrays, label_column, path)]()
        if values.shape != (len(vectors),):
            raise ShapeError(
                f"{path}: the labels {label_column} have shape {list(values.shape)} "
                f"for {len(vectors)} vectors; one for each is needed"
            )
        labels, names = number_labels(values, what=f"{path}: {label_column}")
    digest = fingerprint_files([path], chosen, label_column)
    return Source(name, "vector", vectors, RowNumbers(len(vectors)), labels, names, digest)


def require_finite_rows(X: Tensor, *, what: str) -> None:
    """Check that no vector is NaN, infinite or zero, since those have no cosine.

    It reads blocks of rows, so a memory-mapped tensor is never copied completely.

    Args:
        X: [rows, dim], any float dtype.
        what: What the vectors are, for the message.

    Raises:
        DataError: If there is such a row; the message has their number and the first of each kind.

    Example:
        >>> require_finite_rows(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), what="features.npy")
        Traceback (most recent call last):
        querykey.errors.DataError: features.npy: 1 of 2 rows cannot be compared: 1 zero (row 1); ...
    """
    bad: dict[str, list[int]] = {"NaN": [], "infinite": [], "zero": []}
    counts = dict.fromkeys(bad, 0)
    step = max(1, _BLOCK_BYTES // (4 * max(1, X.shape[1])))
    for start in range(0, len(X), step):
        # the largest magnitude of a row shows all three cases in one pass
        rows = X[start : start + step].float()
        peak = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
        if bool((peak.isfinite() & (peak > 0)).all()):
            continue
        for kind, found in (("NaN", peak.isnan()), ("infinite", peak.isinf()), ("zero", peak == 0)):
            at = found.nonzero().flatten() + start
            counts[kind] += len(at)
            bad[kind] += at[: _SHOWN - len(bad[kind])].tolist()
    if not any(counts.values()):
        return
    listed = ", ".join(
        f"{count} {kind} ({_row_list(bad[kind], count)})" for kind, count in counts.items() if count
    )
    raise DataError(
        f"{what}: {sum(counts.values())} of {len(X)} rows cannot be compared: {listed}; "
        "remove these rows, or compute them again"
    )


def _row_list(rows: list[int], count: int) -> str:
    listed = ", ".join(map(str, rows)) + (", ..." if count > len(rows) else "")
    return f"{'row' if count == 1 else 'rows'} {listed}"


def _choose(arrays: Arrays, name: str | None, path: Path) -> str:
    if name is not None:
        if name in arrays:
            return name
        near = nearest_words(name, arrays)
        raise SourceError(f"{path} has no array {name!r}{near}; it holds: {', '.join(arrays)}")
    if len(arrays) == 1:
        return next(iter(arrays))
    if "X" in arrays:
        return "X"
    if not arrays:
        raise SourceError(f"{path} holds no array; vectors [n, dim] are needed")
    raise SourceError(
        f"{path} holds several arrays ({', '.join(arrays)}) and none is named X; "
        "give that of the vectors as column"
    )


def _rows(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise SourceError(
            f"{what} holds {array.dtype}, not numbers; vectors of float32 or float16 are needed"
        )
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"{what} has shape {list(array.shape)}; vectors are [n, dim], n and dim >= 1")
    # torch reads only its own byte order
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
