"""Vectors in files: .npy, .npz and .safetensors, mapped into memory where they can be."""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.data.fingerprint import fingerprint_files
from querykey.data.grammar import Wanted, nearest_words
from querykey.data.items import RowNumbers, Source
from querykey.data.labels import NO_NAMES, number_labels
from querykey.errors import DataError, ShapeError, SourceError

__all__ = ["ARRAY_SUFFIXES", "read_arrays", "require_finite_rows"]

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")

_BLOCK_BYTES = 1 << 24
_SHOWN = 5
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "|b1",
}  # fmt: skip

# Read only when called, so that an .npz of many arrays opens the one that is wanted.
_Arrays = Mapping[str, Callable[[], NDArray[Any]]]


def read_arrays(path: Path, *, name: str, wanted: Wanted) -> Source:
    """Read vectors from .npy, .npz or .safetensors.

    An .npy file, an uncompressed .npz and a .safetensors file are mapped, not read: pages that
    are not touched cost nothing, and the map is copy on write, so the file cannot change.

    Args:
        path: The file.
        name: How the user named it.
        wanted: Which array holds the vectors, needed where there are several and none is X; and
            which the labels, y where there is one.

    Returns:
        A source of kind "vector"; `items` is [n, dim] in the file's own dtype.

    Raises:
        SourceError: If the file is damaged, holds Python objects, or the array is not there.
        ShapeError: If the array is not [n, dim] with n and dim >= 1.
    """
    if path.suffix.lower() == ".npy":
        wanted.allow(what=f"{path}, a single array,")
        arrays: _Arrays = {"X": lambda: _mapped_npy(path)}
    else:
        wanted.allow("column", "label_column", what=str(path))
        arrays = _npz_arrays(path) if path.suffix.lower() == ".npz" else _safetensors_arrays(path)
    label_column = wanted.label_column
    chosen = _choose(arrays, wanted.column, path)
    vectors = _rows(arrays[chosen](), f"{path}: {chosen}" if len(arrays) > 1 else str(path))
    if label_column is None and "y" in arrays and chosen != "y":
        label_column = "y"
    labels, names = None, NO_NAMES
    if label_column is not None:
        values = arrays[_choose(arrays, label_column, path)]()
        if values.shape != (len(vectors),):
            raise ShapeError(
                f"{path}: the labels {label_column} have shape {list(values.shape)} "
                f"for {len(vectors)} vectors; one for each is needed"
            )
        labels, names = number_labels(values, what=f"{path}: {label_column}")
    return Source(
        name=name, kind="vector", items=vectors, ids=RowNumbers(len(vectors)), labels=labels,
        label_names=names, fingerprint=fingerprint_files([path], chosen, label_column),
    )  # fmt: skip


