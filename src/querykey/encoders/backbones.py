"""Backbones for pretraining: networks of timm and torchvision, `SmallCNN`, and user-defined modules."""

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from querykey.encoders.frozen.model import made_by, require_rows
from querykey.encoders.frozen.weights import load_weights
from querykey.encoders.small_cnn import SmallCNN
from querykey.errors import ConfigError, MissingExtraError, QuerykeyError, RangeError, SourceError
from querykey.io.paths import expand_user
from querykey.types import ImageRows, Rows

__all__ = ["Backbone", "Stem", "load_backbone_weights", "make_backbone"]

Stem = Literal["auto", "small", "plain"]

_SMALL_IMAGE = 64
_CLASSES = 1000
_WIDE = re.compile(r"(.+):(\d+)x")
_STAGES = (64, 128, 256, 512)
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


class Backbone(nn.Module):
    """A network without its classifier: images in, embeddings h out.

    Args:
        network: With the parameter names of its library.
        spec: Its name, as given by the user.
        dim: Width of h.
        stem: "small" or "plain".
        classifier: Modules that a file of weights may contain in addition to the network.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        spec: str,
        dim: int,
        stem: Literal["small", "plain"] = "plain",
        classifier: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.spec, self.dim, self.stem, self.classifier = spec, dim, stem, classifier

    def forward(self, images: ImageRows) -> Rows:
        """Images [images, channels, height, width] to h [images, dim]."""
        h: Tensor = self.network(images)  # one row per image, as checked by `make_backbone`
        return h

    def start_(self, images: Tensor) -> None:
        """Initialise a network from the statistics of images, if it has such an initialisation.

        Args:
            images: Training views [images, channels, height, width].
        """
        if isinstance(self.network, SmallCNN):
            self.network.start_(images)


class _Made(NamedTuple):
    network: nn.Module
    classifier: tuple[str, ...] = ()


def make_backbone(spec: str, *, channels: int, image_size: int, stem: Stem = "auto", seed: int) -> Backbone:
    """Make a network with random weights, the same for the same seed.

    - `timm:NAME` and `torchvision:NAME`: without classifier, and without the dropout before it.
      `timm:resnet50:2x` (any ResNet of timm) has twice the channels in every stage, as SimCLR's
      wider networks; `wide_resnet50_2`, of either library, widens the inner 3x3 convolutions alone.
    - `small_cnn`, `small_cnn:WIDTH` or `small_cnn:WIDTHxDEPTH`: `SmallCNN.of_width`.
    - `module:factory`: any nn.Module that returns one row of features per image.

    With the small-image stem, a ResNet's first convolution is 3x3 with stride 1 (of a deep stem,
    the first of three has stride 1), and there is no max pooling. The width of h is that of the features of a
    blank image.

    Args:
        spec: As above.
        channels: Of an image, >= 1.
        image_size: Its height and width in pixels, >= 1; vision transformers of timm and torchvision
            are made for it, other networks take any size.
        stem: "small" and "plain" for ResNets of timm and torchvision; "auto" is small for them below
            64 pixels, else plain.
        seed: Of the random weights. The state of the default generator is restored. A factory that uses
            another generator has to seed it.

    Returns:
        The backbone, in train mode, on the CPU.

    Raises:
        SourceError: If the network does not exist (the message lists similar names), or it does not accept
            such images.
        ConfigError: If a small stem is requested for a network that has none.
        RangeError: If a number is outside its range.
        MissingExtraError: If timm or torchvision is needed and not installed.

    Example:
        >>> backbone = make_backbone("small_cnn:8", channels=1, image_size=28, seed=0)
        >>> backbone.dim, backbone(torch.zeros(2, 1, 28, 28)).shape
        (64, torch.Size([2, 64]))

    Source:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        arXiv:2002.05709, appendix B.9 (the stem for CIFAR-10) and section 4.1 (deeper and wider).
    """
    for name, value in (("channels", channels), ("image_size", image_size)):
        if value < 1:
            raise RangeError(f"{name} must be >= 1, got {value}")
    if stem not in ("auto", "small", "plain"):
        raise ConfigError(f"stem {stem!r} is not known; it is auto, small or plain")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network, classifier = _made(spec, channels, image_size)
        is_resnet = type(network).__name__ == "ResNet" and hasattr(network, "maxpool")
        if stem == "small" and not is_resnet:
            raise ConfigError(f"{spec} has no small stem, only ResNets have; use stem auto")
        is_small = stem == "small" or (stem == "auto" and image_size < _SMALL_IMAGE and is_resnet)
        if is_small:
            _use_small_stem(network)
        dim = _feature_width(network, spec, channels, image_size)
    return Backbone(
        network.train(), spec=spec, dim=dim, stem="small" if is_small else "plain", classifier=classifier
    )


def load_backbone_weights(backbone: Backbone, path: Path | str) -> None:
    """Load a file of weights into a backbone, in place.

    Args:
        backbone: All of its weights and buffers must be in the file, under the keys of
            `backbone.network`.
        path: A .safetensors file, or a .pth, .pt or .bin file that holds tensors alone; with or without
            a classifier, which is ignored.

    Raises:
        MissingPathError: If the file does not exist.
        SourceError: If the file cannot be read or is of another network; nothing is loaded.
    """
    hint = "" if backbone.stem == "plain" else "; a file with the library's own stem needs stem = plain"
    load_weights(
        backbone.network,
        expand_user(path),
        name=backbone.spec,
        classifier=backbone.classifier,
        hint=f"{hint}; image size, channels and width must be the file's too",
    )


def _made(spec: str, channels: int, image_size: int) -> _Made:
    kind, _, name = spec.partition(":")
    if "@" in name:
        raise SourceError(f"{spec}: a backbone starts from random weights; give a file of weights as init")
    match kind:
        case "timm":
            return _of_timm(name, channels, image_size)
        case "torchvision":
            return _of_torchvision(name, channels, image_size)
        case "small_cnn":
            return _Made(SmallCNN.of_size(channels, name) if name else SmallCNN.of_width(channels))
        case _ if name:
            return _Made(made_by(spec)[1])
        case _:
            raise SourceError(
                f"there is no backbone {spec!r}; give timm:NAME, torchvision:NAME, small_cnn, "
                "small_cnn:WIDTH, small_cnn:WIDTHxDEPTH or MODULE:FACTORY"
            )


def _of_timm(name: str, channels: int, image_size: int) -> _Made:
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise MissingExtraError("timm", extra="vision", purpose=f"the model timm:{name}") from error
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    wide = _WIDE.fullmatch(name)
    plain = wide[1] if wide else name
    if not timm.is_model(plain):
        raise _unknown("timm", plain, timm.list_models())
    if wide:
        options["channels"] = tuple(int(wide[2]) * width for width in _STAGES)
    if getattr(get_pretrained_cfg(plain), "fixed_input_size", False):
        options["img_size"] = image_size
    network: Any = _call(lambda: timm.create_model(plain, pretrained=False, **options), f"timm:{name}")
    head = str(network.pretrained_cfg.get("classifier") or "head").split(".")[0]
    return _Made(network, (head,))


def _of_torchvision(name: str, channels: int, image_size: int) -> _Made:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError(
            "torchvision", extra="vision", purpose=f"the model torchvision:{name}"
        ) from error
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    network = _call(lambda: models.get_model(name, **options), f"torchvision:{name}")
    _take_channels(network, channels)
    return _Made(network, (_remove_classifier(network), *_AUXILIARY))


def _call(make: Callable[[], nn.Module], spec: str) -> nn.Module:
    try:
        return make()
    except Exception as error:  # the libraries raise any error
        raise SourceError(f"{spec} cannot be made ({type(error).__name__}: {error})") from error


def _unknown(library: str, name: str, names: list[str]) -> SourceError:
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    like = f"; similar names: {', '.join(near)}" if near else ""
    return SourceError(f"{library} has no network {name!r}{like}; {library}'s list_models() lists all")


def _take_channels(network: nn.Module, channels: int) -> None:
    """Adapt the first convolution to a number of channels, each with weights drawn by the library."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            source = torch.arange(channels) % module.in_channels
            module.weight = nn.Parameter(module.weight.detach()[:, source].clone())
            module.in_channels = channels
            return


