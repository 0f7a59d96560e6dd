"""Images: one decoder for all sources."""

import importlib
import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from querykey.data.items import Items
from querykey.errors import DamagedItemError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "PHOTOGRAPHS",
    "EncodedImages",
    "decode_image",
    "image_of_array",
    "is_image",
    "plain_pixels",
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
    image_module = _pillow()[0]
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


def decode_image(data: bytes, *, what: str) -> "Image.Image":
    """Decode one image whole.

    The mode stays (gray, palette, RGBA, ...) except for more than 8 bits a channel, which become
    8: 16-bit values are divided by 257; floats are taken as 0 to 1, or as 0 to 255 where one is
    above 1. The first frame of an animation is taken. A photograph is turned the way its EXIF
    orientation says.

    Args:
        data: The bytes of an image file.
        what: Which image, for the message.

    Raises:
        DamagedItemError: If it is empty, cut short, no image, or so large that it may be an attack.
    """
    image_module, operations = _pillow()
    if not data:
        raise DamagedItemError(f"{what} is empty (0 bytes)")
    try:
        image = image_module.open(io.BytesIO(data))
        image.load()
        _turn_(image, operations)
        return _eight_bits(image)
    except image_module.UnidentifiedImageError as error:
        raise DamagedItemError(f"{what} cannot be decoded: it is no image of a known kind") from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise DamagedItemError(f"{what} cannot be decoded: {type(error).__name__}: {error}") from error


def image_of_array(array: NDArray[Any]) -> "Image.Image":
    """A gray [h, w] or colour [h, w, 3] array of uint8 as an image."""
    image: Image.Image = _pillow()[0].fromarray(np.ascontiguousarray(array))
    return image


def plain_pixels(image: "Image.Image", *, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """An image of any mode as numbers: gray stays gray, all else becomes red, green and blue.

    What is transparent lies on white.

    Args:
        image: Of 8 bits a channel, as `decode_image` gives it.
        shorter_side: Of the result at most, in pixels; a larger image is shrunk, smoothed.

    Returns:
        uint8 [height, width] or [height, width, 3].

    Raises:
        DamagedItemError: If the mode cannot be converted.
    """
    try:
        if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
            laid = _pillow()[0].new("RGBA", image.size, "white")
            laid.alpha_composite(image.convert("RGBA"))
            image = laid.convert("L" if image.mode in {"LA", "La", "L", "1"} else "RGB")
        elif image.mode not in {"L", "RGB"}:
            image = image.convert("L" if image.mode == "1" else "RGB")
    except ValueError as error:
        raise DamagedItemError(f"an image of mode {image.mode} cannot be converted: {error}") from error
    if shorter_side is not None and min(image.size) > shorter_side:
        scale = shorter_side / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), _pillow()[0].Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(image)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", extra="vision", purpose="reading images") from error
    return Image, ImageOps


def _turn_(image: "Image.Image", operations: Any) -> None:
    """Turn the pixels the way the EXIF orientation says, in place."""
    try:
        operations.exif_transpose(image, in_place=True)
    except Exception:  # noqa: BLE001 - the pixels are whole, only the note beside them is damaged
        return


def _eight_bits(image: "Image.Image") -> "Image.Image":
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("its pixels are not finite numbers")
        scaled = values * 255.0 if values.max() <= 1 else values
    elif image.mode == "I" or image.mode.startswith("I;"):
        scaled = np.asarray(image, dtype=np.float64) / 257
    else:
        return image
    return image_of_array(np.clip(np.round(scaled), 0, 255).astype(np.uint8))


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
