"""The data of a study, training and test part, the same in every process."""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.items import Source
from querykey.data.pixels.pixels import read_pixels
from querykey.errors import DataError, SourceError
from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.task import Task
from querykey.features.features import Features
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.runs.data import DataAt, open_features
from querykey.runs.evaluate_adapter import task_of
from querykey.runs.evaluate_encoder import label_pixels
from querykey.runs.fine_tune import Labelled
from querykey.types import Labels

__all__ = ["SIDE", "TEST_FRACTION", "FitRows", "StudyFeatures", "StudyImages", "evenly_spaced"]

SIDE = 64
"""Images are stored at no more than twice this side."""
TEST_FRACTION = 5
"""One item of so many is a test item, where no test data are named."""
PAIR_DRAW = 13
"""Stream of the random generator that draws pairs."""


@dataclass(frozen=True, kw_only=True)
class StudyImages:
    """Labelled images.

    Args:
        train: Training images. Labels are used for scoring; only the method `xbm` learns from them.
        test: Test images; None: a random fifth of `train`, whatever its classes.
        max_rows: Images of each part, at most, for a trial run; None: all.
    """

    train: DataAt
    test: DataAt | None = None
    max_rows: int | None = None

    @classmethod
    def of_splits(cls, spec: str, train: str, test: str) -> "StudyImages":
        """Two splits of one source.

        Args:
            spec: The source.
            train: Training split.
            test: Test split.
        """
        return cls(train=DataAt(spec, split=train), test=DataAt(spec, split=test))

    def training(self) -> Source:
        """The training images."""
        return _open_images(self)[0]

    def describe(self) -> dict[str, Any]:
        """Name, source, number, channels and side of the images, and a fingerprint of all bytes.

        Raises:
            DataError: If one of the parts has no labels.
        """
        train, test = _open_images(self)
        for source in (train, test):
            if source.labels is None:
                raise DataError(
                    f"{source.name} has no labels, so nothing can be scored; name them with --label-column"
                )
        first = read_pixels(train.select(np.zeros(1, np.int64)), size=SIDE, workers=0)
        both = f"{train.fingerprint} {test.fingerprint}"
        return {
            "name": Path(train.name).name, "train": asdict(self.train),
            "test": None if self.test is None else asdict(self.test),
            "trained_on": len(train), "asked": len(test), "channels": first.channels, "side": first.side,
            "fingerprint": hashlib.sha256(both.encode()).hexdigest(),
        }  # fmt: skip

    def labelled(self, *, size: int) -> tuple[Labelled, Labelled]:
        """Both parts, decoded, with common class numbers.

        Args:
            size: Side of the encoder's input, in pixels.

        Returns:
            (training part, test part).

        Raises:
            DataError: If one of them has no labels.
        """
        return label_pixels(*_open_images(self), size=size, notify=lambda _: None)


class FitRows(NamedTuple):
    """What an adapter or a baseline is fitted on.

    Args:
        rows: Features [rows, width].
        labels: Class of each row, -1 where it has none; None: without classes.
        queries: Features of queries [queries, width]; None: without queries.
        pairs: [pairs, 3], query row, row, grade; None: without pairs.
    """

    rows: Tensor
    labels: Labels | None = None
    queries: Tensor | None = None
    pairs: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class StudyFeatures:
    """Features of a frozen model.

    Args:
        train: Features with labels, or of documents with their queries.
        test: Test features of the same kind; None: of labelled features a random fifth of `train`, whatever
            its classes; of documents `train` itself, searched by its queries.
        max_rows: Labelled rows of each part, at most, for a trial run; None: all.
    """

    train: DataAt
    test: DataAt | None = None
    max_rows: int | None = None

    def describe(self) -> dict[str, Any]:
        """Name, source, number and width of the features, their model, and a fingerprint of all bytes."""
        opened = [open_features(at, verify=True) for at in (self.train, self.test) if at is not None]
        task = self.task()
        every = " ".join(one.fingerprint for one in opened) + f" {self.max_rows}"
        queries = task.test if task.queries is None else task.queries
        model = opened[0].features.meta.get("model") or {}
        return {
            "name": Path(self.train.spec).name, "train": asdict(self.train),
            "test": None if self.test is None else asdict(self.test),
            "trained_on": len(_open_features(self)[1].rows), "asked": len(queries),
            "width": task.test.shape[1], "model": model.get("spec"),
            "fingerprint": hashlib.sha256(every.encode()).hexdigest(),
        }  # fmt: skip

    def keys(self) -> dict[str, str]:
        """Part to the fingerprint of its features."""
        parts = {"train": self.train, "test": self.test or self.train}
        return {name: open_features(at).fingerprint for name, at in parts.items()}

    def task(self) -> Task:
        """The evaluation on all training data.

        Raises:
            DataError: If there are neither labels nor queries.
        """
        return _open_features(self)[0]

    def draw(self, *, seed: int, labels_a_class: int | None, pairs: int | None) -> tuple[Task, FitRows]:
        """The evaluation, and what is fitted on: all training data, or a draw of its labels or pairs.

        Args:
            seed: Of the draw.
            labels_a_class: Labelled rows per class. The other rows are fitted on without a label, and kNN
                votes among the labelled rows only; None: all labels.
            pairs: Number of pairs; 0: all; None: without queries and pairs.

        Returns:
            (evaluation, training data).
        """
        task, train = _open_features(self)
        if labels_a_class is not None:
            assert train.labels is not None
            chosen = choose_labelled(train.labels, per_class=labels_a_class, seed=seed)
            labels = torch.full_like(train.labels, IGNORE_LABEL)
            labels[chosen] = train.labels[chosen]
            few = replace(task, train=train.rows[chosen], train_labels=train.labels[chosen])
            return few, train._replace(labels=labels)
        if pairs is None:
            return task, train._replace(queries=None, pairs=None)
        assert train.pairs is not None
        if pairs:
            order = np.random.default_rng([seed, PAIR_DRAW]).permutation(len(train.pairs))[:pairs]
            train = train._replace(pairs=train.pairs[torch.from_numpy(order)])
        return task, train