def _remove_classifier(network: nn.Module) -> str:
    """Remove the classifier, the last layer with one output per ImageNet class; returns its name."""
    layers = [(name, layer) for name, layer in network.named_modules() if _outputs(layer) == _CLASSES]
    name: str = layers[-1][0]
    parent_name, _, last = name.rpartition(".")
    parent = network.get_submodule(parent_name)
    setattr(parent, last, nn.Identity())
    if isinstance(parent, nn.Sequential):  # remove the dropout before it, too
        for place in reversed(range(int(last) if last.isdecimal() else 0)):
            if not isinstance(parent[place], nn.Dropout):
                break
            parent[place] = nn.Identity()
    return name


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else 0


def _use_small_stem(network: Any) -> None:
    first = network.conv1
    if isinstance(first, nn.Conv2d):
        small = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        network.conv1 = small
    else:
        first[0].stride = (1, 1)
    for module in network.maxpool.modules():
        if isinstance(module, nn.Conv2d):  # some of timm's networks pool by a convolution
            module.stride = (1, 1)
    if not any(True for _ in network.maxpool.parameters()):
        network.maxpool = nn.Identity()


def _feature_width(network: nn.Module, spec: str, channels: int, image_size: int) -> int:
    """The width of the features of a blank image."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, channels, image_size, image_size))
    except QuerykeyError:
        raise
    except Exception as error:  # a user-defined network can raise any error
        raise SourceError(
            f"{spec} cannot take an image of {channels} x {image_size} x {image_size} "
            f"({type(error).__name__}: {error}); try another image size or another network"
        ) from error
    finally:
        network.train(was_training)
    return int(require_rows(features, 1, spec).shape[1])
