"""What each size and each precision of a fit is worth on held-out queries."""

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
    """What documents go through: the transform, or nothing where queries alone are adapted."""
    return transform if settings.side == "both" else _as_they_are


def document_rows(task: TaskData, held: HeldOutFold | None, seed: int) -> Rows:
    """Frozen unit rows of documents that codes are fitted to: none of those that are held out.

    Args:
        task: What the fit learns from.
        held: A fold, or None for all rows.
        seed: Of the draw, where there are more than codes need.

    Returns:
        Rows [rows, width].
    """
    holds_rows = isinstance(task, LabelTask) or (isinstance(task, RowTask) and task.judge is None)
    left_out = held.fold.held if held is not None and holds_rows else torch.empty(0, dtype=torch.int64)
    return unit_rows(task.documents, drawn_rows(len(task.documents), left_out, seed))


def frontier_of(
    task: TaskData, settings: AdapterSettings, layers: Sequence[tuple[HeldOutFold, Transform]], judges: Tensor
) -> list[dict[str, Any]]:
    """Bytes and quality of each size at each precision: float queries, and documents as they are stored.

    Args:
        task: What the fit learns from.
        settings: Resolved.
        layers: Each fold with the layer that was fitted without it; none where nothing was held out.
        judges: Mask of the queries that judge, of all folds.

    Returns:
        A point a size and a precision, by size and bits from the largest: dim, bits (32 for float), bytes a
        vector, metric, quality, low and high (95% interval over queries), None where nothing was held out.
    """
    points = [(size, bits) for size in settings.sizes for bits in sorted({32, *settings.bits}, reverse=True)]
    found: dict[tuple[int, int], list[PerQuery]] = {point: [] for point in points}
    metric = ""
    for held, layer in layers:
        stored = documents_of(layer, settings)
        codes = fit_codes(stored, document_rows(task, held, settings.seed), settings)
        for size, bits in points:
            keys = None if bits == 32 else decoded(prefix(stored, size), codes[size, bits])
            ranks = task.question.ranks(prefix(layer, size), held.asked, keys)
            metric = next(iter(ranks))
            found[size, bits].append(ranks[metric])
    return [
        {"dim": size, "bits": bits, "bytes": code_bytes(size, bits), "metric": metric or None}
        | _quality(found[size, bits], judges, settings.seed)
        for size, bits in points
    ]


def _quality(parts: list[PerQuery], judges: Tensor, seed: int) -> dict[str, float | None]:
    if not parts:
        return {"quality": None, "low": None, "high": None}
    values = torch.cat(parts)
    current_process_group().broadcast_([values])
    over = difference(values[judges], seed=seed)
    return {"quality": over.mean, "low": over.low, "high": over.high}


def _as_they_are(rows: Tensor) -> Tensor:
    return rows
