"""One side of a source, items or queries, through a frozen model into shards and a store."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.items import Chosen, Source
from querykey.data.partial import Shards, Skipped
from querykey.data.store import StoreItems, write_store
from querykey.encoders.frozen import FrozenEncoder
from querykey.errors import DamagedItemError, DataError
from querykey.processes import ALONE, Processes

__all__ = ["Count", "Kept", "encode_side", "write_side"]

_MOST_DAMAGED = 0.05
_SHOWN = 5
_PREVIEW = 100


class Count:
    """How many items are done, for whoever draws it."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, items: int) -> None:
        """Count items as done."""
        self._done += items
        if self._progress is not None:
            self._progress(self._done, self._total)


class Kept:
    """Which rows of one side have a vector, and which do not."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.skipped: list[Skipped] = []

    def all_rows(self) -> NDArray[np.int64]:
        """The rows of the source that have a vector, in order."""
        return np.concatenate(self.rows)


def encode_side(
    side: Source,
    encoder: FrozenEncoder,
    shards: Shards,
    dtype: str,
    count: Count,
    notify: Callable[[str], None],
    processes: Processes = ALONE,
) -> Kept:
    """Encode the shards of one side that are not there yet.

    Args:
        side: The items or the queries.
        encoder: The frozen model.
        shards: Where they are kept.
        dtype: Of the vectors.
        count: Told of every batch, and of every shard that was there.
        notify: Told what was skipped.
        processes: Each encodes some of the shards; the first is told of all.

    Returns:
        Which rows have a vector.

    Raises:
        DataError: If more than 5% of the items cannot be read, or the model gives numbers that are
            not finite.
        OutputError: If a shard cannot be written.
    """
    kept = Kept()
    if processes.count > 1:
        alone = Count(len(side), None)
        for number, span in shards.spans():
            if number % processes.count == processes.rank and shards.read(number) is None:
                _put_span(shards, number, side, encoder, span, dtype, alone)
        processes.wait()
    for number, span in shards.spans():
        shard = shards.read(number)
        if shard is None:
            rows, skipped = _put_span(shards, number, side, encoder, span, dtype, count)
        else:
            _, rows, skipped = shard
            count.add(len(span))
        kept.rows.append(rows)
        kept.skipped += skipped
        if len(kept.skipped) > _MOST_DAMAGED * len(side):
            raise DataError(
                f"{side.name}: {len(kept.skipped)} of the first {span.stop} items (of {len(side)}) cannot "
                f"be read, more than {_MOST_DAMAGED:.0%} of all: {_listed(kept.skipped)}; "
                "mend them or take them out"
            )
    if kept.skipped:
        notify(
            f"{side.name}: skipped {len(kept.skipped)} of {len(side)} items that cannot be read: "
            f"{_listed(kept.skipped)}"
        )
    return kept


def _put_span(
    shards: Shards, number: int, side: Source, encoder: FrozenEncoder, span: range, dtype: str, count: Count
) -> tuple[NDArray[np.int64], list[Skipped]]:
    vectors, rows, skipped = _encode_span(side, encoder, span, getattr(torch, dtype), count)
    shards.put(number, vectors, rows.tolist(), skipped)
    return rows, skipped


def _encode_span(
    side: Source, encoder: FrozenEncoder, span: range, dtype: torch.dtype, count: Count
) -> tuple[Tensor, NDArray[np.int64], list[Skipped]]:
    """(vectors, the rows they are of, the rows that could not be read)."""
    rows = np.arange(span.start, span.stop, dtype=np.int64)
    skipped: list[Skipped] = []

    def note(place: int, fault: DamagedItemError) -> None:
        skipped.append(Skipped(row=int(rows[place]), id=side.ids[int(rows[place])], reason=str(fault)))

    vectors = encoder.encode(_of(side.items, rows), on_damaged=note, on_progress=count.add).to(dtype)
    skipped.sort(key=lambda one: one.row)
    kept = np.setdiff1d(rows, [one.row for one in skipped])
    bad = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        ids = ", ".join(side.ids[int(kept[place])] for place in bad[:_SHOWN])
        raise DataError(
            f"{encoder.spec} gave NaN or infinite numbers in {vectors.dtype} for {len(bad)} items of "
            f"{side.name} ({ids}{', ...' if len(bad) > _SHOWN else ''}); "
            "check the weights, or compute and store in float32"
        )
    return vectors, kept, skipped


def write_side(
    folder: Path,
    side: Source,
    shards: Shards,
    kept: Kept,
    pairs: NDArray[np.int64] | None,
    dtype: str,
    about: dict[str, Any],
) -> None:
    """Write the finished shards of one side as a store.

    Raises:
        DataError: If none of its items could be read.
        OutputError: If it cannot be written.
    """
    rows = kept.all_rows()
    if not len(rows):
        raise DataError(f"{side.name}: no item can be read")
    ids = _of(side.ids, rows)
    first = next(shards.all_vectors())
    items = StoreItems(
        ids=ids,
        labels=None if side.labels is None else side.labels[rows],
        previews=[_preview(text) for text in _of(side.items, rows)] if side.kind == "text" else ids,
    )
    named = {"name": side.name, "kind": side.kind, "fingerprint": side.fingerprint, "rows": len(side)}
    write_store(
        folder, shards.all_vectors(), items=items, dim=first.shape[1], dtype=dtype,
        label_names=side.label_names, pairs=pairs,
        about={**about, "source": named, "skipped": [asdict(one) for one in kept.skipped]},
    )  # fmt: skip


def _preview(text: str) -> str:
    line = " ".join(text[: 4 * _PREVIEW].split())
    return line if len(line) <= _PREVIEW else f"{line[: _PREVIEW - 3]}..."


def _listed(skipped: Sequence[Skipped]) -> str:
    more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return "; ".join(one.reason for one in skipped[:_SHOWN]) + more


def _of(items: Any, rows: NDArray[np.int64]) -> Chosen:
    return Chosen(items, rows)
