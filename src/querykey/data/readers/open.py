"""Reads a path or the name of a data set as a `Source`."""

import errno
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from querykey.data.items import Source
from querykey.data.labels import common_labels
from querykey.data.readers.arrays import read_arrays, require_finite_rows
from querykey.data.readers.beir import read_beir
from querykey.data.readers.catalogues import read_hub, read_sklearn, read_torchvision
from querykey.data.readers.grammar import (
    SOURCES_HELP,
    Wanted,
    is_beir,
    is_idx_images,
    nearest_words,
    scheme_of,
    split_of,
)
from querykey.data.readers.idx import read_idx
from querykey.data.readers.image_folder import count_images, listed_names, read_image_folder
from querykey.data.readers.images import is_image
from querykey.data.readers.mapped import ARRAY_SUFFIXES
from querykey.data.readers.shards import is_shard, read_shards
from querykey.data.readers.tables import TABLE_SUFFIXES, is_table, read_table_files
from querykey.errors import DataWarning, MissingPathError, QuerykeyError, SourceError
from querykey.io.paths import expand_user

__all__ = ["SOURCES_HELP", "Source", "common_labels", "read_source", "require_finite_rows"]

_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


def read_source(
    spec: str | Path,
    *,
    column: str | None = None,
    label_column: str | None = None,
    pair_column: str | None = None,
    split: str | None = None,
    delimiter: str | None = None,
) -> Source:
    """Read a path or a data set by name; items are read on access.

    A path may be a folder of images, IDX files, a table (parquet, csv, tsv, jsonl) or a folder of
    them, a BEIR folder, webdataset shards, or vectors (.npy, .npz, .safetensors, .parquet). A name
    is `hf:NAME`, `torchvision:NAME` or `sklearn:digits`. `SOURCES_HELP` has examples.

    Args:
        spec: The path or name.
        column: The items, if a source has several columns, arrays or extensions.
        label_column: The classes.
        pair_column: A second column of text, the query of each row; equal texts are one item.
        split: By default train, if there are several.
        delimiter: Of the columns of a csv or tsv file: one character, "tab", or "none" for one column. By
            default it is detected.

    Returns:
        A `Source`, after a `DataWarning` for what was left out or assumed. Only the fingerprint reads every
        byte.

    Raises:
        MissingPathError: If the path does not exist.
        SourceError: If it cannot be read, or the choice of columns or files is ambiguous.
        DataError: If the data cannot be used, for example pairs with a missing side.

    Example:
        >>> source = read_source("sklearn:digits")
        >>> source.kind, len(source), source.labels[:4].tolist()
        ('image', 1797, [0, 1, 2, 3])
    """
    wanted = Wanted(
        column=column, label_column=label_column, pair_column=pair_column, split=split, delimiter=delimiter
    )
    source = _read(spec, wanted)
    for note in source.notes:
        warnings.warn(note, DataWarning, stacklevel=2)
    return source


def _read(spec: str | Path, wanted: Wanted) -> Source:
    named = scheme_of(spec)
    if named is not None:
        scheme, name = named
        readers: dict[str, Callable[..., Source]] = {
            "hf": read_hub, "torchvision": read_torchvision, "sklearn": read_sklearn,
        }  # fmt: skip
        return readers[scheme](name, spec=str(spec), wanted=wanted)
    path = expand_user(spec)
    try:
        if path.is_dir():
            return _read_folder(path, str(spec), wanted)
        if not path.exists():
            raise MissingPathError(
                f"there is nothing at {path}{_nearest_path(path)}; give a path that exists"
            )
        return _read_file(path, str(spec), wanted)
    except PermissionError as error:
        raise SourceError(f"{error.filename or path} may not be read; allow reading it") from error
    except OSError as error:
        if isinstance(error, QuerykeyError) or error.errno != errno.ENAMETOOLONG:
            raise
        shown = f"{str(spec)[:40]}..."
        raise SourceError(f"{shown!r} is too long for a path; give the path of a file or folder") from error


