"""A plain sentence for each thing about a dictionary that is off."""

import math
from collections.abc import Mapping

__all__ = ["words_of"]

DRIFT_SHARE = 0.25
"""Of the mean squared distance between a query and its negatives. A stored row that has moved by more is a
quarter of the way to another item's; with negatives at a right angle (distance 2) its cosine to what it
would be today is 0.75."""

COPIES = 0.1
"""Old keys of the own item among a query's negatives: at this, one query in ten is pulled to its item and
pushed from it at once. A share hides it: an item seen once an epoch has a share of 1 / items in any queue."""

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


def words_of(
    seen: Mapping[str, float],
    *,
    drift: Mapping[int, float] | None = None,
    half_life: float | None = None,
    start: Mapping[str, float] | None = None,
    is_over: bool = False,
) -> dict[str, str]:
    """A sentence for each thing that is off, with its number and what to do.

    What is off: rows that have drifted by more than `DRIFT_SHARE` of the distance between items; keys older
    than the half-life of their encoder, made by one of which less than half is left; a dictionary
    that is not full when the run is over; `COPIES` of the own item a query, or `OWN_ITEM_SHARE` of
    the negatives; `OWN_CLASS_SHARE`; a gap below `LEAST_GAP`; a pretext task that is `SOLVED` without
    `KNN_GAIN`, or no more often than chance. Each number says at its place why it is that.

    Args:
        seen: What `lookup_health`, `held_health` and the run's `monitor` gave; what is missing is not judged.
        drift: What `drift_of` gave: by age in steps.
        half_life: Of the momentum encoder in steps; None where there is none.
        start: What `monitor` gave before the first step, for its kNN.
        is_over: Whether this is the end of the run.

    Returns:
        By the name of what is off, sentences without a full stop; none where all is well.

    Example:
        >>> words_of({"gap": 3.0, "age_max": 200.0}, half_life=69.0)
        {'age': 'the oldest keys are 200 steps old and the half-life of their encoder is 69: ...'}
    """
    words = {
        "drift": _of_drift(seen, drift or {}),
        "age": _of_age(seen, half_life),
        "fill": _of_fill(seen) if is_over else None,
        "own item": _of_own_item(seen),
        "own class": _of_own_class(seen),
        "gap": _of_gap(seen),
        "pretext": _of_pretext(seen, start or {}),
    }
    return {name: word for name, word in words.items() if word is not None}


def _of_drift(seen: Mapping[str, float], drift: Mapping[int, float]) -> str | None:
    apart = 2 - 2 * seen.get("negative_score", 0.0)
    for age in sorted(drift):
        if drift[age] > DRIFT_SHARE * apart:
            return (
                f"rows stored {age:,} steps ago have drifted by {drift[age]:.2f}, and different items are "
                f"{apart:.2f} apart: lower the learning rate or the capacity, or raise the momentum"
            )
    return None


def _of_age(seen: Mapping[str, float], half_life: float | None) -> str | None:
    oldest = seen.get("age_max", 0.0)
    if half_life is None or not oldest > half_life:
        return None
    return (
        f"the oldest keys are {oldest:,.0f} steps old and the half-life of their encoder is "
        f"{half_life:,.0f}: lower the capacity, or raise the momentum to {2 ** (-1 / oldest):.4f}"
    )


def _of_fill(seen: Mapping[str, float]) -> str | None:
    if not seen.get("fill", 1.0) < 1:
        return None
    return (
        f"the dictionary was only {seen['fill']:.0%} full when the run ended: lower the capacity, or train "
        "longer"
    )


def _of_own_item(seen: Mapping[str, float]) -> str | None:
    share, copies = seen.get("false_negatives_id", 0.0), seen.get("own_copies", 0.0)
    if not (share > OWN_ITEM_SHARE or copies > COPIES):
        return None
    return (
        f"a query has {copies:.2f} old keys of its own item among its negatives ({share:.2%} of them): "
        "mask them (same_id), or lower the capacity well below the number of items"
    )


def _of_own_class(seen: Mapping[str, float]) -> str | None:
    share = seen.get("false_negatives_label", 0.0)
    if not share > OWN_CLASS_SHARE:
        return None
    return (
        f"{share:.0%} of the negatives are of the query's own class: take a loss that allows for it "
        f"(debiased or hard_negative with tau_plus {share:.2f}), or a higher temperature"
    )


def _of_gap(seen: Mapping[str, float]) -> str | None:
    gap = seen.get("gap", math.inf)
    if not gap < LEAST_GAP:
        return None
    return (
        f"positives score {gap:.2f} logits above negatives on the mean, next to nothing: lower the "
        "temperature; if that does not help, the learning rate is too high or too low"
    )


def _of_pretext(seen: Mapping[str, float], start: Mapping[str, float]) -> str | None:
    if "pretext" not in seen or "chance" not in seen:
        return None
    solved, chance, queries = seen["pretext"], seen["chance"], max(1.0, seen.get("queries", 1.0))
    by_chance = chance + 2 * math.sqrt(chance * (1 - chance) / queries) + 1 / queries
    if solved <= by_chance < 1:
        return (
            f"the pretext task is at chance: {solved:.2%} of the queries find their key, {chance:.2%} would "
            "by luck: take milder views, a higher learning rate, or a lower momentum of the key encoder"
        )
    knn, before = seen.get("knn", math.nan), start.get("knn", math.nan)
    if solved >= SOLVED and knn - before < KNN_GAIN:
        return (
            f"the pretext task is solved ({solved:.1%} of the queries) while kNN is {knn:.3f}, and "
            f"{before:.3f} before training: batch norm gives the positives away (split it and shuffle the "
            "keys), or the views are too easy"
        )
    return None
