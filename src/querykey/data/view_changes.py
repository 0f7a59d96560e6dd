"""What views do to planes after the resampling, image by image as it was drawn."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from querykey.data.colour import brighten_, contrast_, gray_, saturate_, solarize_, turn_hue_
from querykey.data.filters import add_noise_, blur, sobel
from querykey.data.view_parameters import ViewParameters

__all__ = ["change_", "chunks", "cut_", "normalise_", "put_"]

_CHUNK_BYTES = 3_200_000
"""Of planes worked on together by a thread: near its core, and worth the cost of each call."""

_WORTH_A_CALL = 4096
"""Numbers from which copying each image by itself is faster than by its index."""

_JITTERS = (brighten_, contrast_, saturate_, turn_hue_)


def chunks(count: int, *, channels: int, size: int, device: torch.device) -> Iterator[slice]:
    """Images that are worked on together: all on an accelerator, few on a CPU."""
    step = count
    if device.type == "cpu":
        step = max(1, torch.get_num_threads() * _CHUNK_BYTES // (4 * channels * size * size))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def change_(
    planes: Tensor, drawn: ViewParameters, *, blur_radius: int, threshold: float, deviation: float
) -> None:
    """Do all that was drawn between resampling and normalising, in place.

    Args:
        planes: float32 [channels, images, size, size], 0 to 1.
        drawn: What is done to each image; those that are jittered come first.
        blur_radius: Of the blur's kernel.
        threshold: Of solarize.
        deviation: Of the noise.
    """

    def some(chosen: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        rows = chosen.nonzero()[:, 0]
        if len(rows) == len(chosen):
            planes.copy_(change(planes))
        elif len(rows):
            rows = rows.to(planes.device)
            put_(planes, rows, change(planes.index_select(1, rows)))

    for turn in (1, 2, 3):
        some(drawn.turns == turn, lambda chosen, turn=turn: chosen.rot90(turn, (2, 3)))  # type: ignore[misc]
    if count := int(drawn.jitters.sum()):
        factors = drawn.factors[:count].to(planes.device)
        for kind in drawn.order:
            if bool((drawn.factors[:count, kind] != (kind != 3)).any()):
                _JITTERS[kind](planes[:, :count], factors[:, kind])
    some(drawn.grays, gray_)
    is_blurred = drawn.sigmas > 0
    some(is_blurred, lambda chosen: blur(chosen, drawn.sigmas[is_blurred], blur_radius))
    some(drawn.solarized, lambda chosen: solarize_(chosen, threshold))
    some(drawn.edges, sobel)
    keys = drawn.noise_keys[drawn.noisy].numpy().astype(np.uint64)
    some(drawn.noisy, lambda chosen: add_noise_(chosen, deviation, keys))


def put_(planes: Tensor, rows: Tensor, changed: Tensor) -> None:
    """The changed images [channels, rows, ...] into their places among the planes."""
    if planes.device.type == "cpu" and planes[0, 0].numel() > _WORTH_A_CALL:
        for place, row in enumerate(rows.tolist()):
            planes[:, row].copy_(changed[:, place])
    elif len(rows) == planes.shape[1]:
        planes.copy_(changed.index_select(1, torch.argsort(rows)))
    else:
        planes.index_copy_(1, rows, changed)


def normalise_(planes: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """Take off each channel's mean and divide by its deviation, in place."""
    for channel, (middle, width) in enumerate(zip(mean, deviation, strict=True)):
        planes[channel].sub_(middle).mul_(1 / width)


def cut_(planes: Tensor, holes: Tensor) -> Tensor:
    """Set each image's hole to 0, which is the mean of normalised images.

    Args:
        planes: Changed in place.
        holes: int64 [images, 4]: top, left, height, width.
    """
    for image in (holes[:, 2] > 0).nonzero()[:, 0].tolist():
        top, left, height, width = holes[image].tolist()
        planes[:, image, top : top + height, left : left + width] = 0
    return planes
