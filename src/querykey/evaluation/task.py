"""What is evaluated: frozen features, what is known of them, and the rows a method makes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.errors import DataError, ShapeError
from querykey.evaluation.few_labels import count_classes
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.types import Ids, Rows

__all__ = ["CLASSIFIER", "Embedded", "Maker", "Protocol", "Task", "Transform", "embed_task"]

Transform = Callable[[Tensor], Tensor]
"""Frozen rows [rows, width] to rows [rows, dim]."""

CLASSIFIER = "logistic_regression"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The constants of an evaluation. They are written into every result: other ones, other numbers.

    Args:
        knn_k: Neighbours that vote.
        knn_temperature: Above 0, dimensionless.
        max_queries: With more queries than this, so many are drawn at random.
        most_work: Rows x width x classes up to which logistic regression is fitted; this much
            takes minutes.
        references: Methods that the others are compared with, pair by pair.
        seed: Of draws, random projection and bootstrap.
    """

    knn_k: int = 10
    knn_temperature: float = 0.1
    max_queries: int = 10_000
    most_work: float = 5e9
    references: tuple[str, ...] = ("frozen", "pca", CLASSIFIER)
    seed: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedded:
    """The rows that one method gives for a task.

    Args:
        test: Test items, or the documents that pairs point to.
        train: Training items, for kNN.
        queries: The query side of pairs.
    """

    test: Rows
    train: Float[Tensor, "train dim"] | None = None
    queries: Float[Tensor, "queries dim"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Frozen features and what is known of them.

    Args:
        test: Frozen features of the test items, or of the documents that pairs point to.
        test_labels: Class of each, -1 where unknown.
        test_ids: Which item each is; equal ids are one item, never looked up by its own copy.
        train: Frozen features of the training items: baselines are fitted on them.
        train_labels: Class of each, -1 where unknown.
        queries: Frozen features of the query side.
        pairs: [pairs, 3], query row, test row, grade of at least 1.

    Raises:
        ShapeError: If sizes don't fit.
        DataError: If pairs come without queries.
    """

    test: Rows
    test_labels: Int64[Tensor, " labels"] | None = None
    test_ids: Int64[Tensor, " ids"] | None = None
    train: Float[Tensor, "train dim"] | None = None
    train_labels: Int64[Tensor, " train_labels"] | None = None
    queries: Float[Tensor, "queries dim"] | None = None
    pairs: Int64[Tensor, "pairs 3"] | None = None

    def __post_init__(self) -> None:
        if (self.pairs is None) != (self.queries is None):
            raise DataError("pairs and queries come together: give both, or neither")
        for name, rows, values in (
            ("test_labels", self.test, self.test_labels),
            ("test_ids", self.test, self.test_ids),
            ("train_labels", self.train, self.train_labels),
        ):
            if values is not None and (rows is None or len(values) != len(rows)):
                count = "no" if rows is None else len(rows)
                raise ShapeError(f"{name} has {len(values)} entries for {count} rows; one each is needed")

    @property
    def kind(self) -> Literal["pairs", "labels", "neighbours"]:
        """What it measures: retrieval by "pairs" or "labels", or "neighbours" alone."""
        if self.pairs is not None:
            return "pairs"
        known = self.test_labels is not None and bool((self.test_labels != IGNORE_LABEL).any())
        return "labels" if known else "neighbours"

    @cached_property
    def ids(self) -> Ids:
        """Which item each test row is."""
        return torch.arange(len(self.test)) if self.test_ids is None else self.test_ids

    @property
    def repeats_classes(self) -> bool:
        """Whether two test items are of one class."""
        if self.test_labels is None:
            return False
        return count_classes(self.test_labels) < int((self.test_labels != IGNORE_LABEL).sum())

    @property
    def shares_classes(self) -> bool:
        """Whether there is a kNN to ask: some test item is of a class that the training items have."""
        if self.kind != "labels" or self.test_labels is None or self.train_labels is None:
            return False
        known = self.test_labels[self.test_labels != IGNORE_LABEL]
        return bool(torch.isin(known, self.train_labels).any())


Maker = Embedded | Callable[[], Embedded]
"""Rows, or a function that makes them when they are needed: then one method's are in memory at a time."""


def embed_task(task: Task, items: Transform, queries: Transform | None = None) -> Embedded:
    """Embed a task's frozen rows.

    Args:
        task: What is evaluated.
        items: From frozen rows to adapted ones.
        queries: The same for queries, where they differ.

    Returns:
        Test, train (where it has a part in the scores) and query rows.
    """
    side = items if queries is None else queries
    return Embedded(
        test=items(task.test),
        train=items(task.train) if task.train is not None and task.shares_classes else None,
        queries=None if task.queries is None else side(task.queries),
    )
