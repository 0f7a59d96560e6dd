"""The frozen model of a run, and a run as a model of its own."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.build import Run, load_run
from querykey.encoders.frozen import FrozenEncoder, load_encoder
from querykey.encoders.frozen_model import Kind
from querykey.errors import ModelMismatchError, SourceError
from querykey.training.saved import DESCRIPTION, WEIGHTS

__all__ = ["encoder_of_features", "load_model"]


def load_model(spec: str, *, device: str = "cpu", prompt: str | None = None) -> FrozenEncoder:
    """Load a frozen model, or a run as one: its frozen model with the adapter on top.

    Args:
        spec: As `querykey help sources` says.
        device: Where it runs.
        prompt: For st: models.

    Returns:
        The encoder.

    Raises:
        SourceError: If there is no such model, or a run does not know its own.
        ModelMismatchError: If the frozen model of a run has changed since.
    """
    if not (Path(spec) / DESCRIPTION).is_file():
        return load_encoder(spec, device=device, prompt=prompt)
    run = load_run(spec)
    frozen = encoder_of_features(run.features.get("model", {}), spec, device=device)
    if run.adapter.side == "query":
        raise SourceError(
            f"{spec} transforms queries alone: embed the documents with {frozen.spec}, and the queries too; "
            "querykey transform --queries adapts them"
        )
    return FrozenEncoder(_AdaptedModel(frozen, run), spec=spec)


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
        from PIL import Image

        return Image.new("RGB", (32, 32))

    def prepare(self, item: Any) -> Any:
        return item

    def forward(self, batch: Sequence[Any], *, dtype: torch.dtype, channels_last: bool) -> Tensor:  # noqa: ARG002
        rows = self._adapter.transform(self._frozen.encode(batch))
        assert isinstance(rows, Tensor)
        return rows