def _read_file(path: Path, name: str, wanted: Wanted) -> Source:
    what, suffix = str(path), path.suffix.lower()
    if not path.is_file():
        raise SourceError(f"{path} is neither a file nor a folder; give one of these")
    if is_idx_images(path.name):
        return read_idx(path, name=name, wanted=wanted)
    if suffix in ARRAY_SUFFIXES:
        return read_arrays(path, name=name, wanted=wanted)
    if is_table(path.name):
        return read_table_files([path], [None], name=name, what=what, wanted=wanted)
    if is_shard(path.name):
        return read_shards([path], [None], name=name, what=what, wanted=wanted)
    if suffix in _PICKLED:
        raise SourceError(
            f"{path} is a pickle, which is never loaded; save the vectors as .npy or .safetensors"
        )
    if is_image(path.name):
        raise SourceError(f"{path} is a single image; give the folder that it is in")
    raise SourceError(
        f"{path} is of an unknown kind; known are "
        f"{', '.join((*TABLE_SUFFIXES, *ARRAY_SUFFIXES))}, .tar, IDX files "
        "and folders (see: querykey help sources)"
    )


def _read_folder(folder: Path, name: str, wanted: Wanted) -> Source:
    what = str(folder)
    top = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if not top:
        raise SourceError(f"{folder} is empty; put images or tables into it, or name another")
    if is_beir(folder):
        return read_beir(folder, name=name, wanted=wanted)
    if any(is_idx_images(entry.name) for entry in top):
        return read_idx(folder, name=name, wanted=wanted)
    # a data set of the hub has its files in data/ or in a folder for each split
    inside = [entry for entry in top if entry.is_dir() and (entry.name == "data" or split_of(entry.name))]
    inner = [child for entry in inside for child in sorted(entry.iterdir())]
    files = [entry for entry in top + inner if entry.is_file()]
    groups = {
        "shards": [entry for entry in files if is_shard(entry.name)],
        "tables": [entry for entry in files if is_table(entry.name)],
        "arrays": [entry for entry in files if entry.suffix.lower() in ARRAY_SUFFIXES],
    }
    chosen = _kind_of_folder(folder, groups)
    if chosen == "images":
        return read_image_folder(folder, name=name, wanted=wanted)
    used = groups[chosen]
    if chosen == "arrays":
        raise SourceError(f"{folder} holds arrays ({used[0].name}); name the file itself")
    read = read_shards if chosen == "shards" else read_table_files
    source = read(used, _splits(used, folder), name=name, what=what, wanted=wanted)
    rest = [entry for entry in files if entry not in used]
    return _with_left_out(source, folder, chosen, rest)


def _kind_of_folder(folder: Path, groups: dict[str, list[Path]]) -> str:
    """The kind of most files of a folder: "images", "shards", "tables" or "arrays".

    Images in folders of classes count, so a list of labels beside them is not read as a table of texts.

    Raises:
        SourceError: If two kinds have the same number of files.
    """
    counts = {kind: len(paths) for kind, paths in groups.items() if paths}
    if not counts:
        return "images"
    counts["images"] = count_images(folder)
    first, second = sorted(counts, key=lambda kind: -counts[kind])[:2]
    if counts[first] > counts[second]:
        return first
    # arrays beside tables or shards have no columns: they are read only if named
    if {first, second} in ({"tables", "arrays"}, {"shards", "arrays"}):
        return first if second == "arrays" else second
    named = next(paths[0].name for kind, paths in groups.items() if paths and kind in (first, second))
    raise SourceError(
        f"{folder} holds as many {first} as {second} ({counts[first]}); name the file itself ({named}), or "
        "move it out of the folder"
    )


def _with_left_out(source: Source, folder: Path, chosen: str, rest: list[Path]) -> Source:
    """The source, with a note of the files of another kind beside it."""
    names = [str(entry.relative_to(folder)) for entry in rest if _is_data(entry)]
    if not names:
        return source
    note = f"{folder} is read as {chosen}; left out {len(names)} other files: {listed_names(names)}"
    return replace(source, left_out=[*source.left_out, *names], notes=(*source.notes, note))


def _is_data(path: Path) -> bool:
    suffix = path.suffix.lower()
    return is_image(path.name) or is_table(path.name) or is_shard(path.name) or suffix in ARRAY_SUFFIXES


def _splits(paths: list[Path], folder: Path) -> list[str | None]:
    """The split of each file, by its name or that of its folder."""
    folders = ["" if path.parent == folder else path.parent.name for path in paths]
    return [split_of(path.name) or split_of(above) for path, above in zip(paths, folders, strict=True)]


def _nearest_path(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return nearest_words(path.name, [entry.name for entry in path.parent.iterdir()])
