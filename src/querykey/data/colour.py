"""Colour changes of whole batches, in place, a number of its own for each image.

Images are planes here: float32 [channels, images, height, width] with values 0 to 1, so that each
channel of all images is one run of memory. What a function changes it also returns.
"""

import torch
from torch import Tensor

__all__ = ["brighten_", "contrast_", "gray_", "saturate_", "solarize_", "turn_hue_"]

_LUMA = (0.2989, 0.587, 0.114)
"""Of red, green and blue in gray, ITU-R BT.601."""


def brighten_(planes: Tensor, factors: Tensor) -> Tensor:
    """Multiply each image by its factor [images] >= 0; clipped to 0..1."""
    return planes.mul_(factors[:, None, None]).clamp_(0, 1)


def contrast_(planes: Tensor, factors: Tensor) -> Tensor:
    """Move each image away from the mean of its own gray: mean + factor * (x - mean), clipped."""
    # by rows first: one sum over all of a large image would depend on the number of threads
    means = planes.mean(3).mean(2)
    means = _luma(means) if len(planes) == 3 else means[0]
    return planes.mul_(factors[:, None, None]).add_((means * (1 - factors))[:, None, None]).clamp_(0, 1)


def saturate_(planes: Tensor, factors: Tensor) -> Tensor:
    """Move each pixel away from its own gray: gray + factor * (x - gray), clipped; three channels."""
    gray = _luma(planes).mul_((1 - factors)[:, None, None])
    return planes.mul_(factors[:, None, None]).add_(gray).clamp_(0, 1)


def gray_(planes: Tensor) -> Tensor:
    """Put each pixel's gray into all three channels."""
    return planes.copy_(_luma(planes).expand_as(planes))


def solarize_(planes: Tensor, threshold: float) -> Tensor:
    """Turn values at or above the threshold into 1 - value."""
    # x or 1 - x: their distance from each other, where the threshold says so
    return planes.add_((planes >= threshold).to(planes.dtype).mul_(planes.mul(-2).add_(1)))


def turn_hue_(planes: Tensor, turns: Tensor) -> Tensor:
    r"""Turn the hue of each image by a share of the circle, in HSV; three channels.

    With the hue :math:`h \in [0, 6)`, the lowest channel *m* and the chroma *c*, a channel is
    :math:`m + c \cdot p(h)`, where *p* is 1 in the third of the circle around the channel's own hue, 0
    in the opposite third, and a straight line between them.

    Args:
        planes: [3, images, height, width], changed in place.
        turns: [images], -0.5 to 0.5.
    """
    red, green, blue = planes
    upper, lower = torch.maximum(green, blue), torch.minimum(green, blue)
    # sorted: the highest channel first, and where on the circle (in sixths) the counting starts
    start = (green < blue).to(planes.dtype).mul_(-6)
    start.add_((red < upper).to(planes.dtype).mul_(start.mul(-2).sub_(2)))
    middle = torch.minimum(red, upper)
    high = torch.maximum(red, upper)
    low = torch.minimum(middle, lower)
    chroma = high.sub_(low)
    # gray has no hue: 0 by anything above 0
    hue = middle.sub_(lower).div_(chroma.clamp(min=1e-12)).add_(start).abs_()
    hue.add_((turns * 6)[:, None, None])
    hue.sub_(torch.floor(hue / 6).mul_(6))
    for channel, (place, slope) in enumerate(((3.0, 1), (2.0, -1), (4.0, -1))):
        part = planes[channel]
        torch.sub(hue, place, out=part).abs_()
        part = part.sub_(1) if slope == 1 else part.neg_().add_(2)
        part.clamp_(0, 1).mul_(chroma).add_(low)
    return planes


def _luma(planes: Tensor) -> Tensor:
    gray = planes[0] * _LUMA[0]
    for channel in (1, 2):
        gray.add_(planes[channel] * _LUMA[channel])
    return gray
