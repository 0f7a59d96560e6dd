"""Loads any model by name: a frozen model, a pretrained encoder, or a fitted adapter on its frozen model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.data.pixels.decoding import RowDecoder, lay_out
from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.frozen import encoder as frozen_models
from querykey.encoders.frozen.encoder import FrozenEncoder
from querykey.encoders.frozen.model import Kind, TorchModel, usable_device
from querykey.errors import ConfigError, DamagedItemError, ModelMismatchError, SourceError
from querykey.io.images import pillow
from querykey.pretraining.saved_encoder import DESCRIPTION as ENCODER
from querykey.pretraining.saved_encoder import SavedEncoder, read_encoder
from querykey.runs.adapt import Run, load_run
from querykey.runs.pretrain import PretrainedRun
from querykey.runs.pretrain_folder import is_pretraining
from querykey.runtime.folder import DESCRIPTION, WEIGHTS

__all__ = ["encoder_of_features", "load_encoder"]


@in_default_torch_state
def load_encoder(
    spec: str | Path | PretrainedRun,
    *,
    device: str = "cpu",
    prompt: str | None = None,
    dtype: str = "float32",
) -> FrozenEncoder:
    """Load a model by name, ready to encode; nothing is downloaded.

    Args:
        spec: `timm:NAME[@weights.safetensors|.pth|random]`, `st:NAME-OR-FOLDER`, `module:factory`,
            `FILE.onnx`, or a RUN: the backbone of a pretrained encoder (its h), or an adapter on top of
            its frozen model. Also the result of `pretrain`.
        device: Device of the model.
        prompt: For `st:` models: the name of one of the model's prompts, or its text.
        dtype: "float32", "bfloat16", or "auto": bfloat16 if it is measured to be faster. It is part of the
            key, so "auto" may embed again on another machine. A RUN with an adapter ignores it.

    Returns:
        The encoder; `encode` returns one row per item.

    Raises:
        SourceError: If there is no such model, it cannot be loaded, or a run does not record its model.
        MissingExtraError: If a package that it needs is not installed.
        ModelMismatchError: If the frozen model of a run has changed.
        ConfigError: If an argument does not fit the model.

    Example:
        >>> load_encoder("resnet50")
        Traceback (most recent call last):
        querykey.errors.SourceError: 'resnet50' is not a model; a model is timm:NAME[@weights], ...
    """
    if isinstance(spec, PretrainedRun):
        return _pretrained(spec.encoder, "a pretrained encoder", device, prompt, dtype)
    name, folder = str(spec), Path(spec)
    if (folder / ENCODER).is_file():
        return _pretrained(read_encoder(folder), name, device, prompt, dtype)
    if is_pretraining(folder):
        raise SourceError(
            f"{name} is a pretraining run that is not finished; resume it with querykey resume {name}"
        )
    if not (folder / DESCRIPTION).is_file():
        return frozen_models.load_frozen_encoder(name, device=device, prompt=prompt, dtype=dtype)
    run = load_run(folder)
    frozen = encoder_of_features(run.features.get("model", {}), name, device=device)
    if run.adapter.side == "query":
        raise SourceError(
            f"{name} transforms only queries: embed documents and queries with {frozen.spec}, then adapt "
            "the queries with querykey transform"
        )
    return FrozenEncoder(_AdaptedModel(frozen, run), spec=name)


def encoder_of_features(model: dict[str, Any], name: str, *, device: str = "cpu") -> FrozenEncoder:
    """The frozen model that computed features.

    Args:
        model: The entry "model" in the metadata of the features.
        name: Name of the features, for messages.
        device: Device of the model.

    Returns:
        The encoder.

    Raises:
        SourceError: If the features do not name their model.
        ModelMismatchError: If the model has changed.
    """
    if not model.get("spec"):
        raise SourceError(
            f"{name}: its features do not name their model, so new items cannot be embedded; "
            "give features, or the id of a row"
        )
    encoder = load_encoder(
        model["spec"], device=device, prompt=model.get("prompt"), dtype=model.get("dtype", "float32")
    )
    if encoder.key != model["key"]:
        raise ModelMismatchError(
            f"{name}: {model['spec']} has changed since the features were made (key {encoder.key[:12]}, "
            f"before {model['key'][:12]}): other weights, preprocessing or prompt"
        )
    return encoder


def _pretrained(saved: SavedEncoder, name: str, device: str, prompt: str | None, dtype: str) -> FrozenEncoder:
    """The backbone of a pretrained encoder: h of images, with the preprocessing of its evaluation."""
    if prompt is not None:
        raise ConfigError(f"{name} takes no prompt; only st: models do, leave it out")
    pictures, _ = pillow()
    size = saved.settings.image_size
    assert size is not None
    channels, mode = saved.channels, "L" if saved.channels == 1 else "RGB"

    def prepare(image: Any) -> Tensor:
        """Decode and resize a PIL image in the same way as the images of a source."""
        decoded = RowDecoder([image], shorter_side=2 * size, channels=channels).one(0)
        if isinstance(decoded, str):
            raise DamagedItemError(decoded)
        images, _ = lay_out([decoded], channels)
        prepared: Tensor = saved.prepare(images)[0]
        return prepared

    model = TorchModel(
        saved.encoder.backbone,
        kind="image",
        prepare=prepare,
        blank=lambda: pictures.new(mode, (size, size)),
        identity=saved.identity,
        device=usable_device(device),
    )
    return FrozenEncoder(model, spec=name, dtype=dtype)


class _AdaptedModel:
    """A frozen model followed by an adapter, as one model."""

    # the frozen model has its dtype and memory layout already
    fixed_dtype = True
    has_layouts = False

    def __init__(self, frozen: FrozenEncoder, run: Run) -> None:
        self._frozen = frozen
        self._adapter = run.adapter
        self.kind: Kind = frozen.kind
        weights = (run.folder / WEIGHTS).read_bytes()
        self.identity = hashlib.sha256(frozen.key.encode() + hashlib.sha256(weights).digest()).hexdigest()

    def blank(self) -> Any:
        if self.kind == "text":
            return "a"
        return pillow()[0].new("RGB", (32, 32))

    def prepare(self, item: Any) -> Any:
        return item

    def forward(self, batch: Sequence[Any], *, dtype: torch.dtype, channels_last: bool) -> Tensor:  # noqa: ARG002
        rows = self._adapter.transform(self._frozen.encode(batch))
        assert isinstance(rows, Tensor)
        return rows
