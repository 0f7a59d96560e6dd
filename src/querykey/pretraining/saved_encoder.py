"""A pretrained encoder in a folder: encoder.safetensors and encoder.json, with a checksum and no pickle."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from querykey.data.augment.views import Views, plain_view
from querykey.data.pixels.pixels import Pixels
from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.projection import ViewEncoder
from querykey.errors import MissingPathError, StoreError
from querykey.io.atomic import raises_store_error, write_atomically
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import FrozenRows, Ids, Rows

__all__ = [
    "DESCRIPTION",
    "UNTRAINED",
    "WEIGHTS",
    "SavedEncoder",
    "encode_rows",
    "identified",
    "preparation",
    "put_encoder",
    "put_untrained",
    "read_encoder",
]

FORMAT = "querykey encoder"
VERSION = 1
WEIGHTS, UNTRAINED, DESCRIPTION = "encoder.safetensors", "untrained.safetensors", "encoder.json"
CHANNELS = (1, 3)
Prepare = Callable[..., Tensor]
LARGEST = 4096


@dataclass(frozen=True, eq=False)
class SavedEncoder:
    """A pretrained encoder, and the preprocessing of its images.

    Args:
        encoder: Backbone and projection head, in eval mode.
        settings: As resolved when it was trained.
        channels: Of an image.
        report: Of the training.
        identity: sha256 of weights and preparation.
    """

    encoder: ViewEncoder
    settings: PretrainSettings
    channels: int
    report: dict[str, Any] = field(default_factory=dict)
    identity: str = ""

    @property
    def views(self) -> Views:
        """The views it was trained on."""
        return self.settings.make_views(self.channels)

    @property
    def prepare(self) -> Prepare:
        """The preprocessing outside of training."""
        return preparation(self.settings, self.channels)

    @torch.no_grad()
    def encode(self, pixels: Pixels, rows: Ids, *, batch_size: int = 256) -> tuple[FrozenRows, Rows]:
        """Encode images in eval mode.

        Args:
            pixels: All images.
            rows: Which of them.
            batch_size: At once.

        Returns:
            (h [rows, width], z = g(h) [rows, dim]) on the CPU in float32.
        """
        return encode_rows(self.encoder, self.prepare, pixels, rows, batch_size=batch_size)


def preparation(settings: PretrainSettings, channels: int) -> Prepare:
    """The preprocessing of images outside of training.

    Args:
        settings: Resolved.
        channels: Of an image.

    Returns:
        (images, sizes or None) to float32 [images, channels, image_size, image_size].
    """
    views, size = settings.make_views(channels), settings.image_size
    assert size is not None
    view = partial(plain_view, size=size, mean=views.mean, deviation=views.deviation)
    return lambda images, sizes=None: view(images, sizes=sizes, memory_format=torch.channels_last)


@in_default_torch_state
def encode_rows(
    encoder: ViewEncoder, prepare: Prepare, pixels: Pixels, rows: Ids, *, batch_size: int = 256
) -> tuple[FrozenRows, Rows]:
    """Encode images in eval mode; the encoder is left in the mode it was in.

    Args:
        encoder: On any device.
        prepare: (images, sizes) to what the encoder takes.
        pixels: All images.
        rows: Which of them.
        batch_size: At once.

    Returns:
        (h, z) on the CPU in float32; rows of zeros for images that can no longer be decoded.
    """
    device = next(encoder.parameters()).device
    mode = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            parts = []
            batches = torch.split(rows, batch_size)
            for wanted, (images, sizes, found) in zip(batches, pixels.stream(batches), strict=True):
                places = torch.isin(wanted, found).nonzero()[:, 0]
                both = [one.float().cpu() for one in encoder(prepare(images.to(device), sizes))]
                zeros = [one.new_zeros(len(wanted), one.shape[1]) for one in both]
                parts.append(
                    [zero.index_copy_(0, places, one) for zero, one in zip(zeros, both, strict=True)]
                )
    finally:
        encoder.train(mode)
    if not parts:
        return torch.empty(0, encoder.backbone.dim), torch.empty(0, encoder.head.dim)
    return torch.cat([h for h, _ in parts]), torch.cat([z for _, z in parts])


def identified(saved: SavedEncoder) -> SavedEncoder:
    """The encoder with the identity that it has when it is read back from a folder.

    Args:
        saved: Of any identity.

    Returns:
        The same encoder.
    """
    digest = hashlib.sha256(save(_plain(saved.encoder.state_dict()))).hexdigest()
    return replace(saved, identity=_identity(digest, saved))


def put_untrained(encoder: ViewEncoder, folder: Path) -> None:
    """Write an encoder's weights from before the first step, for the baseline.

    Args:
        encoder: As it was then.
        folder: Of the run.
    """
    write_atomically(folder / UNTRAINED, [save(_plain(encoder.state_dict()))])


def put_encoder(saved: SavedEncoder, folder: Path) -> None:
    """Write an encoder's files into an existing folder; the description comes last.

    Args:
        saved: What to write.
        folder: Where.
    """
    written = write_atomically(folder / WEIGHTS, [save(_plain(saved.encoder.state_dict()))])
    described = {
        "format": FORMAT,
        "version": VERSION,
        "channels": saved.channels,
        "width": saved.encoder.backbone.dim,
        "preparation": _prepared(saved),
        "settings": saved.settings.as_dict(),
        "report": saved.report,
        "sha256": written["sha256"],
    }
    write_atomically(folder / DESCRIPTION, [json.dumps(described, indent=2).encode() + b"\n"])


@in_default_torch_state
def read_encoder(folder: str | Path, *, untrained: bool = False) -> SavedEncoder:
    """Read an encoder; nothing in the folder is executed.

    Args:
        folder: With encoder.json and encoder.safetensors.
        untrained: Whether to take the weights from before the first step.

    Returns:
        The encoder, in eval mode, on the CPU.

    Raises:
        MissingPathError: If there is none.
        StoreError: If it is damaged, was changed, or comes from a newer version.
        SourceError: If its backbone is the user's own and cannot be imported here.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise MissingPathError(f"{folder}: no encoder here; {DESCRIPTION} is missing")
    with raises_store_error(f"{folder}: the encoder", "pretrain it again"):
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if not isinstance(described, dict) or described.get("format") != FORMAT:
            raise StoreError(f"{folder}: {DESCRIPTION} does not describe an encoder")
        if described["version"] != VERSION:
            raise StoreError(
                f"{folder}: written as version {described['version']}; this querykey reads {VERSION}"
            )
        return _read(folder, described, untrained=untrained)


