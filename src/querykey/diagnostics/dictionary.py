"""Metrics of a look-up and of its dictionary, and `dictionary_warnings` where one is out of range."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.protocol import Dictionary
from querykey.errors import RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_ID, IGNORE_LABEL, Block, Lookup
from querykey.losses.info_nce import check_temperature
from querykey.types import Ids, KeyIds, KeyLabels, Labels, Numbers, QueryIds, QueryLabels

__all__ = [
    "PairsWithIds",
    "dictionary_health",
    "dictionary_warnings",
    "item_labels",
    "lookup_health",
]

DRIFT_SHARE = 0.25
"""Of the mean squared distance between a query and its negatives. A stored row that has moved by more is a
quarter of the way to another item's; with negatives at a right angle (distance 2) its cosine to what it
would be today is 0.75."""

COPIES = 0.1
"""Old keys of the own item among a query's negatives: at this, one query in ten is pulled to its item and
pushed from it at once. A share hides it: an item that comes once an epoch has a share of 1 / items in
any queue."""

OWN_ITEM_SHARE = 0.001
"""Of the negatives: more than of a data set of 1,000 items that is spread evenly over the queue."""

OWN_CLASS_SHARE = 0.15
"""Of the negatives: ten even classes, as most published figures have, give 0.1 by themselves."""

LEAST_GAP = 0.1
"""Logits: below it the mean positive is at most 1.1 times as likely as the mean negative."""

SOLVED = 0.99
"""Of the queries: where batch norm leaks, MoCo's task is solved beyond this (arXiv:1911.05722, app. A.9)."""

KNN_GAIN = 0.03
"""Two standard errors, about, of the difference between two scores on the same 1,000 images."""


def dictionary_warnings(
    metrics: Mapping[str, float],
    *,
    drift: Mapping[int, float] | None = None,
    half_life: float | None = None,
    start: Mapping[str, float] | None = None,
    is_over: bool = False,
) -> dict[str, str]:
    """Warnings about a dictionary, each with the metric and what to do.

    Conditions: rows that have drifted by more than `DRIFT_SHARE` of the distance between items; keys older
    than the half-life of their encoder, made by one of which less than half is left; a dictionary
    that is not full when the run is over; `COPIES` of the own item a query, or `OWN_ITEM_SHARE` of
    the negatives; `OWN_CLASS_SHARE`; a gap below `LEAST_GAP`; a pretext task that is `SOLVED` without
    `KNN_GAIN`, or no more often than chance. The constants say why they have their values.

    Args:
        metrics: Of `lookup_health`, `dictionary_health` and `monitor`; missing ones are not checked.
        drift: Of `drift_of`, by age in steps.
        half_life: Of the momentum encoder in steps; None without one.
        start: Metrics of `monitor` before the first step, for the kNN.
        is_over: Whether this is the end of the run.

    Returns:
        Messages without a full stop, by the name of the condition; empty if there is none.

    Example:
        >>> dictionary_warnings({"gap": 3.0, "age_max": 200.0}, half_life=69.0)
        {'age': 'the oldest keys are 200 steps old and the half-life of their encoder is 69: ...'}
    """
    found = {
        "drift": _of_drift(metrics, drift or {}),
        "age": _of_age(metrics, half_life),
        "fill": _of_fill(metrics) if is_over else None,
        "own item": _of_own_item(metrics),
        "own class": _of_own_class(metrics),
        "gap": _of_gap(metrics),
        "pretext": _of_pretext(metrics, start or {}),
    }
    return {name: message for name, message in found.items() if message is not None}


def _of_drift(metrics: Mapping[str, float], drift: Mapping[int, float]) -> str | None:
    apart = 2 - 2 * metrics.get("negative_score", 0.0)
    for age in sorted(drift):
        if drift[age] > DRIFT_SHARE * apart:
            return (
                f"rows stored {age:,} steps ago have drifted by {drift[age]:.2f}, and different items are "
                f"{apart:.2f} apart: lower the learning rate or the capacity, or raise the momentum"
            )
    return None


def _of_age(metrics: Mapping[str, float], half_life: float | None) -> str | None:
    oldest = metrics.get("age_max", 0.0)
    if half_life is None or not oldest > half_life:
        return None
    return (
        f"the oldest keys are {oldest:,.0f} steps old and the half-life of their encoder is "
        f"{half_life:,.0f}: lower the capacity, or raise the momentum to {2 ** (-1 / oldest):.4f}"
    )


def _of_fill(metrics: Mapping[str, float]) -> str | None:
    if not metrics.get("fill", 1.0) < 1:
        return None
    return (
        f"the dictionary was only {metrics['fill']:.0%} full when the run ended: lower the capacity, or "
        "train longer"
    )


