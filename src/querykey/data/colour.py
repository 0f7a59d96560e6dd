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
    reached = torch.ge(planes, threshold, out=torch.empty_like(planes))
    return planes.add_(reached.mul_(planes.mul(-2).add_(1)))


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
    upper, low = torch.maximum(green, blue), torch.minimum(green, blue)
    # sorted: the highest channel first, and where on the circle (in sixths) the counting starts
    start = _is_below(green, blue).mul_(-6)
    start.add_(_is_below(red, upper).mul_(start.mul(-2).sub_(2)))
    high = torch.maximum(red, upper)
    hue = torch.minimum(red, upper, out=upper)
    chroma = torch.minimum(hue, low)
    hue.sub_(low)
    torch.sub(high, chroma, out=chroma)
    # gray has no hue: 0 by anything above 0
    hue.div_(torch.clamp(chroma, min=1e-12, out=low)).add_(start).abs_()
    # 0 to 6 again, after a turn that is made forward
    hue.add_(((turns + 1) * 6)[:, None, None]).mul_(1 / 6).frac_().mul_(6)
    for channel, place in enumerate((3, 2, 4)):
        part = torch.sub(hue, place, out=planes[channel]).abs_().clamp_(1, 2).mul_(chroma)
        if channel == 0:
            part.add_(torch.sub(high, chroma, out=low)).sub_(chroma)
        else:
            torch.sub(low.copy_(high).add_(chroma) if channel == 1 else low, part, out=part)
    return planes


def _is_below(some: Tensor, others: Tensor) -> Tensor:
    """1 where some < others, else 0; as numbers at once, for bool to float is slow."""
    return torch.lt(some, others, out=torch.empty_like(some))


def _luma(planes: Tensor) -> Tensor:
    gray = planes[0] * _LUMA[0]
    for channel in (1, 2):
        gray.add_(planes[channel] * _LUMA[channel])
    return gray
