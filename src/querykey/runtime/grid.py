r"""Sums whose order does not matter: rows and matrices rounded to a grid.

Rows and matrices are rounded to integers on a grid whose step is a power of two, coarse enough that float64
represents every partial sum of their product. Such sums are exact, so they are the same in any batch, with
any number of threads, in any BLAS library and on any machine.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ROW_BITS",
    "Exact",
    "Grid",
    "grid_matrix",
    "grid_product",
    "grid_rows",
    "is_small",
    "small_product",
]

ROW_BITS = 20
"""Bits of the largest number of a row. Float32 has 24; the last four change a code only at a tie."""
SUM_BITS = 52
"""Bits of a float64 sum that stays exact; one bit is left for rounding."""
SMALL = 1_000_000
"""Multiplications up to which OpenBLAS neither packs a product's matrices nor starts threads for it. The rows
of a narrow layer are multiplied in stacks of this size: a fifth less time on one core, and threads over
blocks of rows do not wait for those of the library."""
LEAST_STACK, MOST_STACK = 8, 40
"""Rows per stack; below, packing pays."""

Exact = NDArray[np.float64]


class Grid(NamedTuple):
    """Rows as integers, each row with its own step."""

    whole: Exact
    """Integers [rows, width] of magnitude at most 2^20."""
    lengths: Exact
    """Their Euclidean lengths [rows, 1]; 1 for a row of zeros, not finite if a number of the row is not."""
    step: Exact
    """The value of 1 in each row [rows, 1], a power of two."""


def grid_rows(rows: NDArray[Any]) -> Grid:
    """Round each row to integers of magnitude at most 2^20 and compute its length.

    Args:
        rows: [rows, width], float32 or float64.

    Returns:
        The `Grid`.
    """
    rows = rows if rows.dtype == np.float32 else rows.astype(np.float64, copy=False)
    exponents = np.frexp(_peaks(rows))[1][:, None] - ROW_BITS
    step = np.ldexp(1.0, exponents)
    scale = 1 / step  # by a power of two nothing is rounded
    if rows.dtype == np.float32 and exponents.min(initial=0) > -127:
        # the integers have 21 bits: float32 holds them, in half the bytes
        small = np.multiply(rows, scale.astype(np.float32), out=np.empty(rows.shape, dtype=np.float32))
        whole = np.rint(small, out=small).astype(np.float64)
    else:
        whole = np.multiply(rows, scale, out=np.empty(rows.shape))
        np.rint(whole, out=whole)
    lengths = np.sqrt(np.vecdot(whole, whole))[:, None]
    lengths[lengths == 0] = 1.0
    return Grid(whole, lengths, step)


def grid_matrix(matrix: NDArray[Any]) -> tuple[Exact, float]:
    """Round a matrix to integers whose product with `grid_rows` is exact.

    Args:
        matrix: [out, width].

    Returns:
        (integers [out, width], the power of two they were multiplied by).
    """
    exact = matrix.astype(np.float64)
    longest = math.sqrt(max(np.einsum("ij,ij->i", exact, exact).max(initial=0), 1e-300))
    # |sum| <= |row| |column| <= sqrt(width) 2^ROW_BITS |column|
    spare = SUM_BITS - ROW_BITS - math.ceil(math.log2(max(exact.shape[1], 2)) / 2)
    scale = 2.0 ** (spare - math.ceil(math.log2(longest)))
    return np.asfortranarray(np.rint(exact * scale)), scale


def grid_product(rows: Grid, matrix: tuple[Exact, float]) -> Exact:
    """The product of unit rows and a matrix, exact up to one final division.

    Args:
        rows: Of `grid_rows`.
        matrix: Of `grid_matrix`.

    Returns:
        [rows, out], float64.
    """
    whole, scale = matrix
    product: Exact = small_product(rows.whole, whole.T)
    product /= rows.lengths * scale
    return product


def is_small(width: int, out: int) -> bool:
    """Whether rows are multiplied in stacks, without threads of the BLAS library."""
    return width * out * LEAST_STACK <= SMALL


def small_product(rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    """A product in stacks of rows if `is_small`, and as a whole otherwise.

    Args:
        rows: [rows, width].
        columns: [width, out], contiguous, of the same dtype.

    Returns:
        [rows, out].
    """
    (count, width), out = rows.shape, columns.shape[1]
    if not is_small(width, out):
        whole: NDArray[Any] = rows @ columns
        return whole
    each = min(SMALL // max(width * out, 1), MOST_STACK)
    rows = np.ascontiguousarray(rows)
    made, stacked = np.empty((count, out), dtype=rows.dtype), count - count % each
    stacks = rows[:stacked].reshape(-1, each, width), made[:stacked].reshape(-1, each, out)
    np.matmul(stacks[0], columns, out=stacks[1])
    np.matmul(rows[stacked:], columns, out=made[stacked:])
    return made


def _peaks(rows: NDArray[Any]) -> NDArray[Any]:
    """The largest magnitude of each row; NaN if it has one."""
    sizes = np.abs(rows)
    # the bits of numbers that are not negative have their order, and integers have a faster maximum
    bits = sizes.view(np.int32 if rows.dtype == np.float32 else np.int64)
    peaks: NDArray[Any] = bits.max(axis=1, initial=0).view(rows.dtype)
    return peaks