def _read(folder: Path, described: dict[str, Any], *, untrained: bool) -> SavedEncoder:
    file = folder / (UNTRAINED if untrained else WEIGHTS)
    if not file.is_file():
        raise StoreError(f"{folder}: {file.name} is missing")
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not untrained and digest != described["sha256"]:
        raise StoreError(
            f"{folder}: {file.name} is damaged or was changed: its checksum differs from {DESCRIPTION}"
        )
    channels = described["channels"]
    settings = PretrainSettings.from_dict(described["settings"])
    size = settings.image_size
    if channels not in CHANNELS or type(size) is not int or not 8 <= size <= LARGEST:
        raise StoreError(f"{folder}: {channels!r} channels of {size!r} pixels are not those of an encoder")
    encoder = make_encoder(settings.changed({"backbone.init": None}), channels=channels)
    encoder.load_state_dict(load(content))
    encoder.eval().requires_grad_(requires_grad=False)
    saved = SavedEncoder(encoder, settings, channels, dict(described["report"]))
    if described["preparation"] != _prepared(saved):
        raise StoreError(f"{folder}: {DESCRIPTION} was changed: its preparation is not that of its settings")
    return replace(saved, identity=_identity(digest, saved))


def _prepared(saved: SavedEncoder) -> dict[str, Any]:
    """A description of `preparation`."""
    views = saved.views
    return {
        "size": saved.settings.image_size, "mean": list(views.mean), "deviation": list(views.deviation),
        "resize": "shorter side, antialiased bilinear, then the middle square",
    }  # fmt: skip


def _identity(weights: str, saved: SavedEncoder) -> str:
    prepared = json.dumps(_prepared(saved), sort_keys=True)
    return hashlib.sha256(f"{weights} {prepared}".encode()).hexdigest()


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
