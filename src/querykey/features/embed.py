"""Computes the features of a source with a frozen model, and stores them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.items import Chosen, Fingerprint, Source
from querykey.distributed.process_group import (
    SINGLE_PROCESS,
    ProcessGroup,
    current_process_group,
    in_default_torch_state,
)
from querykey.encoders.frozen.batch_size import BatchPlan
from querykey.encoders.frozen.encoder import FrozenEncoder
from querykey.errors import (
    ConfigError,
    DamagedItemError,
    DataError,
    OutputError,
    OutputExistsError,
    RangeError,
    SourceError,
    StoreError,
)
from querykey.features.features import Features, read_features
from querykey.features.partial import PartialStore, Shards, Skipped
from querykey.features.store import DTYPES, QUERIES, StoreItems, is_store, read_meta, write_store
from querykey.io.atomic import replace_dir, reserve
from querykey.io.scratch import Claim, remove_abandoned, resumable_content

__all__ = ["Count", "EncodedRows", "embed", "encode_side", "features_key", "write_side"]

_MOST_DAMAGED = 0.05
_SHOWN = 5
_PREVIEW = 100


class Count:
    """Counts finished items, for a progress display."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, items: int) -> None:
        """Count items as finished."""
        self._done += items
        if self._progress is not None:
            self._progress(self._done, self._total)


