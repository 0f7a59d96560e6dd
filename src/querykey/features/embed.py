"""From a source and a frozen model to a feature store, once."""

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

__all__ = [
    "Count",
    "Kept",
    "embed",
    "encode_side",
    "features_key",
    "write_side",
]

_MOST_DAMAGED = 0.05
_SHOWN = 5
_PREVIEW = 100


class Count:
    """Counts the items that are done, for a progress display."""

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
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Kept:
    """Encode the shards of one side that are not there yet.

    Args:
        side: The items or the queries.
        encoder: The frozen model.
        shards: Where they are kept.
        dtype: Of the vectors.
        count: Called after every batch, and for every shard that exists already.
        notify: Called with what was skipped.
        processes: Each encodes some of the shards; the main process returns all rows.

    Returns:
        Which rows have a vector.

    Raises:
        DataError: If more than 5% of the items cannot be read, or the model gives numbers that are
            not finite.
        OutputError: If a shard cannot be written.
    """
    kept = Kept()
    if processes.world_size > 1:
        alone = Count(len(side), None)
        for number, span in shards.spans():
            if number % processes.world_size == processes.rank and shards.read(number) is None:
                _put_span(shards, number, side, encoder, span, dtype, alone)
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

    def note(place: int, error: DamagedItemError) -> None:
        skipped.append(Skipped(row=int(rows[place]), id=side.ids[int(rows[place])], reason=str(error)))

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
    """Features of every item of a source, kept in a store so that the model runs only once.

    A store at `out` made of the same data by the same model is returned as it is. One of other
    data or another model is made again beside the old one, which goes when the new one is whole.
    A run that was stopped at any moment, even killed, is resumed: finished shards stay in
    `OUT.querykey`. The processes of torch.distributed distribute the shards; the first
    writes the store, in a file system that all of them see.

    Args:
        source: Images or texts, and their queries where it has pairs.
        encoder: The frozen model; see `load_encoder`.
        out: The store's folder.
        batch_size: Items a forward, >= 1; measured once if not given.
        shard_size: Items a shard, >= 1: what a kill can cost.
        dtype: Of the vectors in the store, "float32" or "float16" (half the disk, 3 digits).
        progress: Called with (items done, items in all), queries counted too.
        notify: Called with a sentence on what is resumed, made again or skipped.

    Returns:
        The features, mapped from the store.

    Raises:
        SourceError: If the model takes other items than the source has.
        DataError: If there are no items, more than 5% cannot be read, or the model gives numbers
            that are not finite.
        RangeError: If a size is not positive.
        ConfigError: If there is no such dtype.
        OutputExistsError: If `out` is there and is no feature store.
        OutputError: If it cannot be written; what was finished stays for the next call.
    """
    out, notify = Path(out), notify or _say_nothing
    if batch_size is not None and batch_size < 1:
        raise RangeError(f"batch_size must be >= 1, got {batch_size}")
    if shard_size < 1:
        raise RangeError(f"shard_size must be >= 1, got {shard_size}")
    if dtype not in DTYPES:
        raise ConfigError(f"a store holds {' or '.join(DTYPES)}, not {dtype}")
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
            processes.barrier()  # all have read the shards, which are removed once the store is complete
            work.write(partial, kept, claim)
    else:
        processes.barrier()  # until the main process has started or resumed a store, and measured
        content = resumable_content(out)
        if content is None:
            raise OutputError(f"{out}: the shards of the first process are not here; share the file system")
        kept = work.encode(work.open(content, _say_nothing), count, notify, processes)
        processes.barrier()
    processes.barrier()
    return read_features(out)


