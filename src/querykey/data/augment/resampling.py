"""Crop, flip and scale batches in one resampling, with a different box for each image.

A row of the result is a weighted sum of rows of the box, and so is a column: two small matrices per image.
Small images are multiplied by them in batched matrix products. On a CPU large images are resampled one by
one, in bands of rows and columns, so that only non-zero weights are multiplied.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Interpolation", "resample", "tap_weights"]

Interpolation = Literal["bilinear", "bicubic"]

_Numbers = NDArray[Any]

_LARGE = 96
"""Pixels per side above which images are resampled one by one, in bands."""
_BAND = 32


def resample(
    images: Tensor,
    boxes: Tensor,
    *,
    size: int,
    flips: Tensor | None = None,
    limits: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Scale a box of each image to a square.

    Args:
        images: uint8, or float 0 to 1, [images, channels, height, width].
        boxes: [images, 4] on the CPU: top, left, height and width in pixels, within the image.
        size: Side of the result.
        flips: bool [images] on the CPU: mirrored left to right.
        limits: [images, 4] like boxes: the pixels that may be read; by default the box, as if it had been
            cropped first.
        interpolation: Bicubic as in PyTorch (a = -0.75, with antialias -0.5).
        antialias: Whether the kernel is widened if the box is larger than the result.

    Returns:
        Planes, float32 [channels, images, size, size], clipped to 0 to 1.
    """
    spans = boxes.numpy().astype(np.float32)
    bounds = spans if limits is None else limits.numpy().astype(np.float32)
    mirrored = np.zeros(len(spans), bool) if flips is None else flips.numpy()
    count, channels, height, width = images.shape
    planes = torch.empty(channels, count, size, size, device=images.device)
    kernel = (interpolation, antialias)
    if images.device.type == "cpu" and max(height, width, size) > _LARGE:
        for row in range(count):
            _resample_large(images[row], planes[:, row], spans[row], bounds[row], bool(mirrored[row]), kernel)
        return _clipped(planes, interpolation)
    on = images.device
    rows = _matrix(spans[:, 0::2], bounds[:, 0::2], None, size, height, kernel).to(on)
    columns = _matrix(spans[:, 1::2], bounds[:, 1::2], mirrored, size, width, kernel).to(on)
    if images.dtype == torch.uint8:
        rows.div_(255)
    source = torch.empty(channels, count, height, width, device=on).copy_(images.transpose(0, 1))
    for channel in range(channels):
        torch.bmm(rows, torch.bmm(source[channel], columns.transpose(1, 2)), out=planes[channel])
    return _clipped(planes, interpolation)


def _clipped(planes: Tensor, interpolation: Interpolation) -> Tensor:
    return planes.clamp_(0, 1) if interpolation == "bicubic" else planes


def tap_weights(
    centres: _Numbers,
    pixels: _Numbers,
    low: _Numbers,
    high: _Numbers,
    scale: _Numbers,
    interpolation: Interpolation,
    antialias: bool,
) -> _Numbers:
    """The weight of each source pixel in each pixel of the result; the sum over source pixels is 1.

    Args:
        centres: [n, out], position in the source of the middle of each result pixel; pixel 0 is 0 to 1.
        pixels: [n, taps], consecutive indices of source pixels, including all with a weight.
        low: [n], the first pixel that may be read.
        high: [n], one past the last.
        scale: [n], source pixels per result pixel.
        interpolation: The kernel.
        antialias: Whether it is widened by scale if that is above 1.

    Returns:
        float32 [n, out, taps].
    """
    if interpolation == "bicubic" and not antialias:
        return _cubic_taps(centres, pixels, low, high)
    distance = (pixels[:, None, :] + np.float32(0.5)) - centres[:, :, None]
    if antialias:
        distance /= np.maximum(scale, 1)[:, None, None]
    np.abs(distance, out=distance)
    if interpolation == "bicubic":
        weights = _cubic(distance, -0.5)
    else:
        weights = np.maximum(np.subtract(1, distance, out=distance), 0, out=distance)
    inside = (pixels >= low[:, None]) & (pixels < high[:, None])
    weights *= inside.astype(np.float32)[:, None, :]
    weights /= weights.sum(axis=2, keepdims=True)
    return weights


def _cubic(distance: _Numbers, a: float) -> _Numbers:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    weights: _Numbers = near * (distance <= 1) + far * ((distance > 1) & (distance < 2))
    return weights


