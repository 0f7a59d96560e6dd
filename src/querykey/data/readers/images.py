"""Images of a source: which files they are, and encoded ones that are decoded on access."""

import importlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.data.items import Items
from querykey.errors import DamagedItemError
from querykey.io.images import decode_image, pillow

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "PHOTOGRAPHS",
    "EncodedImages",
    "is_image",
    "readable_suffixes",
]

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip


_PLUGINS = ("pillow_heif", "pi_heif", "pillow_avif", "pillow_jxl")
"""Packages that teach Pillow a format once they are imported, where they are installed."""

PHOTOGRAPHS = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".ico", ".tga", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw", ".exr", ".hdr", ".dcm", ".pdf", ".eps",
)  # fmt: skip
"""Endings of other images: read where Pillow or a plug-in of it reads them, else named as what they are."""


@cache
def readable_suffixes() -> frozenset[str]:
    """The endings of images that Pillow reads on this machine, with the plug-ins that are installed.

    A plug-in that a program registers after the first call is not seen.
    """
    image_module = pillow()[0]
    for name in _PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - not installed, or broken: its format is then left out, and named
            continue
        if hasattr(plugin, "register_heif_opener"):
            plugin.register_heif_opener()
    image_module.init()
    known = image_module.registered_extensions().items()
    opened = {ending for ending, kind in known if kind in image_module.OPEN}
    # Pillow registers endings of documents and arrays too
    return frozenset(IMAGE_SUFFIXES) | (opened & {*PHOTOGRAPHS} - {".pdf", ".eps", ".svg"})


def is_image(name: str) -> bool:
    """Whether a file is an image by its ending, in either case; hidden files are none."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 - paths of a tar file and keys too
    if name.startswith(".") or not ending:
        return False
    return ending in IMAGE_SUFFIXES or (ending in PHOTOGRAPHS and ending in readable_suffixes())


class EncodedImages(Items):
    """Images kept as {"bytes", "path"}, bytes, or paths, decoded on access.

    Args:
        cells: One of these an image.
        names: What to call each in a message.
        folder: Where a path without bytes starts.
    """

    def __init__(self, cells: Sequence[Any], names: Sequence[str], folder: Path) -> None:
        self._cells = cells
        self._names = names
        self._folder = folder

    def __len__(self) -> int:
        return len(self._cells)

    def _read(self, row: int) -> "Image.Image":
        cell, what = self._cells[row], self._names[row]
        path = cell
        if isinstance(cell, dict):
            path = cell["path"] if cell.get("bytes") is None else None
            cell = cell.get("bytes")
        if isinstance(path, (str, Path)):
            try:
                cell = (self._folder / path).read_bytes()
            except OSError as error:
                raise DamagedItemError(f"{what} cannot be read: {error}") from error
        if cell is None:
            raise DamagedItemError(f"{what} is missing (null)")
        if not isinstance(cell, bytes):
            raise DamagedItemError(f"{what} is a {type(cell).__name__}, not the bytes of an image file")
        return decode_image(cell, what=what)