class EncodedRows:
    """The rows of one side that have a vector, and those that were skipped."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.skipped: list[Skipped] = []

    def all_rows(self) -> NDArray[np.int64]:
        """The rows of the source with a vector, in order."""
        return np.concatenate(self.rows)


def encode_side(
    side: Source,
    encoder: FrozenEncoder,
    shards: Shards,
    dtype: str,
    count: Count,
    notify: Callable[[str], None],
    processes: ProcessGroup = SINGLE_PROCESS,
) -> EncodedRows:
    """Encode the missing shards of one side.

    Args:
        side: The items or the queries.
        encoder: The frozen model.
        shards: The shards on disk.
        dtype: Dtype of the vectors.
        count: Called after every batch, and for every shard that exists already.
        notify: Called with the skipped items.
        processes: Each encodes some of the shards; the main process returns all rows.

    Returns:
        The rows with a vector.

    Raises:
        DataError: If more than 5% of the items cannot be read, or the model returns numbers that are not
            finite.
        OutputError: If a shard cannot be written.
    """
    kept = EncodedRows()
    if processes.world_size > 1:
        silent = Count(len(side), None)
        for number, span in shards.spans():
            if number % processes.world_size == processes.rank and shards.read(number) is None:
                _put_span(shards, number, side, encoder, span, dtype, silent)
        processes.barrier()
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
                "repair or remove them"
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
    """(vectors, their rows, rows that could not be read)."""
    rows = np.arange(span.start, span.stop, dtype=np.int64)
    skipped: list[Skipped] = []

    def note(place: int, error: DamagedItemError) -> None:
        skipped.append(Skipped(row=int(rows[place]), id=side.ids[int(rows[place])], reason=str(error)))

    vectors = encoder.encode(_of(side.items, rows), on_damaged=note, on_progress=count.add).to(dtype)
    skipped.sort(key=lambda one: one.row)
    kept = np.setdiff1d(rows, [one.row for one in skipped])
    bad = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        ids = ", ".join(side.ids[int(kept[place])] for place in bad[:_SHOWN])
        raise DataError(
            f"{encoder.spec} returned NaN or infinity in {vectors.dtype} for {len(bad)} items of "
            f"{side.name} ({ids}{', ...' if len(bad) > _SHOWN else ''}); "
            "check the weights, or compute and store in float32"
        )
    return vectors, kept, skipped


def write_side(
    folder: Path,
    side: Source,
    shards: Shards,
    kept: EncodedRows,
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
    source = {"name": side.name, "kind": side.kind, "fingerprint": side.fingerprint, "rows": len(side)}
    about = {**about, "source": source, "skipped": [asdict(one) for one in kept.skipped]}
    write_store(
        folder,
        shards.all_vectors(),
        items=items,
        dim=first.shape[1],
        dtype=dtype,
        label_names=side.label_names,
        pairs=pairs,
        about=about,
    )


def _preview(text: str) -> str:
    line = " ".join(text[: 4 * _PREVIEW].split())
    return line if len(line) <= _PREVIEW else f"{line[: _PREVIEW - 3]}..."


def _listed(skipped: Sequence[Skipped]) -> str:
    more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return "; ".join(one.reason for one in skipped[:_SHOWN]) + more


def _of(items: Any, rows: NDArray[np.int64]) -> Chosen:
    return Chosen(items, rows)


# below this many items a measured batch size costs more than it gains
_WORTH_MEASURING = 256


@in_default_torch_state
def embed(
    source: Source,
    encoder: FrozenEncoder,
    out: str | Path,
    *,
    batch_size: int | None = None,
    shard_size: int = 512,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Features:
    """Compute the features of every item of a source and store them, so that the model runs only once.

    An existing store of the same data and model is returned unchanged. A store of other data or another
    model is replaced once the new one is complete. A call that was stopped or killed is resumed by the next
    one: finished shards stay in `OUT.querykey`. With several processes of torch.distributed the shards are
    distributed, and the main process writes the store; they need a common file system.

    Args:
        source: Images or texts, and their queries if it has pairs.
        encoder: The frozen model; see `load_encoder`.
        out: The folder of the store.
        batch_size: Items per forward pass, >= 1; measured once if not given.
        shard_size: Items per shard, >= 1: the work that a killed process can lose.
        dtype: Dtype of the stored vectors, "float32" or "float16" (half the size, 3 digits).
        progress: Called with (items done, total), including queries.
        notify: Called with notes on what is resumed, computed again or skipped.

    Returns:
        The features, memory-mapped from the store.

    Raises:
        SourceError: If the model takes other items than those of the source.
        DataError: If there are no items, more than 5% cannot be read, or the model returns numbers that are
            not finite.
        RangeError: If a size is not positive.
        ConfigError: If there is no such dtype.
        OutputExistsError: If `out` exists and is no feature store.
        OutputError: If it cannot be written; finished shards stay for the next call.
    """
    out, notify = Path(out), notify or _ignore
    if batch_size is not None and batch_size < 1:
        raise RangeError(f"batch_size must be >= 1, got {batch_size}")
    if shard_size < 1:
        raise RangeError(f"shard_size must be >= 1, got {shard_size}")
    if dtype not in DTYPES:
        raise ConfigError(f"the dtype of a store is {' or '.join(DTYPES)}, not {dtype}")
    _check_kinds(source, encoder)
    key = features_key(source, encoder, dtype=dtype)
    finished = _finished(out, key, notify)
    if finished is not None:
        remove_abandoned(out)
        return finished

    processes = current_process_group()
    work = _Work(source, encoder, key=key, shard_size=shard_size, dtype=dtype, batch_size=batch_size)
    count = Count(sum(map(len, work.sides.values())), progress)
    if processes.is_main_process:
        with reserve(out, overwrite=True, resumable=True) as claim:
            partial = work.open(claim.content, notify)
            processes.barrier()
            kept = work.encode(partial, count, notify, processes)
            processes.barrier()  # all have read the shards, which are removed after the store is complete
            work.write(partial, kept, claim)
    else:
        processes.barrier()  # the main process has started or resumed a store, and measured
        content = resumable_content(out)
        if content is None:
            raise OutputError(f"{out}: the shards of the main process are not here; use a common file system")
        kept = work.encode(work.open(content, _ignore), count, notify, processes)
        processes.barrier()
    processes.barrier()
    return read_features(out)


class _Work:
    """The features to compute: a source, a model and how they are stored."""

    def __init__(
        self,
        source: Source,
        encoder: FrozenEncoder,
        *,
        key: str,
        shard_size: int,
        dtype: str,
        batch_size: int | None,
    ) -> None:
        self._source, self._encoder, self._batch_size = source, encoder, batch_size
        self._key, self._shard_size, self._dtype = key, shard_size, dtype
        self.sides = {"items": source} | ({QUERIES: source.queries} if source.queries is not None else {})

    def open(self, content: Path, notify: Callable[[str], None]) -> PartialStore:
        """The shards so far; also sets or measures the batch plan of the model."""
        partial = PartialStore.open(content, key=self._key, shard_size=self._shard_size, notify=notify)
        _follow_plan(partial, self._encoder, self._source, self._batch_size)
        return partial

    def encode(
        self, partial: PartialStore, count: Count, notify: Callable[[str], None], processes: ProcessGroup
    ) -> dict[str, EncodedRows]:
        """Encode the missing shards of each side."""
        try:
            return {
                name: encode_side(
                    side, self._encoder, partial.side(name, len(side)), self._dtype, count, notify, processes
                )
                for name, side in self.sides.items()
            }
        except DataError:  # another call would fail in the same way
            if processes.is_main_process:
                partial.discard()
            raise

    def write(self, partial: PartialStore, kept: dict[str, EncodedRows], claim: Claim) -> None:
        """Assemble the store from its shards."""
        names = ("spec", "key", "kind", "dtype", "prompt")
        model = {name: getattr(self._encoder, name) for name in names} | {"plan": asdict(self._encoder.plan)}
        about, store = {"key": self._key, "model": model}, partial.folder / "whole"
        for name, side in self.sides.items():
            pairs = _pairs_of_kept(self._source, kept) if name == "items" else None
            folder = store if name == "items" else store / name
            write_side(folder, side, partial.side(name, len(side)), kept[name], pairs, self._dtype, about)
        replace_dir(claim, store)
        partial.discard()


def features_key(source: Source, encoder: FrozenEncoder, *, dtype: str = "float32") -> str:
    """The SHA-256 of everything that determines a store: the model's key, the data's bytes, the dtype.

    Args:
        source: The source, with its queries and pairs.
        encoder: The frozen model.
        dtype: Dtype of the stored vectors.

    Returns:
        64 hexadecimal digits.
    """
    digest = Fingerprint().text("querykey features 1", encoder.key, dtype)
    for side in (source, source.queries):
        digest.text(None if side is None else side.fingerprint)
        if side is not None and side.labels is not None:
            digest.array(side.labels).text(*side.label_names)
    if source.pairs is not None:
        digest.array(source.pairs)
    return digest.hex()


def _ignore(_: str) -> None:
    """The default of `notify`."""


def _check_kinds(source: Source, encoder: FrozenEncoder) -> None:
    for side in (source, source.queries):
        if side is not None and side.kind != encoder.kind:
            hint = "these are features already" if side.kind == "vector" else "choose another model"
            raise SourceError(
                f"{side.name} contains {side.kind}s and {encoder.spec} takes {encoder.kind}s; {hint}"
            )
        if side is not None and not len(side):
            raise DataError(f"{side.name} contains no items; there is nothing to embed")


def _finished(out: Path, key: str, notify: Callable[[str], None]) -> Features | None:
    """The store at `out`, if it has the same key."""
    if not out.exists():
        return None
    if not is_store(out):
        raise OutputExistsError(f"{out} exists and is no feature store; give another path, or remove it")
    try:
        if read_meta(out).get("key") == key:
            return read_features(out)
        notify(f"{out} was made of other data or by another model; embedding again")
    except StoreError as error:
        notify(f"{error}: embedding again")
    return None


def _follow_plan(
    partial: PartialStore, encoder: FrozenEncoder, source: Source, batch_size: int | None
) -> None:
    """Measure the batch plan of the model, or use that of the call that is resumed."""
    if partial.plan is not None:
        encoder.plan = BatchPlan(**partial.plan)
        return
    if len(source) >= _WORTH_MEASURING:
        encoder.measure(source.items, batch_size=batch_size)
    else:
        encoder.plan = BatchPlan(batch_size=batch_size or BatchPlan().batch_size)
    partial.store_plan(asdict(encoder.plan))


def _pairs_of_kept(source: Source, kept: dict[str, EncodedRows]) -> NDArray[np.int64] | None:
    """Pairs between rows with a vector, renumbered."""
    if source.pairs is None or source.queries is None:
        return None
    place = {}
    for name, side in (("items", source), (QUERIES, source.queries)):
        place[name] = np.full(len(side), -1, dtype=np.int64)
        rows = kept[name].all_rows()
        place[name][rows] = np.arange(len(rows))
    query, item = place[QUERIES][source.pairs[:, 0]], place["items"][source.pairs[:, 1]]
    return np.stack([query, item, source.pairs[:, 2]], axis=1)[(query >= 0) & (item >= 0)]
