"""Search packed bits by the number of bits that differ.

A block of codes is laid out a word of 64 bits after the other, so that each operation of NumPy runs over one
word of thousands of codes, and its results stay in the cache. Of a block only the codes below the k-th count
found so far are looked at. NumPy releases the interpreter's lock in these operations, so threads help.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querykey.runtime.threads import default_threads, in_threads

__all__ = ["hamming", "nearest_by_hamming"]

Counts = NDArray[Any]
"""Bits that differ: uint16, or int32 for codes longer than that."""

BLOCK = 8192
"""Codes per operation. Below about 5,000 NumPy's XOR with one word per query takes twice as long."""
WORDS = 96
"""Words of queries whose counts are added at once: 16 queries of 384 bits, whose counts take .8 MB."""
THREE = 3
"""Words whose counts, up to 64 each, are added in 8 bits."""
LEAST = 2**20
"""Pairs of query and code per thread; a thread takes longer to start than to compare fewer."""


def hamming(queries: NDArray[np.uint8], codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Hamming distances between packed codes.

    Args:
        queries: Packed bits [queries, bytes].
        codes: Packed bits [rows, bytes].

    Returns:
        [queries, rows].
    """
    out = np.empty((len(queries), len(codes)), dtype=np.int32)
    for some, rows, differ in _blocks(queries, codes, range(len(codes))):
        out[some, rows] = differ
    return out


def nearest_by_hamming(
    queries: NDArray[np.uint8], codes: NDArray[np.uint8], k: int, *, threads: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The `k` codes that differ in the fewest bits; ties go to the lower row.

    Args:
        queries: Packed bits [queries, bytes].
        codes: Packed bits [rows, bytes].
        k: From 1 to the number of codes.
        threads: Threads that search; None: OMP_NUM_THREADS, or else the processors of this process.

    Returns:
        (bits that differ [queries, k], rows [queries, k]), fewest first.
    """
    threads = default_threads() if threads is None else threads
    blocks = -(-len(codes) // BLOCK)
    parts = max(1, min(threads, blocks, len(codes) * len(queries) // LEAST))
    edges = [min(BLOCK * (blocks * part // parts), len(codes)) for part in range(parts + 1)]
    ranges = [range(*edge) for edge in itertools.pairwise(edges)]
    found: list[list[_NearestCodes]] = [[] for _ in ranges]

    def search(part: int) -> None:
        found[part] = _search(queries, codes, k, ranges[part])

    in_threads(search, range(parts), parts)
    counts, rows = np.empty((len(queries), k), dtype=np.int32), np.empty((len(queries), k), dtype=np.int64)
    for number, of_parts in enumerate(zip(*found, strict=True)):
        best = _NearestCodes(k)
        for part in of_parts:  # in the order of the rows, as ties need it
            best.extend(*part.sorted())
        counts[number], rows[number] = best.sorted()
    return counts, rows


class _NearestCodes:
    """The k codes nearest to one query so far; codes come in the order of their rows."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.limit: int | None = None
        """The k-th count: a later code must be below it, since ties go to the lower row."""
        self.counts: list[Counts] = []
        self.rows: list[NDArray[np.int64]] = []
        self.pending = 0

    def extend(self, counts: Counts, rows: NDArray[np.int64]) -> None:
        """Take codes, and lower the limit once k have come: half of them may be left at each time."""
        self.counts.append(counts)
        self.rows.append(rows)
        self.pending += len(counts)
        if self.pending >= self.k:
            counts, rows = self.sorted()
            self.counts, self.rows, self.pending = [counts], [rows], 0
            self.limit = int(counts[-1])

    def sorted(self) -> tuple[Counts, NDArray[np.int64]]:
        """(counts, rows) of the k nearest, or of fewer where fewer came."""
        counts, rows = np.concatenate(self.counts), np.concatenate(self.rows)
        order = np.argsort(counts, kind="stable")[: self.k]
        return counts[order], rows[order]


def _search(queries: NDArray[np.uint8], codes: NDArray[np.uint8], k: int, rows: range) -> list[_NearestCodes]:
    """The nearest of a range of rows, for each query."""
    found = [_NearestCodes(k) for _ in queries]
    for some, at, differ in _blocks(queries, codes, rows):
        fewest = differ.min(axis=1).tolist()
        for best, least, counts in zip(found[some], fewest, differ, strict=True):
            if best.limit is None:
                best.extend(counts.copy(), np.arange(at.start, at.stop))
            elif least < best.limit:
                near = np.flatnonzero(counts < best.limit)
                best.extend(counts[near], near + at.start)
    return found


def _blocks(
    queries: NDArray[np.uint8], codes: NDArray[np.uint8], rows: range
) -> Iterator[tuple[slice, slice, Counts]]:
    """(queries, rows, bits that differ [queries, rows]); the last is overwritten by the next one."""
    asked = _words(queries)
    words = asked.shape[1]
    # each query is XORed onto the last one's result in place, which takes half the time of a second array
    turns = np.bitwise_xor(asked, np.concatenate([np.zeros_like(asked[:1]), asked[:-1]]))[:, :, None]
    step, threes = max(1, WORDS // max(words, 1)), -(-words // THREE)
    total = np.uint16 if 64 * words < np.iinfo(np.uint16).max else np.int32
    for start in range(rows.start, rows.stop, BLOCK):
        at = slice(start, min(start + BLOCK, rows.stop))
        columns = _words(codes[at]).T.copy()  # of one word the transposed view would be the codes themselves
        count = columns.shape[1]
        if start == rows.start or count < BLOCK:
            bits = np.zeros((step, threes * THREE, count), dtype=np.uint8)  # beyond the last word they stay 0
            sums, totals = (
                np.empty((step, threes, count), dtype=np.uint8),
                np.empty((step, count), dtype=total),
            )
        for first in range(0, len(asked), step):
            some = turns[first : first + step]
            for turn, of_words in zip(some, bits, strict=False):
                np.bitwise_xor(columns, turn, out=columns)
                np.bitwise_count(columns, out=of_words[:words])
            n = len(some)
            np.add.reduce(bits[:n].reshape(n, threes, THREE, count), axis=2, dtype=np.uint8, out=sums[:n])
            np.add.reduce(sums[:n], axis=1, dtype=total, out=totals[:n])
            yield slice(first, first + n), at, totals[:n]


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Codes as words of 64 bits [rows, words]; the last is filled up with zeros, which differ nowhere."""
    width = codes.shape[1]
    if width % 8:
        filled = np.zeros((len(codes), -(-width // 8) * 8), dtype=np.uint8)
        filled[:, :width] = codes
        codes = filled
    return np.ascontiguousarray(codes).view(np.uint64)
