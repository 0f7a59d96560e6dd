"""The quality of each size and precision of a fit on held-out queries."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from querykey.adapter.codes import decoded, drawn_rows, fit_codes
from querykey.adapter.ladder import prefix
from querykey.adapter.relevance import unit_rows
from querykey.adapter.selection import difference
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.tasks import HeldOutFold, LabelTask, RowTask, TaskData
from querykey.adapter.validation import Transform
from querykey.distributed.process_group import current_process_group
from querykey.runtime.codes import code_bytes
from querykey.types import PerQuery, Rows

__all__ = ["document_rows", "documents_of", "frontier_of"]


def documents_of(transform: Transform, settings: AdapterSettings) -> Transform:
    """The transform of documents: the identity if only queries are adapted."""
    return transform if settings.side == "both" else _as_they_are


def document_rows(task: TaskData, held_out: HeldOutFold | None, seed: int) -> Rows:
    """Frozen unit rows of the documents that codes are fitted to, without the held-out ones.

    Args:
        task: The data of the fit.
        held_out: A fold, or None for all rows.
        seed: Seed of the draw if there are more rows than codes need.

    Returns:
        Rows [rows, width].
    """
    holds_rows = isinstance(task, LabelTask) or (isinstance(task, RowTask) and task.validation is None)
    left_out = (
        held_out.fold.held_out if held_out is not None and holds_rows else torch.empty(0, dtype=torch.int64)
    )
    return unit_rows(task.documents, drawn_rows(len(task.documents), left_out, seed))


def frontier_of(
    task: TaskData,
    settings: AdapterSettings,
    layers: Sequence[tuple[HeldOutFold, Transform]],
    evaluation: Tensor,
) -> list[dict[str, Any]]:
    """Bytes and quality of each size at each precision, for float queries and encoded documents.

    Args:
        task: The data of the fit.
        settings: Resolved settings.
        layers: Each fold with the layer that was fitted without it; empty if nothing was held out.
        evaluation: Mask of the queries used for the report, over all folds.

    Returns:
        One point per size and precision, in descending order: dim, bits (32 for float), bytes (per vector),
        metric, quality, low and high (95% interval over queries); None if nothing was held out.
    """
    points = [(size, bits) for size in settings.sizes for bits in sorted({32, *settings.bits}, reverse=True)]
    found: dict[tuple[int, int], list[PerQuery]] = {point: [] for point in points}
    metric = ""
    for held_out, layer in layers:
        stored = documents_of(layer, settings)
        codes = fit_codes(stored, document_rows(task, held_out, settings.seed), settings)
        for size, bits in points:
            keys = None if bits == 32 else decoded(prefix(stored, size), codes[size, bits])
            ranks = task.scorer.ranks(prefix(layer, size), held_out.queries, keys)
            metric = next(iter(ranks))
            found[size, bits].append(ranks[metric])
    return [
        {"dim": size, "bits": bits, "bytes": code_bytes(size, bits), "metric": metric or None}
        | _quality(found[size, bits], evaluation, settings.seed)
        for size, bits in points
    ]


def _quality(parts: list[PerQuery], evaluation: Tensor, seed: int) -> dict[str, float | None]:
    if not parts:
        return {"quality": None, "low": None, "high": None}
    values = torch.cat(parts)
    current_process_group().broadcast_([values])
    over = difference(values[evaluation], seed=seed)
    return {"quality": over.mean, "low": over.low, "high": over.high}


def _as_they_are(rows: Tensor) -> Tensor:
    return rows
