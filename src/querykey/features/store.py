"""The files of a feature store: vectors.npy, items.parquet, pairs.parquet, meta.json.

Each file is written under a temporary name, flushed to disk and renamed. meta.json is written last, and
contains the size and SHA-256 of the others and its own SHA-256. No file is pickled.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.items import Items
from querykey.errors import StoreError
from querykey.io.atomic import make_folder, write_atomically
from querykey.io.records import installed_versions

__all__ = [
    "DTYPES",
    "META",
    "QUERIES",
    "StoreItems",
    "StringColumn",
    "check_store",
    "is_store",
    "read_items",
    "read_meta",
    "read_pairs",
    "read_vectors",
    "write_store",
]

META, VECTORS, ITEMS, PAIRS, QUERIES = "meta.json", "vectors.npy", "items.parquet", "pairs.parquet", "queries"
_FORMAT, _VERSION = "querykey features", 1
DTYPES = ("float32", "float16")
_BLOCK = 1 << 22
_AGAIN = "make it again with querykey embed"
_PACKAGES = ("querykey", "torch", "timm", "sentence-transformers", "onnxruntime", "pillow", "numpy")


class StringColumn(Items):
    """Strings stored in one block of memory by arrow; each becomes a str when it is read.

    Example:
        >>> StringColumn(pa.array(["a", "b"]))[-1]
        'b'
    """

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def _read(self, row: int) -> str:
        return str(self.column[row].as_py())


@dataclass(frozen=True, eq=False, kw_only=True)
class StoreItems:
    """Ids, labels and previews of the items of a store."""

    ids: Sequence[str]
    labels: NDArray[np.int64] | None
    previews: Sequence[str]


def is_store(path: Path) -> bool:
    """Whether a folder is a feature store, possibly a damaged one."""
    try:
        return bool(json.loads((path / META).read_text())["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of meta.json.

    Raises:
        StoreError: If it was changed, or is of a later version.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        version, digest = meta["version"], meta["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{folder / META} is damaged ({error!r}); {_AGAIN}") from error
    if version > _VERSION:
        raise StoreError(f"{folder} is a store of version {version}; this querykey reads up to {_VERSION}")
    if _meta_digest(meta) != digest:
        raise StoreError(f"{folder / META} was changed after it was written; {_AGAIN}")
    return meta


def check_store(folder: Path, meta: Mapping[str, Any], *, verify: bool) -> None:
    """Compare the files of a store with their description in meta.json.

    Args:
        folder: The store.
        meta: The result of `read_meta`.
        verify: Whether to compare the SHA-256 too, not only sizes.

    Raises:
        StoreError: If a file is missing or has changed.
    """
    for name, written in meta["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != written["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise StoreError(f"{path} {found}, {written['bytes']} were written; {_AGAIN}")
        if verify and _digest_of(path) != written["sha256"]:
            raise StoreError(f"{path}: its bytes were changed after it was written; {_AGAIN}")


def read_vectors(folder: Path, meta: Mapping[str, Any]) -> NDArray[Any]:
    """The vectors [rows, dim], memory-mapped copy on write: writing to them changes no file.

    Raises:
        StoreError: If the header of the file does not agree with meta.json.
    """
    path = folder / VECTORS
    try:
        vectors: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is no array ({error}); {_AGAIN}") from error
    shape, dtype = [meta["rows"], meta["dim"]], meta["dtype"]
    if (list(vectors.shape), str(vectors.dtype)) != (shape, dtype):
        found = f"{vectors.dtype} {list(vectors.shape)}"
        raise StoreError(f"{path} contains {found}, not {dtype} {shape}; {_AGAIN}")
    return vectors


def read_items(folder: Path, meta: Mapping[str, Any]) -> StoreItems:
    """Ids, labels and previews.

    Raises:
        StoreError: If the file cannot be read, or does not have one row per vector.
    """
    table = _read_table(folder / ITEMS)
    if len(table) != meta["rows"]:
        raise StoreError(f"{folder / ITEMS} has {len(table)} lines for {meta['rows']} vectors; {_AGAIN}")
    labels = None
    if "label" in table.column_names:
        # a copy, because arrays of arrow are read-only
        labels = np.array(table["label"].to_numpy(), dtype=np.int64)
    return StoreItems(ids=StringColumn(table["id"]), labels=labels, previews=StringColumn(table["preview"]))


def read_pairs(folder: Path, meta: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Pairs [m, 3] of query row, item row and grade; None if there are none."""
    if PAIRS not in meta["files"]:
        return None
    table = _read_table(folder / PAIRS)
    return np.stack([table[name].to_numpy() for name in ("query", "item", "grade")], axis=1)


def write_store(
    folder: Path,
    blocks: Iterable[Tensor],
    *,
    items: StoreItems,
    dim: int,
    dtype: str,
    label_names: Sequence[str],
    pairs: NDArray[np.int64] | None,
    about: Mapping[str, Any],
) -> None:
    """Write the files of a store into a folder that is not in use yet.

    Args:
        folder: Created if it does not exist; existing files are replaced.
        blocks: The vectors in blocks of rows, in order.
        items: One entry per row.
        dim: Width of a row.
        dtype: "float32" or "float16".
        label_names: Names of the classes.
        pairs: int64 [m, 3], or None.
        about: Other content of meta.json: key, model, source, skipped items.

    Raises:
        OutputError: If the disk is full or may not be written.
    """
    rows = len(items.ids)
    columns: dict[str, Any] = {"id": _strings(items.ids)}
    if items.labels is not None:
        columns["label"] = pa.array(items.labels)
    columns["preview"] = _strings(items.previews)
    make_folder(folder)
    files = {
        VECTORS: write_atomically(folder / VECTORS, _npy(blocks, rows, dim, dtype)),
        ITEMS: write_atomically(folder / ITEMS, [_parquet(pa.table(columns))]),
    }
    if pairs is not None:
        named = {name: pa.array(pairs[:, place]) for place, name in enumerate(("query", "item", "grade"))}
        files[PAIRS] = write_atomically(folder / PAIRS, [_parquet(pa.table(named))])
    meta: dict[str, Any] = {
        **about,
        "format": _FORMAT,
        "version": _VERSION,
        "rows": rows,
        "dim": dim,
        "dtype": dtype,
        "label_names": list(label_names),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": installed_versions(*_PACKAGES),
        "files": files,
    }
    meta["sha256"] = _meta_digest(meta)
    write_atomically(folder / META, [json.dumps(meta, indent=2).encode()])


def _strings(values: Sequence[str]) -> Any:
    return values.column if isinstance(values, StringColumn) else pa.array(values, pa.string())


def _npy(blocks: Iterable[Tensor], rows: int, dim: int, dtype: str) -> Iterable[bytes]:
    header = io.BytesIO()
    form = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(header, form)
    yield header.getvalue()
    for block in blocks:
        yield block.numpy().astype(dtype, copy=False).tobytes()


def _parquet(table: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _read_table(path: Path) -> Any:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def _meta_digest(meta: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in meta.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
