"""How a cell of the study of adapters is measured: features, fit, the numbers of its queries."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from querykey.adapter.estimator import Adapter
from querykey.adapter.settings import RECIPES, AdapterSettings
from querykey.data.features import Features, read_features
from querykey.data.labels import common_labels
from querykey.data.sources import read_source
from querykey.encoders.frozen import load_encoder
from querykey.errors import MissingPathError
from querykey.evaluation import baselines
from querykey.evaluation.examination import KNN, Examination
from querykey.evaluation.linear import logistic_regression
from querykey.evaluation.task import Protocol, Task, embed
from querykey.records import versions
from querykey.studies.adaptation import ADAPTER, CLASSIFIER, DataSet, Method, StudyTask
from querykey.studies.grid import Cell, compact
from querykey.training.embed import embed as embed_source

__all__ = ["Work", "baseline", "cells_of", "features_of", "measure"]

Stores = dict[str, str]
"""Part of a data set to the folder of its features."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """What a cell needs in order to be measured, wherever that is.

    Args:
        task: With its protocol.
        method: What makes the rows.
        stores: Where the features are.
        threads: Of torch, so that the bits are the same on any machine.
    """

    task: StudyTask
    method: Method
    stores: Stores
    threads: int


def features_of(data: DataSet, folder: Path, stores: Path, told: Callable[[str], None]) -> Stores:
    """Embed a data set by its frozen model, unless that is done.

    Args:
        data: Which.
        folder: Where real data are.
        stores: Where feature stores go.
        told: Called with what is worth knowing.

    Returns:
        The folder of each part's features.

    Raises:
        MissingPathError: If the data aren't there.
    """
    for part in data.parts.values():
        if not (folder / part.path).exists():
            raise MissingPathError(
                f"{folder / part.path} is not there; the study {data.name} needs it: give the folder of the "
                "data with --data DIR, or leave the study out with --only"
            )
    encoder, found = load_encoder(data.model), {}
    for name, part in data.parts.items():
        source = read_source(folder / part.path, label_column=part.label_column, split=part.split)
        out = stores / f"{data.name}-{name}"
        told(f"features of {data.name}, {name}: {len(source)} items")
        embed_source(source, encoder, out, notify=told)
        found[name] = str(out)
    return found


def cells_of(task: StudyTask, stores: Stores, *, seeds: int, threads: int = 1) -> dict[str, list[Cell]]:
    """The cells of a task.

    Args:
        task: Which.
        stores: Where the features of its data set are.
        seeds: At most, for each method.
        threads: Of torch.

    Returns:
        Method to its cells, one a seed.
    """
    keys = {}
    for name, path in stores.items():
        meta = read_features(path).meta
        keys[name] = meta.get("key") or meta["sha256"]
    train = _loaded(tuple(sorted(stores.items()))).train_labels
    recipes = [recipe._asdict() for recipe in RECIPES["unlabelled" if train is None else "labels"]]
    common = {"dim": task.dim, "metrics": task.metrics, "protocol": asdict(_protocol(task)), "features": keys}
    cells: dict[str, list[Cell]] = {}
    for method in task.methods:
        identity = {**common, "kind": method.kind}
        if method.kind == ADAPTER:
            settings = AdapterSettings(**{"dim": task.dim, **method.settings}).as_dict()
            settings.pop("seed")
            # what is left open is chosen by these, so they are part of what the cell is
            identity |= {"settings": settings, "recipes": recipes, "threads": threads}
        else:
            identity["name"] = method.name
        work = Work(task=task, method=method, stores=stores, threads=threads)
        cells[method.name] = [
            Cell(task=task.name, method=method.name, seed=seed, identity=identity, work=work)
            for seed in range(min(seeds, method.seeds))
        ]
    return cells


def measure(cell: Cell) -> dict[str, Any]:
    """Fit a cell's method and score it.

    Args:
        cell: With a `Work`.

    Returns:
        Metric to one number a query, seconds of the fit, what the fit said of itself, versions.
    """
    work: Work = cell.work
    torch.set_num_threads(work.threads)
    task = _loaded(tuple(sorted(work.stores.items())))
    run = Examination(task, _protocol(work.task))
    fields: dict[str, Any] = {"versions": versions("scikit-learn")}
    fitted_on = task.test if task.train is None else task.train
    if work.method.kind == CLASSIFIER:
        assert task.train_labels is not None
        model = logistic_regression(fitted_on, task.train_labels)
        numbers = {KNN: run.correct(model.predict(task.test))}
        fields["fit"] = {"strength": model.strength, "converged": model.converged}
    elif work.method.kind == ADAPTER:
        adapter = Adapter(work.task.dim, **work.method.settings, seed=cell.seed)
        with warnings.catch_warnings():
            # whatever a fit warns of is in its report, which the record keeps
            warnings.simplefilter("ignore", UserWarning)
            adapter.fit(fitted_on, task.train_labels)
        numbers = run.per_query(cell.method, embed(task, lambda rows: _tensor(adapter.transform(rows))))
        fields |= {"fit": adapter.report_, "seconds": adapter.report_["seconds"]}
        fields["settings"] = adapter.settings_.as_dict()
    else:
        projector = baseline(work.method.name, fitted_on, task.train_labels, work.task.dim)
        numbers = run.per_query(cell.method, embed(task, projector.transform))
        fields["fit"] = {"dim": projector.dim}
    return fields | {
        "values": {name: compact(numbers[name].tolist()) for name in work.task.metrics if name in numbers}
    }


def _tensor(rows: Any) -> Tensor:
    return torch.as_tensor(rows)


def baseline(name: str, train: Tensor, labels: Tensor | None, dim: int) -> baselines.Projector:
    """A baseline by its name.

    Args:
        name: "frozen", "truncated", "pca", "pca_uncentred", "whitened_pca", "random_projection" or "lda".
        train: What it is fitted on [items, width].
        labels: Class of each row, which "lda" needs.
        dim: Width of what it gives; of "frozen" that of the rows.

    Returns:
        The projection.

    Raises:
        KeyError: If there is none of that name.
    """
    match name:
        case "frozen":
            return baselines.Projector(name=name, dim=train.shape[1])
        case "truncated":
            return baselines.truncated(train.shape[1], dim)
        case "pca" | "pca_uncentred":
            return baselines.pca(train, dim, centred=name == "pca")
        case "whitened_pca":
            return baselines.whitened_pca(train, dim)
        case "random_projection":
            return baselines.random_projection(train.shape[1], dim)
        case "lda":
            assert labels is not None
            return baselines.lda(train, labels, dim)
        case _:
            raise KeyError(name)


def _protocol(task: StudyTask) -> Protocol:
    k, temperature = task.knn
    return Protocol(knn_k=k, knn_temperature=temperature)


@lru_cache(maxsize=4)
def _loaded(stores: tuple[tuple[str, str], ...]) -> Task:
    """The task of a data set's features: pairs for documents, train and test with labels otherwise."""
    parts = {name: read_features(path) for name, path in stores}
    if "documents" in parts:
        documents = parts["documents"]
        assert documents.queries is not None
        return Task(test=_rows(documents), queries=_rows(documents.queries), pairs=documents.pairs)
    train, test = parts["train"], parts["test"]
    numbered, _ = common_labels(_named(train), _named(test))
    labels, test_labels = (torch.from_numpy(values) for values in numbered)
    return Task(test=_rows(test), test_labels=test_labels, train=_rows(train), train_labels=labels)


def _rows(features: Features) -> Tensor:
    return features.vectors.float().clone()


def _named(features: Features) -> tuple[np.ndarray[Any, np.dtype[np.int64]], tuple[str, ...]]:
    assert features.labels is not None
    names = features.label_names or tuple(str(c) for c in range(int(features.labels.max()) + 1))
    return features.labels.numpy(), names
