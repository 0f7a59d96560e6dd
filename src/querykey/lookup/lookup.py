"""A look-up: queries, keys, and the rule that defines positive and negative pairs.

Losses, top-k and metrics all read a `Lookup`. A small one gives its scores and pair masks as
matrices; a large one is computed in blocks of keys. The loop over blocks is written once, here, so the
numbers are the same whole or in blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, assert_never, get_args, runtime_checkable

import torch
from torch import Tensor

from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import ConfigError, RangeError, ShapeError, require_choice
from querykey.lookup.unit_length import unit_length
from querykey.types import KeyIds, KeyLabels, Keys, PairMask, Queries, QueryIds, QueryLabels, Scores

__all__ = [
    "IGNORE_ID",
    "IGNORE_LABEL",
    "Block",
    "DensePairs",
    "Lookup",
    "OwnKeyPairs",
    "PairRule",
    "Pairs",
    "RulePairs",
    "SameId",
    "Score",
    "look_up",
    "look_up_own_key",
]

Score = Literal["cosine", "dot"]
SameId = Literal["masked", "positive", "negative"]

IGNORE_LABEL = -1
"""The label of an unlabelled item: neither positive nor negative to any other."""

IGNORE_ID = -1
"""The id of stored rows that belong to no item, such as a queue's random initial rows: always negatives."""


@runtime_checkable
class Pairs(Protocol):
    """Which pairs of a look-up are positive and which negative, a block of keys at a time."""

    def block(self, start: int, stop: int) -> tuple[PairMask, PairMask]:
        """(positive, negative) of all queries with keys start to stop; a pair may be neither."""
        ...

    def rows(self, start: int, stop: int) -> "Pairs":
        """The same for queries start to stop alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """What makes a pair positive, negative or neither.

    Args:
        positive: "id": the item of the query, see `same_id`; every other item is negative.
            "label": items of the same class; items of other classes are negative. A row
            labelled -1 (unlabelled) is neither.
        same_id: How to treat other keys that come from the same item as the query: "masked" (neither),
            "positive", or "negative" (what the queue of MoCo does with old keys). It wins
            over the label.

    Raises:
        ConfigError: If one is another word.
    """

    positive: Literal["id", "label"] = "id"
    same_id: SameId = "masked"

    def __post_init__(self) -> None:
        require_choice("positive", self.positive, ["id", "label"])
        require_choice("same_id", self.same_id, get_args(SameId))

    def pairs(
        self,
        query_ids: QueryIds,
        key_ids: KeyIds,
        query_labels: QueryLabels | None,
        key_labels: KeyLabels | None,
    ) -> tuple[Tensor, Tensor]:
        """(positive, negative) masks [queries, keys].

        Raises:
            ShapeError: If the rule needs labels and there are none.
        """
        same_item = query_ids[:, None] == key_ids[None, :]
        match self.positive:
            case "id":
                positive, negative = torch.zeros_like(same_item), ~same_item
            case "label":
                if query_labels is None or key_labels is None:
                    raise ShapeError('PairRule(positive="label") needs labels of queries and keys; got none')
                labelled = _outer(query_labels != IGNORE_LABEL, key_labels != IGNORE_LABEL)
                same_class = query_labels[:, None] == key_labels[None, :]
                positive, negative = same_class & labelled & ~same_item, ~same_class & labelled & ~same_item
            case never:
                assert_never(never)
        match self.same_id:
            case "masked":
                return positive, negative
            case "positive":
                return positive | same_item, negative
            case "negative":
                return positive, negative | same_item
            case never_same:
                assert_never(never_same)


def _outer(queries: Tensor, keys: Tensor) -> PairMask:
    """Where both are True [queries, keys]. On a CPU PyTorch combines bytes 25 times as fast as bools."""
    pairs = queries.view(torch.uint8)[:, None] & keys.view(torch.uint8)[None, :]
    return pairs.view(torch.bool)


@dataclass(frozen=True, eq=False)
class DensePairs:
    """Pairs given as two masks [queries, keys]."""

    positive: PairMask
    negative: PairMask

    def block(self, start: int, stop: int) -> tuple[PairMask, PairMask]:
        """The masks' columns start to stop."""
        return self.positive[:, start:stop], self.negative[:, start:stop]

    def rows(self, start: int, stop: int) -> "DensePairs":
        """The masks' rows start to stop."""
        return replace(self, positive=self.positive[start:stop], negative=self.negative[start:stop])


