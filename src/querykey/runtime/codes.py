r"""Codes of adapted rows: int8 and 1 bit a number, in NumPy.

A row has the code that it has in any batch, with any BLAS, on any machine: rows and matrices are rounded to
whole numbers on a grid of a power of two, so coarse that float64 holds every partial sum of their product.
Such sums are exact, and exact sums do not depend on their order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from querykey.errors import RangeError, ShapeError

__all__ = [
    "BITS",
    "Code",
    "Grid",
    "check_bits",
    "code_bytes",
    "grid_matrix",
    "grid_product",
    "grid_rows",
    "hamming",
    "nearest_by_hamming",
    "search_codes",
]

BITS = (1, 8)
"""Bits a number that there are codes of; 32 are the float rows themselves."""
ROW_BITS = 20
"""Bits of the largest number of a row. Float32 rows have 24: the last of them decide no code but a tie's."""
SUM_BITS = 52
"""Bits of a sum of float64 that is exact, one left for rounding."""
BLOCK = 4096
"""Codes that are decoded at once."""
QUERIES, AT_ONCE = 64, 8
"""Queries that are scored with all codes at once; and those whose differing bits are."""

Rows = NDArray[np.float32]
Exact = NDArray[np.float64]
Packed = NDArray[Any]
"""int8, or packed bits as uint8."""


class Grid(NamedTuple):
    """Rows as whole numbers, each row on a grid of its own."""

    whole: Exact
    """[rows, width], at most 2^20 in magnitude."""
    lengths: Exact
    """Their Euclidean lengths [rows, 1]; 1 for a row of zeros."""
    step: Exact
    """What 1 stands for in each row [rows, 1]: a power of two."""


def grid_rows(rows: NDArray[Any]) -> Grid:
    """Rows as whole numbers of at most 2^20, each by a power of two of its own, and their exact lengths.

    Args:
        rows: [rows, width], finite, float32 or float64.

    Returns:
        The `Grid`.
    """
    exact = rows.astype(np.float64)
    step = np.ldexp(1.0, np.frexp(np.abs(rows).max(axis=1, keepdims=True, initial=0))[1] - ROW_BITS)
    exact *= 1 / step  # by a power of two nothing is rounded
    whole = np.rint(exact, out=exact)
    lengths = np.sqrt(np.einsum("ij,ij->i", whole, whole))[:, None]
    return Grid(whole, np.where(lengths > 0, lengths, 1.0), step)


def grid_matrix(matrix: NDArray[Any]) -> tuple[Exact, float]:
    """A matrix as whole numbers whose product with `grid_rows` is exact, and the power of two that it takes.

    Args:
        matrix: [out, width].

    Returns:
        (whole numbers [out, width], what they are to be divided by).
    """
    exact = matrix.astype(np.float64)
    longest = math.sqrt(max(np.einsum("ij,ij->i", exact, exact).max(initial=0), 1e-300))
    # |sum| <= |row| |column| <= sqrt(width) 2^ROW_BITS |column|
    spare = SUM_BITS - ROW_BITS - math.ceil(math.log2(max(exact.shape[1], 2)) / 2)
    scale = 2.0 ** (spare - math.ceil(math.log2(longest)))
    return np.rint(exact * scale), scale


def grid_product(rows: Grid, matrix: tuple[Exact, float]) -> Exact:
    """Unit rows times a matrix, exact until the one division at the end.

    Args:
        rows: Of `grid_rows`.
        matrix: Of `grid_matrix`.

    Returns:
        [rows, out], float64.
    """
    whole, scale = matrix
    product: Exact = rows.whole @ whole.T
    product /= rows.lengths * scale
    return product