def _of_own_item(metrics: Mapping[str, float]) -> str | None:
    share, copies = metrics.get("false_negatives_id", 0.0), metrics.get("own_copies", 0.0)
    if not (share > OWN_ITEM_SHARE or copies > COPIES):
        return None
    return (
        f"a query has {copies:.2f} old keys of its own item among its negatives ({share:.2%} of them): "
        "mask them (same_id), or lower the capacity well below the number of items"
    )


def _of_own_class(metrics: Mapping[str, float]) -> str | None:
    share = metrics.get("false_negatives_label", 0.0)
    if not share > OWN_CLASS_SHARE:
        return None
    return (
        f"{share:.0%} of the negatives are of the query's own class: take a loss that allows for it "
        f"(debiased or hard_negative with tau_plus {share:.2f}), or a higher temperature"
    )


def _of_gap(metrics: Mapping[str, float]) -> str | None:
    gap = metrics.get("gap", math.inf)
    if not gap < LEAST_GAP:
        return None
    return (
        f"positives score {gap:.2f} logits above negatives on the mean, next to nothing: lower the "
        "temperature; if that does not help, the learning rate is too high or too low"
    )


def _of_pretext(metrics: Mapping[str, float], start: Mapping[str, float]) -> str | None:
    if "pretext" not in metrics or "chance" not in metrics:
        return None
    solved, chance, queries = metrics["pretext"], metrics["chance"], max(1.0, metrics.get("queries", 1.0))
    by_chance = chance + 2 * math.sqrt(chance * (1 - chance) / queries) + 1 / queries
    if solved <= by_chance < 1:
        return (
            f"the pretext task is at chance: {solved:.2%} of the queries find their key, {chance:.2%} would "
            "by luck: take milder views, a higher learning rate, or a lower momentum of the key encoder"
        )
    knn, before = metrics.get("knn", math.nan), start.get("knn", math.nan)
    if solved >= SOLVED and knn - before < KNN_GAIN:
        return (
            f"the pretext task is solved ({solved:.1%} of the queries) while kNN is {knn:.3f}, and "
            f"{before:.3f} before training: batch norm gives the positives away (split it and shuffle the "
            "keys), or the views are too easy"
        )
    return None


ELEMENTS = 2**22
"""Scores in memory at once: 16 MB."""

FAR = 1e30
"""Subtracted from scores outside a mask, so that they are never the best."""


