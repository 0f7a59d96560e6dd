"""What a step's look-up and its dictionary show of themselves; `words_of` says where one is off."""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.errors import RangeError, ShapeError
from querykey.lookup import UNLABELLED, Block, Lookup
from querykey.losses.info_nce import check_temperature
from querykey.own_key import NOBODY
from querykey.training.dictionary_words import words_of
from querykey.types import Ids, KeyIds, KeyLabels, Labels, Numbers, QueryIds, QueryLabels

__all__ = ["KnowsIds", "held_health", "labels_of", "lookup_health", "words_of"]

ELEMENTS = 2**22
"""Scores held at once: 16 MB, whatever the look-up."""

FAR = 1e30
"""Taken off what is not of a mask, so that it is never the best."""


@runtime_checkable
class KnowsIds(Protocol):
    """Pairs that know which items their queries and keys are."""

    @property
    def query_ids(self) -> QueryIds:
        """Which item each query is."""
        ...

    @property
    def key_ids(self) -> KeyIds:
        """Which item each key is; -1: nobody's."""
        ...


@torch.no_grad()
def lookup_health(
    lookup: Lookup,
    *,
    temperature: float,
    query_ids: QueryIds | None = None,
    key_ids: KeyIds | None = None,
    query_labels: QueryLabels | None = None,
    key_labels: KeyLabels | None = None,
) -> dict[str, float]:
    r"""What the look-up that a step's loss came from shows.

    It is walked in blocks of keys: nothing of size [queries, keys] is held.

    Args:
        lookup: As `Seen` is shown it.
        temperature: Of its loss, > 0.
        query_ids: Which item each query is; None: as its pairs say, where they know.
        key_ids: Which item each key is, likewise; -1: nobody's.
        query_labels: Class of each query, -1 where unknown; None leaves out what needs classes.
        key_labels: Class of each key, likewise.

    Returns:
        By name, without what there is nothing to compute from:

        - queries; candidates: positives and negatives a query, mean.
        - pretext: share of the queries with both whose best positive scores above every negative; a tie
          is not solved. chance: what random scores would give, positives / candidates, mean.
        - positive_score, negative_score: means over all such pairs. hardest_negative: mean over queries.
        - gap: (positive_score - negative_score) / temperature, in logits.
        - false_negatives_id: share of the negatives that are the query's own item. own_copies: how many
          such a query has, mean.
        - false_negatives_label: share of the negatives, both of known class, that are of one class.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If ids or labels do not number the rows, or one of two is missing.

    Example:
        >>> from querykey.two_views import look_up_views
        >>> seen = lookup_health(look_up_views(torch.eye(3), torch.eye(3)), temperature=0.5)
        >>> seen["candidates"], seen["pretext"], round(seen["chance"], 3), seen["gap"]
        (5.0, 1.0, 0.2, 2.0)

    Source:
        pretext is the (K + 1)-way accuracy of He et al. 2019, arXiv:1911.05722, appendix A.9.
    """
    check_temperature("temperature", temperature)
    if query_ids is None and key_ids is None and isinstance(lookup.pairs, KnowsIds):
        query_ids, key_ids = lookup.pairs.query_ids, lookup.pairs.key_ids
    ids = _both("ids", lookup, query_ids, key_ids)
    labels = _both("labels", lookup, query_labels, key_labels)
    tally = _Tally(lookup)
    for block in lookup.blocks(max(1, ELEMENTS // max(1, len(lookup)))):
        tally.add(block, ids, labels)
    seen = tally.figures()
    if ids is not None:
        seen["false_negatives_id"] = tally.own_item / tally.negatives if tally.negatives else math.nan
        seen["own_copies"] = tally.own_item / max(1, len(lookup))
    if labels is not None:
        seen["false_negatives_label"] = tally.own_class / tally.known if tally.known else math.nan
    if "positive_score" in seen:
        seen["gap"] = (seen["positive_score"] - seen["negative_score"]) / temperature
    return {name: value for name, value in seen.items() if not math.isnan(value)}


def labels_of(ids: Ids, labels: Numbers) -> Labels:
    """The class of each row, for `lookup_health`.

    Args:
        ids: Which item each row is; -1: nobody's.
        labels: Class of each item, by its id; -1 where unknown.

    Returns:
        [rows]; -1 for what is nobody's.

    Example:
        >>> labels_of(torch.tensor([2, -1, 0]), torch.tensor([7, 8, 9])).tolist()
        [9, -1, 7]
    """
    found: Tensor = labels.to(ids.device)[ids.clamp(min=0)].masked_fill(ids == NOBODY, UNLABELLED)
    return found


def held_health(dictionary: CrossBatchMemory | MemoryBank, capacity: int) -> dict[str, float]:
    """How full a dictionary is and how old its rows are.

    Args:
        dictionary: A queue, a bank or a cross-batch memory.
        capacity: Rows it holds when full, at least 1.

    Returns:
        fill: share of the capacity that a step has written; random first rows are none of it. age_mean and
        age_max of those rows: writes since, one a step; 0 where there is none.

    Raises:
        RangeError: If capacity is below 1.

    Example:
        >>> from querykey.dictionaries.cross_batch import CrossBatchMemory
        >>> memory = CrossBatchMemory(capacity=4, dim=1)
        >>> for item in range(2):
        ...     memory.enqueue(torch.ones(1, 1), torch.tensor([item]))
        >>> held_health(memory, 4)
        {'fill': 0.5, 'age_mean': 0.5, 'age_max': 1.0}
    """
    if capacity < 1:
        raise RangeError(f"capacity must be at least 1, got {capacity}")
    is_written = dictionary.written[: len(dictionary)] > 0
    age = dictionary.age()[is_written].float()
    return {
        "fill": len(age) / capacity,
        "age_mean": float(age.mean()) if len(age) else 0.0,
        "age_max": float(age.max()) if len(age) else 0.0,
    }


class _Tally:
    """What the blocks of a look-up add up to."""

    def __init__(self, lookup: Lookup) -> None:
        self.queries, device = len(lookup), lookup.queries.device
        lowest = torch.full((self.queries,), -math.inf, device=device)
        self.best, self.hardest = lowest, lowest.clone()
        self.positive_count = torch.zeros(self.queries, dtype=torch.float64, device=device)
        self.negative_count = self.positive_count.clone()
        self.positive_sum = self.negative_sum = 0.0
        self.own_item = self.own_class = self.known = 0

    def add(
        self, block: Block, ids: tuple[Tensor, Tensor] | None, labels: tuple[Tensor, Tensor] | None
    ) -> None:
        scores, negative = block.scores, block.negative
        if scores.dtype in (torch.float16, torch.bfloat16):
            scores = scores.float()
        best, count, total = _of_pairs(scores, block.positive)
        self.best = torch.maximum(self.best, best)
        self.positive_count += count
        self.positive_sum += total
        best, count, total = _of_pairs(scores, negative)
        self.hardest = torch.maximum(self.hardest, best)
        self.negative_count += count
        self.negative_sum += total
        keys = slice(block.start, block.start + scores.shape[1])
        if ids is not None:
            mine, theirs = ids[0][:, None], ids[1][None, keys]
            self.own_item += int(((mine == theirs) & negative).count_nonzero())
        if labels is not None:
            mine, theirs = labels[0][:, None], labels[1][None, keys]
            known = (mine != UNLABELLED) & (theirs != UNLABELLED) & negative
            self.known += int(known.count_nonzero())
            self.own_class += int(((mine == theirs) & known).count_nonzero())

    @property
    def negatives(self) -> int:
        return int(self.negative_count.sum())

    def figures(self) -> dict[str, float]:
        candidates = self.positive_count + self.negative_count
        asked = (self.positive_count > 0) & (self.negative_count > 0)
        positives = int(self.positive_count.sum())
        solved = (self.best > self.hardest)[asked].double()
        return {
            "queries": float(self.queries),
            "candidates": float(candidates.mean()),
            "pretext": float(solved.mean()),
            "chance": float((self.positive_count / candidates)[asked].mean()),
            "positive_score": self.positive_sum / positives if positives else math.nan,
            "negative_score": self.negative_sum / self.negatives if self.negatives else math.nan,
            "hardest_negative": float(self.hardest[self.negative_count > 0].double().mean()),
        }


def _of_pairs(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, float]:
    """Of the pairs of a mask: the best score and how many there are, query by query, and the sum of all.

    Numbers in the place of the mask: on a CPU that is several times as fast.
    """
    taken = mask.view(torch.uint8).to(scores.dtype)
    total = float((scores * taken).sum())
    count = taken.sum(dim=1)
    best = taken.sub_(1.0).mul_(FAR).add_(scores).amax(dim=1)
    return best.masked_fill(count == 0, -math.inf), count, total


def _both(
    name: str, lookup: Lookup, of_queries: Tensor | None, of_keys: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Both of them, if they are there and fit."""
    if of_queries is None and of_keys is None:
        return None
    if of_queries is None or of_keys is None:
        missing = "queries" if of_queries is None else "keys"
        raise ShapeError(f"{name} of the {missing} are missing; give those of queries and keys, or neither")
    if len(of_queries) != len(lookup) or len(of_keys) != len(lookup.keys):
        raise ShapeError(
            f"{name} number {len(of_queries)} and {len(of_keys)} for {len(lookup)} queries and "
            f"{len(lookup.keys)} keys; one for each is needed"
        )
    return of_queries, of_keys