def require_finite_rows(X: Tensor, *, what: str) -> None:
    """Refuse vectors that cannot be compared: NaN, infinite or all zero.

    Walks blocks of rows, so a memory-mapped tensor is never copied whole.

    Args:
        X: [rows, dim], any float dtype.
        what: What the vectors are, for the message.

    Raises:
        DataError: If a row is none of use; says how many and the first of each kind.

    Example:
        >>> require_finite_rows(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), what="features.npy")
        Traceback (most recent call last):
        querykey.errors.DataError: features.npy: 1 of 2 rows cannot be compared: 1 zero (row 1); ...
    """
    bad: dict[str, list[int]] = {"NaN": [], "infinite": [], "zero": []}
    counts = dict.fromkeys(bad, 0)
    step = max(1, _BLOCK_BYTES // (4 * max(1, X.shape[1])))
    for start in range(0, len(X), step):
        # the largest magnitude of a row tells all three faults in one pass
        peak = torch.linalg.vector_norm(X[start : start + step].float(), ord=torch.inf, dim=1)
        if bool((peak.isfinite() & (peak > 0)).all()):
            continue
        for kind, found in (("NaN", peak.isnan()), ("infinite", peak.isinf()), ("zero", peak == 0)):
            rows = found.nonzero().flatten() + start
            counts[kind] += len(rows)
            bad[kind] += rows[: _SHOWN - len(bad[kind])].tolist()
    if not any(counts.values()):
        return
    faults = ", ".join(
        f"{count} {kind} ({_row_list(bad[kind], count)})" for kind, count in counts.items() if count
    )
    raise DataError(
        f"{what}: {sum(counts.values())} of {len(X)} rows cannot be compared: {faults}; "
        "take these rows out, or make them again"
    )


def _row_list(rows: list[int], count: int) -> str:
    listed = ", ".join(map(str, rows)) + (", ..." if count > len(rows) else "")
    return f"{'row' if count == 1 else 'rows'} {listed}"


def _choose(arrays: _Arrays, asked: str | None, path: Path) -> str:
    if asked is not None:
        if asked in arrays:
            return asked
        near = nearest_words(asked, arrays)
        raise SourceError(f"{path} has no array {asked!r}{near}; it holds: {', '.join(arrays)}")
    if len(arrays) == 1:
        return next(iter(arrays))
    if "X" in arrays:
        return "X"
    if not arrays:
        raise SourceError(f"{path} holds no array; vectors [n, dim] are needed")
    raise SourceError(
        f"{path} holds several arrays ({', '.join(arrays)}) and none is called X; "
        "say which holds the vectors with --column"
    )


def _rows(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise SourceError(
            f"{what} holds {array.dtype}, not numbers; vectors of float32 or float16 are needed"
        )
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"{what} has shape {list(array.shape)}; vectors are [n, dim], n and dim >= 1")
    # torch reads only its own byte order
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _npy_header(stream: Any, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read(stream)
    except (ValueError, EOFError, OSError) as fault:
        raise SourceError(
            f"{what} is not a whole .npy file ({fault}); write it again with numpy.save"
        ) from fault
    if dtype.hasobject:
        raise SourceError(
            f"{what} holds pickled Python objects, which are never loaded; "
            "save an array of numbers [n, dim] instead (rows of different width make objects)"
        )
    return shape, fortran_order, dtype


def _mapped_npy(path: Path, offset: int = 0) -> NDArray[Any]:
    with path.open("rb") as stream:
        stream.seek(offset)
        shape, fortran_order, dtype = _npy_header(stream, str(path))
        return _mapped(path, dtype, shape, stream.tell(), order="F" if fortran_order else "C")


def _mapped(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, order: Any = "C"
) -> NDArray[Any]:
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if offset + size > path.stat().st_size:
        raise SourceError(
            f"{path} is cut short: it says it holds {list(shape)} of {dtype} and ends before; copy it again"
        )
    if size == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="c", offset=offset, shape=shape, order=order)


def _npz_arrays(path: Path) -> _Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as fault:
        raise SourceError(
            f"{path} is not a whole .npz file ({fault}); write it again with numpy.savez"
        ) from fault
    return {
        member.filename.removesuffix(".npy"): lambda member=member: _npz_member(path, member)  # type: ignore[misc]
        for member in members
    }


def _npz_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as stream:
            stream.seek(member.header_offset)
            header = stream.read(30)
        # the local header repeats the name, but may pad it otherwise than the directory does
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return _mapped_npy(path, member.header_offset + 30 + lengths)
    what = f"{path}: {member.filename}"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            _npy_header(stream, what)
            stream.seek(0)
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except SourceError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError) as fault:
        raise SourceError(f"{what} is damaged ({fault}); write it again with numpy.savez") from fault
    return array


def _safetensors_arrays(path: Path) -> _Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        # the library checks the header; what it hands out would be a copy
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as fault:
        raise SourceError(
            f"{path} is not a whole .safetensors file ({fault}); copy or write it again"
        ) from fault
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: lambda entry=entry, name=name: _safetensor(path, name, entry, 8 + length)  # type: ignore[misc]
        for name, entry in header.items()
    }


def _safetensor(path: Path, name: str, entry: Mapping[str, Any], start: int) -> NDArray[Any]:
    if entry["dtype"] not in _DTYPES:
        raise SourceError(f"{path}: {name} is {entry['dtype']}; save it as float32 or float16")
    offset = start + entry["data_offsets"][0]
    array = _mapped(path, np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), offset)
    if entry["dtype"] == "BF16":
        # numpy has no bfloat16: its 16 bits are the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