@runtime_checkable
class PairsWithIds(Protocol):
    """Pairs that have the item ids of their queries and keys."""

    @property
    def query_ids(self) -> QueryIds:
        """Which item each query is."""
        ...

    @property
    def key_ids(self) -> KeyIds:
        """Which item each key is; -1: of no item."""
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
    r"""Metrics of the look-up of a step.

    It is computed in blocks of keys: nothing of size [queries, keys] is stored.

    Args:
        lookup: Detached, as `on_lookup` receives it.
        temperature: Of its loss, > 0.
        query_ids: Which item each query is; None: those of its pairs, if they have ids.
        key_ids: Which item each key is, likewise; -1: of no item.
        query_labels: Class of each query, -1 if unlabelled; None: no metrics of classes.
        key_labels: Class of each key, likewise.

    Returns:
        By name, without metrics that cannot be computed:

        - queries; candidates: mean number of positives and negatives per query.
        - pretext: share of the queries with both whose best positive scores above every negative; a tie
          is not solved. chance: its value for random scores, positives / candidates, mean.
        - positive_score, negative_score: means over all such pairs. hardest_negative: mean over queries.
        - gap: (positive_score - negative_score) / temperature, in logits.
        - false_negatives_id: share of the negatives that are the query's own item. own_copies: their mean
          number per query.
        - false_negatives_label: share of the negatives that have the class of the query, of those labelled.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If the number of ids or labels is not that of rows, or one of two is missing.

    Example:
        >>> from querykey.lookup.two_view_pairs import look_up_views
        >>> metrics = lookup_health(look_up_views(torch.eye(3), torch.eye(3)), temperature=0.5)
        >>> metrics["candidates"], metrics["pretext"], round(metrics["chance"], 3), metrics["gap"]
        (5.0, 1.0, 0.2, 2.0)

    Source:
        pretext is the (K + 1)-way accuracy of He et al. 2019, arXiv:1911.05722, appendix A.9.
    """
    check_temperature("temperature", temperature)
    if query_ids is None and key_ids is None and isinstance(lookup.pairs, PairsWithIds):
        query_ids, key_ids = lookup.pairs.query_ids, lookup.pairs.key_ids
    ids = _both("ids", lookup, query_ids, key_ids)
    labels = _both("labels", lookup, query_labels, key_labels)
    tally = _Tally(lookup)
    for block in lookup.blocks(max(1, ELEMENTS // max(1, len(lookup)))):
        tally.add(block, ids, labels)
    metrics = tally.figures()
    if ids is not None:
        metrics["false_negatives_id"] = tally.own_item / tally.negatives if tally.negatives else math.nan
        metrics["own_copies"] = tally.own_item / max(1, len(lookup))
    if labels is not None:
        metrics["false_negatives_label"] = tally.own_class / tally.labelled if tally.labelled else math.nan
    if "positive_score" in metrics:
        metrics["gap"] = (metrics["positive_score"] - metrics["negative_score"]) / temperature
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def item_labels(ids: Ids, labels: Numbers) -> Labels:
    """The class of each row, for `lookup_health`.

    Args:
        ids: Which item each row is; -1: of no item.
        labels: Class of each item, by its id; -1 if unlabelled.

    Returns:
        [rows]; -1 for rows of no item.

    Example:
        >>> item_labels(torch.tensor([2, -1, 0]), torch.tensor([7, 8, 9])).tolist()
        [9, -1, 7]
    """
    found: Tensor = labels.to(ids.device)[ids.clamp(min=0)].masked_fill(ids == IGNORE_ID, IGNORE_LABEL)
    return found


def dictionary_health(dictionary: Dictionary | MemoryBank, capacity: int) -> dict[str, float]:
    """How full a dictionary is and how old its rows are.

    Args:
        dictionary: A queue, a bank, a cross-batch memory, or rows that do not age.
        capacity: Rows it stores when full, at least 1.

    Returns:
        fill: share of the capacity that a step has written; random initial rows do not count. age_mean and
        age_max of those rows: writes since, one a step; 0 where there is none.

    Raises:
        RangeError: If capacity is below 1.

    Example:
        >>> from querykey.dictionaries.cross_batch import CrossBatchMemory
        >>> memory = CrossBatchMemory(capacity=4, dim=1)
        >>> for item in range(2):
        ...     memory.enqueue(torch.ones(1, 1), torch.tensor([item]))
        >>> dictionary_health(memory, 4)
        {'fill': 0.5, 'age_mean': 0.5, 'age_max': 1.0}
    """
    if capacity < 1:
        raise RangeError(f"capacity must be at least 1, got {capacity}")
    age = dictionary.age().float()
    if isinstance(dictionary, CrossBatchMemory | MemoryBank):
        age = age[dictionary.written[: len(dictionary)] > 0]
    return {
        "fill": len(age) / capacity,
        "age_mean": float(age.mean()) if len(age) else 0.0,
        "age_max": float(age.max()) if len(age) else 0.0,
    }


class _Tally:
    """Sums over the blocks of a look-up."""

    def __init__(self, lookup: Lookup) -> None:
        self.queries, device = len(lookup), lookup.queries.device
        lowest = torch.full((self.queries,), -math.inf, device=device)
        self.best, self.hardest = lowest, lowest.clone()
        self.positive_count = torch.zeros(self.queries, dtype=torch.float64, device=device)
        self.negative_count = self.positive_count.clone()
        self.positive_sum = self.negative_sum = 0.0
        self.own_item = self.own_class = self.labelled = 0

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
            of_queries, of_keys = ids[0][:, None], ids[1][None, keys]
            self.own_item += int(((of_queries == of_keys) & negative).count_nonzero())
        if labels is not None:
            of_queries, of_keys = labels[0][:, None], labels[1][None, keys]
            labelled = (of_queries != IGNORE_LABEL) & (of_keys != IGNORE_LABEL) & negative
            self.labelled += int(labelled.count_nonzero())
            self.own_class += int(((of_queries == of_keys) & labelled).count_nonzero())

    @property
    def negatives(self) -> int:
        return int(self.negative_count.sum())

    def figures(self) -> dict[str, float]:
        candidates = self.positive_count + self.negative_count
        has_both = (self.positive_count > 0) & (self.negative_count > 0)
        positives = int(self.positive_count.sum())
        solved = (self.best > self.hardest)[has_both].double()
        return {
            "queries": float(self.queries),
            "candidates": float(candidates.mean()),
            "pretext": float(solved.mean()),
            "chance": float((self.positive_count / candidates)[has_both].mean()),
            "positive_score": self.positive_sum / positives if positives else math.nan,
            "negative_score": self.negative_sum / self.negatives if self.negatives else math.nan,
            "hardest_negative": float(self.hardest[self.negative_count > 0].double().mean()),
        }


def _of_pairs(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, float]:
    """(best score, count) of the pairs of a mask for each query, and the sum of their scores.

    Computed with numbers instead of the mask: several times as fast on a CPU.
    """
    numbers = mask.view(torch.uint8).to(scores.dtype)
    total = float((scores * numbers).sum())
    count = numbers.sum(dim=1)
    best = numbers.sub_(1.0).mul_(FAR).add_(scores).amax(dim=1)
    return best.masked_fill(count == 0, -math.inf), count, total


def _both(
    name: str, lookup: Lookup, of_queries: Tensor | None, of_keys: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Both, if they are given and fit."""
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
