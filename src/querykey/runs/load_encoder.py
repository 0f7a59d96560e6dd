"""Any model by name, a run among them: a fitted adapter on its frozen model, or a pretrained encoder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.adapter.checkpoint import DESCRIPTION, WEIGHTS
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

__all__ = ["encoder_of_features", "load_encoder"]


@in_default_torch_state
def load_encoder(
    spec: str | Path | PretrainedRun,
    *,
    device: str = "cpu",
    prompt: str | None = None,
    dtype: str = "float32",
) -> FrozenEncoder:
    """Load a model by name, ready to encode; nothing is ever downloaded.

    Args:
        spec: `timm:NAME[@weights.safetensors|.pth|random]`, `st:NAME-OR-FOLDER`, `module:factory`,
            `FILE.onnx`, or a RUN: the encoder of a pretraining (its h), or an adapter on top of its
            frozen model. Also what `pretrain` returned.
        device: Where it runs.
        prompt: For `st:` models: one of the model's prompts by name, or the text itself.
        dtype: "float32", "bfloat16", or "auto": bfloat16 where it is measured faster. It is part of the
            key, so "auto" may embed again on another machine. A RUN with an adapter has its own.

    Returns:
        The encoder; `encode` gives one row an item.

    Raises:
        SourceError: If there is no such model, it cannot be loaded, or a run does not know its own.
        MissingExtraError: If a package it needs is not installed.
        ModelMismatchError: If the frozen model of a run has changed since.
        ConfigError: If a setting does not fit the model.

    Example:
        >>> load_encoder("resnet50")
        Traceback (most recent call last):
        querykey.errors.SourceError: 'resnet50' names no model; a model is timm:NAME[@weights], ...
    """
    if isinstance(spec, PretrainedRun):
        return _pretrained(spec.encoder, "a pretraining", device, prompt, dtype)
    name, folder = str(spec), Path(spec)
    if (folder / ENCODER).is_file():
        return _pretrained(read_encoder(folder), name, device, prompt, dtype)
    if is_pretraining(folder):
        raise SourceError(
            f"{name} is a pretraining that is not finished; querykey resume {name} goes on with it"
        )
    if not (folder / DESCRIPTION).is_file():
        return frozen_models.load_frozen_encoder(name, device=device, prompt=prompt, dtype=dtype)
    run = load_run(folder)
    frozen = encoder_of_features(run.features.get("model", {}), name, device=device)
    if run.adapter.side == "query":
        raise SourceError(
            f"{name} transforms queries alone: embed the documents with {frozen.spec}, and the queries too; "
            "querykey transform --queries adapts them"
        )
    return FrozenEncoder(_AdaptedModel(frozen, run), spec=name)


def encoder_of_features(model: dict[str, Any], name: str, *, device: str = "cpu") -> FrozenEncoder:
    """The frozen model that made features.

    Args:
        model: What the features' meta says of it.
        name: What to call the features in a message.
        device: Where it runs.

    Returns:
        The encoder.

    Raises:
        SourceError: If the features do not name their model.
        ModelMismatchError: If the model of that name is another one now.
    """
    if not model.get("spec"):
        raise SourceError(
            f"{name}: its features came without a model, so nothing new can be embedded like them; "
            "give features, or a row's id"
        )
    encoder = load_encoder(
        model["spec"], device=device, prompt=model.get("prompt"), dtype=model.get("dtype", "float32")
    )
    if encoder.key != model["key"]:
        raise ModelMismatchError(
            f"{name}: {model['spec']} is another model now than when the features were made "
            f"({encoder.key[:12]}, then {model['key'][:12]}); its weights, preprocessing or prompt changed"
        )
    return encoder


def _pretrained(saved: SavedEncoder, name: str, device: str, prompt: str | None, dtype: str) -> FrozenEncoder:
    """The backbone of a pretraining: h of images, prepared as in its evaluation."""
    if prompt is not None:
        raise ConfigError(f"{name} takes no prompt; prompts are for st: models, leave it out")
    pictures, _ = pillow()
    size = saved.settings.image_size
    assert size is not None
    mode = "L" if saved.channels == 1 else "RGB"
    model = TorchModel(
        saved.encoder.backbone, kind="image", prepare=_Preparation(saved, size),
        blank=lambda: pictures.new(mode, (size, size)), identity=saved.identity, device=usable_device(device),
    )  # fmt: skip
    return FrozenEncoder(model, spec=name, dtype=dtype)


class _Preparation:
    """A PIL image as the encoder is shown it: the way that whole sources take."""

    def __init__(self, saved: SavedEncoder, size: int) -> None:
        self._saved, self._size = saved, size

    def __call__(self, image: Any) -> Tensor:
        decoded = RowDecoder([image], shorter_side=2 * self._size, channels=self._saved.channels).one(0)
        if isinstance(decoded, str):
            raise DamagedItemError(decoded)
        images, _ = lay_out([decoded], self._saved.channels)
        shown: Tensor = self._saved.prepare(images)[0]
        return shown


class _AdaptedModel:
    """A frozen model and an adapter, to be asked for features as if it were one."""

    # the frozen model below has decided both already
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
