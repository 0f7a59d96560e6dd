"""What is done to each image of a batch to make a view, as numbers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["JITTERS", "ViewParameters", "draw_boxes"]

JITTERS = ("brightness", "contrast", "saturation", "hue")
"""The four jitters; an order is a permutation of their places."""

TRIES = 10
"""How often a crop is drawn before the middle of the image is taken."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewParameters:
    """A batch's draws, all on the CPU, one row an image.

    Args:
        boxes: int64 [images, 4]: top, left, height and width of the crop in the source.
        flips: bool [images]: mirrored left to right.
        turns: int64 [images]: quarter turns against the clock, 0 to 3.
        jitters: bool [images]: whether the colours are jittered.
        factors: float32 [images, 4]: of brightness, contrast and saturation (1 changes nothing), and the
            turn of hue (share of the circle, 0 changes nothing).
        order: In which the four are done; one for the whole batch.
        grays: bool [images].
        sigmas: float32 [images]: of the blur in pixels of the result, 0 for none.
        solarized: bool [images].
        edges: bool [images]: whether the Sobel filter is applied.
        noisy: bool [images].
        noise_keys: int64 [images]: what each image's noise is drawn from.
        holes: int64 [images, 4]: top, left, height and width cut out of the result, 0 high for none.
    """

    boxes: Tensor
    flips: Tensor
    turns: Tensor
    jitters: Tensor
    factors: Tensor
    order: tuple[int, ...]
    grays: Tensor
    sigmas: Tensor
    solarized: Tensor
    edges: Tensor
    noisy: Tensor
    noise_keys: Tensor
    holes: Tensor

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.boxes)

    def rows(self, rows: Tensor | slice) -> "ViewParameters":
        """Those of some images, in the order given."""
        chosen: dict[str, Any] = {
            name: value[rows] if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return ViewParameters(**chosen)

    @classmethod
    def plain(cls, boxes: Tensor) -> "ViewParameters":
        """Those that cut the boxes [images, 4] out and change nothing else."""
        count = len(boxes)
        no, zero = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
        return cls(
            boxes=boxes, flips=no, turns=zero, jitters=no, factors=torch.tensor([[1.0, 1, 1, 0]] * count),
            order=(0, 1, 2, 3), grays=no, sigmas=torch.zeros(count), solarized=no, edges=no, noisy=no,
            noise_keys=zero, holes=torch.zeros(count, 4, dtype=torch.int64),
        )  # fmt: skip


def draw_boxes(
    uniforms: NDArray[np.float64],
    sizes: NDArray[np.int64],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.int64]:
    """Boxes of a random share of the area and a random shape, within each image's own size.

    A box that does not fit is drawn again, up to 10 times; then the middle of the image is taken, as
    large as the bounds of the shape let it be.

    Args:
        uniforms: [images, 22], in [0, 1).
        sizes: [images, 2], height and width.
        scale: Least and greatest share of the area.
        ratio: Least and greatest width by height, drawn evenly on the scale of logarithms.

    Returns:
        int64 [images, 4]: top, left, height, width.

    Source:
        Szegedy et al. 2014, arXiv:1409.4842, sec. 6; tries and last resort as in torchvision.
    """
    heights, widths = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    share = scale[0] + (scale[1] - scale[0]) * uniforms[:, :TRIES]
    lowest, highest = math.log(ratio[0]), math.log(ratio[1])
    shape = np.exp(lowest + (highest - lowest) * uniforms[:, TRIES : 2 * TRIES])
    area = share * (heights * widths)[:, None]
    wide, high = np.round(np.sqrt(area * shape)), np.round(np.sqrt(area / shape))
    fits = (wide >= 1) & (wide <= widths[:, None]) & (high >= 1) & (high <= heights[:, None])
    each, first = np.arange(len(sizes)), fits.argmax(axis=1)
    wide, high, found = wide[each, first], high[each, first], fits[each, first]
    # the last resort: the whole image, cut to the nearest shape that is allowed
    last_wide = np.minimum(widths, np.maximum(np.round(heights * ratio[1]), 1))
    last_high = np.minimum(heights, np.maximum(np.round(widths / ratio[0]), 1))
    top = np.floor(uniforms[:, 2 * TRIES] * (heights - high + 1))
    left = np.floor(uniforms[:, 2 * TRIES + 1] * (widths - wide + 1))
    drawn = np.stack([top, left, high, wide], axis=1)
    middle = np.stack([(heights - last_high) // 2, (widths - last_wide) // 2, last_high, last_wide], axis=1)
    return np.where(found.reshape(-1, 1), drawn, middle).astype(np.int64)
