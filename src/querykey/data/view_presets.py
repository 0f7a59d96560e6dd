"""Views by name: the recipes of the papers and their code."""

from typing import Any

from querykey.data.grammar import nearest_words
from querykey.errors import ConfigError, RangeError

__all__ = [
    "GRAY_DEVIATION",
    "GRAY_MEAN",
    "RGB_DEVIATION",
    "RGB_MEAN",
    "VIEW_PRESETS",
    "preset_settings",
]

RGB_MEAN, RGB_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in ImageNet, values 0 to 1."""
GRAY_MEAN, GRAY_DEVIATION = (0.449,), (0.226,)
"""Of their average."""

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


def preset_settings(name: str, *, channels: int, strength: float | None) -> dict[str, Any]:
    """The settings of a recipe but the size; `view_preset` says more.

    Raises:
        ConfigError: If there is no such recipe, or it needs colours.
        RangeError: If strength is negative.
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
    return settings