def _cubic_taps(centres: _Numbers, pixels: _Numbers, low: _Numbers, high: _Numbers) -> _Numbers:
    """Four taps per pixel; those outside count for the pixel at the edge."""
    first = np.floor(centres - np.float32(0.5))
    weights = np.zeros((*centres.shape, pixels.shape[1]), np.float32)
    row, column = np.indices(centres.shape)
    for step in (-1, 0, 1, 2):
        tap = first + step
        place = np.clip(tap, low[:, None], high[:, None] - 1) - pixels[:, :1]
        weights[row, column, place.astype(np.int64)] += _cubic(np.abs(tap + np.float32(0.5) - centres), -0.75)
    return weights


def _centres(spans: _Numbers, flips: _Numbers | None, size: int) -> tuple[_Numbers, _Numbers]:
    """Positions of result pixels along an axis [n, size], and source pixels per result pixel [n]."""
    start, length = spans[:, :1], spans[:, 1:]
    scale = length / size
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale
    if flips is not None:
        centres = np.where(flips[:, None], length - centres, centres)
    return centres + start, scale[:, 0]


def _matrix(
    spans: _Numbers,
    limits: _Numbers,
    flips: _Numbers | None,
    size: int,
    source: int,
    kernel: tuple[Interpolation, bool],
) -> Tensor:
    """[n, size, source]: the weights along an axis."""
    centres, scale = _centres(spans, flips, size)
    pixels = np.broadcast_to(np.arange(source, dtype=np.float32), (len(spans), source))
    low, high = limits[:, 0], limits[:, 0] + limits[:, 1]
    return torch.from_numpy(tap_weights(centres, pixels, low, high, scale, kernel[0], kernel[1]))


def _bands(
    span: _Numbers, limit: _Numbers, flip: bool, size: int, kernel: tuple[Interpolation, bool]
) -> list[tuple[int, int, Tensor]]:
    """The weights of an image along an axis, in bands: (first result pixel, first source pixel, weights)."""
    interpolation, antialias = kernel
    centres, scale = _centres(span[None], np.array([flip]), size)
    low, length = int(limit[0]), int(limit[1])
    band = min(_BAND, size)
    starts = [min(start, size - band) for start in range(0, size, band)]
    parts = np.stack([centres[0, start : start + band] for start in starts])
    reach = (2 if interpolation == "bicubic" else 1) * (max(float(scale[0]), 1.0) if antialias else 1.0)
    ends = np.sort(parts[:, [0, -1]], axis=1)
    taps = min(math.ceil((ends[:, 1] - ends[:, 0]).max() + 2 * reach) + 2, length)
    first = np.clip(np.floor(ends[:, 0] - np.float32(reach) - 1), low, low + length - taps)
    pixels = first[:, None] + np.arange(taps, dtype=np.float32)
    lowest, highest = np.array([[low], [low + length]], np.float32)
    weights = torch.from_numpy(tap_weights(parts, pixels, lowest, highest, scale, interpolation, antialias))
    return list(zip(starts, first.astype(int).tolist(), weights, strict=True))


def _resample_large(
    image: Tensor,
    plane: Tensor,
    box: _Numbers,
    limit: _Numbers,
    flip: bool,
    kernel: tuple[Interpolation, bool],
) -> None:
    """Resample an image into its planes [channels, size, size]."""
    size = plane.shape[-1]
    top, left, height, width = (int(number) for number in limit)
    channels = len(image)
    # all channels of a row side by side: one product for all
    part = torch.empty(height, channels, width)
    part.copy_(image[:, top : top + height, left : left + width].transpose(0, 1))
    part = part.view(height * channels, width)
    narrow = torch.empty(height * channels, size)
    for start, first, weights in _bands(box[1::2], limit[1::2], flip, size, kernel):
        taps = part[:, first - left : first - left + weights.shape[1]]
        torch.mm(taps, weights.T, out=narrow[:, start : start + len(weights)])
    narrow = narrow.view(height, channels * size)
    small = torch.empty(size, channels * size)
    for start, first, weights in _bands(box[0::2], limit[0::2], False, size, kernel):
        taps = narrow[first - top : first - top + weights.shape[1]]
        torch.mm(weights, taps, out=small[start : start + len(weights)])
    rows = small.view(size, channels, size).transpose(0, 1)
    if image.dtype == torch.uint8:
        torch.mul(rows, 1 / 255, out=plane)
    else:
        plane.copy_(rows)