def code_bytes(dim: int, bits: int) -> int:
    """Bytes that a row of `dim` numbers takes at so many bits a number: 32 (float), 8 or 1."""
    return -(-dim * bits // 8)


@dataclass(frozen=True, eq=False)
class Code:
    r"""How unit rows of one size become codes of 8 bits or 1 bit a number, and what a code stands for.

    With :math:`z` a unit row,

    .. math:: c = \text{clip}(\text{round}(z / s), -127, 127), \; \hat z = \text{norm}(c) \;\text{(8 bits)}

    .. math:: c = [R z > t], \; \hat z = \text{norm}(R^T (t + s \odot (2 c - 1))) \;\text{(1 bit)}

    where :math:`t = R m` centres by the mean :math:`m` of the training rows. One scale for all numbers of
    8 bits keeps the order of dot products of codes, which is what stores compute.

    Args:
        dim: Numbers a row.
        bits: 8 or 1.
        tensors: "scale" [1] for 8 bits; "rotation" [dim, dim], "threshold" [dim] and "scale" [dim] for 1.

    Raises:
        ShapeError: If a tensor is missing or has another shape.
        RangeError: If bits is neither 8 nor 1, or dim no multiple of 8 for 1 bit.

    Example:
        >>> code = Code(2, 8, {"scale": np.array([1 / 127], dtype="f4")})
        >>> code.encode(np.array([[3.0, -4.0]], dtype="f4"))
        array([[  76, -102]], dtype=int8)
    """

    dim: int
    bits: int
    tensors: Mapping[str, Rows]

    def __post_init__(self) -> None:
        check_bits(self.dim, self.bits)
        shapes: dict[str, tuple[int, ...]] = {"scale": (1,)}
        if self.bits == 1:
            shapes = {"rotation": (self.dim, self.dim), "threshold": (self.dim,), "scale": (self.dim,)}
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        if found != shapes:
            raise ShapeError(f"a code of {self.dim} numbers at {self.bits} bits has {shapes}, got {found}")
        matrix = grid_matrix(self.tensors["rotation"]) if self.bits == 1 else None
        object.__setattr__(self, "_matrix", matrix)

    @property
    def bytes(self) -> int:
        """Bytes a row."""
        return code_bytes(self.dim, self.bits)

    def encode(self, rows: NDArray[Any]) -> Packed:
        """Code rows, which are scaled to length 1 first.

        Args:
            rows: [rows, dim], finite, float32 or float64.

        Returns:
            int8 [rows, dim]; or uint8 [rows, dim / 8], where the first number of a row is the highest bit of
            its first byte: the order of faiss's binary indexes, of pgvector's bit strings, of usearch's b1
            and of `numpy.packbits`.
        """
        grid = grid_rows(self._checked(rows))
        if self.bits == 8:
            whole = grid.whole / (grid.lengths * np.float64(self.tensors["scale"][0]))
            return np.clip(np.rint(whole, out=whole), -127, 127).astype(np.int8)
        matrix: tuple[Exact, float] = self.__dict__["_matrix"]
        return np.packbits(grid_product(grid, matrix) > self.tensors["threshold"], axis=1)

    def decode(self, codes: Packed) -> Rows:
        """The unit rows that codes stand for.

        Args:
            codes: Of `encode`.

        Returns:
            [rows, dim], float32, of length 1; zeros for a row of zeros at 8 bits.
        """
        rows = self._turned(codes)
        return rows if self.bits == 8 else rows @ self.tensors["rotation"]

    def scores(self, queries: Rows, codes: Packed) -> Rows:
        """Dot products of float queries with what codes stand for: asymmetric scores.

        Args:
            queries: Unit rows [queries, dim].
            codes: Of `encode`.

        Returns:
            [queries, rows], float32.
        """
        ready = self._checked(queries).astype(np.float32, copy=False)
        if self.bits == 1:  # the query is turned once, in the place of every code
            ready = ready @ self.tensors["rotation"].T
        out: Rows = np.empty((len(queries), len(codes)), dtype=np.float32)
        for start in range(0, len(codes), BLOCK):
            np.matmul(ready, self._turned(codes[start : start + BLOCK]).T, out=out[:, start : start + BLOCK])
        return out

    def _turned(self, codes: Packed) -> Rows:
        """What codes stand for, of length 1 and before the rotation is undone [rows, dim]."""
        if self.bits == 8:
            rows = codes.astype(np.float32)
        else:
            ones = np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32)
            rows = (2 * ones - 1) * self.tensors["scale"] + self.tensors["threshold"]
        # the length is in the code itself: it costs no stored byte
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        unit: Rows = rows / np.maximum(lengths, 1e-12).astype(np.float32)
        return unit

    def _checked(self, rows: NDArray[Any]) -> NDArray[Any]:
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ShapeError(f"this code is of rows [rows, {self.dim}], got {list(rows.shape)}")
        return rows


