"""Decoding of images: files, bytes, arrays, tensors and PIL images."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from querykey.errors import DamagedItemError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["as_image", "decode_image", "image_of_array", "longest_side", "pillow", "plain_pixels"]

_ORIENTATION = 0x0112


def decode_image(data: bytes, *, what: str) -> "Image.Image":
    """Decode one image.

    The mode is kept (gray, palette, RGBA, ...), except that more than 8 bits per channel become 8: 16-bit
    values are divided by 257; floats are taken as 0 to 1, or as 0 to 255 if one is above 1. Of an animation
    the first frame is decoded. The EXIF orientation is applied.

    Args:
        data: The bytes of an image file.
        what: Name of the image, for messages.

    Raises:
        DamagedItemError: If it is empty, truncated, no image, or so large that it may be an attack.
    """
    image_module, operations = pillow()
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


def as_image(value: Any, *, what: str = "an image") -> "Image.Image":
    """Convert a value to an image like those of `decode_image`.

    Args:
        value: A PIL image, the path or the bytes of an image file, an array [h, w], [h, w, c] or
            [c, h, w], or a tensor [h, w] or [c, h, w], with 1, 3 or 4 channels. uint8 is unchanged,
            uint16 is divided by 257, bool is black and white, floats are 0 to 1, or 0 to 255 if one is
            above 1; other integers are 0 to 255, or 0 to 65535 if one is above 255.
        what: Name of the image, for messages.

    Returns:
        A PIL image of 8 bits per channel, with the EXIF orientation applied; the same object if nothing
        had to be changed.

    Raises:
        DamagedItemError: If it is no image.

    Example:
        >>> as_image(np.full((2, 3), 65535, np.uint16)).getpixel((0, 0))
        255
    """
    if isinstance(value, str | Path):
        try:
            value = Path(value).read_bytes()
        except (OSError, ValueError) as error:
            raise DamagedItemError(f"{what} cannot be read: {error}") from error
    if isinstance(value, bytes):
        return decode_image(value, what=what)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        if isinstance(value, np.ndarray):
            return image_of_array(_eight_bit_values(_channels_last(value)))
        image_module, operations = pillow()
        if isinstance(value, image_module.Image):
            return _eight_bits(_turned(value, operations))
    except DamagedItemError:
        raise
    except Exception as error:  # Pillow may read the file only now, and raise anything
        raise DamagedItemError(f"{what} cannot be decoded: {type(error).__name__}: {error}") from error
    raise DamagedItemError(
        f"{what} is a {type(value).__name__}; give a PIL image, an array, a tensor, or the path or bytes of "
        "an image file"
    )


def _turned(image: "Image.Image", operations: Any) -> "Image.Image":
    """A copy of the image with its EXIF orientation applied."""
    image.load()
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        turned: Image.Image = operations.exif_transpose(image)
    except Exception:  # noqa: BLE001 - only the metadata are damaged
        return image
    return turned


def _channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """[h, w] or [h, w, 3 or 4]."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DamagedItemError(
            f"an array of shape {list(array.shape)} is no image; give [height, width], with 1, 3 or 4 "
            "channels last or first"
        )
    return array


def _eight_bit_values(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "biuf":
        raise DamagedItemError(f"an array of {values.dtype} is no image; its numbers must be real")
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    scaled = values.astype(np.float64)
    if not np.isfinite(scaled).all():
        raise DamagedItemError("the pixels of an array are not finite numbers")
    if values.dtype.kind == "f":
        scaled = scaled * 255.0 if scaled.max() <= 1 else scaled
    elif values.dtype == np.uint16 or scaled.max() > 255:
        scaled = scaled / 257
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def image_of_array(array: NDArray[Any]) -> "Image.Image":
    """A gray [h, w] or colour [h, w, 3] array of uint8 as an image."""
    image: Image.Image = pillow()[0].fromarray(np.ascontiguousarray(array))
    return image


def plain_pixels(image: Any, *, shorter_side: int | None = None) -> NDArray[np.uint8]:
    """An image of any mode as an array: gray stays gray, other modes become RGB.

    Transparent pixels are composited on white.

    Args:
        image: As for `as_image`.
        shorter_side: Maximum shorter side of the result in pixels; a larger image is resized with
            antialiasing. The longer side is then at most `longest_side(shorter_side)`, so that a batch of a
            wide and a tall image, whose size is the product of both, stays small.

    Returns:
        uint8 [height, width] or [height, width, 3].

    Raises:
        DamagedItemError: If the mode cannot be converted.
    """
    image = as_image(image)
    try:
        if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
            laid = pillow()[0].new("RGBA", image.size, "white")
            laid.alpha_composite(image.convert("RGBA"))
            image = laid.convert("L" if image.mode in {"LA", "La", "L", "1"} else "RGB")
        elif image.mode not in {"L", "RGB"}:
            image = image.convert("L" if image.mode == "1" else "RGB")
    except ValueError as error:
        raise DamagedItemError(f"an image of mode {image.mode} cannot be converted: {error}") from error
    if shorter_side is None:
        return np.asarray(image)
    scale = min(shorter_side / min(image.size), longest_side(shorter_side) / max(image.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), pillow()[0].Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(image)


def longest_side(shorter_side: int) -> int:
    """Maximum longer side of a decoded image in pixels: 4 times the shorter one, or 512.

    Args:
        shorter_side: Maximum shorter side of a decoded image.
    """
    return max(512, 4 * shorter_side)


def pillow() -> tuple[Any, Any]:
    """The modules Image and ImageOps of Pillow.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", extra="vision", purpose="reading images") from error
    return Image, ImageOps


def _turn_(image: "Image.Image", operations: Any) -> None:
    """Apply the EXIF orientation in place."""
    try:
        operations.exif_transpose(image, in_place=True)
    except Exception:  # noqa: BLE001 - only the metadata are damaged
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