class _Work:
    """The features to compute: a source, a model and how they are stored."""

    def __init__(
        self, source: Source, encoder: FrozenEncoder, *, key: str, shard_size: int, dtype: str,
        batch_size: int | None,
    ) -> None:  # fmt: skip
        self._source, self._encoder, self._batch_size = source, encoder, batch_size
        self._key, self._shard_size, self._dtype = key, shard_size, dtype
        self.sides = {"items": source} | ({QUERIES: source.queries} if source.queries is not None else {})

    def open(self, content: Path, notify: Callable[[str], None]) -> PartialStore:
        """The shards so far, and how the model is run, measured once."""
        partial = PartialStore.open(content, key=self._key, shard_size=self._shard_size, notify=notify)
        _follow_plan(partial, self._encoder, self._source, self._batch_size)
        return partial

    def encode(
        self, partial: PartialStore, count: Count, notify: Callable[[str], None], processes: ProcessGroup
    ) -> dict[str, Kept]:
        """Encode what is missing of each side."""
        try:
            return {
                name: encode_side(
                    side, self._encoder, partial.side(name, len(side)), self._dtype, count, notify, processes
                )
                for name, side in self.sides.items()
            }
        except DataError:  # running it again would end the same way
            if processes.is_main_process:
                partial.discard()
            raise

    def write(self, partial: PartialStore, kept: dict[str, Kept], claim: Claim) -> None:
        """Put the store together from its shards."""
        encoder = self._encoder
        about = {
            "key": self._key,
            "model": {
                "spec": encoder.spec, "key": encoder.key, "kind": encoder.kind, "dtype": encoder.dtype,
                "prompt": encoder.prompt, "plan": asdict(encoder.plan),
            },
        }  # fmt: skip
        whole = partial.folder / "whole"
        for name, side in self.sides.items():
            pairs = _pairs_of_kept(self._source, kept) if name == "items" else None
            folder = whole if name == "items" else whole / name
            write_side(folder, side, partial.side(name, len(side)), kept[name], pairs, self._dtype, about)
        replace_dir(claim, whole)
        partial.discard()


def features_key(source: Source, encoder: FrozenEncoder, *, dtype: str = "float32") -> str:
    """The sha256 of all that a store depends on: the model's key, the data's bytes, the dtype.

    Args:
        source: With its queries and pairs.
        encoder: The frozen model.
        dtype: Of the vectors in the store.

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


def _say_nothing(_: str) -> None:
    pass


def _check_kinds(source: Source, encoder: FrozenEncoder) -> None:
    for side in (source, source.queries):
        if side is not None and side.kind != encoder.kind:
            hint = "these are features already" if side.kind == "vector" else "choose another model"
            raise SourceError(
                f"{side.name} holds {side.kind}s and {encoder.spec} takes {encoder.kind}s; {hint}"
            )
        if side is not None and not len(side):
            raise DataError(f"{side.name} holds no items; there is nothing to embed")


def _finished(out: Path, key: str, notify: Callable[[str], None]) -> Features | None:
    """The store that is at `out`, if it is the one that is wanted."""
    if not out.exists():
        return None
    if not is_store(out):
        raise OutputExistsError(f"{out} is there and is no feature store; give another --out, or remove it")
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
    """Measure how to run the model, or read back the plan of the run that is resumed."""
    if partial.plan is not None:
        encoder.plan = BatchPlan(**partial.plan)
        return
    if len(source) >= _WORTH_MEASURING:
        encoder.measure(source.items, batch_size=batch_size)
    else:
        encoder.plan = BatchPlan(batch_size=batch_size or BatchPlan().batch_size)
    partial.keep_plan(asdict(encoder.plan))


def _pairs_of_kept(source: Source, kept: dict[str, Kept]) -> NDArray[np.int64] | None:
    """Pairs between the rows that have a vector, renumbered to them."""
    if source.pairs is None or source.queries is None:
        return None
    place = {}
    for name, side in (("items", source), (QUERIES, source.queries)):
        place[name] = np.full(len(side), -1, dtype=np.int64)
        rows = kept[name].all_rows()
        place[name][rows] = np.arange(len(rows))
    query, item = place[QUERIES][source.pairs[:, 0]], place["items"][source.pairs[:, 1]]
    return np.stack([query, item, source.pairs[:, 2]], axis=1)[(query >= 0) & (item >= 0)]
