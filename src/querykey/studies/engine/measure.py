"""How a cell is measured: adapters and baselines on features, batch-norm leaks, encoders."""

import time
from typing import Any

import torch
from torch import Tensor

from querykey.evaluation.logistic_regression import logistic_regression
from querykey.evaluation.protocol import KNN, Examination
from querykey.evaluation.task import Protocol, embed_task
from querykey.io.records import versions
from querykey.pretraining.batchnorm_leak import probe_leakage
from querykey.runs.evaluate_adapter import rows_of
from querykey.studies.engine.baselines import baseline
from querykey.studies.engine.data import StudyFeatures
from querykey.studies.engine.grid import Cell, Work, compact
from querykey.studies.engine.measure_encoders import measure_encoder
from querykey.studies.engine.measure_sizes import fitted, measure_points
from querykey.studies.engine.study import LEAK, SCORE

__all__ = ["measure_cell", "measure_features", "protocol_of"]

LOGISTIC_STRENGTHS, LOGISTIC_FOLDS = (1.0, 10.0, 100.0), 5
"""Candidates for the C of logistic regression, and folds of the cross-validation that chooses it."""


def measure_cell(cell: Cell) -> dict[str, Any]:
    """Measure a cell of any kind.

    Args:
        cell: With a `Work`.

    Returns:
        Fields of its record: values (measure to [sum, count]), run (metrics of the training), seconds,
        versions, and per kind: settings, queries (measure to one number per query).
    """
    work: Work = cell.work
    torch.set_num_threads(work.threads)
    start = time.monotonic()
    match work.arm.kind:
        case "adapter" | "baseline" | "classifier":
            fields = measure_features(work, cell.seed)
        case "leak":
            fields = _measure_leak(work, cell.seed)
        case _:
            fields = measure_encoder(work, cell.seed)
    installed = versions("scikit-learn") if isinstance(work.data, StudyFeatures) else versions()
    return fields | {"seconds": time.monotonic() - start, "versions": installed}


def measure_features(work: Work, seed: int) -> dict[str, Any]:
    """Fit an adapter, a baseline or a classifier on features, and score it.

    Args:
        work: Its data are features.
        seed: Of the fit, and of the draw of labels or pairs.

    Returns:
        values, queries, run and settings, as `measure_cell` describes them.
    """
    assert isinstance(work.data, StudyFeatures)
    arm = work.arm
    task, train = work.data.draw(seed=seed, labels_a_class=arm.labels_a_class, pairs=arm.pairs)
    examination = Examination(task, protocol_of(work.knn))
    fields: dict[str, Any] = {"run": {}}
    numbers: dict[str, Tensor]
    if "method" in arm.settings:
        numbers, end = measure_points(examination, train, arm.settings, list(work.measures or ()), seed)
        fields["run"] = {"end": end}
    elif arm.kind == "classifier":
        assert task.train is not None
        assert task.train_labels is not None
        model = logistic_regression(
            task.train, task.train_labels, strengths=LOGISTIC_STRENGTHS, folds=LOGISTIC_FOLDS
        )
        numbers = {KNN: examination.correct(model.predict(task.test))}
        fields["run"] = {"end": {"C": model.strength}}
    elif arm.kind == "adapter":
        adapter = fitted(train, arm.settings, seed)
        numbers = examination.per_query(arm.name, rows_of(adapter, task))
        end = {name: float(v) for name, v in adapter.report_.items() if isinstance(v, int | float)}
        fields = {"settings": adapter.settings_.as_dict(), "run": {"end": end}}
    else:
        projector = baseline(arm.settings["projection"], train, arm.settings.get("dim", 0))
        numbers = examination.per_query(arm.name, embed_task(task, projector.transform))
    if arm.kind != "classifier" and "method" not in arm.settings:
        numbers[SCORE] = numbers["R@1" if task.queries is None else "NDCG@10"]
    wanted = numbers if work.measures is None else {m: numbers[m] for m in work.measures if m in numbers}
    queries = {name: compact(column.tolist()) for name, column in wanted.items()}
    values = {name: _sum_and_count(column) for name, column in numbers.items()}
    return {"values": values, **fields, "queries": queries}


def protocol_of(knn: tuple[int, float]) -> Protocol:
    """The constants of an evaluation.

    Args:
        knn: k and temperature.

    Returns:
        The protocol.
    """
    return Protocol(knn_k=knn[0], knn_temperature=knn[1])


def _sum_and_count(numbers: Tensor) -> list[float | int]:
    counted = ~numbers.isnan()
    return [round(float(numbers[counted].double().sum()), 4), int(counted.sum())]


def _measure_leak(work: Work, seed: int) -> dict[str, Any]:
    found = probe_leakage(**work.arm.settings, seed=seed)
    values = {LEAK: [round(found.accuracy * found.queries), found.queries]}
    return {"values": values, "run": {"chance": found.chance}}