def evenly_spaced(count: int, max_rows: int) -> NDArray[np.int64]:
    """Evenly spaced rows of many: rows are often sorted by class.

    Args:
        count: Number of rows.
        max_rows: Rows wanted, at most.

    Returns:
        Row numbers, ascending.

    Example:
        >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    wanted = min(count, max_rows)
    return np.arange(wanted, dtype=np.int64) * count // max(1, wanted)


@lru_cache(maxsize=2)
def _open_images(images: StudyImages) -> tuple[Source, Source]:
    """(training part, test part). Cached: the fingerprint of all bytes is computed once per process."""
    train = _read_images(images.train)
    if images.test is not None:
        test = _read_images(images.test)
    else:
        order = _split_order(len(train), train.name, "images")
        count = len(train) // TEST_FRACTION
        train, test = train.select(order[count:]), train.select(order[:count])
    if images.max_rows is not None:
        train, test = (one.select(evenly_spaced(len(one), images.max_rows)) for one in (train, test))
    return train, test


def _split_order(count: int, name: str, items: str) -> NDArray[np.int64]:
    """A fixed random order; the first fifth of it is the test part."""
    if count < 2 * TEST_FRACTION:
        raise DataError(f"{name}: {count} {items} are too few for a study; {2 * TEST_FRACTION} are the least")
    return np.random.default_rng(0).permutation(count)


def _read_images(at: DataAt) -> Source:
    source = at.source()
    if source.kind != "image":
        raise SourceError(f"{at.spec} holds {source.kind}s; this study pretrains encoders and needs images")
    return source


@lru_cache(maxsize=2)
def _open_features(given: StudyFeatures) -> tuple[Task, FitRows]:
    """(evaluation, all training data)."""
    features = open_features(given.train).features
    test = None if given.test is None else open_features(given.test).features
    if features.pairs is not None:
        if test is not None and test.pairs is None:
            assert given.test is not None
            raise DataError(
                f"{given.test.spec} has no queries, and {given.train.spec} has; give two of one kind"
            )
        task = task_of(features if test is None else test, None, given.test or given.train)
        queries = None if features.queries is None else features.queries.vectors
        return task, FitRows(features.vectors, None, queries, features.pairs)
    labels = _labels(features, given.train)
    if given.test is not None and test is not None:
        _labels(test, given.test)
        task = task_of(test, features, given.test)
    else:
        order = torch.from_numpy(_split_order(len(features), given.train.spec, "rows"))
        count, rows = len(order) // TEST_FRACTION, features.vectors
        tested, fitted = order[:count], order[count:]
        task = Task(
            test=rows[tested], test_labels=labels[tested], train=rows[fitted], train_labels=labels[fitted]
        )
    if given.max_rows is not None:
        task = _shortened(task, given.max_rows)
    assert task.train is not None
    return task, FitRows(task.train, task.train_labels)


def _shortened(task: Task, max_rows: int) -> Task:
    """A few rows of each part."""
    assert task.train is not None
    assert task.train_labels is not None
    assert task.test_labels is not None
    train, test = (torch.from_numpy(evenly_spaced(len(rows), max_rows)) for rows in (task.train, task.test))
    return Task(
        test=task.test[test],
        test_labels=task.test_labels[test],
        train=task.train[train],
        train_labels=task.train_labels[train],
    )


def _labels(features: Features, at: DataAt) -> Labels:
    if features.labels is None:
        raise DataError(
            f"{at.spec} has neither labels nor queries, so nothing can be scored; make it again with "
            "querykey embed --label-column COLUMN"
        )
    return features.labels
