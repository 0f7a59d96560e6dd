"""The forward pass of an adapter in NumPy."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from querykey.errors import DataError, RangeError, ShapeError
from querykey.runtime.codes import Code, Packed, check_bits, codes_of, real_numbers
from querykey.runtime.grid import Exact, Grid, grid_matrix, grid_product, grid_rows, is_small
from querykey.runtime.signs import decide, fold_signs
from querykey.runtime.threads import default_threads, in_threads

__all__ = ["LoadedAdapter", "check_size"]

BLOCK = 1024
"""Rows per block, so that its embeddings stay in the cache between the product and the scaling."""
EXACT_BLOCK = 512
"""Rows per block of codes, on its own thread: its integers take two bytes for each of float32."""
FOLDED_ROWS, LEAST_CERTAIN = 2048, 0.75
"""Rows from which float32 decides bits first, and the part of the first block that it must decide."""
LEAST_NORM = 1e-12
"""The default `eps` of torch.nn.functional.normalize."""
ERF = (0.3275911, 1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""p, then a5 to a1, of the approximation of erf in `_gelu`."""
LARGEST, SMALLEST = 1e15, 1e-11
"""Magnitudes whose sums of squares float32 can represent; the same as in `querykey.lookup.unit_length`."""

Rows = NDArray[np.float32]
Matrix = TypeVar("Matrix", bound=NDArray[Any])


