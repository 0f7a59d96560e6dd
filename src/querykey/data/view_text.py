"""The settings of views in words, for a run to print."""

from collections.abc import Mapping
from typing import Any

from querykey.data.view_parameters import JITTERS

__all__ = ["describe_views"]


def describe_views(settings: Mapping[str, Any], *, blur_kernel: int) -> str:
    """A line for each kind of change that can happen, with all its numbers."""
    said = {name: _number(value) for name, value in settings.items()}
    lines = [f"size {said['size']}, {said['interpolation']}, antialias {said['antialias']}"]
    if settings["crop_scale"] is not None:
        lines.append(f"crop {said['crop_scale']} of the area, ratio {said['crop_ratio']}")
    jitter = ", ".join(
        f"{kind} {_number(most)}" for kind, most in zip(JITTERS, settings["jitter"], strict=True)
    )
    kinds = {
        "flip": "",
        "rotate": ", quarter turns",
        "jitter_probability": f", {jitter}",
        "grayscale": "",
        "blur": f", sigma {said['blur_sigma']}, kernel {blur_kernel}",
        "solarize": f", threshold {said['solarize_threshold']}",
        "sobel": "",
        "noise": f", deviation {said['noise_deviation']}",
        "cutout": f", share {said['cutout_share']} of the side",
    }
    idle = set() if any(settings["jitter"]) else {"jitter_probability"}
    for name, more in kinds.items():
        if settings[name] > 0 and name not in idle:
            lines.append(f"{name.partition('_')[0]} p {said[name]}{more}")
    mean, deviation = (", ".join(_number(x) for x in settings[name]) for name in ("mean", "deviation"))
    lines.append(f"normalise mean {mean}; deviation {deviation}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(_number(part) for part in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
