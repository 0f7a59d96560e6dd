"""Views by name: the recipes of the papers and their code."""

from typing import Any

from querykey.data.grammar import nearest_words
from querykey.data.views import GRAY_DEVIATION, GRAY_MEAN, RGB_DEVIATION, RGB_MEAN, Views
from querykey.errors import ConfigError, RangeError

__all__ = ["VIEW_PRESETS", "view_preset"]

_SIMCLR = (0.8, 0.8, 0.8, 0.2)
_PRESETS: dict[str, dict[str, Any]] = {
    "simclr": {"jitter": _SIMCLR, "blur": 0.5},
    "small_images": {"jitter": tuple(0.5 * most for most in _SIMCLR)},
    "moco_v1": {"crop_scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.4), "jitter_probability": 1.0},
    "moco_v2": {"crop_scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), "blur": 0.5},
    "grayscale": {"crop_scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.0, 0.0), "grayscale": 0.0},
    "digits": {"crop_scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.0, 0.0), "grayscale": 0.0, "flip": 0.0},
}
_GRAY_IN = {"grayscale", "digits"}

VIEW_PRESETS = tuple(_PRESETS)
"""The names of all presets."""


def view_preset(name: str, *, size: int, channels: int, strength: float | None = None) -> Views:
    """The views of a recipe.

    Args:
        name: "simclr" (s = 1, blur), "small_images" (SimCLR's for CIFAR: s = 0.5, no blur), "moco_v1",
            "moco_v2", "grayscale" (crops of 0.2 to 1, brightness and contrast alone) or "digits" (the
            same without mirror images, which would be other signs).
        size: Side of a view in pixels.
        channels: 1 or 3. Images of one channel have no hue or saturation to change and are refused by
            the recipes for colours; "grayscale" and "digits" take 1 or 3.
        strength: Scales the jitter: s of 0.8s, 0.8s, 0.8s, 0.2s for "simclr" and "small_images"; for the
            others a factor on their own. The hue stays at most 0.5.

    Returns:
        The views, normalised with the numbers of ImageNet.

    Raises:
        ConfigError: If there is no such recipe, or it needs colours.
        RangeError: If strength is negative.

    Example:
        >>> view_preset("small_images", size=32, channels=3).jitter
        (0.4, 0.4, 0.4, 0.1)

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. A and B.9; He et al. 2020, arXiv:1911.05722, sec. 3.3;
        Chen et al. 2020, arXiv:2003.04297, sec. 3 (crops from 0.2 as in its code). "grayscale" and
        "digits" are our own.
    """
    if name not in _PRESETS:
        raise ConfigError(
            f"there are no views {name!r}{nearest_words(name, _PRESETS)}; there are {', '.join(_PRESETS)}"
        )
    if channels not in {1, 3}:
        raise ConfigError(f"views are made of images of 1 or 3 channels, got {channels}")
    if channels == 1 and name not in _GRAY_IN:
        raise ConfigError(
            f"the views {name!r} change hue and saturation, which images of one channel do not have; "
            'take "grayscale", or "digits" where a mirror image means something else'
        )
    settings = dict(_PRESETS[name])
    if strength is not None:
        if strength < 0:
            raise RangeError(f"strength must be at least 0, got {strength}")
        own = _SIMCLR if name == "small_images" else settings["jitter"]
        brightness, contrast, saturation, hue = (strength * most for most in own)
        settings["jitter"] = (brightness, contrast, saturation, min(hue, 0.5))
    if channels == 1:
        settings |= {"mean": GRAY_MEAN, "deviation": GRAY_DEVIATION}
    else:
        settings |= {"mean": RGB_MEAN, "deviation": RGB_DEVIATION}
    return Views(size=size, **settings)
