"""A family of small convolutional networks, made for two CPU cores and images of 28 to 64 pixels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from querykey.errors import RangeError

__all__ = ["SmallCNN"]

_WIDTH = 64
_GROWTH = (1, 2, 4, 4)
_STRIDES = (2, 1, 2, 2)


class SmallCNN(nn.Module):
    """Blocks of a 3x3 convolution, batch norm and ReLU, then the mean over all places.

    The first block halves the image, since most of the time would go by at full size. An image
    of 32 x 32 pixels ends as 4 x 4 places of `widths[-1]` channels.

    Args:
        channels: Of an image, >= 1.
        widths: Channels after each block, each >= 1; the last is the width of h.
        strides: Of each block, as many as widths.

    Raises:
        RangeError: If widths and strides are not of one length, or a number is below 1.

    Example:
        >>> SmallCNN(1, widths=(8, 16), strides=(2, 2))(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self, channels: int, *, widths: Sequence[int] = (64, 128, 256, 256), strides: Sequence[int] = _STRIDES
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(strides):
            raise RangeError(
                f"a small_cnn needs one stride for each width, got widths {list(widths)} and "
                f"strides {list(strides)}"
            )
        if min(channels, *widths, *strides) < 1:
            raise RangeError(
                f"channels, widths and strides of a small_cnn must be >= 1, got {channels}, "
                f"{list(widths)} and {list(strides)}"
            )
        self.blocks = nn.Sequential(
            *(
                _block(before, after, stride)
                for (before, after), stride in zip(pairwise((channels, *widths)), strides, strict=True)
            )
        )

    @classmethod
    def of_width(cls, channels: int, width: int = _WIDTH) -> "SmallCNN":
        """The member of the family whose first block has `width` channels.

        Args:
            channels: Of an image, >= 1.
            width: >= 1; the four blocks have 1, 2, 4 and 4 times as many channels.

        Returns:
            A network with random weights, and h of width 4 * width.

        Raises:
            RangeError: If a number is below 1.
        """
        return cls(channels, widths=[growth * width for growth in _GROWTH])

    def forward(self, images: Tensor) -> Tensor:
        """Images [images, channels, height, width] to h [images, widths[-1]]."""
        places: Tensor = self.blocks(images)
        return places.mean(dim=(2, 3))


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