class LoadedAdapter:
    r"""A saved adapter, which maps rows of a frozen model to unit rows of width `dim` or to their codes.

    It computes what `Adapter.transform` computes. With :math:`x` a row scaled to length 1,

    .. math:: z = \text{norm}(W x + b) \quad\text{(linear; residual with } W + I),\qquad
              z = \text{norm}(W x + b + W_2\,\text{gelu}(W_1 x + b_1)) \quad\text{(two layers)}

    A smaller size is a prefix of these rows, scaled to length 1 again.

    `querykey.runtime.load` returns one. It is immutable, so threads may share it.

    Args:
        tensors: Of the FC layer, float32, by their names in adapter.safetensors.
        kind: "linear", "residual" or "two_layer".
        side: "both", or "query" if documents are not transformed.
        model_key: Key of the model whose features it was fitted on; "" if unknown.
        report: Report of the fit: the verdict and its numbers.
        dims: Validated sizes, largest first; None for the width of the layer alone.
        codes: (size, bits) to the `Code` of rows of that size.

    Attributes:
        width: Numbers per frozen row.
        dim: Numbers per adapted row of the largest size.

    Example:
        >>> adapter = LoadedAdapter({"weight": np.eye(2, 3, dtype="f4"), "bias": np.zeros(2, "f4")})
        >>> adapter.transform([3.0, 4.0, 0.0])
        array([0.6, 0.8], dtype=float32)
    """

    def __init__(
        self,
        tensors: Mapping[str, Rows],
        *,
        kind: str = "linear",
        side: str = "both",
        model_key: str = "",
        report: Mapping[str, Any] | None = None,
        dims: Sequence[int] | None = None,
        codes: Mapping[tuple[int, int], Code] | None = None,
    ) -> None:
        self.kind, self.side, self.model_key = kind, side, model_key
        self.report = dict(report or {})
        weight = tensors["weight"]
        self.dim, self.width = weight.shape
        self._weight = weight + np.eye(self.dim, dtype=np.float32) if kind == "residual" else weight
        self.dims = (self.dim,) if dims is None else tuple(dims)
        self.codes = dict(codes or {})
        self._bias = tensors["bias"]
        self._hidden: tuple[Rows, Rows, Rows] | None = None
        if kind == "two_layer":
            self._hidden = tensors["hidden.weight"], tensors["hidden.bias"], tensors["out.weight"]

    def __repr__(self) -> str:
        return f"LoadedAdapter({self.width} -> {self.dim}, kind={self.kind!r}, side={self.side!r})"

    def transform(self, x: ArrayLike, *, dim: int | None = None) -> Rows:
        """Transform rows of items, of queries, and (unless side is "query") of documents.

        Args:
            x: One frozen row [width], or several [rows, width], of any real dtype and Euclidean length.
            dim: One of `dims`; None: the largest.

        Returns:
            Unit rows, float32 [dim] or [rows, dim], equal to those of `Adapter.transform` up to 1e-6.

        Raises:
            ShapeError: If a row is not `width` long.
            DataError: If a number is NaN or infinite.
            RangeError: If the adapter has no such size.
        """
        size, rows = self.dim if dim is None else check_size(dim, self.dims), _in_range(x)
        if rows.shape == (self.width,):
            return self._one(rows, size)
        out = np.empty((len(self._matrix(rows)), size), dtype=np.float32)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            self._many(block, out[start : start + BLOCK], start)
        return out

    def transform_blocks(self, x: NDArray[Any], *, dim: int | None = None) -> Iterator[Rows]:
        """`transform` block by block, for more rows than memory has room for.

        Args:
            x: Frozen rows [rows, width], for example memory-mapped; a block is read at a time.
            dim: One of `dims`; None: the largest.

        Yields:
            The rows of `transform` in order, with the same bits: float32 [at most 1,024, dim].

        Raises:
            ShapeError: If rows are not `width` long.
            DataError: If a number is NaN or infinite.
            RangeError: If the adapter has no such size.
        """
        size = self.dim if dim is None else check_size(dim, self.dims)
        for start in range(0, len(self._matrix(x)), BLOCK):
            block = _in_range(np.asarray(x[start : start + BLOCK]))
            out = np.empty((len(block), size), dtype=np.float32)
            self._many(block, out, start)
            yield out

    def transform_documents(self, x: ArrayLike, *, dim: int | None = None) -> Rows:
        """Transform documents; with side "query" they are only scaled to length 1."""
        if self.side == "both":
            return self.transform(x, dim=dim)
        if dim is not None:
            check_size(dim, self.dims)
        rows = _in_range(x)
        if rows.shape != (self.width,):
            return np.divide(*_with_lengths(self._matrix(rows), 0))
        unit: Rows = np.divide(*_with_lengths(rows[None], 0))[0]
        return unit

    def quantize(
        self, x: ArrayLike, *, dim: int | None = None, bits: int = 8, threads: int | None = None
    ) -> Packed:
        """Encode documents, for search with float queries (`Code.scores`) or with codes.

        The code of a row does not depend on its batch: ranges come from the training rows, and sums are
        exact.

        Args:
            x: One frozen row [width], or several [rows, width].
            dim: One of `dims`; None: the largest.
            bits: 8 or 1 per number; the adapter must have been fitted with it.
            threads: Threads over blocks of rows; None: OMP_NUM_THREADS, or else the processors of this
                process. The codes do not depend on it.

        Returns:
            int8 [rows, dim], or packed bits uint8 [rows, dim / 8]; see `Code.encode`. For one row, without
            the first axis.

        Raises:
            ShapeError: If a row is not `width` long.
            DataError: If a number is NaN or infinite.
            RangeError: If the adapter has no such size or no such code.
        """
        code, rows = self.code(dim=dim, bits=bits), _in_range(x)
        matrix = rows[None] if rows.shape == (self.width,) else self._matrix(rows)
        codes: Packed = np.empty((len(matrix), code.bytes), dtype=code.dtype)
        if all(is_small(*shape) for shape in self._products(code)):
            size, threads = EXACT_BLOCK, default_threads() if threads is None else threads
        else:  # large products use all processors by themselves
            size, threads = BLOCK, 1
        left = self._decided(code, matrix, codes, threads) if size == EXACT_BLOCK else None

        def encode(start: int) -> None:
            at = slice(start, start + size) if left is None else left[start : start + size]
            grid = grid_rows(matrix[at])
            if not np.isfinite(grid.lengths).all():
                _with_lengths(matrix, 0)  # refuses, and says which rows
            codes[at] = codes_of(code, grid_rows(self._exact(grid, code.dim)))

        in_threads(encode, range(0, len(matrix) if left is None else len(left), size), threads)
        return codes[0] if rows.ndim == 1 else codes

    def code(self, *, dim: int | None = None, bits: int = 8) -> Code:
        """The encoder and decoder of rows of one size.

        Args:
            dim: One of `dims`; None: the largest.
            bits: 8 or 1.

        Returns:
            The `Code`.

        Raises:
            RangeError: If the adapter has no such size or no such code.
        """
        size = self.dim if dim is None else check_size(dim, self.dims)
        check_bits(size, bits)
        if (size, bits) not in self.codes:
            there = sorted({bits for _, bits in self.codes}, reverse=True)
            raise RangeError(
                f"this adapter has no codes of {bits} bits; it has {' and '.join(map(str, there)) or 'none'};"
                f" fit it again with bits=[{bits}]"
            )
        return self.codes[size, bits]

    def _matrix(self, rows: Matrix) -> Matrix:
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ShapeError(
                f"rows have shape {list(rows.shape)}; the adapter was fitted on [rows, {self.width}], "
                f"and takes one row [{self.width}] too"
            )
        return rows

    def _one(self, row: Rows, size: int) -> Rows:
        with np.errstate(over="ignore"):
            square = float(row.dot(row))
        # outside this range the square has lost digits or is not finite
        if self._hidden is not None or not 1e-20 < square < 1e30:
            out = np.empty((1, size), dtype=np.float32)
            self._many(row[None], out, 0)
            first: Rows = out[0]
            return first
        z: Rows = self._weight[:size].dot(row)
        z /= math.sqrt(square)
        z += self._bias[:size]
        z /= max(math.sqrt(z.dot(z)), LEAST_NORM)
        return z

    def _many(self, rows: Rows, out: Rows, first: int) -> None:
        # scale W x instead of x: `dim` numbers per row instead of `width`
        size = out.shape[1]
        rows, lengths = _with_lengths(rows, first)
        np.matmul(rows, self._weight[:size].T, out=out)
        out /= lengths
        out += self._bias[:size]
        if self._hidden is not None:
            weight, bias, last = self._hidden
            hidden = rows @ weight.T
            hidden /= lengths
            hidden += bias
            out += _gelu(hidden) @ last[:size].T
        out /= np.maximum(np.sqrt(np.einsum("ij,ij->i", out, out)), LEAST_NORM)[:, None]

    def _products(self, code: Code) -> list[tuple[int, int]]:
        """Shapes of the matrices that codes are products with, as far as their size needs them."""
        made = [(code.dim, code.dim)] if code.bits == 1 else []
        if self.side == "query":
            return made
        made.append((self.width, code.dim))
        if self._hidden is not None:
            hidden = len(self._hidden[1])
            made += [(self.width, hidden), (hidden, code.dim)]
        return made

    def _decided(self, code: Code, rows: Rows, codes: Packed, threads: int) -> NDArray[np.int64] | None:
        """Write the codes of 1 bit that float32 decides, and return the numbers of the other rows.

        None: nothing is written, for few rows, or for layers and codes of which it decides too few.
        """
        if code.bits == 8 or self._hidden is not None or self.side == "query" or len(rows) < FOLDED_ROWS:
            return None
        signs = fold_signs(_prefix(self._grids[0], code.dim), self._bias[: code.dim], code)
        certain = np.zeros(len(rows), dtype=np.bool_)

        def guess(start: int) -> None:
            at = slice(start, start + EXACT_BLOCK)
            codes[at], certain[at] = decide(signs, rows[at])

        guess(0)
        if certain[:EXACT_BLOCK].mean() < LEAST_CERTAIN:
            return None
        in_threads(guess, range(EXACT_BLOCK, len(rows), EXACT_BLOCK), threads)
        return np.flatnonzero(~certain)

    def _exact(self, grid: Grid, size: int) -> Exact:
        """The first numbers of rows before the final scaling [rows, size], the same bits in any batch."""
        if self.side == "query":
            return (grid.whole / grid.lengths)[:, :size]
        first, *others = self._grids
        out = grid_product(grid, _prefix(first, size))
        out += self._bias[:size]
        if self._hidden is not None:
            hidden = grid_rows(_gelu(grid_product(grid, others[0]) + self._hidden[1]))
            out += grid_product(hidden, _prefix(others[1], size)) * (hidden.lengths * hidden.step)
        return out

    @cached_property
    def _grids(self) -> list[tuple[Exact, float]]:
        matrices = (
            [self._weight] if self._hidden is None else [self._weight, self._hidden[0], self._hidden[2]]
        )
        return [grid_matrix(matrix) for matrix in matrices]


