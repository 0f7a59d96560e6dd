"""Labelled rows: few of them chosen by class, and a split into training and held-out rows."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.errors import DataError, RangeError, ShapeError
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.unit_length import unit_length
from querykey.types import Labels, Numbers, Rows

__all__ = ["choose_labelled", "count_classes", "labelled_unit_rows", "split_by_class"]

_CHOICE, _HELD_OUT = 11, 12
"""Streams of the random generator, used together with the seed."""


def count_classes(labels: Labels) -> int:
    """Number of classes among labels; -1 is not counted."""
    return len(set(labels.tolist()) - {IGNORE_LABEL})


def labelled_unit_rows(
    train: Rows, labels: Int64[Tensor, " labels"]
) -> tuple[Float[Tensor, "labelled dim"], Int64[Tensor, " labelled"]]:
    """The rows that have a label, float32 and of length 1, and their labels.

    Raises:
        ShapeError: If labels and rows differ in number.
    """
    if len(train) != len(labels):
        raise ShapeError(f"there are {len(train)} rows and {len(labels)} labels; one each is needed")
    is_labelled = labels != IGNORE_LABEL
    return unit_length(train[is_labelled]).float(), labels[is_labelled]


def choose_labelled(
    labels: Labels, *, fraction: float | None = None, per_class: int | None = None, seed: int
) -> Numbers:
    """Choose a few labelled rows of each class, the same for every method at one seed.

    The rows of each class are ordered by the seed and the labels alone, and the first are taken: a larger
    choice at the same seed contains the smaller one.

    Args:
        labels: Class of each row; -1 rows are never chosen.
        fraction: Fraction of each class, above 0 to 1, rounded to the nearest whole number of rows
            (halves upwards) and at least one row. Either this or `per_class`.
        per_class: Rows of each class, at least 1.
        seed: Same seed and labels, same rows.

    Returns:
        Row numbers [chosen], ascending.

    Raises:
        RangeError: If not exactly one of fraction and per_class is given, or it is out of its range.
        DataError: If no row is labelled, or a class has fewer than `per_class` rows.

    Example:
        >>> labels = torch.tensor([5, 5, 5, 5, -1, 9, 9])
        >>> labels[choose_labelled(labels, fraction=0.5, seed=0)].tolist()
        [5, 5, 9]

    Source:
        Chen et al. 2020, arXiv:2002.05709, sec. 6: 1% and 10% of the labels, in a class-balanced way.
    """
    if (fraction is None) == (per_class is None):
        raise RangeError(f"give either fraction or per_class, got {fraction} and {per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise RangeError(f"fraction must be above 0 and at most 1, got {fraction}")
    if per_class is not None and per_class < 1:
        raise RangeError(f"per_class must be at least 1, got {per_class}")
    chosen = []
    for label, rows in _in_order(labels, seed, _CHOICE):
        if per_class is not None and per_class > len(rows):
            raise DataError(
                f"class {label} has {len(rows)} labelled rows, {per_class} are needed; "
                "lower per_class, or give a fraction"
            )
        wanted = per_class if fraction is None else max(1, math.floor(fraction * len(rows) + 0.5))
        chosen.append(rows[:wanted])
    return torch.cat(chosen).sort().values


def split_by_class(labels: Labels, *, fraction: float, seed: int) -> tuple[Numbers, Int64[Tensor, " held"]]:
    """Split the labelled rows, class by class, into training and held-out rows.

    Args:
        labels: Class of each row; -1 rows are in neither part.
        fraction: Held-out fraction of each class, above 0 and below 1, rounded down; a class of two rows
            or more holds out at least one, a class of one row none.
        seed: Same seed and labels, same parts.

    Returns:
        (training row numbers, held-out row numbers), both ascending. The second is empty where no
        class has two rows.

    Raises:
        RangeError: If fraction is not between 0 and 1.
        DataError: If no row is labelled.

    Example:
        >>> train, held_out = split_by_class(torch.tensor([0, 0, 0, 1, -1]), fraction=0.3, seed=0)
        >>> len(train), len(held_out)
        (3, 1)
    """
    if not 0 < fraction < 1:
        raise RangeError(f"fraction must be between 0 and 1, got {fraction}")
    train, held_out = [], []
    for _, rows in _in_order(labels, seed, _HELD_OUT):
        count = min(len(rows) - 1, max(1, int(fraction * len(rows))))
        held_out.append(rows[:count])
        train.append(rows[count:])
    return torch.cat(train).sort().values, torch.cat(held_out).sort().values


def _in_order(labels: Tensor, seed: int, purpose: int) -> list[tuple[int, Tensor]]:
    """The rows of each class, in an order keyed by seed and purpose."""
    order = torch.from_numpy(np.random.default_rng([seed, purpose]).permutation(len(labels)))
    classes = torch.unique(labels[labels != IGNORE_LABEL])
    if not len(classes):
        raise DataError(f"none of the {len(labels)} rows is labelled; give labels other than -1")
    shuffled = labels[order]
    return [(int(label), order[shuffled == label]) for label in classes]
