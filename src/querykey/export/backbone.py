"""A pretrained backbone for elsewhere: weights in its library's own keys, or ONNX with the scaling in it."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.backbones import Backbone
from querykey.errors import ExportError, MissingExtraError, first_line
from querykey.io.atomic import new_folder

__all__ = ["BackboneOrigin", "ExportedBackbone", "export_backbone_onnx", "export_backbone_safetensors"]

TOLERANCE = 1e-4
"""The most by which a number of h may differ from ours, by the largest of them: another runtime adds in
another order."""
PROBES = 3
WEIGHTS, GRAPH, DESCRIPTION = "backbone.safetensors", "encoder.onnx", "backbone.json"


@dataclass(frozen=True, kw_only=True)
class BackboneOrigin:
    """What a backbone is shown.

    Args:
        channels: Of an image.
        size: Of a side in pixels.
        mean: Of each channel in [0, 1], taken off.
        deviation: Of each channel, divided by.
        method: How it was pretrained.
    """

    channels: int
    size: int
    mean: Sequence[float]
    deviation: Sequence[float]
    method: str


@dataclass(frozen=True)
class ExportedBackbone:
    """What was written.

    Args:
        folder: Where.
        files: Names in it, sorted.
        difference: The largest by which h differed in the check, by the largest number of h.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float


@in_default_torch_state
def export_backbone_safetensors(
    backbone: Backbone, out: str | Path, *, origin: BackboneOrigin
) -> ExportedBackbone:
    """Write the weights under the keys of the library that the network comes from, without a classifier.

    Args:
        backbone: Not changed.
        out: A new folder.
        origin: What it is shown.

    Returns:
        What was written; the difference is 0.

    Raises:
        ExportError: If the file, read back, is not the network's state bit by bit.
        OutputExistsError: If something is at `out`.
    """
    network = _at_rest(backbone)
    state = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    with new_folder(out) as tmp_path:
        save_file(state, tmp_path / WEIGHTS)
        back = load_file(tmp_path / WEIGHTS)
        if back.keys() != state.keys() or not all(torch.equal(back[name], state[name]) for name in state):
            raise ExportError(f"{WEIGHTS} read back is not what the network holds; nothing was written")
        _describe(tmp_path, backbone, origin, _how(backbone, origin))
        files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    return ExportedBackbone(Path(out), files, 0.0)


@in_default_torch_state
def export_backbone_onnx(backbone: Backbone, out: str | Path, *, origin: BackboneOrigin) -> ExportedBackbone:
    """Write a graph that takes images from 0 to 1 and gives h; mean and deviation are inside.

    Args:
        backbone: Not changed.
        out: A new folder.
        origin: What it is shown.

    Returns:
        What was written.

    Raises:
        ExportError: If the network cannot be expressed, or the graph gives another h.
        MissingExtraError: If a package it needs is not installed.
        OutputExistsError: If something is at `out`.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less plainly
    except ImportError as error:
        raise MissingExtraError(
            error.name or "onnx", extra="export", purpose="writing a backbone as ONNX"
        ) from error
    whole = _Scaled(_at_rest(backbone), origin).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(PROBES, origin.channels, origin.size, origin.size, generator=generator)
    with new_folder(out) as tmp_path:
        try:
            torch.onnx.export(
                whole,
                (images,),
                str(tmp_path / GRAPH),
                input_names=["images"],
                output_names=["h"],
                dynamic_shapes={"images": {0: torch.export.Dim("rows", min=1)}},
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # torch's exporter raises its own kinds
            first = first_line(error)
            raise ExportError(f"{backbone.spec} cannot be written as ONNX: {first}") from error
        session = onnxruntime.InferenceSession(str(tmp_path / GRAPH), providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(["h"], {"images": images[:2].numpy()})[0])
        with torch.no_grad():
            want = whole(images[:2])
        difference = float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{GRAPH} differs from the encoder by {difference:.1e} of its largest number, and "
                f"{TOLERANCE:.0e} is the most allowed; nothing was written"
            )
        _describe(
            tmp_path, backbone, origin, f"`{GRAPH}` takes `images`, float32 from 0 to 1, and gives `h`."
        )
        files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    return ExportedBackbone(Path(out), files, difference)


class _Scaled(nn.Module):
    """Images from 0 to 1 to h."""

    def __init__(self, network: nn.Module, origin: BackboneOrigin) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(origin.mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(origin.deviation).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        h: Tensor = self.network((images - self.mean) / self.deviation)
        return h


def _at_rest(backbone: Backbone) -> nn.Module:
    network = copy.deepcopy(backbone.network).cpu().float().eval()
    return network.to(memory_format=torch.contiguous_format).requires_grad_(requires_grad=False)


def _how(backbone: Backbone, origin: BackboneOrigin) -> str:
    library, _, name = backbone.spec.partition(":")
    stem = (
        ""
        if backbone.stem == "plain"
        else "\n\nIts stem is made for small images: the first convolution is "
        "3x3 with stride 1, and there is no max pooling (`maxpool` is an identity)."
    )
    match library:
        case "timm":
            channels = f", in_chans={origin.channels}" if origin.channels != 3 else ""
            make, how = f'timm.create_model("{name}", num_classes=0{channels})', "strictly"
        case "torchvision":
            make, how = f"torchvision.models.{name}()", "with strict=False: it has no classifier"
        case "small_cnn":
            shape = f"channels={origin.channels}, image_size={origin.size}"
            make, how = f'make_backbone("{backbone.spec}", {shape}, seed=0).network', "strictly"
        case _:
            make, how = f"{name}()", "strictly"
    return f"`{WEIGHTS}` holds the state of\n\n    {make}\n\nLoad it {how}.{stem}"


def _describe(folder: Path, backbone: Backbone, origin: BackboneOrigin, how: str) -> None:
    shown: dict[str, Any] = {
        "format": "querykey backbone", "version": 1, "backbone": backbone.spec, "stem": backbone.stem,
        "width": backbone.dim, "method": origin.method, "channels": origin.channels, "size": origin.size,
        "mean": list(origin.mean), "deviation": list(origin.deviation),
        "resize": "shorter side to size, antialiased bilinear, then the middle square",
    }  # fmt: skip
    (folder / DESCRIPTION).write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
    numbers = ", ".join(f"{value:g}" for value in origin.mean), ", ".join(f"{v:g}" for v in origin.deviation)
    (folder / "README.md").write_text(
        f"""\
# A backbone pretrained by {origin.method}

{how}

- Backbone: {backbone.spec}, h of {backbone.dim} numbers an image; compare them by cosine
- Images: {origin.channels} channels of {origin.size} x {origin.size} pixels; shorter side scaled, middle
  cut out
- Mean {numbers[0]}, deviation {numbers[1]} of each channel, on the scale 0 to 1
""",
        encoding="utf-8",
    )