@dataclass(frozen=True, eq=False, kw_only=True)
class RulePairs:
    """Pairs from a rule, ids and labels, computed in blocks: no mask of all pairs is stored."""

    rule: PairRule
    query_ids: QueryIds
    key_ids: KeyIds
    query_labels: QueryLabels | None = None
    key_labels: KeyLabels | None = None

    def block(self, start: int, stop: int) -> tuple[PairMask, PairMask]:
        """The masks of keys start to stop."""
        labels = None if self.key_labels is None else self.key_labels[start:stop]
        return self.rule.pairs(self.query_ids, self.key_ids[start:stop], self.query_labels, labels)

    def rows(self, start: int, stop: int) -> "RulePairs":
        """The same for queries start to stop."""
        labels = None if self.query_labels is None else self.query_labels[start:stop]
        return replace(self, query_ids=self.query_ids[start:stop], query_labels=labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnKeyPairs:
    """The positive of query i is key i; keys from B on are a dictionary's. No mask of all pairs is stored.

    Args:
        ids: Which item each of the B queries is.
        stored_ids: Item id of each row stored in the dictionary; -1: of no item.
        same_id: How to treat stored rows of the query's own item.
        start: First query.
        stop: Last query, not included; None for all B.
    """

    ids: QueryIds
    stored_ids: KeyIds
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
        return torch.cat([self.ids, self.stored_ids])

    def rows(self, start: int, stop: int) -> "OwnKeyPairs":
        """The same for queries start to stop."""
        last = len(self.ids) if self.stop is None else self.stop
        return replace(self, start=min(self.start + start, last), stop=min(self.start + stop, last))

    def _held(self, start: int, stop: int, last: int) -> tuple[Tensor, Tensor]:
        ids, stored = self.ids[self.start : last, None], self.stored_ids[None, start:stop]
        is_same = (ids == stored) & (stored != IGNORE_ID)
        none = torch.zeros_like(is_same)
        if self.same_id == "negative":
            return none, ~none
        return is_same if self.same_id == "positive" else none, ~is_same


class Block(NamedTuple):
    """Some keys of a look-up: columns start to start + scores.shape[1]."""

    start: int
    scores: Scores
    positive: PairMask
    negative: PairMask


@dataclass(frozen=True, eq=False)
class Lookup:
    """Queries, keys, and which pairs are positive and negative.

    Nothing is computed before it is used. `scores`, `positive` and `negative` are matrices
    [queries, keys] and cached; `blocks` iterates over the keys and caches nothing.

    Args:
        queries: [queries, dim].
        keys: [keys, dim]; any float dtype. Scores are float32 at least, under autocast too.
        pairs: Which pairs are positive, negative or neither.
        score: "dot": the dot product. "cosine": of rows scaled to length 1.
        whole: The parent `Lookup` if this one is a slice made by `rows()`, else None.
        shard_group: The process group over which the keys are sharded. `keys` holds this rank's shard alone;
            local key *j* has the global index *jN* + rank. Losses that support sharding return per-query
            partial losses whose sum over the ranks is the full loss; others raise `ConfigError`. `top_k`
            returns global indices.

    Raises:
        ConfigError: If score is another word.
    """

    queries: Queries
    keys: Keys
    pairs: Pairs
    score: Score = "dot"
    whole: "Lookup | None" = None
    shard_group: ProcessGroup = SINGLE_PROCESS

    def __post_init__(self) -> None:
        if self.score not in ("cosine", "dot"):
            raise ConfigError(f"score must be cosine or dot; got {self.score!r}")

    @classmethod
    def from_scores(cls, scores: Scores, positive: PairMask, negative: PairMask) -> "Lookup":
        """Build a `Lookup` from given scores: queries = scores, keys = identity."""
        eye = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
        return cls(scores, eye, DensePairs(positive, negative))

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.queries)

    @cached_property
    def scores(self) -> Scores:
        """All scores [queries, keys], before temperature."""
        return self._score(0, len(self.keys))

    @cached_property
    def masks(self) -> tuple[PairMask, PairMask]:
        """(positive, negative) of all pairs."""
        return self.pairs.block(0, len(self.keys))

    @property
    def positive(self) -> PairMask:
        """Mask of positive pairs [queries, keys]."""
        return self.masks[0]

    @property
    def negative(self) -> PairMask:
        """Mask of negative pairs [queries, keys]."""
        return self.masks[1]

    def blocks(self, size: int) -> Iterator[Block]:
        """Iterate over the keys in order, `size` at a time.

        Raises:
            RangeError: If size is not positive.
        """
        if size < 1:
            raise RangeError(f"a block needs at least 1 key, got size={size}")
        for start in range(0, len(self.keys), size):
            stop = min(start + size, len(self.keys))
            yield Block(start, self._score(start, stop), *self.pairs.block(start, stop))

    def rows(self, start: int, stop: int) -> "Lookup":
        """The look-up of queries start to stop."""
        return replace(
            self,
            queries=self.queries[start:stop],
            pairs=self.pairs.rows(start, stop),
            whole=self if self.whole is None else self.whole,
        )

    def prefix(self, dim: int) -> "Lookup":
        """The look-up of the first `dim` numbers of queries and keys, each scaled to length 1."""
        return replace(
            self,
            queries=unit_length(self.queries[:, :dim]),
            keys=unit_length(self.keys[:, :dim]),
            whole=None if self.whole is None else self.whole.prefix(dim),
        )

    def with_pairs(self, positive: PairMask, negative: PairMask) -> "Lookup":
        """The same queries and keys with other pairs; computed scores are reused."""
        other = replace(self, pairs=DensePairs(positive, negative), whole=None)
        if "scores" in self.__dict__:
            other.__dict__["scores"] = self.scores
        return other

    @cached_property
    def _ready_queries(self) -> Queries:
        queries = self.queries.to(torch.promote_types(self.queries.dtype, torch.float32))
        return unit_length(queries) if self.score == "cosine" else queries

    def _score(self, start: int, stop: int) -> Scores:
        # the error of a product in half precision is up to 1e-2: 0.1 in a loss at temperature 0.07, hundreds
        # of keys in a top-k. Autocast would use half precision again.
        with torch.autocast(self.queries.device.type, enabled=False):
            keys = self.keys[start:stop].to(self._ready_queries.dtype)
            keys = unit_length(keys) if self.score == "cosine" else keys
            return self._ready_queries @ keys.T


