"""How a cell of a study of adapters is measured: fit, transform, search."""

import time
import warnings
from typing import Any

import torch
from torch import Tensor

from querykey.adapter.estimator import Adapter
from querykey.evaluation.protocol import Examination
from querykey.evaluation.task import Protocol, embed_task
from querykey.io.records import versions
from querykey.pretraining.batchnorm_leak import probe_leakage
from querykey.studies.engine.features import StudyFeatures
from querykey.studies.engine.grid import Cell, compact
from querykey.studies.engine.measure_encoders import measure_encoder
from querykey.studies.engine.work import Work
from querykey.studies.results_grid.measure_adapters import baseline

__all__ = [
    "LEAK",
    "SCORE",
    "measure",
    "measure_adapter",
]

SCORE = "retrieval"
"""R@1 of test rows with labels, NDCG@10 of queries among documents."""


def measure_adapter(cell: Cell) -> dict[str, Any]:
    """Fit what a cell says, and score it.

    Args:
        cell: With a `Work` whose data are features.

    Returns:
        Measure to [sum, asked], of the score one number a query, what the fit said of itself, seconds,
        versions.
    """
    work: Work = cell.work
    began = time.monotonic()
    torch.set_num_threads(work.threads)
    assert isinstance(work.data, StudyFeatures)
    task = work.data.task()
    examined = Examination(task, Protocol())
    fitted_on = task.test if task.train is None else task.train
    about: dict[str, Any] = {"run": {}}
    if work.arm.kind == "adapter":
        adapter = Adapter(**work.arm.settings, random_state=cell.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it is in the report, which the record keeps
            adapter.fit(fitted_on, task.train_labels)
        embedded = embed_task(task, lambda rows: _tensor(adapter.transform(rows)))
        about = {"settings": adapter.settings_.as_dict(), "run": {"end": _numbers(adapter.report_)}}
    else:
        name, dim = work.arm.settings["projection"], work.arm.settings.get("dim", 0)
        embedded = embed_task(task, baseline(name, fitted_on, task.train_labels, dim).transform)
    found = examined.per_query(cell.method, embedded)
    values = {name: _counted(numbers) for name, numbers in found.items()}
    score = "R@1" if task.queries is None else "NDCG@10"
    values[SCORE] = values[score]
    about["queries"] = {SCORE: compact(found[score].tolist())}
    seconds = time.monotonic() - began
    return {"values": values, **about, "seconds": seconds, "versions": versions("scikit-learn")}


def _counted(numbers: Tensor) -> list[float | int]:
    asked = ~numbers.isnan()
    return [round(float(numbers[asked].double().sum()), 4), int(asked.sum())]


def _numbers(report: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in report.items() if isinstance(value, int | float)}


def _tensor(rows: Any) -> Tensor:
    return torch.as_tensor(rows)


LEAK = "own key in noise"


def measure(cell: Cell) -> dict[str, Any]:
    """Measure a cell, whatever its arm is.

    Args:
        cell: With a `Work`.

    Returns:
        Its record but for the key.
    """
    match cell.work.arm.kind:
        case "adapter" | "baseline":
            return measure_adapter(cell)
        case "leak":
            return _measure_leak(cell)
        case _:
            return measure_encoder(cell)


def _measure_leak(cell: Cell) -> dict[str, Any]:
    """How often a query finds its key among noise, by batch statistics alone."""
    work, began = cell.work, time.monotonic()
    torch.set_num_threads(work.threads)
    found = probe_leakage(**work.arm.settings, seed=cell.seed)
    values = {LEAK: [round(found.accuracy * found.asked), found.asked]}
    seconds = time.monotonic() - began
    return {"values": values, "run": {"chance": found.chance}, "seconds": seconds, "versions": versions()}
