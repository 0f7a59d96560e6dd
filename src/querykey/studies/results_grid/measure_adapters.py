"""How a cell of the study of adapters is measured: features, fit, the numbers of its queries."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from querykey.adapter.estimator import Adapter
from querykey.adapter.settings import RECIPES, AdapterSettings
from querykey.data.labels import common_labels
from querykey.data.readers.open import read_source
from querykey.encoders.frozen.encoder import load_encoder
from querykey.errors import MissingPathError
from querykey.evaluation import baselines
from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.logistic_regression import logistic_regression
from querykey.evaluation.protocol import KNN, Examination
from querykey.evaluation.task import Protocol, Task, embed_task
from querykey.features.embed import embed as embed_source
from querykey.features.features import Features, read_features
from querykey.io.atomic import new_folder
from querykey.io.program import say
from querykey.io.records import Records, versions
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.studies.demo import MOST, TEST, TRAIN, documented_in, write_collection
from querykey.studies.engine.grid import Cell, compact, run_grid, write_plan
from querykey.studies.results_grid.adapters import (
    ADAPTER,
    CLASSIFIER,
    DOCSTRINGS,
    TASKS,
    DataSet,
    Method,
    StudyTask,
)

__all__ = ["RECORDS", "Work", "baseline", "cells_of", "features_of", "measure", "measure_tasks", "plan_of"]

RECORDS, STORES = "records.jsonl", "features"

LOGISTIC_STRENGTHS, LOGISTIC_FOLDS = (1.0, 10.0, 100.0), 5
"""The penalties of logistic regression that are tried, and by how many folds."""

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
        if part.path == DOCSTRINGS:
            continue
        if not (folder / part.path).exists():
            raise MissingPathError(
                f"{folder / part.path} is not there; the study {data.name} needs it: give the folder of the "
                "data with --data DIR, or leave the study out with --only"
            )
    encoder, found = load_encoder(data.model), {}
    for name, part in data.parts.items():
        path = _docstrings(name, stores) if part.path == DOCSTRINGS else folder / part.path
        source = read_source(path, label_column=part.label_column, split=part.split)
        out = stores / f"{data.name}-{name}"
        told(f"features of {data.name}, {name}: {len(source)} items")
        embed_source(source, encoder, out, notify=told)
        found[name] = str(out)
    return found


def _docstrings(name: str, stores: Path) -> Path:
    """The collection of docstrings of the demonstration's packages, written once."""
    folder = stores / f"{DOCSTRINGS}-{name}-data"
    if not folder.exists():
        packages = TRAIN if name == "train" else TEST
        with new_folder(folder) as tmp_path:
            write_collection(documented_in(packages, most=MOST[name]), tmp_path)
    return folder


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
    recipes = {kind: [recipe._asdict() for recipe in some] for kind, some in RECIPES.items()}
    common = {"dim": task.dim, "metrics": task.metrics, "protocol": asdict(_protocol(task)), "features": keys}
    common |= {"per_class": task.per_class, "pairs": task.pairs}
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
    task, fitted_on = _drawn(work.task, _loaded(tuple(sorted(work.stores.items()))), cell.seed)
    run = Examination(task, _protocol(work.task))
    fields: dict[str, Any] = {"versions": versions("scikit-learn")}
    if work.method.kind == CLASSIFIER:
        assert task.train is not None
        assert task.train_labels is not None
        model = logistic_regression(
            task.train, task.train_labels, strengths=LOGISTIC_STRENGTHS, folds=LOGISTIC_FOLDS
        )
        numbers = {KNN: run.correct(model.predict(task.test))}
        fields["fit"] = {"C": model.strength}
    elif work.method.kind == ADAPTER:
        adapter = Adapter(work.task.dim, **work.method.settings, random_state=cell.seed)
        with warnings.catch_warnings():
            # whatever a fit warns of is in its report, which the record keeps
            warnings.simplefilter("ignore", UserWarning)
            _fit(adapter, fitted_on)
        embedded = embed_task(
            task, lambda rows: _tensor(adapter.transform_documents(rows)),
            lambda rows: _tensor(adapter.transform(rows)),
        )  # fmt: skip
        numbers = run.per_query(cell.method, embedded)
        fields |= {"fit": dict(adapter.report_), "seconds": adapter.report_["seconds"]}
        fields["settings"] = adapter.settings_.as_dict()
    else:
        projector = baseline(work.method.name, fitted_on.rows, fitted_on.labels, work.task.dim)
        numbers = run.per_query(cell.method, embed_task(task, projector.transform))
        fields["fit"] = {"dim": projector.dim}
    return fields | {
        "values": {name: compact(numbers[name].tolist()) for name in work.task.metrics if name in numbers}
    }


