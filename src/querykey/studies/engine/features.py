"""The features of a study of adapters: some to fit on, others to ask for, the same in every process."""

import hashlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from querykey.errors import DataError
from querykey.evaluation.task import Task
from querykey.features.features import Features
from querykey.runs.data import DataAt, open_features
from querykey.runs.evaluate_adapter import task_of
from querykey.studies.engine.images import HELD_OUT, spread
from querykey.types import Labels

__all__ = ["StudyFeatures"]


@dataclass(frozen=True, kw_only=True)
class StudyFeatures:
    """Where the features of a study are, and which rows it takes.

    Args:
        train: Features with labels, or of documents with their queries. Documents are fitted on without
            either, and searched by the queries.
        test: Others with labels; None: a fifth of those, drawn without regard to their classes.
        most: Rows of each part, at the most: of a trial run. None: all.
    """

    train: DataAt
    test: DataAt | None = None
    most: int | None = None

    def describe(self) -> dict[str, Any]:
        """What they are: name, how they were named, how many, how wide, and a fingerprint of all of it."""
        opened = [open_features(at, verify=True) for at in (self.train, self.test) if at is not None]
        task = self.task()
        whole = " ".join(one.fingerprint for one in opened) + f" {self.most}"
        asked = task.test if task.queries is None else task.queries
        return {
            "name": Path(self.train.spec).name, "train": asdict(self.train),
            "test": None if self.test is None else asdict(self.test),
            "trained_on": len(task.test if task.train is None else task.train), "asked": len(asked),
            "width": task.test.shape[1], "fingerprint": hashlib.sha256(whole.encode()).hexdigest(),
        }  # fmt: skip

    def task(self) -> Task:
        """What is fitted on and asked for.

        Returns:
            The task.

        Raises:
            DataError: If there are neither labels nor queries.
        """
        return _read(self)


@lru_cache(maxsize=2)
def _read(given: StudyFeatures) -> Task:
    features = open_features(given.train).features
    if features.pairs is not None:
        return task_of(features, None, given.train)
    labels = _labels(features, given.train)
    if given.test is not None:
        asked = open_features(given.test).features
        _labels(asked, given.test)
        task = task_of(asked, features, given.test)
    else:
        if len(features) < 2 * HELD_OUT:
            raise DataError(
                f"{given.train.spec}: {len(features)} rows are too few for a study; "
                f"{2 * HELD_OUT} are the least"
            )
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(features)))
        test, train = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
        rows = features.vectors
        task = Task(test=rows[test], test_labels=labels[test], train=rows[train], train_labels=labels[train])
    return task if given.most is None else _some(task, given.most)


def _some(task: Task, most: int) -> Task:
    """A few rows of each part."""
    assert task.train is not None
    assert task.train_labels is not None
    assert task.test_labels is not None
    train, test = (torch.from_numpy(spread(len(rows), most)) for rows in (task.train, task.test))
    return Task(
        test=task.test[test], test_labels=task.test_labels[test],
        train=task.train[train], train_labels=task.train_labels[train],
    )  # fmt: skip


def _labels(features: Features, at: DataAt) -> Labels:
    if features.labels is None:
        raise DataError(
            f"{at.spec} has neither labels nor queries, so nothing can be scored; make it again with "
            "querykey embed --label-column COLUMN"
        )
    return features.labels
