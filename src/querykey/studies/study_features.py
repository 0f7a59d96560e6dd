"""The features of a study of adapters: some to fit on, others to ask for, the same in every process."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from querykey.data.labels import common_labels
from querykey.errors import DataError
from querykey.evaluation.task import Task
from querykey.run_data import DataAt, open_features
from querykey.studies.study_images import HELD_OUT, spread

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
            "name": Path(self.train.spec).name, "train": self.train.as_dict(),
            "test": None if self.test is None else self.test.as_dict(),
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
    if features.queries is not None and features.pairs is not None:
        return Task(
            test=_rows(features.vectors), queries=_rows(features.queries.vectors), pairs=features.pairs
        )
    if features.labels is None:
        raise DataError(
            f"{given.train.spec} has neither labels nor queries, so nothing can be scored; make it again "
            "with querykey embed --label-column COLUMN"
        )
    train, labels = _rows(features.vectors), features.labels
    if given.test is not None:
        asked = open_features(given.test).features
        if asked.labels is None:
            raise DataError(
                f"{given.test.spec} has no labels; make it again with querykey embed --label-column"
            )
        numbered, _ = common_labels(
            (labels.numpy(), features.label_names), (asked.labels.numpy(), asked.label_names)
        )
        labels, test_labels = (torch.from_numpy(one) for one in numbered)
        test = _rows(asked.vectors)
    else:
        if len(train) < 2 * HELD_OUT:
            raise DataError(
                f"{given.train.spec}: {len(train)} rows are too few for a study; {2 * HELD_OUT} are the least"
            )
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
        count = len(train) // HELD_OUT
        test, test_labels = train[order[:count]], labels[order[:count]]
        train, labels = train[order[count:]], labels[order[count:]]
    if given.most is not None:
        rows, asked_rows = (torch.from_numpy(spread(len(one), given.most)) for one in (train, test))
        train, labels, test, test_labels = (
            train[rows],
            labels[rows],
            test[asked_rows],
            test_labels[asked_rows],
        )
    return Task(test=test, test_labels=test_labels, train=train, train_labels=labels)


def _rows(vectors: Tensor) -> Tensor:
    return vectors.float().clone()
