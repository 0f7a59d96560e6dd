"""The items of each training step: a function of seed and step, without state to save."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch

from querykey.errors import DataError, RangeError
from querykey.types import Ids, Labels

__all__ = ["Batches", "ClassBatches", "UniformBatches"]


@runtime_checkable
class Batches(Protocol):
    """The order of the items."""

    def __call__(self, step: int) -> Ids:
        """The items of a step; the same on any machine."""
        ...


class UniformBatches:
    """Every item at most once an epoch, in a new random order; an incomplete last batch is dropped.

    Args:
        items: Number of items.
        batch_size: Items per step, from 1 to items.
        seed: Of the order.

    Raises:
        RangeError: If batch_size is not from 1 to items.

    Example:
        >>> batches = UniformBatches(10, batch_size=5, seed=0)
        >>> sorted(batches(0).tolist() + batches(1).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, items: int, *, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= items:
            raise RangeError(f"batch_size must be from 1 to the {items} items, got {batch_size}")
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> Ids:
        """The items of a step [batch_size]."""
        epoch, place = divmod(step, self.items // self.batch_size)
        if epoch != self._epoch:
            self._epoch, self._order = (
                epoch,
                np.random.default_rng([self.seed, epoch]).permutation(self.items),
            )
        start = place * self.batch_size
        return torch.from_numpy(self._order[start : start + self.batch_size].astype(np.int64))


class ClassBatches:
    """P classes and K items of each, drawn at each step, so that every query has a positive in its batch.

    Args:
        labels: Class of each item; items labelled -1 and classes of one item are not drawn.
        classes: P, classes per step, at most those that exist.
        items: K, items per class, at least 2; of a smaller class all items are used.
        seed: Of the draw.

    Raises:
        DataError: If no class has two items.
        RangeError: If classes or items are too few to make a pair.
    """

    def __init__(self, labels: Labels, *, classes: int, items: int, seed: int) -> None:
        if classes < 1 or items < 2:
            raise RangeError(f"a batch needs at least 1 class of 2 items, got {classes} of {items}")
        order = torch.argsort(labels, stable=True).numpy()
        found, starts = np.unique(labels.numpy()[order], return_index=True)
        groups = np.split(order, starts[1:])
        self._groups = [g for label, g in zip(found, groups, strict=True) if label >= 0 and len(g) >= 2]
        if not self._groups:
            raise DataError("no class has two items, so there is no positive pair to learn from")
        self.classes, self.items, self.seed = min(classes, len(self._groups)), items, seed

    def __call__(self, step: int) -> Ids:
        """The items of a step [at most classes x items], class by class."""
        draw = np.random.default_rng([self.seed, step])
        chosen = draw.permutation(len(self._groups))[: self.classes]
        rows = [draw.permutation(self._groups[c])[: self.items] for c in chosen]
        return torch.from_numpy(np.concatenate(rows).astype(np.int64))