def _prefix(matrix: tuple[Exact, float], size: int) -> tuple[Exact, float]:
    """The first rows of a matrix, on the grid of them all: the same sums."""
    return matrix[0][:size], matrix[1]


def check_size(dim: int, dims: Sequence[int]) -> int:
    """Check that an adapter has a size, and return it.

    Raises:
        RangeError: If it has not.
    """
    if not isinstance(dim, int | np.integer | float) or dim not in dims:
        raise RangeError(
            f"this adapter has the sizes {', '.join(map(str, dims))}; got dim={dim!r}; fit it again with "
            "this size"
        )
    return int(dim)


def _in_range(x: ArrayLike) -> Rows:
    """Rows in float32. Float64 rows outside its range are first divided by their largest magnitude."""
    if type(x) is np.ndarray and x.dtype == np.float32:  # one query is looked up in microseconds
        return x
    given = real_numbers(x)
    if given.dtype != np.float64 or not given.ndim:
        return given.astype(np.float32, copy=False)
    peak = np.abs(given).max(axis=-1, keepdims=True, initial=0.0)
    if (outside := ((peak > LARGEST) | ((peak < SMALLEST) & (peak > 0))) & np.isfinite(peak)).any():
        given = given / np.where(outside, peak, 1.0)
    return given.astype(np.float32)


