r"""Codes of adapted rows in NumPy: int8, or 1 bit a number.

The code of a row does not depend on its batch, on the BLAS library or on the machine; see
`querykey.runtime.grid`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from querykey.errors import DataError, RangeError, ShapeError
from querykey.runtime.grid import Exact, Grid, grid_matrix, grid_product, grid_rows
from querykey.runtime.hamming import nearest_by_hamming

__all__ = [
    "BITS",
    "Code",
    "check_bits",
    "code_bytes",
    "codes_of",
    "real_numbers",
    "search_codes",
]

BITS = (1, 8)
"""Bits per number of the codes; 32 bits are the float rows themselves."""
BLOCK = 4096
"""Codes decoded per block."""
QUERIES = 64
"""Queries scored per block."""

Rows = NDArray[np.float32]
Packed = NDArray[Any]
"""int8, or packed bits as uint8."""


def code_bytes(dim: int, bits: int) -> int:
    """Bytes of a row of `dim` numbers at 32 (float), 8 or 1 bits per number."""
    return -(-dim * bits // 8)


@dataclass(frozen=True, eq=False)
class Code:
    r"""Encode unit rows of one size at 8 bits or 1 bit per number, and decode them.

    With :math:`z` a unit row,

    .. math:: c = \text{clip}(\text{round}(z / s), -127, 127), \; \hat z = \text{norm}(c) \;\text{(8 bits)}

    .. math:: c = [R z > t], \; \hat z = \text{norm}(R^T (t + s \odot (2 c - 1))) \;\text{(1 bit)}

    where :math:`t = R m` centres by the mean :math:`m` of the training rows. All numbers share one scale at
    8 bits, so dot products of codes, which vector indexes compute, keep their order.

    Args:
        dim: Numbers per row.
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
        """Bytes per row."""
        return code_bytes(self.dim, self.bits)

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        """Of the codes: int8, or uint8 for packed bits."""
        return np.int8 if self.bits == 8 else np.uint8

    def encode(self, rows: ArrayLike) -> Packed:
        """Encode rows, which are first scaled to length 1.

        Args:
            rows: [rows, dim], finite, float32 or float64.

        Returns:
            int8 [rows, dim]; or uint8 [rows, dim / 8], where the first number of a row is the highest bit of
            its first byte: the order of faiss's binary indexes, of pgvector's bit strings, of usearch's b1
            and of `numpy.packbits`.

        Raises:
            ShapeError: If a row is not `dim` long.
            DataError: If a number is NaN or infinite.
        """
        return codes_of(self, grid_rows(self._checked(rows)))

    def decode(self, codes: Packed) -> Rows:
        """Decode codes to unit rows.

        Args:
            codes: Of `encode`.

        Returns:
            [rows, dim], float32, of length 1; zeros for a row of zeros at 8 bits.

        Raises:
            ShapeError: If they have another size.
            DataError: If they are of another type.
        """
        rows = self._turned(_checked_codes(self, codes))
        return rows if self.bits == 8 else rows @ self.tensors["rotation"]

    def scores(self, queries: ArrayLike, codes: Packed) -> Rows:
        """Dot products of float queries and decoded rows (asymmetric scores).

        Args:
            queries: Unit rows [queries, dim].
            codes: Of `encode`.

        Returns:
            [queries, rows], float32.

        Raises:
            ShapeError: If queries or codes have another size.
            DataError: If a query is NaN or infinite, or codes are of another type.
        """
        ready, codes = self._checked(queries).astype(np.float32, copy=False), _checked_codes(self, codes)
        if self.bits == 1:  # rotate the query once instead of every decoded row
            ready = ready @ self.tensors["rotation"].T
        out: Rows = np.empty((len(ready), len(codes)), dtype=np.float32)
        for start in range(0, len(codes), BLOCK):
            np.matmul(ready, self._turned(codes[start : start + BLOCK]).T, out=out[:, start : start + BLOCK])
        return out

    def _turned(self, codes: Packed) -> Rows:
        """Decoded rows of length 1, before the rotation is undone [rows, dim]."""
        if self.bits == 8:
            rows = codes.astype(np.float32)
        else:
            ones = np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32)
            rows = (2 * ones - 1) * self.tensors["scale"] + self.tensors["threshold"]
        # the length follows from the code, so it is not stored
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
        unit: Rows = rows / np.maximum(lengths, 1e-12).astype(np.float32)
        return unit

    def _checked(self, rows: ArrayLike) -> NDArray[Any]:
        made = real_numbers(rows)
        if made.ndim != 2 or made.shape[1] != self.dim:
            raise ShapeError(f"this code takes rows [rows, {self.dim}], got {list(made.shape)}")
        if not np.isfinite(made).all():
            bad = ~np.isfinite(made).all(axis=1)
            raise DataError(
                f"{int(bad.sum())} of {len(made)} rows hold NaN or infinity, the first of them row "
                f"{int(bad.argmax())}; take these rows out, or make them again"
            )
        return made


