"""Random views of images for training, and the deterministic view for evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch

from querykey.config.ranges import Probability
from querykey.data.augment.ops import Interpolation, change_, chunks, cut_, normalise_, put_, resample
from querykey.data.augment.parameters import (
    JITTERS,
    TRIES,
    ViewParameters,
    check_boxes,
    check_images,
    check_settings,
    draw_boxes,
)
from querykey.data.augment.rng import keyed_bits, keyed_order, keyed_uniforms
from querykey.data.readers.grammar import nearest_words
from querykey.errors import ConfigError, RangeError, ShapeError
from querykey.types import Ids, Images, ImageSizes, ViewRows

__all__ = [
    "GRAY_DEVIATION",
    "GRAY_MEAN",
    "RGB_DEVIATION",
    "RGB_MEAN",
    "VIEW_PRESETS",
    "Views",
    "describe_views",
    "plain_view",
    "preset_settings",
    "view_preset",
]


@torch.no_grad()
def plain_view(
    images: Images,
    *,
    size: int,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    sizes: ImageSizes | None = None,
    memory_format: torch.memory_format | None = None,
) -> ViewRows:
    """The view for evaluation: resize the shorter side, crop the centre, normalise.

    Args:
        images: uint8, or float 0 to 1. Images of several sizes lie at the top left of one canvas.
        size: Side of the result.
        mean: Of each channel.
        deviation: Standard deviation of each channel.
        sizes: Height and width of each image, if they differ.
        memory_format: Of the result; by default contiguous.

    Returns:
        float32 [images, channels, size, size]; antialiased, bilinear.

    Raises:
        ShapeError: If channels or sizes do not fit the images.
        DataError: If the images are neither uint8 nor finite floats from 0 to 1.

    Example:
        >>> white = torch.full((1, 1, 4, 6), 255, dtype=torch.uint8)
        >>> plain_view(white, size=2, mean=(0.5,), deviation=(0.5,)).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    check_images(images, len(mean))
    whole = torch.tensor(images.shape[2:]).expand(len(images), 2) if sizes is None else sizes.cpu()
    limits = torch.cat([torch.zeros_like(whole), whole], dim=1)
    check_boxes(limits, images)
    side = whole.min(dim=1, keepdim=True).values
    boxes = torch.cat([(whole - side) / 2, side.expand(-1, 2)], dim=1)
    shape, layout = (len(images), len(mean), size, size), memory_format or torch.contiguous_format
    made = torch.empty(shape, device=images.device, memory_format=layout)
    for rows in chunks(len(images), channels=len(mean), size=size, device=images.device):
        planes = resample(images[rows], boxes[rows], size=size, limits=limits[rows])
        normalise_(planes, mean, deviation)
        made[rows] = planes.transpose(0, 1)
    return made


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
"""Names of the presets."""


