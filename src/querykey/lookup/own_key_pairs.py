"""Each query's own key among the rows of a dictionary: what MoCo and the memory bank learn from."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from querykey.errors import ConfigError, ShapeError
from querykey.lookup.lookup import Lookup, Score
from querykey.types import KeyIds, Keys, PairMask, Queries, QueryIds

__all__ = ["IGNORE_ID", "OwnKeyPairs", "SameId", "look_up_own_key"]

SameId = Literal["masked", "positive", "negative"]

IGNORE_ID = -1
"""The id of stored rows that belong to no item, such as a queue's random initial rows: always negatives."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnKeyPairs:
    """Query i should find key i; rows B and up are a dictionary's. No mask of all pairs exists.

    Args:
        ids: Which item each of the B queries is.
        held_ids: Item id of each row stored in the dictionary; -1: of no item.
        same_id: How to treat stored rows of the query's own item.
        start: First query.
        stop: Last query, not included; None for all B.
    """

    ids: QueryIds
    held_ids: KeyIds
    same_id: SameId = "masked"
    start: int = 0
    stop: int | None = None

    def block(self, start: int, stop: int) -> tuple[PairMask, PairMask]:
        """(positive, negative) of the queries with keys start to stop."""
        images = len(self.ids)
        last = images if self.stop is None else self.stop
        queries = torch.arange(self.start, last, device=self.ids.device)
        keys = torch.arange(min(start, images), min(stop, images), device=self.ids.device)
        own = queries[:, None] == keys[None, :]
        positive, negative = self._held(max(start - images, 0), max(stop - images, 0), last)
        return torch.cat([own, positive], dim=1), torch.cat([torch.zeros_like(own), negative], dim=1)

    @property
    def query_ids(self) -> QueryIds:
        """Which item each query is."""
        return self.ids[self.start : self.stop]

    @property
    def key_ids(self) -> KeyIds:
        """Item id of each key; -1: of no item."""
        return torch.cat([self.ids, self.held_ids])

    def rows(self, start: int, stop: int) -> "OwnKeyPairs":
        """The same for queries start to stop."""
        last = len(self.ids) if self.stop is None else self.stop
        return replace(self, start=min(self.start + start, last), stop=min(self.start + stop, last))

    def _held(self, start: int, stop: int, last: int) -> tuple[Tensor, Tensor]:
        ids, held = self.ids[self.start : last, None], self.held_ids[None, start:stop]
        is_same = (ids == held) & (held != IGNORE_ID)
        none = torch.zeros_like(is_same)
        if self.same_id == "negative":
            return none, ~none
        return is_same if self.same_id == "positive" else none, ~is_same


def look_up_own_key(
    queries: Queries,
    keys: Queries,
    *,
    ids: QueryIds,
    held_vectors: Keys,
    held_ids: KeyIds,
    same_id: SameId = "masked",
    score: Score = "dot",
) -> Lookup:
    r"""Look each query up among its own key and the rows of a dictionary: 1 + K candidates.

    Query *i* should find key *i*. The other keys of the batch are neither positive nor negative. The
    K held rows are negative, but for those of the query's own item, older keys of it: they are what
    `same_id` says. With an empty dictionary the own key is all there is, and `info_nce` is 0 and sends
    no gradient.

    Args:
        queries: [B, dim].
        keys: [B, dim]; row i is query i's own key.
        ids: Which item each query is [B].
        held_vectors: Rows of a dictionary [K, dim], K >= 0; copied, so that a loss may run backward
            after the dictionary has changed.
        held_ids: Their item ids [K]; -1: of no item, negative to every query.
        same_id: "masked": neither. "negative": pushed away, as the paper has it. "positive": to be
            found as well.
        score: "dot" or "cosine".

    Returns:
        A lazy `Lookup` of B queries and B + K keys: those of the batch, then those held.

    Raises:
        ShapeError: If rows, widths or ids do not fit together.
        ConfigError: If same_id is not known.

    Example:
        >>> held, held_ids = torch.eye(2), torch.tensor([7, 5])
        >>> found = look_up_own_key(torch.eye(2), torch.eye(2), ids=torch.tensor([7, 8]),
        ...                         held_vectors=held, held_ids=held_ids)
        >>> found.positive.int().tolist()
        [[1, 0, 0, 0], [0, 1, 0, 0]]
        >>> found.negative.int().tolist()
        [[0, 0, 0, 1], [0, 0, 1, 1]]

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, algorithm 1. It knows no ids: a key of the same item that is still in the
        queue is a negative there.
    """
    if queries.shape != keys.shape:
        raise ShapeError(
            f"queries are {list(queries.shape)} and their keys {list(keys.shape)}; "
            "row i of the keys must be the key of query i"
        )
    if held_vectors.shape[1] != queries.shape[1]:
        raise ShapeError(
            f"queries are {queries.shape[1]} wide and held rows {held_vectors.shape[1]}; they must be "
            "the same"
        )
    for name, numbers, count in (("ids", ids, len(queries)), ("held_ids", held_ids, len(held_vectors))):
        if len(numbers) != count:
            raise ShapeError(f"{name} has {len(numbers)} entries for {count} rows; one for each is needed")
    if same_id not in ("masked", "positive", "negative"):
        raise ConfigError(f"same_id must be masked, positive or negative; got {same_id!r}")
    pairs = OwnKeyPairs(ids=ids, held_ids=held_ids.clone(), same_id=same_id)
    return Lookup(queries, torch.cat([keys, held_vectors.to(keys.dtype)]), pairs, score)
