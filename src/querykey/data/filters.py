"""Blur, edges and noise of whole batches, with numbers of each image's own.

Images are planes: float32 [channels, images, height, width].
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_noise_", "blur", "sobel"]

_LARGE, _BAND = 96, 32
"""Above so many pixels a side most of the matrix of a whole row would be 0: bands are taken."""


def blur(planes: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Blur each image with a Gaussian of its own, edges mirrored without the edge pixel.

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
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigmas.cpu()[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    is_large = planes.device.type == "cpu" and size > _LARGE and size % _BAND == 0
    band = _BAND if is_large else size
    # row o of a band's matrix holds the taps from column o on; the last of `taps` is 0
    place = torch.arange(band + 2 * radius) - torch.arange(band)[:, None]
    place = torch.where((place < 0) | (place > 2 * radius), 2 * radius + 1, place)
    matrices = F.pad(taps, (0, 1))[:, place].to(planes.device).repeat(channels, 1, 1)
    rows = planes.reshape(channels * count, size, size)
    for _ in range(2):
        rows = _blur_and_turn(rows, matrices, radius)
    return rows.view(channels, count, size, size)


def _blur_and_turn(images: Tensor, matrices: Tensor, radius: int) -> Tensor:
    """Blur along the rows and swap rows and columns: done twice, both are blurred and back in place."""
    count, size, _ = images.shape
    band, reach = matrices.shape[1:]
    padded = images.new_empty(count, size, size + 2 * radius)
    padded[:, :, radius:-radius] = images
    for step in range(1, radius + 1):
        padded[:, :, radius - step] = images[:, :, step]
        padded[:, :, size + radius - 1 + step] = images[:, :, size - 1 - step]
    if band == size:
        return torch.bmm(matrices, padded.transpose(1, 2))
    turned = torch.empty_like(images)
    bands = size // band
    for image, matrix, result in zip(padded, matrices, turned, strict=True):
        windows = image.as_strided((bands, reach, size), (band, 1, size + 2 * radius))
        torch.bmm(matrix.expand(bands, -1, -1), windows, out=result.view(bands, band, size))
    return turned


def sobel(planes: Tensor) -> Tensor:
    """The strength of edges: the length of the Sobel gradient of the gray, by 4, at most 1.

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
    """Add Gaussian noise to each image, drawn from its own key; clipped to 0..1.

    Args:
        planes: Changed in place.
        deviation: Of the noise, on the scale 0 to 1.
        keys: [images].
    """
    shape = len(planes), *planes.shape[2:]
    for image, key in enumerate(keys):
        drawn = np.random.Generator(np.random.Philox(key=int(key))).standard_normal(shape, np.float32)
        planes[:, image].add_(torch.from_numpy(drawn).to(planes.device).mul_(deviation)).clamp_(0, 1)
    return planes
