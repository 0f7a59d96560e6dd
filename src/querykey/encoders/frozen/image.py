"""Frozen image models: those of timm, and any callable that returns an nn.Module."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from querykey.encoders.frozen.fingerprint import (
    combined_digest,
    describe,
    preprocessing_digest,
    source_digest,
    state_digest,
)
from querykey.encoders.frozen.model import Kind, TorchModel, made_by
from querykey.encoders.frozen.preprocessing import ImagePreprocessing, rgb
from querykey.encoders.frozen.weights import load_weights
from querykey.errors import MissingExtraError, SourceError
from querykey.io.paths import expand_user

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["load_factory", "load_timm"]


class TimmPreprocessing:
    """The evaluation transform of a timm model, for images in any mode."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: "Image.Image") -> Any:
        return self.transform(rgb(image))

    def __repr__(self) -> str:
        return f"rgb, then {self.transform!r}"


def load_timm(name: str, *, device: torch.device) -> TorchModel:
    """Load a timm model without its classifier, with the preprocessing of timm.

    Args:
        name: `NAME` uses weights in the local cache; `NAME@FILE` those in a .safetensors or .pth file;
            `NAME@random` random ones.
        device: Of the model.

    Returns:
        A frozen image model.

    Raises:
        MissingExtraError: If timm is not installed.
        SourceError: If the model does not exist in timm, or its weights are missing or do not fit.
    """
    try:
        import timm
        from timm.data import create_transform, resolve_model_data_config
    except ImportError as error:
        raise MissingExtraError("timm", extra="vision", purpose=f"the model timm:{name}") from error
    name, at, weights = name.partition("@")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:3]
        like = f"; similar names: {', '.join(near)}" if near else ""
        raise SourceError(f"timm has no model {name!r}{like}; timm.list_models() lists all")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    if weights != "random":
        path = expand_user(weights) if at else _cached_weights(model, name)
        head = str(getattr(model, "pretrained_cfg", {}).get("classifier") or "head").split(".")[0]
        load_weights(model, path, name=name, classifier=[head])
    config = resolve_model_data_config(model)
    prepare = TimmPreprocessing(create_transform(**config, is_training=False))
    identity = combined_digest(
        {
            "weights": state_digest(model),
            "network": describe(model),
            "preprocessing": preprocessing_digest(prepare),
        }
    )
    _, height, width = config["input_size"]
    return TorchModel(
        model,
        kind="image",
        prepare=prepare,
        blank=lambda: _gray(height, width),
        identity=identity,
        device=device,
    )


def load_factory(spec: str, *, device: torch.device) -> TorchModel:
    """Load a user-defined model: `module:factory`, from the working directory or installed.

    The module may have the attributes

    - `kind`: "image" (the default) or "text"; the forward of a text model takes a list of str.
    - `preprocess`: maps a PIL image (or str) to the input of the forward, without the batch axis. By default
      an image is converted to RGB, resized to `image_size` (by default 224) and normalised as for ImageNet.

    Args:
        spec: `package.module:callable`; the callable has no arguments and returns an nn.Module.
        device: Of the model.

    Returns:
        A frozen model.

    Raises:
        SourceError: If the module or callable does not exist, or it does not return an nn.Module.
    """
    factory, module = made_by(spec)
    kind: Kind = getattr(module, "kind", "image")
    if kind not in ("image", "text"):
        raise SourceError(f'{spec}: its kind is {kind!r}; "image" or "text" is needed')

    size = getattr(module, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    prepare: Any = getattr(module, "preprocess", None)
    if prepare is None:
        prepare = ImagePreprocessing(height, width) if kind == "image" else _unchanged
    identity = combined_digest(
        {
            "weights": state_digest(module),
            "network": describe(module),
            "code": source_digest(factory, module),
            "preprocessing": preprocessing_digest(prepare),
        }
    )
    blank = (lambda: _gray(height, width)) if kind == "image" else (lambda: "text " * 64)
    return TorchModel(module, kind=kind, prepare=prepare, blank=blank, identity=identity, device=device)


def _unchanged(text: str) -> str:
    return text


def _gray(height: int, width: int) -> "Image.Image":
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", extra="vision", purpose="a model of images") from error
    return Image.new("RGB", (width, height), "gray")


def _cached_weights(model: nn.Module, name: str) -> Path:
    """The path of the weights in the local cache; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from torch.hub import get_dir

    config: Any = model.pretrained_cfg
    if repository := config.get("hf_hub_id"):
        for file in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(repository, config.get("hf_hub_filename") or file)
            if isinstance(found, str):
                return Path(found)
    if address := config.get("url"):
        path = Path(get_dir()) / "checkpoints" / str(address).rpartition("/")[2]
        if path.is_file():
            return path
    raise SourceError(
        f"timm:{name} has no weights on this machine, and none are downloaded; give a file "
        f"(timm:{name}@weights.safetensors), fetch them once with timm.create_model({name!r}, "
        f"pretrained=True), or use random ones (timm:{name}@random)"
    )
