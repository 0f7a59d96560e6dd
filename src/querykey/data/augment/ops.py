"""Changes of batches of images, in place, with different parameters for each image, and their resampling.

Images are planes: float32 [channels, images, height, width], 0 to 1, so that each channel of all images is
contiguous. Functions in place return their argument.

Crop, flip and scale are one resampling with a box for each image. A row of the result is a weighted sum of
rows of the box, and so is a column: two small matrices per image. Small images are multiplied by them in
batched matrix products. On a CPU large images are resampled one by one, in bands of rows and columns, so that
only non-zero weights are multiplied.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from querykey.data.augment.parameters import ViewParameters

__all__ = [
    "Interpolation",
    "add_noise_",
    "blur",
    "brighten_",
    "change_",
    "chunks",
    "contrast_",
    "cut_",
    "gray_",
    "normalise_",
    "put_",
    "resample",
    "saturate_",
    "sobel",
    "solarize_",
    "tap_weights",
    "turn_hue_",
]
Interpolation = Literal["bilinear", "bicubic"]


_LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue, ITU-R BT.601."""


def brighten_(planes: Tensor, factors: Tensor) -> Tensor:
    """Multiply each image by its factor [images] >= 0; clipped to 0..1."""
    return planes.mul_(factors[:, None, None]).clamp_(0, 1)


def contrast_(planes: Tensor, factors: Tensor) -> Tensor:
    """Scale the contrast around the mean gray of each image: mean + factor * (x - mean), clipped."""
    # by rows first: a sum over a large image would depend on the number of threads
    means = planes.mean(3).mean(2)
    means = _luma(means) if len(planes) == 3 else means[0]
    return planes.mul_(factors[:, None, None]).add_((means * (1 - factors))[:, None, None]).clamp_(0, 1)


def saturate_(planes: Tensor, factors: Tensor) -> Tensor:
    """Scale the saturation of three channels: gray + factor * (x - gray) of each pixel, clipped."""
    gray = _luma(planes).mul_((1 - factors)[:, None, None])
    return planes.mul_(factors[:, None, None]).add_(gray).clamp_(0, 1)


def gray_(planes: Tensor) -> Tensor:
    """Convert to gray, in all three channels."""
    return planes.copy_(_luma(planes).expand_as(planes))


def solarize_(planes: Tensor, threshold: float) -> Tensor:
    """Invert values at or above the threshold: 1 - value."""
    # x + reached * (1 - 2x)
    reached = torch.ge(planes, threshold, out=torch.empty_like(planes))
    return planes.add_(reached.mul_(planes.mul(-2).add_(1)))


def turn_hue_(planes: Tensor, turns: Tensor) -> Tensor:
    r"""Rotate the hue of each image by a fraction of the circle, in HSV; three channels.

    With the hue :math:`h \in [0, 6)`, the lowest channel *m* and the chroma *c*, a channel is
    :math:`m + c \cdot p(h)`, where *p* is 1 in the third of the circle around the hue of the channel,
    0 in the opposite third, and linear between them.

    Args:
        planes: [3, images, height, width], changed in place.
        turns: [images], -0.5 to 0.5.
    """
    red, green, blue = planes
    upper, low = torch.maximum(green, blue), torch.minimum(green, blue)
    # sorted: the highest channel first, and the origin of the hue on the circle, in sixths
    start = _is_below(green, blue).mul_(-6)
    start.add_(_is_below(red, upper).mul_(start.mul(-2).sub_(2)))
    high = torch.maximum(red, upper)
    hue = torch.minimum(red, upper, out=upper)
    chroma = torch.minimum(hue, low)
    hue.sub_(low)
    torch.sub(high, chroma, out=chroma)
    # gray has no hue: 0 divided by a positive number
    hue.div_(torch.clamp(chroma, min=1e-12, out=low)).add_(start).abs_()
    # back to 0 to 6, after a rotation made positive
    hue.add_(((turns + 1) * 6)[:, None, None]).mul_(1 / 6).frac_().mul_(6)
    for channel, place in enumerate((3, 2, 4)):
        part = torch.sub(hue, place, out=planes[channel]).abs_().clamp_(1, 2).mul_(chroma)
        if channel == 0:
            part.add_(torch.sub(high, chroma, out=low)).sub_(chroma)
        else:
            torch.sub(low.copy_(high).add_(chroma) if channel == 1 else low, part, out=part)
    return planes


