"""Frozen models in ONNX files, run by onnxruntime."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from querykey.encoders.frozen.fingerprint import combined_digest, file_digest
from querykey.encoders.frozen.model import Kind, require_rows
from querykey.encoders.frozen.preprocessing import ImagePreprocessing
from querykey.errors import MissingExtraError, MissingPathError, SourceError, first_line
from querykey.io.images import pillow

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["OnnxModel", "load_onnx"]

_COLOURS = 3


class OnnxModel:
    """An ONNX file as a frozen model.

    Args:
        session: An onnxruntime session with one float input.
        path: The file, for messages.
        identity: What makes its features.
    """

    fixed_dtype = True
    has_layouts = False

    def __init__(self, session: Any, path: Path, identity: str) -> None:
        self._session = session
        self._path = path
        self.identity = identity
        [self._input] = session.get_inputs()
        self._output = session.get_outputs()[0].name
        self._dtype = np.float16 if "float16" in self._input.type else np.float32
        shape = self._input.shape
        self._alone = shape[0] == 1
        self.kind: Kind = "image" if len(shape) == 4 else "vector"
        self._prepare = image_preprocessing(shape) if self.kind == "image" else None

    def blank(self) -> Any:
        if self._prepare is None:
            return np.zeros(self._input.shape[1], np.float32)
        return pillow()[0].new("RGB", (self._prepare.width, self._prepare.height), "gray")

    def prepare(self, item: "Image.Image | Any") -> Tensor:
        if self._prepare is not None:
            return self._prepare(item)
        return torch.as_tensor(item)

    def forward(self, batch: Sequence[Tensor], *, dtype: torch.dtype, channels_last: bool) -> Tensor:
        del dtype, channels_last  # both are fixed in the file
        inputs = torch.stack(list(batch)).numpy().astype(self._dtype)
        # a file exported for one item at a time says so in its input's shape
        parts = np.split(inputs, len(inputs)) if self._alone else [inputs]
        rows = [self._session.run([self._output], {self._input.name: part})[0] for part in parts]
        return require_rows(torch.from_numpy(np.concatenate(rows)), len(batch), str(self._path))


def image_preprocessing(shape: Sequence[Any]) -> ImagePreprocessing:
    """The default preprocessing for an input of four axes; open heights and widths are 224.

    Example:
        >>> image_preprocessing(["batch", 3, 192, 160]).width
        160
        >>> image_preprocessing(["batch", "height", "width", 3]).layout
        'channels last'
    """
    last = shape[3] == _COLOURS and shape[1] != _COLOURS
    height, width = shape[1:3] if last else shape[2:4]
    return ImagePreprocessing(
        height=height if isinstance(height, int) else 224,
        width=width if isinstance(width, int) else 224,
        layout="channels last" if last else "channels first",
    )


def load_onnx(path: Path, *, device: torch.device) -> OnnxModel:
    """An ONNX file with one float input; its first output is used, one row an item.

    An input of four axes takes images, [n, 3, h, w] or [n, h, w, 3]: RGB, the shorter side
    scaled to fit, the middle cut out, values in [0, 1] normalised with ImageNet's mean and
    deviation. If the model wants anything else, make a `module:factory` with its own
    `preprocess`. An input of two axes takes vectors.

    Args:
        path: The file.
        device: Where it runs; other than cpu if this onnxruntime can.

    Returns:
        A frozen model of images or of vectors.

    Raises:
        MissingExtraError: If onnx or onnxruntime is not installed.
        SourceError: If it is no whole ONNX file, or has other inputs.
    """
    if not path.is_file():
        raise MissingPathError(f"{path}: there is no such file; give an .onnx file")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", extra="export", purpose=f"the model {path}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = "CPUExecutionProvider" if device.type == "cpu" else f"{device.type.upper()}ExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise SourceError(f"{path}: this onnxruntime cannot run on {device.type}; use cpu")
    try:
        outside = _outside_files(onnx.load(str(path), load_external_data=False), path.parent)
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # neither library has a common root for its errors
        first = first_line(error)
        raise SourceError(f"{path} is not a whole ONNX file ({first}); export it again") from error
    shape = _usable_shape(session, path)
    images = image_preprocessing(shape) if len(shape) == 4 else None
    identity = combined_digest(
        {"files": [file_digest(file) for file in (path, *outside)], "preprocessing": repr(images)}
    )
    return OnnxModel(session, path, identity)


def _usable_shape(session: Any, path: Path) -> list[Any]:
    """The shape of the only input, if it is one that takes images or vectors."""
    inputs = session.get_inputs()
    shape: list[Any] = inputs[0].shape if len(inputs) == 1 and "float" in inputs[0].type else []
    images = len(shape) == 4 and _COLOURS in (shape[1], shape[3])
    vectors = len(shape) == 2 and _is_size(shape[1])
    if not (images or vectors) or (_is_size(shape[0]) and shape[0] != 1):
        taken = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise SourceError(
            f"{path} takes {taken}; one float input is needed, [n, 3, h, w], [n, h, w, 3] or [n, dim], "
            "with n open or 1. For anything else make a module:factory"
        )
    return shape


def _is_size(axis: Any) -> bool:
    return isinstance(axis, int)


def _outside_files(model: Any, folder: Path) -> list[Path]:
    """The files beside a model in which its large weights lie."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [folder / os.fspath(name) for name in sorted(names)]
