"""From a PIL image to numbers, where a model does not bring its own preprocessing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImagePreprocessing", "rgb"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def rgb(image: "Image.Image") -> "Image.Image":
    """An image of any mode in three colours; what is transparent lies on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        from PIL import Image

        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImagePreprocessing:
    """Scale the shorter side to fit, cut the middle, normalise with the numbers of ImageNet.

    Args:
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        mean: Of red, green and blue in [0, 1].
        std: Likewise.
        layout: "channels first" gives [3, height, width], "channels last" [height, width, 3].
    """

    height: int = 224
    width: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    layout: Literal["channels first", "channels last"] = "channels first"

    def __call__(self, image: "Image.Image") -> Tensor:
        """The image as float32."""
        from PIL import Image, ImageOps

        # `fit` scales and cuts in one pass over the pixels
        fitted = ImageOps.fit(rgb(image), (self.width, self.height), Image.Resampling.BICUBIC)
        values = np.asarray(fitted, dtype=np.float32) / 255
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        tensor = torch.from_numpy(values)
        return tensor.permute(2, 0, 1).contiguous() if self.layout == "channels first" else tensor
