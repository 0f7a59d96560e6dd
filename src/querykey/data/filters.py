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
    # each row starts one place further than the one above
    step, row, column = matrices.strides
    diagonals = np.lib.stride_tricks.as_strided(
        matrices, (len(sigmas), band, 2 * radius + 1), (step, row + column, column)
    )
    diagonals[:] = taps[:, None, :]
    return torch.from_numpy(matrices)


def _blur_and_turn(images: Tensor, matrices: Tensor, radius: int) -> Tensor:
    """Blur along the rows and swap rows and columns: done twice, both are blurred and back in place."""
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
