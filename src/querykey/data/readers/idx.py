"""IDX files, the format of MNIST and its family."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from querykey.data.items import Items, RowNumbers, Source, fingerprint_files
from querykey.data.labels import NO_NAMES, number_labels
from querykey.data.readers.grammar import IDX_IMAGES, Wanted, choose_split, is_idx_images, split_of
from querykey.errors import SourceError
from querykey.io.images import image_of_array

__all__ = ["ArrayImages", "read_idx"]


class ArrayImages(Items):
    """Images as rows of a uint8 array, [n, h, w] or [n, h, w, 3]."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, row: int) -> Any:
        return image_of_array(self.pixels[row])


def read_idx(path: Path, *, name: str, wanted: Wanted) -> Source:
    """Read images of the MNIST family, and the labels beside them.

    An uncompressed file is memory-mapped; a .gz file is decompressed into memory.

    Args:
        path: A file of images, or its folder.
        name: How the user named it.
        wanted: Which split: "train" or "test" (t10k) of a folder; train if not given.

    Returns:
        A source of kind "image", with labels if their file exists.

    Raises:
        SourceError: If a file is truncated or of another format, the numbers of images and labels differ,
            or the split does not exist.
    """
    wanted.allow("split", what=f"{path}, IDX files,")
    images = _choose_file(path, wanted.split)
    pixels = _read_array(images, dims=3)
    used, labels, names = [images], None, NO_NAMES
    stem = _unpacked(images.name).lower().replace("idx3", "idx1")
    head, _, tail = stem.rpartition("images")
    names_there = {entry.name.lower(): entry for entry in sorted(images.parent.iterdir())}
    for beside in (names_there.get(f"{head}labels{tail}{end}") for end in ("", ".gz")):
        if beside is not None:
            values = _read_array(beside, dims=1)
            if len(values) != len(pixels):
                raise SourceError(
                    f"{beside} holds {len(values)} labels for the {len(pixels)} images of {images.name}; "
                    "one for each is needed"
                )
            labels, names = number_labels(values, what=str(beside))
            used.append(beside)
            break
    digest = fingerprint_files(used, "idx")
    return Source(name, "image", ArrayImages(pixels), RowNumbers(len(pixels)), labels, names, digest)


def _choose_file(path: Path, split: str | None) -> Path:
    if path.is_file():
        choose_split(split, [None], str(path))
        return path
    # uncompressed before .gz: it can be mapped
    files = [entry for entry in sorted(path.iterdir(), reverse=True) if is_idx_images(entry.name)]
    found = {_unpacked(entry.name): entry for entry in files}
    splits = {plain: _split_of_file(plain) for plain in sorted(found)}
    chosen = choose_split(split, list(splits.values()), str(path))
    of_split = [plain for plain in splits if splits[plain] == chosen]
    if len(of_split) > 1:
        raise SourceError(f"{path} holds several images files ({', '.join(of_split)}); name one of them")
    return found[of_split[0]]


def _unpacked(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def _split_of_file(plain: str) -> str | None:
    """The last word before "images", as in emnist-letters-train-images-idx3-ubyte."""
    match = IDX_IMAGES.fullmatch(plain)
    return split_of(match["stem"].rpartition("-")[2]) if match else None


def _read_array(path: Path, *, dims: int) -> NDArray[np.uint8]:
    packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            header = stream.read(4 + 4 * dims)
            shape = (
                tuple(np.frombuffer(header[4:], ">u4").astype(int).tolist())
                if len(header) == 4 + 4 * dims
                else ()
            )
            if header[:4] != bytes((0, 0, 8, dims)) or len(shape) != dims:
                raise SourceError(
                    f"{path} is not an IDX file of bytes in {dims} dimensions "
                    f"(it starts with {header[:4].hex() or 'nothing'}); copy it again"
                )
            size = int(np.prod(shape, dtype=object))
            if not packed:
                count = path.stat().st_size - len(header)
            else:
                data = stream.read(size + 1)
                count = len(data)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise SourceError(f"{path} cannot be unpacked ({error}); copy it again") from error
    if count != size:
        raise SourceError(f"{path}: its header says {list(shape)} bytes, and it has {count}; copy it again")
    if size == 0:
        raise SourceError(f"{path} is empty: its shape is {list(shape)}")
    if packed:
        return np.frombuffer(data, np.uint8).reshape(shape)
    return np.memmap(path, np.uint8, mode="r", offset=len(header), shape=shape)
