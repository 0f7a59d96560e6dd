"""What the estimator is given, as tensors: rows of arrays, tensors and features; labels of any type."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data
from torch import Tensor

from querykey.adapter.split import renumbered_pairs
from querykey.adapter.validation import ValidationQueries
from querykey.data.labels import label_array, number_labels
from querykey.data.readers.arrays import require_finite_rows
from querykey.errors import DataError, ShapeError
from querykey.features.features import Features
from querykey.lookup.unit_length import in_range
from querykey.types import FrozenRows

__all__ = ["check_rows", "labels_of", "rows_with_direction", "unchanged_by_errors"]

MOST_ZERO = 0.05
"""Share of rows without a direction that are left out; more is an error."""


def check_rows(estimator: Any, X: ArrayLike | Tensor | Features, *, reset: bool) -> Tensor:
    """Rows as a tensor, checked; an array by scikit-learn's own rules.

    Args:
        estimator: Whose `n_features_in_` is set or compared.
        X: Rows [rows, width].
        reset: Whether this is a fit.

    Returns:
        [rows, width]; float32 for an array, as it is otherwise. An array may hold rows of zeros.

    Raises:
        ShapeError: If the width is not that of the fit.
        DataError: If rows are NaN, infinite or zero.
    """
    if not isinstance(X, Features | Tensor):
        return _rows_of_array(estimator, X, reset=reset)
    rows = _plain(X.vectors if isinstance(X, Features) else X.detach())
    if reset:
        estimator.n_features_in_ = rows.shape[1]
        vars(estimator).pop("feature_names_in_", None)  # those of an earlier fit
    elif rows.shape[1] != estimator.n_features_in_:
        raise ShapeError(
            f"rows are {rows.shape[1]} wide; the adapter was fitted on {estimator.n_features_in_}"
        )
    require_finite_rows(rows, what="X")
    return rows


def rows_with_direction(
    rows: FrozenRows, labels: Tensor | None, validation: ValidationQueries | None
) -> tuple[Tensor, Tensor | None, ValidationQueries | None]:
    """Leave out the rows that are zero, with their labels and pairs; warns how many.

    Args:
        rows: [rows, width].
        labels: Class of each row, or None.
        validation: Queries with pairs of rows, or None.

    Returns:
        The same without rows that are zero.

    Raises:
        DataError: If more than one in twenty is zero.
    """
    kept = rows.any(dim=1)
    zero = int((~kept).sum())
    if zero == 0:
        return rows, labels, validation
    if zero > MOST_ZERO * len(rows):
        raise DataError(f"{zero} of {len(rows)} rows of X are zero and have no direction; take them out")
    warnings.warn(
        f"left {zero} of {len(rows)} rows out of training: they are zero", UserWarning, stacklevel=3
    )
    if validation is not None and validation.pairs is not None:
        validation = replace(validation, pairs=renumbered_pairs(validation.pairs, kept))
    return rows[kept], None if labels is None else labels[kept], validation


def labels_of(y: ArrayLike, rows: int) -> Tensor:
    """Convert labels of any type to integers, -1 if unknown.

    Args:
        y: One label per row.
        rows: Number of rows.

    Returns:
        int64 [rows].

    Raises:
        ShapeError: If their number differs.
        DataError: If they cannot be classes.
    """
    values = label_array(y, what="y")
    if values.shape != (rows,):
        raise ShapeError(f"y has shape {values.shape} for {rows} rows; one label for each row is needed")
    return torch.from_numpy(number_labels(values, what="y")[0])


def _rows_of_array(estimator: Any, X: ArrayLike, *, reset: bool) -> Tensor:
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise DataError(
            f"X is a masked array with {int(np.ma.getmaskarray(X).sum())} missing numbers; "
            "fill them in, or leave out their rows"
        )
    checked = validate_data(
        estimator, X, reset=reset, dtype=[np.float32, np.float64], ensure_min_samples=2 if reset else 1
    )
    with warnings.catch_warnings():  # torch has no read-only tensors; this one is never written to
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        if checked.dtype == np.float64:  # scaled first: float32 ends at 3e38
            checked = in_range(torch.from_numpy(np.ascontiguousarray(checked))).numpy()
        return torch.from_numpy(np.ascontiguousarray(checked, dtype=np.float32))


def _plain(rows: Tensor) -> Tensor:
    """A matrix of real numbers, scaled into the range of float32 if it is float64."""
    if rows.is_inference():  # autograd refuses to save them
        rows = rows.clone()
    if rows.is_complex():
        raise DataError(f"rows are of {rows.dtype}; complex numbers have no cosine: take real ones")
    if not rows.is_floating_point():
        rows = rows.float()
    if rows.ndim != 2:
        raise ShapeError(f"rows must be a matrix [rows, width], got shape {list(rows.shape)}")
    return in_range(rows) if rows.dtype == torch.float64 else rows


@contextmanager
def unchanged_by_errors(estimator: Any) -> Iterator[None]:
    """Restore the estimator if a fit raises."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        estimator.__dict__ = before
        raise
