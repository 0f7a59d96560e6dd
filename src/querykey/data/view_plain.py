"""Images as they are, for evaluation."""

import torch

from querykey.data.resampling import resample
from querykey.data.view_changes import chunks, normalise_
from querykey.data.view_checks import check_boxes, check_images
from querykey.types import Images, ImageSizes, ViewRows

__all__ = ["plain_view"]


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
    """Images as they are, for evaluation: the shorter side scaled to size, the middle cut out, normalised.

    Args:
        images: uint8, or float 0 to 1. Images of several sizes lie at the top left of one canvas.
        size: Side of the result.
        mean: Of each channel, taken off.
        deviation: Of each channel, divided by.
        sizes: Height and width of each image, where they differ.
        memory_format: Of the result; contiguous where not given.

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
    made = torch.empty(
        len(images), len(mean), size, size, device=images.device,
        memory_format=memory_format or torch.contiguous_format,
    )  # fmt: skip
    for rows in chunks(len(images), channels=len(mean), size=size, device=images.device):
        planes = resample(images[rows], boxes[rows], size=size, limits=limits[rows])
        normalise_(planes, mean, deviation)
        made[rows] = planes.transpose(0, 1)
    return made
