"""Arrays in .npy, .npz and .safetensors, memory-mapped if possible."""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querykey.errors import QuerykeyError, SourceError

__all__ = ["ARRAY_SUFFIXES", "Arrays", "open_arrays"]

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")

Arrays = Mapping[str, Callable[[], NDArray[Any]]]
"""Arrays by name; each is read when it is called."""

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "|b1",
}  # fmt: skip


def open_arrays(path: Path) -> Arrays:
    """The arrays in a file; that of an .npy file is named X.

    An .npy file, an uncompressed .npz and a .safetensors file are memory-mapped, copy on write:
    only pages that are used are read, and the file cannot change.

    Args:
        path: Its extension is one of `ARRAY_SUFFIXES`.

    Raises:
        SourceError: If the file is damaged; an array of Python objects raises when it is called.
    """
    match path.suffix.lower():
        case ".npy":
            arrays: Arrays = {"X": lambda: _mapped_npy(path)}
        case ".npz":
            arrays = _npz_arrays(path)
        case _:
            arrays = _safetensors_arrays(path)
    return {name: lambda read=read: _checked(path, read) for name, read in arrays.items()}  # type: ignore[misc]


def _checked(path: Path, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Read an array; a file with wrong offsets can raise any error."""
    try:
        return read()
    except QuerykeyError:
        raise
    except Exception as error:
        raise SourceError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again") from error


def _npy_header(stream: Any, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read(stream)
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(
            f"{what} is not a complete .npy file ({error}); write it again with numpy.save"
        ) from error
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
        raise SourceError(f"{path} is truncated: its header says {list(shape)} of {dtype}; copy it again")
    if size == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="c", offset=offset, shape=shape, order=order)


def _npz_arrays(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(
            f"{path} is not a complete .npz file ({error}); write it again with numpy.savez"
        ) from error
    return {
        member.filename.removesuffix(".npy"): lambda member=member: _npz_member(path, member)  # type: ignore[misc]
        for member in members
    }


def _npz_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as stream:
            stream.seek(member.header_offset)
            header = stream.read(30)
        # the local header repeats the name, with a padding that may differ from that in the directory
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
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError) as error:
        raise SourceError(f"{what} is damaged ({error}); write it again with numpy.savez") from error
    return array


def _safetensors_arrays(path: Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        # the library checks the header; its arrays would be copies
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"{path} is not a complete .safetensors file ({error}); copy or write it again"
        ) from error
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
        # NumPy has no bfloat16: its 16 bits are the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