def check_bits(dim: int, bits: int) -> None:
    """Refuse a code that there is not.

    Raises:
        RangeError: If bits is neither 8 nor 1, or dim no multiple of 8 for 1 bit.
    """
    if bits not in BITS:
        raise RangeError(f"bits must be 8 or 1, got {bits}; without bits rows are float32")
    if bits == 1 and dim % 8:
        raise RangeError(
            f"1 bit a number packs 8 numbers a byte, so the size must be a multiple of 8; got {dim}"
        )


def hamming(queries: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """How many bits differ.

    Args:
        queries: Packed bits [queries, bytes].
        codes: Packed bits [rows, bytes].

    Returns:
        [queries, rows].
    """
    if queries.shape[1] % 8 == 0:
        queries, codes = (np.ascontiguousarray(one).view(np.uint64) for one in (queries, codes))  # type: ignore[assignment]
    out = np.empty((len(queries), len(codes)), dtype=np.int32)
    total = np.int32 if 8 * queries.nbytes > np.iinfo(np.uint16).max * len(queries) else np.uint16
    for start in range(0, len(codes), BLOCK):  # all that is made of a block stays in the cache
        columns = np.ascontiguousarray(codes[start : start + BLOCK].T)
        differ, at = np.empty_like(columns), slice(start, start + columns.shape[1])
        for query, counts in zip(queries, out, strict=True):
            np.bitwise_xor(columns, query[:, None], out=differ)
            counts[at] = np.bitwise_count(differ).sum(axis=0, dtype=total)
    return out


def nearest_by_hamming(
    queries: NDArray[np.uint8], codes: NDArray[np.uint8], k: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The `k` codes that differ in the fewest bits; ties go to the lower row.

    Args:
        queries: Packed bits [queries, bytes].
        codes: Packed bits [rows, bytes].
        k: From 1 to the number of codes.

    Returns:
        (bits that differ [queries, k], rows [queries, k]), fewest first.
    """
    counts, rows = np.empty((len(queries), k), dtype=np.int32), np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), AT_ONCE):
        for number, differ in enumerate(hamming(queries[start : start + AT_ONCE], codes), start=start):
            # the count up to which there are k codes: no sort of them all
            most = int(np.searchsorted(np.bincount(differ).cumsum(), k))
            near = np.flatnonzero(differ <= most)
            rows[number] = near[np.argsort(differ[near], kind="stable")[:k]]
            counts[number] = differ[rows[number]]
    return counts, rows


def search_codes(
    code: Code, queries: Rows, codes: Packed, k: int, *, rescore: int = 10
) -> tuple[Rows, NDArray[np.int64]]:
    """The `k` codes nearest to float queries; ties go to the lower row.

    Codes of 1 bit are looked through by their differing bits, and the best `rescore * k` of them are scored
    with the float query. Codes of 8 bits are all scored.

    Args:
        code: That made the codes.
        queries: Unit rows [queries, dim].
        codes: [rows, ...] of `Code.encode`.
        k: At most as many as there are rows.
        rescore: Candidates of the first pass, as a multiple of `k`; 0: all codes are scored.

    Returns:
        (scores [queries, k], rows [queries, k]), best first.
    """
    if not 1 <= k <= len(codes):
        raise RangeError(f"k must be from 1 to the {len(codes)} codes, got {k}")
    if rescore < 0:
        raise RangeError(f"rescore must be at least 0, got {rescore}")
    scores, rows = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
    first = rescore * k
    if code.bits != 1 or not k <= first < len(codes):
        for start in range(0, len(queries), QUERIES):  # codes are decoded once for so many queries
            at = slice(start, start + QUERIES)
            theirs = code.scores(queries[at], codes)
            rows[at] = np.argsort(-theirs, axis=1, kind="stable")[:, :k]
            scores[at] = np.take_along_axis(theirs, rows[at], axis=1)
        return scores, rows
    best = np.sort(nearest_by_hamming(code.encode(queries), codes, first)[1], axis=1)
    for number, (query, found) in enumerate(zip(queries, best, strict=True)):
        theirs = code.scores(query[None], codes[found])[0]
        order = np.argsort(-theirs, kind="stable")[:k]
        scores[number], rows[number] = theirs[order], found[order]
    return scores, rows
