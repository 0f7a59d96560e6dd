"""ONNX: the layer as a graph that any runtime runs, with both normalisations inside."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.heads import FCLayer
from querykey.errors import ExportError, MissingExtraError
from querykey.export.exported import (
    Exported,
    Origin,
    adapted,
    on_cpu,
    probe_rows,
    require_parity,
    write_readme,
)
from querykey.io.atomic import check_new, new_folder
from querykey.types import FrozenRows, Rows

__all__ = ["export_onnx"]

MODEL = "adapter.onnx"

OPSET, IR_VERSION = 13, 7
"""Old on purpose: runtimes since 2021 read them, and nothing newer is needed."""

SMALLEST = 1e-12
"""As torch's normalize: a row of zeros stays what it is."""
LEAST_PEAK = 1.2e-38
"""The smallest normal number of float32: below the largest magnitude of any row but one of zeros."""

_USE = f"""\
`{MODEL}` takes `features`, float32 [rows, width] of any length, and gives `embeddings`:

```python
import onnxruntime

session = onnxruntime.InferenceSession("{MODEL}")
embeddings = session.run(["embeddings"], {{"features": features}})[0]
```"""


@in_default_torch_state
def export_onnx(fc: FCLayer, out: str | Path, *, origin: Origin | None = None) -> Exported:
    """Write a layer as an ONNX file: "features" [rows, width] in, "embeddings" [rows, dim] out.

    Args:
        fc: The layer.
        out: A new folder.
        origin: Where it comes from; the file's metadata says it too.

    Returns:
        What was written.

    Raises:
        ExportError: If onnxruntime gives rows that differ from the layer's by more than 1e-5.
        MissingExtraError: If onnx or onnxruntime is not installed.
        OutputExistsError: If something is at `out`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(FCLayer(4, 4, kind="residual"), f"{folder}/fc").difference < 1e-5
        True
    """
    onnx, runtime = _package("onnx"), _package("onnxruntime")
    check_new(out)
    fc, origin = on_cpu(fc), origin or Origin()
    model = _Graph(onnx).model(fc, origin)
    rows = probe_rows(fc.width)
    with new_folder(out) as tmp_path:
        (tmp_path / MODEL).write_bytes(model.SerializeToString())
        write_readme(tmp_path, "An adapter in ONNX", _USE, fc, origin, library="onnx")
        want = adapted(fc, rows)
        difference = require_parity(_run(runtime, tmp_path / MODEL, rows), want, what=MODEL)
        # a graph whose number of rows is fixed would pass with one number alone
        require_parity(_run(runtime, tmp_path / MODEL, rows[:1]), want[:1], what=MODEL)
        files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    return Exported(Path(out), files, difference, origin.re_index)


class _Graph:
    """Nodes and weights of a graph, in the order of the forward."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def model(self, fc: FCLayer, origin: Origin) -> Any:
        """The checked model of a layer."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        self._project(fc, self._unit("features", "unit"))
        self._unit("projected", "embeddings")
        graph = helper.make_graph(
            self._nodes,
            "adapter",
            [helper.make_tensor_value_info("features", kind, ["rows", fc.width])],
            [helper.make_tensor_value_info("embeddings", kind, ["rows", fc.dim])],
            self._weights,
        )
        model = helper.make_model(
            graph,
            producer_name="querykey",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(
            model,
            {
                "model_key": origin.model_key,
                "model": origin.model,
                "side": origin.side,
                "kind": fc.kind,
                "re_index": origin.re_index,
            },
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _project(self, fc: FCLayer, unit: str) -> None:
        weight, bias = self._weight("weight", fc.weight), self._weight("bias", fc.bias)
        linear = "projected" if fc.kind == "linear" else "linear"
        self._node("Gemm", [unit, weight, bias], linear, transB=1)
        if fc.kind == "residual":
            self._node("Add", [linear, unit], "projected")
        elif fc.kind == "two_layer":
            inner = [
                self._weight("hidden_weight", fc.hidden.weight),
                self._weight("hidden_bias", fc.hidden.bias),
            ]
            self._node("Gemm", [unit, *inner], "hidden", transB=1)
            active = self._gelu("hidden")
            self._node(
                "Gemm", [active, self._weight("out_weight", fc.out.weight), linear], "projected", transB=1
            )

    def _gelu(self, name: str) -> str:
        """Gelu is h (1 + erf(h / sqrt 2)) / 2, node by node: the operator Gelu came with opset 20."""
        root, one, half = (
            self._constant(f"gelu_{word}", value)
            for word, value in (("root", 2**-0.5), ("one", 1.0), ("half", 0.5))
        )
        scaled = self._node("Mul", [name, root], "gelu_scaled")
        area = self._node("Erf", [scaled], "gelu_area")
        share = self._node("Mul", [self._node("Add", [area, one], "gelu_raised"), half], "gelu_share")
        return self._node("Mul", [name, share], "gelu")

    def _unit(self, name: str, out: str) -> str:
        """Rows of length 1. First by the largest magnitude: the square of 1e25 is infinite in float32."""
        peak = self._node(
            "ReduceMax",
            [self._node("Abs", [name], f"{name}_magnitude")],
            f"{name}_peak",
            axes=[1],
            keepdims=1,
        )
        least = self._constant(f"{name}_least_peak", LEAST_PEAK)
        scaled = self._node(
            "Div", [name, self._node("Max", [peak, least], f"{name}_scale")], f"{name}_scaled"
        )
        length = self._node("ReduceL2", [scaled], f"{name}_length", axes=[1], keepdims=1)
        smallest = self._constant(f"{name}_smallest", SMALLEST)
        return self._node("Div", [scaled, self._node("Max", [length, smallest], f"{name}_divisor")], out)

    def _node(self, kind: str, given: list[str], out: str, **settings: Any) -> str:
        self._nodes.append(self._onnx.helper.make_node(kind, given, [out], **settings))
        return out

    def _weight(self, name: str, values: torch.Tensor) -> str:
        array = np.ascontiguousarray(values.detach().numpy())
        self._weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def _constant(self, name: str, value: float) -> str:
        self._weights.append(self._onnx.numpy_helper.from_array(np.float32(value).reshape(()), name))
        return name


def _run(runtime: Any, path: Path, rows: FrozenRows) -> Rows:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        out = session.run(["embeddings"], {"features": rows.numpy()})[0]
    except Exception as error:  # the library's errors have no common root
        raise ExportError(
            f"onnxruntime {runtime.__version__} cannot run {path.name} ({error}); nothing was written. "
            "Use a newer onnxruntime"
        ) from error
    return torch.from_numpy(out)


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, extra="export", purpose="an export to ONNX") from error
