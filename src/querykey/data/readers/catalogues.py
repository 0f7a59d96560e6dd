"""Data sets by name: the Hugging Face hub, torchvision, scikit-learn."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from querykey.data.items import Fingerprint, Items, RowNumbers, Source
from querykey.data.labels import NO_NAMES, number_labels
from querykey.data.readers.columns import ArrowTable
from querykey.data.readers.grammar import Wanted, choose_split, nearest_words
from querykey.data.readers.idx import ArrayImages
from querykey.data.readers.table_source import source_of_table
from querykey.errors import MissingExtraError, SourceError
from querykey.io.images import as_image
from querykey.io.paths import expand_user

__all__ = ["read_hub", "read_sklearn", "read_torchvision"]

_TORCHVISION_ROOT = "TORCHVISION_DATA"


def read_hub(name: str, *, spec: str, wanted: Wanted) -> Source:
    """Read a data set of the Hugging Face hub, from the local cache if it is there.

    Args:
        name: "NAME" or "NAME:CONFIG"; NAME may be a folder.
        spec: How the user named it.
        wanted: Columns, as in a table, and the split; train if not given.

    Raises:
        SourceError: If it cannot be loaded, or the split does not exist.
    """
    import datasets

    repository, _, config = name.partition(":")
    try:
        parts = datasets.load_dataset(repository, config or None)
    except Exception as error:  # the hub, the file system and every format raise different errors
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SourceError(
            f"{spec} cannot be loaded: {type(error).__name__}: {reason}; "
            "check the name, the network and HF_HUB_OFFLINE"
        ) from error
    split = choose_split(wanted.split, list(parts), spec)
    part = parts[split]
    classes = {name: one for name, one in part.features.items() if isinstance(one, datasets.ClassLabel)}
    names = {column: tuple(one.names) for column, one in classes.items() if one.names}
    digest = Fingerprint().text("table")
    for cached in part.cache_files:
        digest.file(Path(cached["filename"]))
    table = pa.table({column: _storage(part.data.column(column)) for column in part.column_names})
    found = ArrowTable(spec if len(parts) == 1 else f"{spec} ({split})", table, names)
    return source_of_table(found, name=spec, digest=digest, folder=Path(), wanted=wanted)


def _storage(column: Any) -> Any:
    """The storage column of an Arrow extension type."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], type=column.type.storage_type)
    return column


def read_sklearn(name: str, *, spec: str, wanted: Wanted) -> Source:
    """Read scikit-learn's digits: 1,797 gray images of 8x8, 10 classes; 0 to 16 becomes 0 to 255.

    Raises:
        SourceError: If another name is given.

    Example:
        >>> digits = read_sklearn("digits", spec="sklearn:digits", wanted=Wanted())
        >>> len(digits), digits.items[0].size, digits.label_names[:3]
        (1797, (8, 8), ('0', '1', '2'))
    """
    if name != "digits":
        raise SourceError(f"{spec} does not exist; the only data set of scikit-learn is sklearn:digits")
    wanted.allow(what=spec)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels, names = number_labels(bunch.target, what=spec)
    digest = Fingerprint().text("digits").array(pixels).array(labels).hex()
    return Source(spec, "image", ArrayImages(pixels), RowNumbers(len(pixels)), labels, names, digest)


class _FirstOfPair(Items):
    """The images of a torchvision data set."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def _read(self, row: int) -> Any:
        return as_image(self._dataset[row][0], what=f"image {row}")


def read_torchvision(name: str, *, spec: str, wanted: Wanted) -> Source:
    """Read a torchvision data set that is on this machine; nothing is downloaded.

    It is read from the folder in the environment variable TORCHVISION_DATA, by default
    ~/.cache/torchvision.

    Args:
        name: A class of `torchvision.datasets`, in any case.
        spec: How the user named it.
        wanted: The split; train if not given.

    Raises:
        SourceError: If the data set does not exist, is not on this machine, or has no such split.
        MissingExtraError: If torchvision is not installed.
    """
    wanted.allow("split", what=spec)
    try:
        from torchvision import datasets as catalogue
    except ImportError as error:
        raise MissingExtraError("torchvision", extra="vision", purpose=spec) from error
    known = {each.lower(): each for each in catalogue.__all__ if each[0].isupper()}
    if name.lower() not in known:
        raise SourceError(f"torchvision has no data set {name!r}{nearest_words(name, known.values())}")
    make = getattr(catalogue, known[name.lower()])
    root = Path(os.environ.get(_TORCHVISION_ROOT) or expand_user("~/.cache/torchvision"))
    options = _split_options(make, wanted.split, spec)
    try:
        dataset = make(root=str(root), **options)
    except Exception as error:  # each data set raises a different error where it is missing
        reason = str(error).split("\n", maxsplit=1)[0]
        raise SourceError(
            f"{spec} is not in {root} ({type(error).__name__}: {reason}); put it there, "
            f"or set {_TORCHVISION_ROOT} to its folder; nothing is downloaded"
        ) from error
    return _source_of_dataset(dataset, spec, options)


def _split_options(make: Any, split: str | None, spec: str) -> dict[str, Any]:
    """The argument of the split, which differs between the classes of torchvision."""
    known = inspect.signature(make).parameters
    if "train" in known:
        return {"train": choose_split(split, ["train", "test"], spec) == "train"}
    if "split" in known:
        return {} if split is None else {"split": split}
    choose_split(split, [None], spec)
    return {}


def _source_of_dataset(dataset: Any, spec: str, options: dict[str, Any]) -> Source:
    items = _FirstOfPair(dataset)
    if not len(items):
        raise SourceError(f"{spec} is empty; at least one item is needed")
    values: Sequence[Any] | NDArray[Any] | None = None
    for attribute in ("targets", "labels", "_labels"):
        values_there = getattr(dataset, attribute, None)
        if values_there is not None and len(values_there) == len(items):
            values = np.asarray(values_there)
            break
    labels, names = None, NO_NAMES
    if values is not None:
        labels, names = number_labels(values, what=spec, names=getattr(dataset, "classes", ()))
    digest = Fingerprint().text("torchvision", type(dataset).__name__, repr(options))
    pixels = getattr(dataset, "data", None)
    if pixels is not None and len(pixels) == len(items):
        digest.array(np.asarray(pixels))
    else:
        for image in items:
            digest.text(image.mode, str(image.size)).data(image.tobytes())
    if labels is not None:
        digest.array(labels)
    return Source(spec, "image", items, RowNumbers(len(items)), labels, names, digest.hex())
