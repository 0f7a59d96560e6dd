"""The best columns of each row of scores that come block by block.

Most of a block is never looked at twice: only scores above a floor are copied out, and sorted once, at the
end.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from querykey.errors import RangeError

__all__ = ["BestColumns", "best_of_blocks"]

GROUP = 16
"""Columns of which the maximum is compared first; the fastest of 16, 32 and 64 for 28 and 201 columns."""
DENSE = 12
"""Where more than one of so many groups holds a score above the floor, all scores are compared."""
MOST_ABOVE = 4
"""Where more than one of so many scores is above the floor, a top-k of the block takes less time."""
SPARE = 128
"""Columns stored per row beyond twice those that are wanted, before they are cut back."""
_AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class BestColumns:
    """The best `count` columns of each row, out of blocks of scores.

    Args:
        count: Columns wanted per row.
        floor: A score per row [rows, 1] that is probably exceeded by `count` columns, in the dtype of the
            scores. Columns up to it are left out, even where fewer exceed it. None: nothing is known.
    """

    def __init__(self, count: int, floor: Tensor | None = None) -> None:
        self.count = count
        self.floor = floor
        self.scores = torch.empty(0, 0)
        self.index = torch.empty(0, 0, dtype=torch.int32)
        self.filled = torch.empty(0, dtype=torch.int64)
        self.is_dense = False

    def add(self, scores: Tensor, start: int) -> None:
        """Add a block [rows, columns], whose first column is number `start`."""
        rows, columns = scores.shape
        if not len(self.filled):
            self._store(
                torch.empty(rows, 0), torch.empty(rows, 0, dtype=torch.int32), torch.zeros(rows).long()
            )
        if self.floor is not None and scores.is_contiguous():
            above = _above(scores, self.floor, by_groups=not self.is_dense)
            if above is not None:
                self.is_dense = DENSE * GROUP * len(above[0]) > scores.numel()
                self._append(*above, start, columns)
                return
        top, at = scores.topk(min(self.count, columns), dim=1, sorted=False)
        self._cut(top.float(), at.int() + start, scores.dtype)

    def ordered(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best columns, best first.

        Returns:
            (scores float32, indices int64) [rows, at most count], ties in arbitrary order, -inf and 0 where
            fewer were found; and what no column that is left out exceeds [rows], -inf where none is.
        """
        width = int(self.filled.max())
        scores, order = self.scores[:, :width].topk(min(self.count, width), dim=1)
        floor = torch.full((len(scores), 1), -torch.inf) if self.floor is None else self.floor.float()
        if width > self.count:
            floor = torch.maximum(floor, scores[:, -1:])
        return scores, self.index.gather(1, order).long(), floor[:, 0]

    def _append(self, at: Tensor, many: Tensor, values: Tensor, start: int, columns: int) -> None:
        """Add single scores, whose places are as if all rows were one, and how many there are of each row."""
        if not len(at):
            return
        if int((self.filled + many).max()) > self.scores.shape[1]:
            assert self.floor is not None  # it is what these are above
            self._cut(self.scores[:, :0], self.index[:, :0], self.floor.dtype)
            self._store(self.scores, self.index, self.filled, int((self.filled + many).max()))
        rows = torch.arange(len(many))
        place = rows * self.scores.shape[1] + self.filled - (many.cumsum(0) - many)
        place = place.repeat_interleave(many, output_size=len(at)).add_(torch.arange(len(at)))
        self.scores.view(-1)[place] = values
        column = (start - columns * rows).repeat_interleave(many, output_size=len(at)).add_(at)
        self.index.view(-1)[place] = column.int()
        self.filled += many

    def _cut(self, scores: Tensor, index: Tensor, dtype: torch.dtype) -> None:
        """Keep the best of what is stored and what is given; the last one kept is the new floor."""
        width = int(self.filled.max())
        scores = torch.cat([self.scores[:, :width], scores], dim=1)
        index = torch.cat([self.index[:, :width], index], dim=1)
        if scores.shape[1] >= self.count:
            scores, order = scores.topk(self.count, dim=1, sorted=False)
            index = index.gather(1, order)
            # exact: the lowest of them is one of the scores, in their dtype
            lowest = scores.amin(dim=1, keepdim=True).to(dtype)
            self.floor = lowest if self.floor is None else torch.maximum(self.floor, lowest)
        self._store(scores, index, torch.full_like(self.filled, scores.shape[1]))

    def _store(self, scores: Tensor, index: Tensor, filled: Tensor, width: int = 0) -> None:
        """Put columns first in arrays with room for more."""
        width = max(width, 2 * self.count + SPARE)
        self.scores = torch.full((len(scores), width), -torch.inf)
        self.index = torch.zeros(len(scores), width, dtype=torch.int32)
        self.scores[:, : scores.shape[1]] = scores[:, :width]
        self.index[:, : index.shape[1]] = index[:, :width]
        self.filled = filled


def best_of_blocks(blocks: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Merge the best `count` columns out of consecutive blocks of scores [queries, columns].

    Returns:
        (scores float32, indices) [queries, at most count], best first; ties in arbitrary order.
    """
    best, start = BestColumns(count), 0
    for scores in blocks:
        best.add(scores, start)
        start += scores.shape[1]
    if not start:
        raise RangeError("there are no keys; at least one is needed")
    return best.ordered()[:2]


def _above(scores: Tensor, floor: Tensor, *, by_groups: bool) -> tuple[Tensor, Tensor, Tensor] | None:
    """(places in ascending order, number per row, scores) of all above the row's floor; None if too many are.

    A group is every n-th column, so that its maximum is computed over whole vectors of neighbouring columns.
    """
    rows, columns = scores.shape
    compared, limit = scores, floor
    if bool((floor > 0).all()):
        # positive floats have the order of their bits, and integers are compared several times as fast
        integers = _AS_INTEGERS[scores.element_size()]
        compared, limit = scores.view(integers), floor.to(scores.dtype).view(integers)
    at = _above_by_groups(compared, limit) if by_groups and columns % GROUP == 0 else None
    at = _places(_greater(compared, limit)) if at is None else at
    if MOST_ABOVE * len(at) > scores.numel():
        return None
    values = scores.view(-1)[at].float()
    is_nan = values.isnan()  # their bits are above those of infinity
    if bool(is_nan.any()):
        at, values = at[~is_nan], values[~is_nan]
    return at, torch.searchsorted(at, torch.arange(rows + 1) * columns).diff(), values


def _above_by_groups(scores: Tensor, floor: Tensor) -> Tensor | None:
    """Places above the floor, out of the groups whose maximum is; None if these are many."""
    rows, columns = scores.shape
    groups = columns // GROUP
    found = _places(_greater(scores.view(rows, GROUP, groups).amax(dim=1), floor))
    if DENSE * len(found) > rows * groups:
        return None
    row = found // groups
    members = (row * columns + found % groups)[:, None] + torch.arange(0, columns, groups)
    return members[scores.view(-1)[members] > floor[row]].sort().values


def _greater(scores: Tensor, floor: Tensor) -> Tensor:
    if scores.device.type == "cpu" and scores.dtype != torch.bfloat16:  # NumPy takes a third of the time
        return torch.from_numpy(scores.numpy() > floor.numpy())
    return scores > floor


def _places(mask: Tensor) -> Tensor:
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero()[:, 0]
