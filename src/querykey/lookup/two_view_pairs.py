"""The look-up of two views of a batch in each other, as in SimCLR."""

from dataclasses import dataclass, replace

import torch

from querykey.errors import ShapeError
from querykey.lookup.lookup import Lookup, Score
from querykey.types import Ids, KeyIds, PairMask, QueryIds, Rows

__all__ = ["TwoViewPairs", "look_up_views"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TwoViewPairs:
    """The positive of row i of 2B rows is row (i + B) mod 2B; no mask of all pairs is stored.

    Args:
        ids: Which item each of the B pairs of views shows.
        start: First query.
        stop: Last query, not included; None for all 2B.
    """

    ids: Ids
    start: int = 0
    stop: int | None = None

    def block(self, start: int, stop: int) -> tuple[PairMask, PairMask]:
        """(positive, negative) of the queries with keys start to stop."""
        images = len(self.ids)
        last = 2 * images if self.stop is None else self.stop
        device = self.ids.device
        queries = torch.arange(self.start, last, device=device)
        keys = torch.arange(start, stop, device=device)
        other_view = torch.where(queries < images, queries + images, queries - images)
        positive = other_view[:, None] == keys[None, :]
        both = self.ids.repeat(2)
        return positive, both[self.start : last, None] != both[None, start:stop]

    @property
    def query_ids(self) -> QueryIds:
        """Which item each query is."""
        return self.key_ids[self.start : self.stop]

    @property
    def key_ids(self) -> KeyIds:
        """Which item each of the 2B rows is."""
        return self.ids.repeat(2)

    def rows(self, start: int, stop: int) -> "TwoViewPairs":
        """The same for queries start to stop."""
        last = 2 * len(self.ids) if self.stop is None else self.stop
        return replace(self, start=min(self.start + start, last), stop=min(self.start + stop, last))


def look_up_views(view_1: Rows, view_2: Rows, *, ids: Ids | None = None, score: Score = "dot") -> Lookup:
    r"""Look up the rows of two views among all rows of both.

    Queries and keys are the same 2B rows, first those of view 1, then those of view 2. The positive
    of row *i* is the other view of its item, row :math:`(i + B) \bmod 2B`. The row itself and further rows of
    the same item are neither positive nor negative; rows of other items are negative.

    Args:
        view_1: [B, dim], one row an image.
        view_2: [B, dim], another view of the same images in the same order.
        ids: Which item each image is, if items may repeat. None: all differ.
        score: "dot" or "cosine".

    Returns:
        A lazy `Lookup` of 2B queries and 2B keys. With B = 1 there are no negatives.

    Raises:
        ShapeError: If the views differ in shape, or ids do not number B.

    Example:
        >>> found = look_up_views(torch.eye(2), torch.eye(2))
        >>> found.positive.int().tolist()
        [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
        >>> found.negative.int().tolist()
        [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]

    Source:
        Chen et al. 2020, arXiv:2002.05709, algorithm 1. There positives are numbered 2k - 1 and 2k;
        here view 2 follows view 1, as in the released code.
    """
    if view_1.shape != view_2.shape:
        raise ShapeError(
            f"the first view is {list(view_1.shape)} and the second {list(view_2.shape)}; "
            "row i of both must show the same image"
        )
    if ids is None:
        ids = torch.arange(len(view_1), device=view_1.device)
    elif len(ids) != len(view_1):
        raise ShapeError(f"ids has {len(ids)} entries for {len(view_1)} rows a view; one for each is needed")
    both = torch.cat([view_1, view_2])
    return Lookup(both, both, TwoViewPairs(ids=ids), score)
