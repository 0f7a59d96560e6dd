"""A family of small convolutional networks, made for two CPU cores and images of 28 to 64 pixels."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from querykey.errors import RangeError, SourceError

__all__ = ["SmallCNN"]

_WIDTH = 32
_GROWTH = (1, 2, 4, 8)
_STRIDES = (2, 2, 2, 1)
_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]))?", re.ASCII)
"""Width, and perhaps depth."""
_EMPTY = 1e-12
"""Variance of patches that do not differ but by rounding."""
_NOISE = 0.01
"""Added to the variance of a direction, in units of the mean one: nearly empty ones aren't blown up."""


class SmallCNN(nn.Module):
    """Blocks of 3x3 convolutions with batch norm and ReLU, then the mean over all places.

    Three blocks halve the image, the first at once, since most of the time would go by at full size. An
    image of 32 x 32 pixels ends as 4 x 4 places of `widths[-1]` channels.

    Args:
        channels: Of an image, >= 1.
        widths: Channels after each block, each >= 1; the last is the width of h.
        strides: Of the first convolution of each block, as many as widths.
        depth: Convolutions in a block, >= 1.

    Raises:
        RangeError: If widths and strides are not of one length, or a number is below 1.

    Example:
        >>> import torch
        >>> SmallCNN(1, widths=(8, 16), strides=(2, 2))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] = _STRIDES,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(strides):
            raise RangeError(
                f"a small_cnn needs one stride for each width, got widths {list(widths)} and "
                f"strides {list(strides)}"
            )
        if min(channels, *widths, *strides, depth) < 1:
            raise RangeError(
                f"channels, widths, strides and depth of a small_cnn must be >= 1, got {channels}, "
                f"{list(widths)}, {list(strides)} and {depth}"
            )
        self.blocks = nn.Sequential(
            *(
                _block(before, after, stride, depth)
                for (before, after), stride in zip(pairwise((channels, *widths)), strides, strict=True)
            )
        )

    @classmethod
    def of_width(cls, channels: int, width: int = _WIDTH, depth: int = 1) -> "SmallCNN":
        """The member of the family whose first block has `width` channels.

        Args:
            channels: Of an image, >= 1.
            width: >= 1; the four blocks have 1, 2, 4 and 8 times as many channels.
            depth: Convolutions in each of the four blocks, >= 1.

        Returns:
            A network with random weights, and h of width 8 * width.

        Raises:
            RangeError: If a number is below 1.
        """
        return cls(channels, widths=[growth * width for growth in _GROWTH], depth=depth)

    @classmethod
    def of_size(cls, channels: int, size: str) -> "SmallCNN":
        """The member of the family that is named so.

        Args:
            channels: Of an image, >= 1.
            size: "64" for `of_width` 64, "64x2" with two convolutions in each block.

        Returns:
            A network with random weights.

        Raises:
            SourceError: If it names none.

        Example:
            >>> len(SmallCNN.of_size(3, "4x2").blocks[0])
            6
        """
        named = _SIZE.fullmatch(size)
        if named is None:
            raise SourceError(
                f"small_cnn:{size}: after small_cnn: comes a width below 100,000, as in small_cnn:64, and "
                "perhaps the convolutions of a block, at most 9, as in small_cnn:64x2"
            )
        return cls.of_width(channels, int(named[1]), int(named[2] or 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [images, channels, height, width] to h [images, widths[-1]]."""
        places: Tensor = self.blocks(images)
        return places.mean(dim=(2, 3))

    @torch.no_grad()
    def start_(self, images: Tensor) -> None:
        r"""Set the first filters, in place, to the directions in which patches of these images differ most.

        With :math:`v` a principal direction of the 3 x 3 patches and :math:`\lambda` the variance along
        it, the filters are :math:`v / \sqrt{\lambda}` and, as ReLU lets one sign through, its negative:
        what comes out is decorrelated and of one size from the first step on. Filters beyond twice the
        number of directions keep their random weights, and so do all where the images are of one
        colour each, the same one. All of them are trained.

        Args:
            images: As the network will see them [images, channels, height, width]; some hundreds are enough.

        Source:
            Jordan 2024, arXiv:2404.00498, section 3.2 (there 2 x 2 patches, and the layer is frozen).
        """
        first = cast("nn.Conv2d", cast("nn.Sequential", self.blocks[0])[0])
        patches = nn.functional.unfold(images, 3, stride=2).transpose(1, 2).flatten(0, 1).double()
        patches = patches - patches.mean(dim=0)
        variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        if not float(variance.mean()) > _EMPTY:
            return
        whitening = (directions / (variance + _NOISE * variance.mean()).sqrt()).T.flip(0)
        used = min(first.out_channels // 2, len(whitening))
        filters = whitening[:used].reshape(used, *first.weight.shape[1:]).to(first.weight)
        first.weight[:used].copy_(filters)
        first.weight[used : 2 * used].copy_(-filters)


def _block(before: int, after: int, stride: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        first = number == 0
        convolution = nn.Conv2d(
            before if first else after, after, 3, stride=stride if first else 1, padding=1, bias=False
        )
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