def measure_tasks(
    tasks: Sequence[StudyTask], *, data: Path, folder: Path, seeds: int = 3, jobs: int = 1, threads: int = 1
) -> int:
    """Measure the cells of tasks that have no record yet.

    Args:
        tasks: Which; their place is that in the report.
        data: The folder of real data.
        folder: Of records and feature stores.
        seeds: For what is trained.
        jobs: Processes.
        threads: Of each.

    Returns:
        How many cells were measured now.
    """
    records, wanted = Records(folder / RECORDS), list[tuple[int, Cell]]()
    stores: dict[str, dict[str, str]] = {}
    for task in tasks:
        if task.data.name not in stores:
            stores[task.data.name] = features_of(task.data, data, folder / STORES, say)
        cells = cells_of(task, stores[task.data.name], seeds=seeds, threads=threads)
        place = TASKS.index(task) if task in TASKS else len(TASKS)
        write_plan(records, place, task.name, plan_of(task, cells))
        for method in task.methods:
            wanted += [(method.order, cell) for cell in cells[method.name]]
    wanted.sort(key=lambda pair: pair[0])
    return run_grid([cell for _, cell in wanted], records, measure, jobs=jobs, told=_tell)


def plan_of(task: StudyTask, cells: dict[str, list[Cell]]) -> dict[str, Any]:
    """What the report has to know of a task.

    Args:
        task: Which.
        cells: Method to its cells, as `cells_of` gives them.

    Returns:
        The fields of its plan in the records.
    """
    return {
        "title": task.title,
        "data": task.data.name,
        "model": task.data.model,
        "dim": task.dim,
        "metrics": task.metrics,
        "references": task.references,
        "knn": dict(zip(("k", "temperature"), task.knn, strict=True)),
        "methods": [
            {"name": method.name, "label": method.label, "kind": method.kind,
             "keys": [cell.key for cell in cells[method.name]]}
            for method in task.methods
        ],
        "questions": [vars(question) for question in task.questions],
    }  # fmt: skip


def _tell(done: int, count: int, cell: Cell, fields: dict[str, Any]) -> None:
    means = (
        f"{name} {sum(v for v in values if v is not None) / max(1, sum(v is not None for v in values)):.4f}"
        for name, values in fields["values"].items()
    )
    seconds = f", {fields['seconds']:.0f} s" if "seconds" in fields else ""
    say(f"[{done}/{count}] {cell.task}: {cell.method}, seed {cell.seed}: {', '.join(means)}{seconds}")


class _FittedOn(NamedTuple):
    """What a method is fitted on: rows, with classes, or with queries and their pairs."""

    rows: Tensor
    labels: Tensor | None = None
    queries: Tensor | None = None
    pairs: Tensor | None = None


def _drawn(study: StudyTask, loaded: "_Parts", seed: int) -> tuple[Task, _FittedOn]:
    """What is asked, and what is fitted on: all of the training part, or a draw of its labels or pairs."""
    task, train = loaded.task, loaded.train
    assert task.train is not None
    if study.per_class is not None:
        assert train.labels is not None
        chosen = choose_labelled(train.labels, per_class=study.per_class, seed=seed)
        labels = torch.full_like(train.labels, IGNORE_LABEL)
        labels[chosen] = train.labels[chosen]
        # the labelled rows alone can be found, and a classifier is fitted on them
        task = replace(task, train=train.rows[chosen], train_labels=train.labels[chosen])
        return task, train._replace(labels=labels)
    if study.pairs is None:
        return task, train._replace(queries=None, pairs=None)
    assert train.pairs is not None
    pairs = train.pairs
    if study.pairs:
        order = np.random.default_rng([seed, 13]).permutation(len(pairs))[: study.pairs]
        pairs = pairs[torch.from_numpy(order)]
    return task, train._replace(pairs=pairs)


def _fit(adapter: Adapter, fitted_on: _FittedOn) -> None:
    if fitted_on.pairs is None:
        adapter.fit(fitted_on.rows, fitted_on.labels)
    else:
        assert fitted_on.queries is not None
        adapter.fit_pairs(fitted_on.queries, fitted_on.rows, pairs=fitted_on.pairs[:, :2].numpy())


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


class _Parts(NamedTuple):
    """A data set: what is asked of its test part, and all that may be fitted on."""

    task: Task
    train: _FittedOn


@lru_cache(maxsize=4)
def _loaded(stores: tuple[tuple[str, str], ...]) -> _Parts:
    """The features of a data set: queries of documents, or train and test with labels otherwise."""
    parts = {name: read_features(path) for name, path in stores}
    train, test = parts["train"], parts["test"]
    rows = _rows(train)
    if test.queries is not None:
        task = Task(test=_rows(test), train=rows, queries=_rows(test.queries), pairs=test.pairs)
        queries = None if train.queries is None else _rows(train.queries)
        return _Parts(task, _FittedOn(rows, None, queries, train.pairs))
    numbered, _ = common_labels(_named(train), _named(test))
    labels, test_labels = (torch.from_numpy(values) for values in numbered)
    task = Task(test=_rows(test), test_labels=test_labels, train=rows, train_labels=labels)
    return _Parts(task, _FittedOn(rows, labels))


def _rows(features: Features) -> Tensor:
    return features.vectors.float().clone()


def _named(features: Features) -> tuple[np.ndarray[Any, np.dtype[np.int64]], tuple[str, ...]]:
    assert features.labels is not None
    names = features.label_names or tuple(str(c) for c in range(int(features.labels.max()) + 1))
    return features.labels.numpy(), names
