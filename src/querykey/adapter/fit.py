"""Fit an adapter: prepare the data, resolve the training presets, and search over candidates.

The estimator and the command line both call `fit_adapter`.
"""

import time
import warnings
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.adapter.relevance import unit_rows
from querykey.adapter.search import Begin, Search
from querykey.adapter.settings import (
    DRAWN,
    LARGEST_WHOLE,
    PRESETS,
    AdapterSettings,
    Task,
    TrainingPreset,
    resolve,
)
from querykey.adapter.split import TrainingPairs, check_labels
from querykey.adapter.tasks import LabelTask, PairTask, RowTask, TaskData
from querykey.adapter.training import Fitted, Record
from querykey.adapter.validation import ValidationQueries
from querykey.adapter.verdict import Report
from querykey.distributed.process_group import current_process_group
from querykey.errors import DataError
from querykey.io.measured import is_clearly_faster
from querykey.lookup.fast_dtype import remembered_dtype
from querykey.types import FrozenRows, Labels

__all__ = ["Begin", "Fitted", "Record", "Report", "fit_adapter", "ignore_line", "prepared_task"]

STEP_ROWS = 1024
"""Rows of the product that is timed, about those of a step."""
BLOCK, ROUNDING = 8192, 1e-6
"""Rows that are read at once to see whether any differs, and by how much numbers of equal rows may differ."""


def fit_adapter(
    vectors: FrozenRows,
    settings: AdapterSettings,
    *,
    labels: Labels | None = None,
    pairs: TrainingPairs | None = None,
    validation: ValidationQueries | None = None,
    record: Record | None = None,
    begin: Begin | None = None,
) -> Fitted:
    """Fit an FC layer to frozen rows.

    Args:
        vectors: Frozen rows [items, width]: the items, or the documents of pairs. May be memory-mapped.
        settings: Settings; fields that are None are chosen here.
        labels: Class of each item, -1 if unknown.
        pairs: (query, document) pairs.
        validation: Queries that evaluate a fit without labels.
        record: Called with each record of the history as it is made.
        begin: Called with a line on the memory that the fit needs, and with one line per candidate.

    Returns:
        A `Fitted`. The same seed, data and number of threads give the same bits.

    Raises:
        DataError: If there is nothing to learn from.
        RangeError: If a setting is outside its range.
        ConfigError: If settings contradict each other.
    """
    started = time.monotonic()
    task, presets = prepared_task(vectors, settings, labels=labels, pairs=pairs, validation=validation)
    fitted = Search(task, presets, record, begin or ignore_line).run()
    fitted.report["seconds"] = round(time.monotonic() - started, 2)
    return fitted


def prepared_task(
    vectors: FrozenRows,
    settings: AdapterSettings,
    *,
    labels: Labels | None,
    pairs: TrainingPairs | None,
    validation: ValidationQueries | None,
) -> tuple[TaskData, list[tuple[TrainingPreset, AdapterSettings]]]:
    """The data of a fit with its folds, and its presets with the settings of each; see `fit_adapter`."""
    if labels is not None:
        check_labels(labels, len(vectors))
    count = min(len(vectors), len(vectors) if pairs is None else len(pairs.query_ids))
    if count < 2:
        raise DataError(f"{count} row is too few to learn from; at least 2 are needed")
    _check_differ(vectors)
    task: TaskData
    kind: Task = "unlabelled" if labels is None else "labels"
    if pairs is not None:
        kind = "query side" if settings.side == "query" else "pairs"
    items = len(vectors) if pairs is None else len(pairs.query_ids)
    if labels is not None:
        items = int((labels >= 0).sum())
    if settings.precision == "auto":
        settings = replace(settings, precision=_fastest_precision(vectors.shape[1], settings))
    presets: list[tuple[TrainingPreset, AdapterSettings]] = []
    for preset in _presets(settings, kind, items):
        with warnings.catch_warnings():
            if presets:  # warn once of numbers that are lowered for the data
                warnings.simplefilter("ignore", UserWarning)
            one = resolve(settings, task=kind, items=items, width=vectors.shape[1], preset=preset)
        presets.append((preset, one))
    resolved = presets[0][1]
    if pairs is not None:
        task = PairTask(vectors, pairs, resolved)
    elif labels is not None:
        task = LabelTask(vectors, labels, resolved)
    else:
        task = RowTask(vectors, resolved, validation)
    return task, presets


def _check_differ(vectors: FrozenRows) -> None:
    """Refuse rows that all point the same way: their closed forms are a layer of zeros."""
    first = unit_rows(vectors, torch.tensor([0]))
    for start in range(0, len(vectors), BLOCK):
        if float((unit_rows(vectors[start : start + BLOCK]) - first).abs().max()) > ROUNDING:
            return
    raise DataError(
        f"all {len(vectors)} rows of {vectors.shape[1]} feature(s) are equal but for their lengths, so "
        "nothing can be learned from them; check the column, or the model that made them"
    )


def _fastest_precision(width: int, settings: AdapterSettings) -> Literal["float32", "bfloat16"]:
    """bfloat16 if the products of a step take 15% less time in it.

    The choice changes bits, so it is measured once a machine.
    """
    processes = current_process_group()
    shape = [STEP_ROWS, width, settings.dim or max(settings.dims, default=min(64, width))]

    def is_faster() -> bool:
        rows, weight = torch.ones(shape[:2]), torch.ones(shape[2], shape[1], requires_grad=True)
        calls = (partial(_product, rows, weight, dtype) for dtype in (torch.bfloat16, torch.float32))
        return is_clearly_faster(*calls)

    is_bfloat16 = processes.is_main_process and torch.bfloat16 == remembered_dtype(
        "precision of an adapter's products", is_faster, shape=shape
    )
    return "bfloat16" if processes.broadcast_object(is_bfloat16) else "float32"


def _product(rows: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """A forward and a backward product of the layer, casts included."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = F.linear(rows, weight)
    out.float().sum().backward()  # type: ignore[no-untyped-call]


def ignore_line(_: str) -> None:
    """The default of `begin`: ignore the line."""


def _presets(settings: AdapterSettings, kind: Task, items: int) -> tuple[TrainingPreset, ...]:
    """The presets of a task; the first alone where a setting of the user's decides."""
    known = PRESETS[kind]
    if kind == "unlabelled" and items > LARGEST_WHOLE and settings.memory.kind == "cross_batch":
        known = (known[0]._replace(sampled=DRAWN),)
    chosen = (
        settings.loss.kind,
        settings.selection.sampled,
        settings.selection.negatives,
        settings.selection.positives,
        settings.fc.kind,
    )
    if any(value is not None for value in chosen) or settings.memory.holds == "projections":
        return (known[0]._replace(rank=None),)
    if settings.memory.kind == "in_batch" and kind != "query side":
        return known[:1]
    return known
