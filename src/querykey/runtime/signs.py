r"""Most codes of 1 bit from one product in float32: only rows that come near a threshold need exact sums.

A code is :math:`[R z > t]` of :math:`z = y / \lVert y \rVert`, :math:`y = W x + b`. With rotation and layer
multiplied beforehand, :math:`v = R W x + R b \lVert x \rVert` is a product of `dim` columns, and since
:math:`R` keeps lengths, the sign of :math:`v_j - t_j \lVert v \rVert` is the bit. The sign is that of exact
sums wherever its magnitude exceeds the largest error that rounding can make of it.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from querykey.runtime.codes import Code, Packed
from querykey.runtime.grid import ROW_BITS, Exact, grid_matrix, small_product

__all__ = ["Signs", "decide", "fold_signs"]

UNIT = 2.0**-24
"""Relative error of an operation in float32."""
SLACK = 1.01
"""For products of errors, and for the bound's own rounding."""
LARGEST_DEFECT = 0.5
"""Of a rotation's orthogonality, in the Frobenius norm; that of one in float32 is below 1e-5."""
LEAST, MOST = 1e-15, 1e15
"""Lengths of rows whose squares, and products with a layer, float32 holds."""

Single = NDArray[np.float32]


class Signs(NamedTuple):
    """A layer and a code of 1 bit in one matrix."""

    columns: Single
    """Rotation times weight, transposed [width, dim]."""
    centre: Single
    """Rotation times bias [dim]."""
    threshold: Single
    """Of the code [dim]."""
    of_row: float
    """Largest error for a row of length 1."""
    of_adapted: float
    """Largest error for an adapted row of length 1."""


def fold_signs(weight: tuple[Exact, float], bias: Single, code: Code) -> Signs:
    r"""Multiply rotation and layer, and bound what rounding can change.

    Args:
        weight: Of `grid_matrix` [dim, width].
        bias: [dim].
        code: Of 1 bit.

    Returns:
        The `Signs`.

    Source:
        Higham 2002, Accuracy and stability of numerical algorithms, section 3.1: a sum of n products, in any
        order, with fused multiply-add or without, is within :math:`\gamma_n |x|^T |w|`,
        :math:`\gamma_n = n u / (1 - n u)`.
    """
    whole, scale = grid_matrix(code.tensors["rotation"])
    rotation, threshold = whole / scale, code.tensors["threshold"]
    matrix, centre = rotation @ (weight[0] / weight[1]), rotation @ bias.astype(np.float64)
    dim, width = matrix.shape
    # Rounding a row to the grid moves it by at most this part of its length, see `grid_rows`.
    moved, moved_after = (math.sqrt(count) * 2.0**-ROW_BITS for count in (width, dim))
    product = width * UNIT / (1 - width * UNIT)
    per_number = np.linalg.norm(matrix, axis=1) + np.abs(centre)
    per_number *= moved + product + 10 * UNIT
    # |R y| is within this part of |y|; beyond a half nothing is certain
    defect = float(np.linalg.norm(rotation.T @ rotation - np.eye(dim)))
    size = np.abs(threshold).astype(np.float64)
    of_row = per_number + size * np.linalg.norm(per_number)
    of_adapted = np.linalg.norm(rotation, axis=1) * moved_after + 4 * UNIT
    of_adapted += size * (defect + moved_after + (dim + 8) * UNIT)
    of_adapted *= 1 / (1 - defect) if defect < LARGEST_DEFECT else math.inf  # |y| <= |R y| / (1 - defect)
    return Signs(
        np.ascontiguousarray(matrix.T, dtype=np.float32),
        centre.astype(np.float32),
        threshold,
        SLACK * float(of_row.max()),
        SLACK * float(of_adapted.max()),
    )


def decide(signs: Signs, rows: Single) -> tuple[Packed, NDArray[np.bool_]]:
    """The codes of rows, and which of them are certain.

    Args:
        signs: Of `fold_signs`.
        rows: [rows, width]; rows that are not finite are never certain.

    Returns:
        (packed bits [rows, dim / 8], whether they are those of exact sums [rows]).
    """
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.vecdot(rows, rows))
        turned = small_product(rows, signs.columns)
        if signs.centre.any():
            turned += lengths[:, None] * signs.centre
        adapted = np.sqrt(np.vecdot(turned, turned))
        if signs.threshold.any():
            turned -= adapted[:, None] * signs.threshold
        packed = np.packbits(turned > 0, axis=1)
        # the bits of numbers that are not negative have their order, and integers have a faster minimum
        nearest = np.abs(turned, out=turned).view(np.int32).min(axis=1).view(np.float32)
        certain = nearest > signs.of_row * lengths + signs.of_adapted * adapted
        certain &= (lengths > LEAST) & (lengths < MOST) & np.isfinite(adapted)
    return packed, certain
