"""What views ask of their settings and of the images they are given."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from querykey.errors import ConfigError, DataError, RangeError, ShapeError

__all__ = ["check_boxes", "check_images", "check_settings"]

_PROBABILITIES = ("flip", "jitter_probability", "grayscale", "blur", "solarize", "cutout", "sobel", "noise",
                  "rotate")  # fmt: skip


def check_settings(settings: Mapping[str, Any]) -> None:
    """Look at all settings of `Views`.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If one channel shall change what only colours have, or mean and deviation do not fit.
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
        asked = {"saturation": settings["jitter"][2], "hue": settings["jitter"][3],
                 "grayscale": settings["grayscale"]}  # fmt: skip
        if found := [name for name, value in asked.items() if value > 0]:
            raise ConfigError(
                f"images of one channel have no {' and no '.join(found)} to change; "
                'set them to 0, or take view_preset("grayscale", channels=1)'
            )


def check_images(images: Tensor, channels: int) -> None:
    """Look at a batch of images.

    Raises:
        ShapeError: If it is no batch, is empty, or has other channels.
        DataError: If it holds neither uint8 nor floats from 0 to 1.
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
    """See that each box lies in its image.

    Raises:
        ShapeError: If one does not, or there are more or fewer boxes than images.
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
