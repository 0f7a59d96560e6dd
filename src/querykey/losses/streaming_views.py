"""Two views looked up in each other, tile by tile, without a matrix of scores.

The matrix of scores is symmetric, so half of the tiles suffice: the exponentials of a tile are summed along
its rows and along its columns, and in backward one tile gives the gradients of both. Rows of length 1 have
logits of at most 1 / temperature, so no maximum is subtracted from the exponents, and one pass sums them.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from querykey.errors import SecondDerivativeError
from querykey.lookup.lookup import Lookup
from querykey.lookup.two_view_pairs import TwoViewPairs
from querykey.lookup.unit_length import unit_length
from querykey.losses._pair_weights import as_numbers
from querykey.types import PerQuery, Rows

__all__ = ["TwoViews", "two_views"]

TILE = 512
"""Rows and columns of a tile; two tiles fit into the processor's cache."""

LARGEST_LOGIT = 36.0
"""Up to this logit no maximum is subtracted: float32 holds a sum of exp(72) over 10 ** 7 rows."""


class TwoViews(NamedTuple):
    """What a softmax loss of two views is computed from."""

    positive: PerQuery
    """The logit of the other view."""
    negatives: PerQuery
    """The sum of exp(logit) over the negatives; 0 where there are none."""
    all_positives: Tensor
    """The logit of the other view for all 2B rows, of which the look-up may hold a part."""


def two_views(lookup: Lookup, temperature: float | Tensor) -> TwoViews | None:
    """The logit of the positive and the sum over the negatives for each row, without a matrix of scores.

    Args:
        lookup: Any look-up.
        temperature: Above 0.

    Returns:
        Both with gradient; None if the look-up is not of two views in each other, or if its logits are too
        large to be summed without subtracting a maximum.
    """
    whole = lookup if lookup.whole is None else lookup.whole
    pairs = lookup.pairs
    if not isinstance(pairs, TwoViewPairs) or whole.queries is not whole.keys or len(whole) == 0:
        return None
    with torch.autocast(whole.keys.device.type, enabled=False):
        rows = whole.keys.float() if whole.keys.element_size() < 4 else whole.keys
        if whole.score == "cosine":
            rows = unit_length(rows)
        rows = rows / temperature**0.5
        if not bool(rows.detach().square().sum(dim=1).amax() <= LARGEST_LOGIT):
            return None
        view_1, view_2 = rows.chunk(2)
        positive = (view_1 * view_2).sum(dim=1).repeat(2)
        negatives: Tensor = _Negatives.apply(rows, pairs)
    return TwoViews(positive[pairs.start : pairs.stop], negatives, positive)


class _Tile(NamedTuple):
    rows: slice
    columns: slice
    is_mirrored: bool
    """Whether its columns are queries too, so that it stands for two tiles; False on the diagonal."""
    has_same: bool
    """Whether its rows and columns may share an item."""


class _Tiles:
    """The rows sorted by item, queries first, and the tiles of their scores.

    In this order the rows of an item are adjacent, so few tiles need a mask.
    """

    def __init__(self, pairs: TwoViewPairs, size: int) -> None:
        ids = pairs.key_ids
        start, stop, _ = slice(pairs.start, pairs.stop).indices(len(ids))
        places = torch.arange(len(ids), device=ids.device)
        parts = [places[start:stop], torch.cat([places[:start], places[stop:]])]
        self.order = torch.cat([part[ids[part].argsort(stable=True)] for part in parts])
        self.ids = ids[self.order]
        self.queries = stop - start
        self.places = self.order[: self.queries] - start
        self._cuts = [*_cuts(0, self.queries, size), *_cuts(self.queries, len(ids), size)]

    def __iter__(self) -> Iterator[_Tile]:
        ends = [(cut.start, cut.stop - 1) for cut in self._cuts]
        lowest, highest = self.ids[torch.tensor(ends, device=self.ids.device).T].tolist()
        for i, rows in enumerate(self._cuts):
            if rows.start >= self.queries:
                return
            for j in range(i, len(self._cuts)):
                has_same = lowest[i] <= highest[j] and lowest[j] <= highest[i]
                columns = self._cuts[j]
                yield _Tile(rows, columns, i != j and columns.start < self.queries, has_same)


def _cuts(start: int, stop: int, size: int) -> list[slice]:
    """Slices of nearly the same length, at most `size`."""
    count = -(-(stop - start) // size)
    bounds = [start + (stop - start) * k // count for k in range(count + 1)] if count else []
    return [slice(a, b) for a, b in pairwise(bounds)]


class _Exponentials:
    """exp(logit) of a tile, 0 between rows of one item; each call overwrites the result of the last."""

    def __init__(self, rows: Rows, ids: Tensor) -> None:
        self._rows, self._ids = rows, ids
        self._buffer = rows.new_empty(min(TILE, len(rows)) ** 2)

    def __call__(self, tile: _Tile) -> Tensor:
        rows, columns = self._rows[tile.rows], self._rows[tile.columns]
        out = self._buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
        torch.mm(rows, columns.T, out=out).exp_()
        if tile.has_same:
            differs = self._ids[tile.rows, None] != self._ids[None, tile.columns]
            out *= as_numbers(differs, out.dtype)
        return out


class _Negatives(torch.autograd.Function):
    """The sum of exp(logit) over the negatives of each query."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, pairs: TwoViewPairs) -> Tensor:
        tiles = _Tiles(pairs, TILE)
        exponentials = _Exponentials(rows[tiles.order], tiles.ids)
        sums = rows.new_zeros(len(rows))
        for tile in tiles:
            values = exponentials(tile)
            sums[tile.rows] += values.sum(dim=1)
            if tile.is_mirrored:
                sums[tile.columns] += values.sum(dim=0)
        ctx.tiles = tiles
        ctx.save_for_backward(rows)
        return rows.new_empty(tiles.queries).index_copy_(0, tiles.places, sums[: tiles.queries])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise SecondDerivativeError
        (rows,) = ctx.saved_tensors
        tiles = ctx.tiles
        ordered = rows[tiles.order]
        exponentials = _Exponentials(ordered, tiles.ids)
        weights, to_rows = rows.new_zeros(len(rows)), torch.zeros_like(rows)
        weights[: tiles.queries] = gradient[tiles.places]
        for tile in tiles:
            values = exponentials(tile)
            # a score has the weight of its row as a query plus that of its column as a query
            values *= weights[tile.rows, None] + weights[None, tile.columns]
            to_rows[tile.rows].addmm_(values, ordered[tile.columns])
            if tile.columns != tile.rows:
                to_rows[tile.columns].addmm_(values.T, ordered[tile.rows])
        return torch.empty_like(to_rows).index_copy_(0, tiles.order, to_rows), None