def codes_of(code: Code, rows: Grid) -> Packed:
    """`Code.encode` of rows that are on the grid; an array of theirs is overwritten.

    Args:
        code: The `Code`.
        rows: Of `grid_rows` [rows, code.dim], finite.

    Returns:
        int8 [rows, dim], or uint8 [rows, dim / 8].
    """
    if code.bits == 8:
        whole = rows.whole
        whole /= rows.lengths * np.float64(code.tensors["scale"][0])
        return np.clip(np.rint(whole, out=whole), -127, 127, out=whole).astype(np.int8)
    matrix: tuple[Exact, float] = code.__dict__["_matrix"]
    return np.packbits(grid_product(rows, matrix) > code.tensors["threshold"], axis=1)


def _checked_codes(code: Code, codes: Packed) -> Packed:
    made, dtype = np.asarray(codes), np.dtype(code.dtype)
    if made.dtype != dtype:  # int8 read as uint8 would be other numbers
        raise DataError(f"codes at {code.bits} bits are {dtype}, got {made.dtype}")
    if made.ndim != 2 or made.shape[1] != code.bytes:
        raise ShapeError(f"codes of this size are [rows, {code.bytes}], got {list(made.shape)}")
    return made


def real_numbers(rows: ArrayLike) -> NDArray[Any]:
    """Rows as an array of real numbers, in their own dtype; float64 for objects.

    Raises:
        DataError: If they are anything else, or masked.
    """
    if np.ma.is_masked(rows):
        raise DataError("rows are a masked array with missing numbers; fill them in, or leave out their rows")
    try:
        given: NDArray[Any] = np.asarray(rows)
        given = given.astype(np.float64) if given.dtype.kind == "O" else given
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors that NumPy does not take
        raise DataError(f"rows cannot be read as an array: {error}") from error
    if given.dtype.kind not in "fiub":
        raise DataError(f"rows must be real numbers, got {given.dtype}")
    return given


def check_bits(dim: int, bits: int) -> None:
    """Check the number of bits of a code, and its size.

    Raises:
        RangeError: If bits is neither 8 nor 1, or dim no multiple of 8 for 1 bit.
    """
    if not isinstance(bits, int | np.integer) or bits not in BITS:
        raise RangeError(f"bits must be 8 or 1, got {bits!r}; without bits rows are float32")
    if bits == 1 and dim % 8:
        raise RangeError(
            f"at 1 bit per number a byte holds 8 numbers, so the size must be a multiple of 8; got {dim}"
        )


def search_codes(
    code: Code, queries: ArrayLike, codes: Packed, k: int, *, rescore: int = 10, threads: int | None = None
) -> tuple[Rows, NDArray[np.int64]]:
    """Find the `k` codes nearest to float queries; ties go to the lower row.

    At 1 bit the candidates are the `rescore * k` codes of smallest Hamming distance; they are scored with the
    float query. At 8 bits all codes are scored.

    Args:
        code: The `Code` that made them.
        queries: Unit rows [queries, dim].
        codes: [rows, ...] of `Code.encode`.
        k: Codes to find per query, at most the number of rows.
        rescore: Candidates of the first pass as a multiple of `k`; 0 scores all codes.
        threads: Threads of the first pass; None: OMP_NUM_THREADS, or else the processors of this process.

    Returns:
        (scores [queries, k], rows [queries, k]), best first.
    """
    queries, codes = real_numbers(queries), _checked_codes(code, codes)
    if not isinstance(k, int | np.integer) or not 1 <= k <= len(codes):
        raise RangeError(f"k must be from 1 to the {len(codes)} codes, got {k!r}")
    if not isinstance(rescore, int | np.integer) or rescore < 0:
        raise RangeError(f"rescore must be a whole number from 0, got {rescore!r}")
    scores, rows = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
    first = rescore * k
    if code.bits != 1 or not k <= first < len(codes):
        for start in range(
            0, len(queries), QUERIES
        ):  # each block of codes is decoded once per block of queries
            at = slice(start, start + QUERIES)
            theirs = code.scores(queries[at], codes)
            rows[at] = np.argsort(-theirs, axis=1, kind="stable")[:, :k]
            scores[at] = np.take_along_axis(theirs, rows[at], axis=1)
        return scores, rows
    best = np.sort(nearest_by_hamming(code.encode(queries), codes, first, threads=threads)[1], axis=1)
    for number, (query, found) in enumerate(zip(queries, best, strict=True)):
        theirs = code.scores(query[None], codes[found])[0]
        order = np.argsort(-theirs, kind="stable")[:k]
        scores[number], rows[number] = theirs[order], found[order]
    return scores, rows
