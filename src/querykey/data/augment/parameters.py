"""The parameters of a batch of views, how crops are drawn, and the checks of settings, images and boxes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.errors import ConfigError, DataError, RangeError, ShapeError

__all__ = ["JITTERS", "ViewParameters", "check_boxes", "check_images", "check_settings", "draw_boxes"]

JITTERS = ("brightness", "contrast", "saturation", "hue")
"""The four jitters; an order is a permutation of their positions."""

TRIES = 10
"""Number of draws of a crop before the middle of the image is used."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewParameters:
    """The parameters of a batch of views, on the CPU, one row per image.

    Args:
        boxes: int64 [images, 4]: top, left, height and width of the crop in the source.
        flips: bool [images]: mirrored left to right.
        turns: int64 [images]: counter-clockwise quarter turns, 0 to 3.
        jitters: bool [images]: whether the colours are jittered.
        factors: float32 [images, 4]: of brightness, contrast and saturation (1 changes nothing), and the
            rotation of the hue (fraction of the circle, 0 changes nothing).
        order: Of the four jitters; one for the batch.
        grays: bool [images].
        sigmas: float32 [images]: of the blur in pixels of the result, 0 for none.
        solarized: bool [images].
        edges: bool [images]: whether the Sobel filter is applied.
        noisy: bool [images].
        noise_keys: int64 [images]: seed of the noise of each image.
        holes: int64 [images, 4]: top, left, height, width of the hole in the result; height 0: none.
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
        """The parameters of some images, in the given order."""
        chosen: dict[str, Any] = {
            name: value[rows] if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return ViewParameters(**chosen)

    @classmethod
    def plain(cls, boxes: Tensor) -> "ViewParameters":
        """Parameters that crop to the boxes [images, 4] and change nothing else."""
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
    """Draw boxes of random area and aspect ratio within each image.

    A box that does not fit is drawn again, up to 10 times. Then the largest box in the middle of the image
    with an allowed aspect ratio is used.

    Args:
        uniforms: [images, 22], in [0, 1).
        sizes: [images, 2], height and width.
        scale: Smallest and largest fraction of the area.
        ratio: Smallest and largest width / height; its logarithm is drawn uniformly.

    Returns:
        int64 [images, 4]: top, left, height, width.

    Source:
        Szegedy et al. 2014, arXiv:1409.4842, sec. 6; draws and fallback as in torchvision.
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
    # the fallback: the image, cropped to the nearest allowed aspect ratio
    last_wide = np.minimum(widths, np.maximum(np.round(heights * ratio[1]), 1))
    last_high = np.minimum(heights, np.maximum(np.round(widths / ratio[0]), 1))
    top = np.floor(uniforms[:, 2 * TRIES] * (heights - high + 1))
    left = np.floor(uniforms[:, 2 * TRIES + 1] * (widths - wide + 1))
    drawn = np.stack([top, left, high, wide], axis=1)
    middle = np.stack([(heights - last_high) // 2, (widths - last_wide) // 2, last_high, last_wide], axis=1)
    return np.where(found.reshape(-1, 1), drawn, middle).astype(np.int64)


_PROBABILITIES = (
    "flip", "jitter_probability", "grayscale", "blur", "solarize", "cutout", "sobel", "noise", "rotate",
)  # fmt: skip


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of `Views`.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a change of colour is set for images of one channel, or mean and deviation do not fit.
    """
    for name in _PROBABILITIES:
        if not 0 <= settings[name] <= 1:
            raise RangeError(f"{name} is a probability, from 0 to 1; got {settings[name]}")
    if settings["size"] < 1:
        raise RangeError(f"size must be at least 1 pixel, got {settings['size']}")
    for name, most in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
        bounds = settings[name]
        if bounds is not None and not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= most):
            limit = "" if most == math.inf else f" and at most {most:g}"
            raise RangeError(f"{name} is two numbers, rising, above 0{limit}; got {bounds}")
    _check_strengths(settings)
    _check_channels(settings)


def _check_strengths(settings: Mapping[str, Any]) -> None:
    jitter = settings["jitter"]
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise RangeError(
            "jitter is four numbers of at least 0: brightness, contrast, saturation and hue (at most 0.5); "
            f"got {jitter}"
        )
    for name in ("solarize_threshold", "cutout_share"):
        if not 0 <= settings[name] <= 1:
            raise RangeError(f"{name} must be from 0 to 1, got {settings[name]}")
    if settings["noise_deviation"] < 0:
        raise RangeError(f"noise_deviation must be at least 0, got {settings['noise_deviation']}")
    if settings["interpolation"] not in {"bilinear", "bicubic"}:
        raise ConfigError(f"interpolation is bilinear or bicubic, got {settings['interpolation']!r}")


def _check_channels(settings: Mapping[str, Any]) -> None:
    mean, deviation = settings["mean"], settings["deviation"]
    if len(mean) != len(deviation) or len(mean) not in {1, 3} or min(deviation) <= 0:
        raise ConfigError(
            "mean and deviation are one number for each of 1 or 3 channels, deviations above 0; "
            f"got {mean} and {deviation}"
        )
    if len(mean) == 1:
        (_, _, saturation, hue), gray = settings["jitter"], settings["grayscale"]
        of_colour = {"saturation": saturation, "hue": hue, "grayscale": gray}
        if found := [name for name, value in of_colour.items() if value > 0]:
            raise ConfigError(
                f"images of one channel have no {' and no '.join(found)} to change; "
                'set them to 0, or take view_preset("grayscale", channels=1)'
            )


def check_images(images: Tensor, channels: int) -> None:
    """Check a batch of images.

    Raises:
        ShapeError: If it is not a batch, is empty, or has another number of channels.
        DataError: If its values are neither uint8 nor floats from 0 to 1.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ShapeError(
            f"images are [images, channels, height, width], each at least 1; got {list(images.shape)}"
        )
    if images.shape[1] != channels:
        raise ShapeError(
            f"the images have {images.shape[1]} channels and mean and deviation are for {channels}; "
            "convert the images, or give a mean and a deviation for each channel"
        )
    if images.dtype == torch.uint8:
        return
    if not images.dtype.is_floating_point:
        raise DataError(f"images are uint8 (0 to 255) or float (0 to 1), got {images.dtype}")
    least, most = (float(number) for number in images.aminmax())
    if not (least >= 0 and most <= 1):
        raise DataError(
            f"float images are from 0 to 1 and finite, got values from {least:g} to {most:g}; "
            "divide by 255, or give uint8"
        )


def check_boxes(boxes: Tensor, images: Tensor) -> None:
    """Check that each box lies in its image.

    Raises:
        ShapeError: If a box does not, or the number of boxes is not that of the images.
    """
    if tuple(boxes.shape) != (len(images), 4):
        raise ShapeError(f"{len(images)} images need as many boxes of 4 numbers, got {list(boxes.shape)}")
    sides = torch.tensor(images.shape[2:])
    if bool(
        (boxes[:, 2:] <= 0).any() or (boxes[:, :2] < 0).any() or (boxes[:, :2] + boxes[:, 2:] > sides).any()
    ):
        raise ShapeError(
            f"a box lies outside its image of {list(images.shape[2:])} pixels; draw with its sizes"
        )