def _with_lengths(rows: Rows, first: int) -> tuple[Rows, Rows]:
    """Check that rows are finite, and return them with their Euclidean lengths [rows, 1], at least 1e-12.

    Args:
        rows: [rows, width]; copied only if a square leaves the range of float32.
        first: Index of the first row, for the error message.
    """
    squares: NDArray[Any] = np.einsum("ij,ij->i", rows, rows)
    if not np.isfinite(squares).all() or (squares < SMALLEST**2).any():
        if (bad := ~np.isfinite(rows).all(axis=1)).any():
            raise DataError(
                f"{int(bad.sum())} of {len(rows)} rows hold NaN or infinity, the first of them row "
                f"{first + int(bad.argmax())}; take these rows out, or make them again"
            )
        peak = np.abs(rows).max(axis=1, keepdims=True)
        outside = (peak > LARGEST) | ((peak < SMALLEST) & (peak > 0))
        rows = (rows / np.where(outside, peak, np.float32(1))).astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->i", rows, rows)
    lengths: Rows = np.maximum(np.sqrt(squares), LEAST_NORM).astype(np.float32)[:, None]
    return rows, lengths


def _gelu(x: NDArray[Any]) -> Rows:
    r"""The exact GELU, :math:`x\,(1 + \text{erf}(x / \sqrt 2)) / 2`, to 1e-7 of max(1, \|x\|).

    NumPy has no erf. Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26,
    whose error is at most 1.5e-7.
    """
    size = np.abs(x) * np.float32(math.sqrt(0.5))
    first, *coefficients = map(np.float32, ERF)
    t = 1 / (1 + first * size)
    series: NDArray[Any] = np.zeros_like(x)
    for coefficient in coefficients:
        series = (series + coefficient) * t
    erf = np.copysign(1 - series * np.exp(-size * size), x)
    out: Rows = (x * (1 + erf) / 2).astype(np.float32)
    return out