def _is_below(some: Tensor, others: Tensor) -> Tensor:
    """1 where some < others, else 0; directly as numbers, since bool to float is slow."""
    return torch.lt(some, others, out=torch.empty_like(some))


def _luma(planes: Tensor) -> Tensor:
    gray = planes[0] * _LUMA[0]
    for channel in (1, 2):
        gray.add_(planes[channel] * _LUMA[channel])
    return gray


_LARGE, _BAND = 96, 32
"""Pixels per side above which most of the matrix of a row would be 0, so that bands are used."""


def blur(planes: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Blur each image with its Gaussian; edges are reflected, without the edge pixel.

    Args:
        planes: [channels, images, size, size], size > radius.
        sigmas: [images], in pixels, > 0.
        radius: The kernel has 2 * radius + 1 taps.

    Returns:
        New planes.
    """
    if radius < 1:
        return planes.clone()
    channels, count, size, _ = planes.shape
    is_large = planes.device.type == "cpu" and size > _LARGE and size % _BAND == 0
    matrices = _gaussians(sigmas.cpu().numpy(), radius, _BAND if is_large else size)
    matrices = matrices.repeat(channels, 1, 1).to(planes.device)
    rows = planes.reshape(channels * count, size, size)
    for _ in range(2):
        rows = _blur_and_turn(rows, matrices, radius)
    return rows.view(channels, count, size, size)


def _gaussians(sigmas: NDArray[np.float32], radius: int, band: int) -> Tensor:
    """[n, band, band + 2 * radius]: row o holds the taps from column o on."""
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigmas[:, None].astype(np.float64)) ** 2)
    taps /= taps.sum(axis=1, keepdims=True)
    matrices = np.zeros((len(sigmas), band, band + 2 * radius), np.float32)
    # each row starts one column after the one above
    step, row, column = matrices.strides
    diagonals = np.lib.stride_tricks.as_strided(
        matrices, (len(sigmas), band, 2 * radius + 1), (step, row + column, column)
    )
    diagonals[:] = taps[:, None, :]
    return torch.from_numpy(matrices)


def _blur_and_turn(images: Tensor, matrices: Tensor, radius: int) -> Tensor:
    """Blur along the rows and transpose: applied twice, rows and columns are blurred."""
    count, size, _ = images.shape
    band, reach = matrices.shape[1:]
    padded = images.new_empty(count, size, size + 2 * radius)
    padded[:, :, radius:-radius] = images
    padded[:, :, :radius] = images[:, :, 1 : radius + 1].flip(2)
    padded[:, :, size + radius :] = images[:, :, size - 1 - radius : size - 1].flip(2)
    if band == size:
        return torch.bmm(matrices, padded.transpose(1, 2))
    turned = torch.empty_like(images)
    bands = size // band
    for image, matrix, result in zip(padded, matrices, turned, strict=True):
        windows = image.as_strided((bands, reach, size), (band, 1, size + 2 * radius))
        torch.bmm(matrix.expand(bands, -1, -1), windows, out=result.view(bands, band, size))
    return turned


def sobel(planes: Tensor) -> Tensor:
    """The length of the Sobel gradient of the gray image, divided by 4, at most 1.

    Args:
        planes: [1 or 3, images, height, width].

    Returns:
        New planes; all channels are the same.
    """
    gray = planes.mean(0)
    padded = F.pad(gray, (1, 1, 1, 1), mode="reflect")
    down = padded[:, 2:] - padded[:, :-2]
    across = padded[:, :, 2:] - padded[:, :, :-2]
    vertical = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    horizontal = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    strength = (vertical.square() + horizontal.square()).sqrt().div_(4).clamp_(0, 1)
    return strength.expand_as(planes).clone()


def add_noise_(planes: Tensor, deviation: float, keys: NDArray[np.uint64]) -> Tensor:
    """Add Gaussian noise to each image, seeded by its key; clipped to 0..1.

    Args:
        planes: Changed in place.
        deviation: Standard deviation of the noise, on the scale 0 to 1.
        keys: [images].
    """
    shape = len(planes), *planes.shape[2:]
    for image, key in enumerate(keys):
        drawn = np.random.Generator(np.random.Philox(key=int(key))).standard_normal(shape, np.float32)
        planes[:, image].add_(torch.from_numpy(drawn).to(planes.device).mul_(deviation)).clamp_(0, 1)
    return planes


_CHUNK_BYTES = 3_200_000
"""Size of the planes that a thread processes at once: they fit the cache, and calls are amortised."""

_WORTH_A_CALL = 4096
"""Size of an image from which copying images one by one is faster than by index."""

_JITTERS = (brighten_, contrast_, saturate_, turn_hue_)


def chunks(count: int, *, channels: int, size: int, device: torch.device) -> Iterator[slice]:
    """Slices of images to process at once: all on an accelerator, few on a CPU."""
    step = count
    if device.type == "cpu":
        step = max(1, torch.get_num_threads() * _CHUNK_BYTES // (4 * channels * size * size))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def change_(
    planes: Tensor, drawn: ViewParameters, *, blur_radius: int, threshold: float, deviation: float
) -> None:
    """Apply the changes between resampling and normalisation, in place.

    Args:
        planes: float32 [channels, images, size, size], 0 to 1.
        drawn: Parameters; jittered images come first.
        blur_radius: Of the blur's kernel.
        threshold: Of solarize.
        deviation: Standard deviation of the noise.
    """

    def some(chosen: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        rows = chosen.nonzero()[:, 0]
        if len(rows) == len(chosen):
            planes.copy_(change(planes))
        elif len(rows):
            rows = rows.to(planes.device)
            put_(planes, rows, change(planes.index_select(1, rows)))

    for turn in (1, 2, 3):
        some(drawn.turns == turn, lambda chosen, turn=turn: chosen.rot90(turn, (2, 3)))  # type: ignore[misc]
    if count := int(drawn.jitters.sum()):
        factors = drawn.factors[:count].to(planes.device)
        for kind in drawn.order:
            if bool((drawn.factors[:count, kind] != (kind != 3)).any()):
                _JITTERS[kind](planes[:, :count], factors[:, kind])
    some(drawn.grays, gray_)
    is_blurred = drawn.sigmas > 0
    some(is_blurred, lambda chosen: blur(chosen, drawn.sigmas[is_blurred], blur_radius))
    some(drawn.solarized, lambda chosen: solarize_(chosen, threshold))
    some(drawn.edges, sobel)
    keys = drawn.noise_keys[drawn.noisy].numpy().astype(np.uint64)
    some(drawn.noisy, lambda chosen: add_noise_(chosen, deviation, keys))


def put_(planes: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Copy changed images [channels, rows, ...] into `rows` of the planes."""
    if planes.device.type == "cpu" and planes[0, 0].numel() > _WORTH_A_CALL:
        for place, row in enumerate(rows.tolist()):
            planes[:, row].copy_(changed[:, place])
    elif len(rows) == planes.shape[1]:
        planes.copy_(changed.index_select(1, torch.argsort(rows)))
    else:
        planes.index_copy_(1, rows, changed)


def normalise_(planes: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """Subtract the mean of each channel and divide by its standard deviation, in place."""
    for channel, (middle, width) in enumerate(zip(mean, deviation, strict=True)):
        planes[channel].sub_(middle).mul_(1 / width)


def cut_(planes: Tensor, holes: Tensor) -> Tensor:
    """Set the hole of each image to 0, the mean of normalised images.

    Args:
        planes: Changed in place.
        holes: int64 [images, 4]: top, left, height, width.
    """
    for image in (holes[:, 2] > 0).nonzero()[:, 0].tolist():
        top, left, height, width = holes[image].tolist()
        planes[:, image, top : top + height, left : left + width] = 0
    return planes


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