def look_up(
    queries: Queries,
    keys: Keys,
    *,
    query_ids: QueryIds,
    key_ids: KeyIds,
    query_labels: QueryLabels | None = None,
    key_labels: KeyLabels | None = None,
    rule: PairRule,
    score: Score = "dot",
    shard_group: ProcessGroup = SINGLE_PROCESS,
) -> Lookup:
    """Look queries up among keys under a rule.

    Args:
        queries: [queries, dim], for example unit rows of an encoder.
        keys: [keys, dim].
        query_ids: Which item each query is.
        key_ids: Which item each key is; items may repeat.
        query_labels: Class of each query, -1 if unlabelled; needed by a rule on labels.
        key_labels: Class of each key, likewise.
        rule: Which pairs are positive, negative or neither.
        score: "dot" or "cosine".
        shard_group: Over which the keys are sharded; see `Lookup`.

    Returns:
        A lazy `Lookup`.

    Raises:
        ShapeError: If widths, ids or labels do not fit, or the rule needs labels.

    Example:
        >>> items, ids = torch.eye(3), torch.tensor([7, 8, 9])
        >>> labels = torch.tensor([0, 0, 1])
        >>> found = look_up(items, items, query_ids=ids, key_ids=ids, query_labels=labels,
        ...                 key_labels=labels, rule=PairRule(positive="label"))
        >>> found.positive.int().tolist()
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    if queries.shape[1] != keys.shape[1]:
        raise ShapeError(
            f"queries are {queries.shape[1]} wide and keys {keys.shape[1]}; they must be the same"
        )
    for name, ids, rows in (
        ("query_ids", query_ids, queries),
        ("key_ids", key_ids, keys),
        ("query_labels", query_labels, queries),
        ("key_labels", key_labels, keys),
    ):
        if ids is not None and len(ids) != len(rows):
            raise ShapeError(f"{name} has {len(ids)} entries for {len(rows)} rows; one for each is needed")
    if rule.positive == "label" and (query_labels is None or key_labels is None):
        raise ShapeError('PairRule(positive="label") needs labels of queries and keys; got none')
    pairs = RulePairs(
        rule=rule, query_ids=query_ids, key_ids=key_ids, query_labels=query_labels, key_labels=key_labels
    )
    return Lookup(queries, keys, pairs, score, shard_group=shard_group)


def look_up_own_key(
    queries: Queries,
    keys: Queries,
    *,
    ids: QueryIds,
    stored_vectors: Keys,
    stored_ids: KeyIds,
    same_id: SameId = "masked",
    score: Score = "dot",
) -> Lookup:
    r"""Look each query up among its own key and the rows of a dictionary: 1 + K candidates.

    Query *i* should find key *i*. The other keys of the batch are neither positive nor negative. The
    K stored rows are negative, except older keys of the query's own item, which are treated as `same_id`
    says. With an empty dictionary the own key is the only candidate: `info_nce` is 0 and has no gradient.

    Args:
        queries: [B, dim].
        keys: [B, dim]; row i is query i's own key.
        ids: Which item each query is [B].
        stored_vectors: Rows of a dictionary [K, dim], K >= 0; copied, so that a loss may run backward
            after the dictionary has changed.
        stored_ids: Their item ids [K]; -1: of no item, negative to every query.
        same_id: "masked": neither. "negative": as in the paper. "positive": positives, too.
        score: "dot" or "cosine".

    Returns:
        A lazy `Lookup` of B queries and B + K keys: those of the batch, then the stored ones.

    Raises:
        ShapeError: If rows, widths or ids do not fit together.
        ConfigError: If same_id or score is another word.

    Example:
        >>> rows, stored_ids = torch.eye(2), torch.tensor([7, 5])
        >>> found = look_up_own_key(torch.eye(2), torch.eye(2), ids=torch.tensor([7, 8]),
        ...                         stored_vectors=rows, stored_ids=stored_ids)
        >>> found.positive.int().tolist()
        [[1, 0, 0, 0], [0, 1, 0, 0]]
        >>> found.negative.int().tolist()
        [[0, 0, 0, 1], [0, 0, 1, 1]]

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, algorithm 1. It has no ids: a key of the same item that is still in the
        queue is a negative there.
    """
    if queries.shape != keys.shape:
        raise ShapeError(
            f"queries are {list(queries.shape)} and their keys {list(keys.shape)}; "
            "row i of the keys must be the key of query i"
        )
    if stored_vectors.shape[1] != queries.shape[1]:
        raise ShapeError(
            f"queries are {queries.shape[1]} wide and stored rows {stored_vectors.shape[1]}; they must be "
            "the same"
        )
    for name, numbers, count in (("ids", ids, len(queries)), ("stored_ids", stored_ids, len(stored_vectors))):
        if len(numbers) != count:
            raise ShapeError(f"{name} has {len(numbers)} entries for {count} rows; one for each is needed")
    if same_id not in ("masked", "positive", "negative"):
        raise ConfigError(f"same_id must be masked, positive or negative; got {same_id!r}")
    pairs = OwnKeyPairs(ids=ids, stored_ids=stored_ids.clone(), same_id=same_id)
    return Lookup(queries, torch.cat([keys, stored_vectors.to(keys.dtype)]), pairs, score)
