"""Crop, flip and scale whole batches in one resampling, each image with a box of its own.

A row of the result is a weighted sum of rows of the box, and a column likewise: two small matrices an
image. Small images take them as batched matrix products. On a CPU large images go one by one, in bands
of rows and columns, so that only weights that are not 0 are multiplied.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Interpolation", "resample", "tap_weights"]

Interpolation = Literal["bilinear", "bicubic"]

_LARGE = 96
"""Pixels a side from which images are taken one by one in bands."""
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
        flips: bool [images] on the CPU: which are mirrored left to right.
        limits: [images, 4] like boxes: the pixels that may be read; the box itself where not given,
            as if it had been cut out first.
        interpolation: Between pixels; bicubic as torch has it (a = -0.75, with antialias -0.5).
        antialias: Whether a kernel is widened where the box is larger than the result.

    Returns:
        Planes, float32 [channels, images, size, size], 0 to 1: what bicubic shoots over is clipped.
    """
    boxes = boxes.to(torch.float32)
    limits = boxes if limits is None else limits.to(torch.float32)
    count, channels, height, width = images.shape
    planes = torch.empty(channels, count, size, size, device=images.device)
    if images.device.type == "cpu" and max(height, width, size) > _LARGE:
        for row in range(count):
            flip = flips is not None and bool(flips[row])
            _resample_large(
                images[row], planes[:, row], boxes[row], limits[row], flip, (interpolation, antialias)
            )
        return planes.clamp_(0, 1)
    on = images.device
    rows = _matrix(boxes[:, 0::2], limits[:, 0::2], None, size, height, interpolation, antialias).to(on)
    columns = _matrix(boxes[:, 1::2], limits[:, 1::2], flips, size, width, interpolation, antialias).to(on)
    if images.dtype == torch.uint8:
        rows.div_(255)
    source = torch.empty(channels, count, height, width, device=on).copy_(images.transpose(0, 1))
    for channel in range(channels):
        torch.bmm(rows, torch.bmm(source[channel], columns.transpose(1, 2)), out=planes[channel])
    # bilinear too: rounding may leave the range
    return planes.clamp_(0, 1)


def tap_weights(
    centres: Tensor,
    pixels: Tensor,
    low: Tensor,
    high: Tensor,
    scale: Tensor,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """How much of each source pixel goes into each pixel of the result; the sum over pixels is 1.

    Args:
        centres: [n, out], where the middle of each result pixel lies in the source, pixel 0 being 0 to 1.
        pixels: [n, taps], numbers of source pixels, which include all that count.
        low: [n], the first pixel that may be read.
        high: [n], one past the last.
        scale: [n], source pixels a result pixel.
        interpolation: The kernel.
        antialias: Whether it is widened by scale where that is above 1.

    Returns:
        float32 [n, out, taps].
    """
    if interpolation == "bicubic" and not antialias:
        return _cubic_taps(centres, pixels, low, high)
    distance = (pixels[:, None, :] + 0.5) - centres[:, :, None]
    if antialias:
        distance.div_(scale.clamp(min=1)[:, None, None])
    distance.abs_()
    weights = _cubic(distance, -0.5) if interpolation == "bicubic" else distance.neg_().add_(1).clamp_(min=0)
    inside = (pixels >= low[:, None]) & (pixels < high[:, None])
    weights.mul_(inside[:, None, :].to(weights.dtype))
    return weights.div_(weights.sum(2, keepdim=True))


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return near * (distance <= 1) + far * ((distance > 1) & (distance < 2))


def _cubic_taps(centres: Tensor, pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Four taps a pixel; one outside counts for the pixel at the edge."""
    first = (centres - 0.5).floor()
    weights = torch.zeros(*centres.shape, pixels.shape[1])
    for step in (-1, 0, 1, 2):
        tap = first + step
        weight = _cubic((tap + 0.5 - centres).abs(), -0.75)
        place = tap.clamp(low[:, None], high[:, None] - 1) - pixels[:, :1]
        weights.scatter_add_(2, place.long()[:, :, None], weight[:, :, None])
    return weights


def _centres(spans: Tensor, flips: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Where result pixels lie along one axis [n, size], and source pixels a result pixel [n]."""
    start, length = spans[:, :1], spans[:, 1:]
    centres = (torch.arange(size) + 0.5) * (length / size)
    if flips is not None:
        centres = torch.where(flips[:, None], length - centres, centres)
    return centres + start, length[:, 0] / size


def _matrix(
    spans: Tensor,
    limits: Tensor,
    flips: Tensor | None,
    size: int,
    source: int,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """[n, size, source]: the weights along one axis."""
    centres, scale = _centres(spans, flips, size)
    pixels = torch.arange(source, dtype=torch.float32).expand(len(spans), -1)
    low, high = limits[:, 0], limits[:, 0] + limits[:, 1]
    return tap_weights(centres, pixels, low, high, scale, interpolation, antialias)


def _bands(
    span: Tensor, limit: Tensor, flip: bool, size: int, kernel: tuple[Interpolation, bool]
) -> list[tuple[int, int, Tensor]]:
    """The weights of one image along one axis in bands: (first result, first source pixel, weights)."""
    interpolation, antialias = kernel
    centres, scale = _centres(span[None], torch.tensor([flip]), size)
    low, length = int(limit[0]), int(limit[1])
    band = min(_BAND, size)
    starts = [min(start, size - band) for start in range(0, size, band)]
    parts = torch.stack([centres[0, start : start + band] for start in starts])
    reach = (2 if interpolation == "bicubic" else 1) * (max(float(scale), 1.0) if antialias else 1.0)
    ends = parts[:, [0, -1]].sort(dim=1).values
    taps = min(int(torch.ceil((ends[:, 1] - ends[:, 0]).max() + 2 * reach)) + 2, length)
    first = (ends[:, 0] - reach - 1).floor().clamp(low, low + length - taps)
    pixels = first[:, None] + torch.arange(taps)
    bounds = torch.tensor([float(low)]), torch.tensor([float(low + length)])
    weights = tap_weights(parts, pixels, *bounds, scale, interpolation, antialias)
    return list(zip(starts, first.int().tolist(), weights, strict=True))


def _resample_large(
    image: Tensor,
    plane: Tensor,
    box: Tensor,
    limit: Tensor,
    flip: bool,
    kernel: tuple[Interpolation, bool],
) -> None:
    """One image into its planes [channels, size, size]."""
    size = plane.shape[-1]
    top, left, height, width = (int(number) for number in limit)
    channels = len(image)
    # all channels of a row side by side, so that one product takes them all
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
        torch.div(rows, 255, out=plane)
    else:
        plane.copy_(rows)
