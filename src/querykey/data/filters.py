"""Blur, edges and noise of whole batches, with numbers of each image's own.

Images are planes: float32 [channels, images, height, width].
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_noise_", "blur", "sobel"]

_BAND = 32


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
    size = planes.shape[-1]
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigmas.cpu()[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    band = size if planes.device.type != "cpu" or size <= 96 else _BAND
    # row o of a band's matrix holds the taps from column o on; the last column of `padded` is 0
    place = torch.arange(band + 2 * radius) - torch.arange(band)[:, None]
    place = torch.where((place < 0) | (place > 2 * radius), 2 * radius + 1, place)
    matrices = F.pad(taps, (0, 1))[:, place].to(planes.device)
    blurred = torch.empty_like(planes)
    for channel in range(len(planes)):
        rows = F.pad(planes[channel], (0, 0, radius, radius), mode="reflect")
        between = _banded(matrices, rows, band, torch.empty_like(planes[channel]))
        columns = F.pad(between, (radius, radius), mode="reflect").transpose(1, 2)
        _banded(matrices, columns, band, blurred[channel].transpose(1, 2))
    return blurred


def _banded(matrices: Tensor, padded: Tensor, band: int, out: Tensor) -> Tensor:
    """Each band of rows [images, band, width] as the matrix of its image times the rows it needs."""
    size = out.shape[1]
    for start in range(0, size, band):
        first = min(start, size - band)
        out[:, first : first + band] = torch.bmm(matrices, padded[:, first : first + matrices.shape[2]])
    return out


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