def preset_settings(name: str, *, channels: int, strength: float | None) -> dict[str, Any]:
    """The settings of a preset, without the size; see `view_preset`.

    Raises:
        ConfigError: If the preset does not exist, or it needs colours.
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
            'use "grayscale", or "digits" if mirror images have another meaning'
        )
    settings = dict(_PRESETS[name])
    if strength is not None:
        if strength < 0:
            raise RangeError(f"strength must be at least 0, got {strength}")
        jitter = _SIMCLR if name == "small_images" else settings["jitter"]
        brightness, contrast, saturation, hue = (strength * most for most in jitter)
        settings["jitter"] = (brightness, contrast, saturation, min(hue, 0.5))
    if channels == 1:
        settings |= {"mean": GRAY_MEAN, "deviation": GRAY_DEVIATION}
    else:
        settings |= {"mean": RGB_MEAN, "deviation": RGB_DEVIATION}
    return settings


def describe_views(settings: Mapping[str, Any], *, blur_kernel: int) -> str:
    """One line for each possible change, with its parameters."""
    shown = {name: _number(value) for name, value in settings.items()}
    lines = [f"size {shown['size']}, {shown['interpolation']}, antialias {shown['antialias']}"]
    if settings["crop_scale"] is not None:
        lines.append(f"crop {shown['crop_scale']} of the area, ratio {shown['crop_ratio']}")
    jitter = ", ".join(
        f"{kind} {_number(most)}" for kind, most in zip(JITTERS, settings["jitter"], strict=True)
    )
    kinds = {
        "flip": "",
        "rotate": ", quarter turns",
        "jitter_probability": f", {jitter}",
        "grayscale": "",
        "blur": f", sigma {shown['blur_sigma']}, kernel {blur_kernel}",
        "solarize": f", threshold {shown['solarize_threshold']}",
        "sobel": "",
        "noise": f", deviation {shown['noise_deviation']}",
        "cutout": f", share {shown['cutout_share']} of the side",
    }
    idle = set() if any(settings["jitter"]) else {"jitter_probability"}
    for name, more in kinds.items():
        if settings[name] > 0 and name not in idle:
            lines.append(f"{name.partition('_')[0]} p {shown[name]}{more}")
    mean, deviation = (", ".join(_number(x) for x in settings[name]) for name in ("mean", "deviation"))
    lines.append(f"normalise mean {mean}; deviation {deviation}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(_number(part) for part in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# the draw of each parameter; append new ones, so that the others do not change
_CROP, _FLIP, _JITTER, _FACTORS, _GRAY, _BLUR, _SIGMA = 0, 22, 23, 24, 28, 29, 30
_SOLARIZE, _CUTOUT, _HOLE, _SOBEL, _NOISE, _ROTATE, _TURN, _SLOTS = 31, 32, 33, 35, 36, 37, 38, 39
_NOISE_KEY, _ORDER_KEY = 1, 2


@dataclass(frozen=True, kw_only=True)
class Views:
    """Random views of images: the changes, their probabilities and their strengths.

    Changes are applied in this order: crop, flip and scale (one resampling), rotation, colour jitter,
    grayscale, blur, solarize, Sobel, noise, normalisation, cutout. The defaults are SimCLR's without blur.

    Args:
        size: Side of a view in pixels.
        crop_scale: Smallest and largest fraction of the area of a crop; None: the full image.
        crop_ratio: Smallest and largest width / height of a crop.
        flip: Probability of a mirror image.
        jitter: Largest change of brightness, contrast and saturation (a factor from max(0, 1 - x) to 1 + x)
            and of hue (a rotation from -x to x of the circle, at most 0.5).
        jitter_probability: Probability of the jitter. The order of the four is drawn for each batch.
        grayscale: Probability of conversion to gray.
        blur: Probability of a Gaussian blur with a kernel of a tenth of the size, at least 3.
        blur_sigma: Smallest and largest standard deviation in pixels of the view.
        solarize: Probability that values from `solarize_threshold` are inverted.
        solarize_threshold: 0 to 1.
        cutout: Probability that a square is set to the mean.
        cutout_share: Side of the square / side of the view.
        sobel: Probability of the Sobel filter.
        noise: Probability of Gaussian noise.
        noise_deviation: Standard deviation of the noise, on the scale 0 to 1.
        rotate: Probability of a rotation by 0, 90, 180 or 270 degrees, each as likely.
        mean: Of each channel; its length is the number of channels.
        deviation: Standard deviation of each channel.
        antialias: Whether the kernel is widened for crops larger than the view.
        interpolation: "bilinear" or "bicubic".

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If a change of colour is set for images of one channel.

    Example:
        >>> views = Views(size=8)
        >>> images = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).to(torch.uint8)
        >>> made = views(images, torch.tensor([4, 9]), seed=0, epoch=0, view=0)
        >>> again = views(images[1:], torch.tensor([9]), seed=0, epoch=0, view=0)
        >>> tuple(made.shape), bool((made[1:] == again).all())
        ((2, 3, 8, 8), True)

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. A; He et al. 2020, arXiv:1911.05722, sec. 3.3; operations
        are those of torchvision.
    """

    size: int
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: Probability = 0.8
    grayscale: Probability = 0.2
    blur: Probability = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: Probability = 0.0
    solarize_threshold: Probability = 0.5
    cutout: Probability = 0.0
    cutout_share: float = 0.5
    sobel: Probability = 0.0
    noise: Probability = 0.0
    noise_deviation: float = 0.1
    rotate: Probability = 0.0
    mean: tuple[float, ...] = RGB_MEAN
    deviation: tuple[float, ...] = RGB_DEVIATION
    antialias: bool = True
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        check_settings(vars(self))

    @property
    def channels(self) -> int:
        """Number of channels of the images: 1 or 3."""
        return len(self.mean)

    @property
    def blur_radius(self) -> int:
        """Pixels on each side of the centre of the blur kernel."""
        return max(1, self.size // 10 // 2)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Views":
        """Views from the output of `dataclasses.asdict`, possibly read from JSON.

        Raises:
            ConfigError: If a setting does not exist.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"views have no setting {name!r}{nearest_words(name, known)}")
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
        return cls(**values)

    def describe(self) -> str:
        """One line for each possible change, with its parameters."""
        return describe_views(vars(self), blur_kernel=2 * self.blur_radius + 1)

    def draw(
        self,
        ids: Ids,
        *,
        seed: int,
        epoch: int,
        view: int,
        sizes: ImageSizes | tuple[int, int],
        batch: int = 0,
    ) -> ViewParameters:
        """Draw the parameters of each image.

        The parameters of an image depend on seed, epoch, view and id alone, not on the process, the batch or
        the order. The order of the jitters depends on seed, epoch, view and batch.

        Args:
            ids: [images].
            seed: Of the run.
            epoch: From 0.
            view: Index of the view of an item, 0, 1, ...
            sizes: Height and width of each image, or of all.
            batch: Index of the batch in the epoch.

        Raises:
            ShapeError: If the number of sizes is not that of ids.
        """
        key, names = (seed, epoch, view), ids.cpu().numpy()
        u = keyed_uniforms(key, names, _SLOTS)
        given = np.asarray(sizes, dtype=np.int64) if isinstance(sizes, tuple) else sizes.cpu().numpy()
        if given.shape not in {(2,), (len(names), 2)}:
            raise ShapeError(
                f"{len(names)} images need as many sizes, each height and width; got {given.shape}"
            )
        each = np.broadcast_to(given, (len(names), 2))
        if self.crop_scale is None:
            boxes = np.concatenate([np.zeros_like(each), each], axis=1)
        else:
            boxes = draw_boxes(
                u[:, _CROP : _CROP + 2 * TRIES + 2], each, scale=self.crop_scale, ratio=self.crop_ratio
            )
        most = np.array([*self.jitter])
        low = np.concatenate([np.maximum(0, 1 - most[:3]), -most[3:]])
        high = np.concatenate([1 + most[:3], most[3:]])
        factors = low + (high - low) * u[:, _FACTORS : _FACTORS + 4]
        sigmas = self.blur_sigma[0] + (self.blur_sigma[1] - self.blur_sigma[0]) * u[:, _SIGMA]
        side = round(self.cutout_share * self.size)
        holes = np.floor(u[:, _HOLE : _HOLE + 2] * (self.size - side + 1))
        holes = np.concatenate([holes, np.full_like(holes, side)], axis=1) * (
            u[:, _CUTOUT, None] < self.cutout
        )
        turns = np.floor(u[:, _TURN] * 4) * (u[:, _ROTATE] < self.rotate)
        numbers = {
            "boxes": boxes, "flips": u[:, _FLIP] < self.flip, "turns": turns.astype(np.int64),
            "jitters": (u[:, _JITTER] < self.jitter_probability) & bool(most.any()),
            "factors": factors.astype(np.float32), "grays": u[:, _GRAY] < self.grayscale,
            "sigmas": (sigmas * (u[:, _BLUR] < self.blur)).astype(np.float32),
            "solarized": u[:, _SOLARIZE] < self.solarize, "edges": u[:, _SOBEL] < self.sobel,
            "noisy": u[:, _NOISE] < self.noise, "holes": holes.astype(np.int64),
            "noise_keys": keyed_bits((*key, _NOISE_KEY), names, 1)[:, 0].astype(np.int64),
        }  # fmt: skip
        tensors: dict[str, Any] = {name: torch.from_numpy(value) for name, value in numbers.items()}
        return ViewParameters(order=keyed_order((*key, batch, _ORDER_KEY), 4), **tensors)

    @torch.no_grad()
    def apply(
        self, images: Images, parameters: ViewParameters, *, memory_format: torch.memory_format | None = None
    ) -> ViewRows:
        """Make views with given parameters.

        Args:
            images: uint8, or float 0 to 1. Images of several sizes lie at the top left of one canvas.
            parameters: Of each image.
            memory_format: Of the result: `torch.contiguous_format` (the default) or `torch.channels_last`.

        Returns:
            float32 [images, channels, size, size], normalised.

        Raises:
            ShapeError: If channels, boxes and images do not fit.
            DataError: If the images are neither uint8 nor finite floats from 0 to 1.
        """
        check_images(images, self.channels)
        check_boxes(parameters.boxes, images)
        shape, layout = (len(images), self.channels, self.size, self.size), memory_format
        made = torch.empty(shape, device=images.device, memory_format=layout or torch.contiguous_format)
        how, smooth = self.interpolation, self.antialias
        cut_out = partial(resample, size=self.size, interpolation=how, antialias=smooth)
        radius, threshold = self.blur_radius, self.solarize_threshold
        for rows in chunks(len(images), channels=self.channels, size=self.size, device=images.device):
            part = parameters.rows(rows)
            # jittered images first
            order = torch.argsort(part.jitters.to(torch.int8), descending=True, stable=True)
            part, places = part.rows(order), order.to(images.device)
            planes = cut_out(images[rows].index_select(0, places), part.boxes, flips=part.flips)
            change_(planes, part, blur_radius=radius, threshold=threshold, deviation=self.noise_deviation)
            normalise_(planes, self.mean, self.deviation)
            cut_(planes, part.holes)
            put_(made[rows].transpose(0, 1), places, planes)
        return made

    def __call__(
        self,
        images: Images,
        ids: Ids,
        *,
        seed: int,
        epoch: int,
        view: int,
        batch: int = 0,
        sizes: ImageSizes | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> ViewRows:
        """Draw parameters and make one view of each image; see `draw` and `apply`."""
        if len(ids) != len(images):
            raise ShapeError(f"{len(ids)} ids for {len(images)} images; one for each is needed")
        within = (int(images.shape[-2]), int(images.shape[-1])) if sizes is None else sizes
        drawn = self.draw(ids, seed=seed, epoch=epoch, view=view, sizes=within, batch=batch)
        return self.apply(images, drawn, memory_format=memory_format)


def view_preset(name: str, *, size: int, channels: int, strength: float | None = None) -> Views:
    """The views of a preset.

    Args:
        name: "simclr" (s = 1, blur), "small_images" (SimCLR's for CIFAR: s = 0.5, no blur), "moco_v1",
            "moco_v2", "grayscale" (crops of 0.2 to 1, brightness and contrast alone) or "digits" (the
            same without mirror images).
        size: Side of a view in pixels.
        channels: 1 or 3. Presets that change hue and saturation need 3; "grayscale" and "digits" take both.
        strength: Scales the jitter: s of 0.8s, 0.8s, 0.8s, 0.2s for "simclr" and "small_images"; for the
            others a factor of their jitter. The hue stays at most 0.5.

    Returns:
        The views, normalised with the mean and standard deviation of ImageNet.

    Raises:
        ConfigError: If the preset does not exist, or it needs colours.
        RangeError: If strength is negative.

    Example:
        >>> view_preset("small_images", size=32, channels=3).jitter
        (0.4, 0.4, 0.4, 0.1)

    Source:
        Chen et al. 2020, arXiv:2002.05709, app. A and B.9; He et al. 2020, arXiv:1911.05722, sec. 3.3;
        Chen et al. 2020, arXiv:2003.04297, sec. 3 (crops from 0.2 as in its code). "grayscale" and
        "digits" are ours.
    """
    return Views(size=size, **preset_settings(name, channels=channels, strength=strength))
