"""ONNX: the layer as a graph that any runtime runs, with both normalisations inside, and one of its codes."""

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.heads import FCLayer
from querykey.errors import ExportError, MissingExtraError
from querykey.export.arrays import linear_part
from querykey.export.exported import (
    Exported,
    Origin,
    adapted,
    on_cpu,
    probe_rows,
    require_parity,
    sizes_of,
    write_readme,
)
from querykey.io.atomic import check_new, new_folder
from querykey.runtime.codes import Code
from querykey.runtime.forward import ERF, LoadedAdapter
from querykey.runtime.grid import ROW_BITS, grid_matrix
from querykey.types import FrozenRows

__all__ = ["export_onnx"]

MODEL, CODES = "adapter.onnx", "codes.onnx"

OPSET, IR_VERSION = 13, 7
"""Old on purpose: runtimes since 2021 read them, and nothing newer is needed."""

SMALLEST = 1e-12
"""As torch's normalize: a row of zeros stays what it is."""
LEAST_PEAK = 1.2e-38
"""The smallest normal number of float32: below the largest magnitude of any row but one of zeros."""

EXPONENTS = np.arange(-149, 128)
"""Of the powers of two from the smallest number of float32 to the largest."""

_USE = f"""\
`{MODEL}` takes `features`, float32 [rows, width] of any length, and gives `embeddings`:

```python
import onnxruntime

session = onnxruntime.InferenceSession("{MODEL}")
embeddings = session.run(["embeddings"], {{"features": features}})[0]
```"""


@in_default_torch_state
def export_onnx(
    fc: FCLayer,
    out: str | Path,
    *,
    origin: Origin | None = None,
    dims: Sequence[int] | ArrayLike | None = None,
    codes: Mapping[tuple[int, int], Code] | None = None,
) -> Exported:
    """Write a layer as an ONNX file: "features" [rows, width] in, "embeddings" [rows, dim] out.

    Each smaller size is an output of its own, "embeddings_64" for 64 numbers. Codes of documents are the
    outputs of a second file, codes.onnx: "int8_64" [rows, 64] and "bits_64" [rows, 8], the bits of
    `Adapter.quantize`.

    Args:
        fc: The layer.
        out: A new folder.
        origin: Where it comes from; the file's metadata says it too.
        dims: Sizes, each a prefix of the largest; None: the width of the layer alone.
        codes: (size, bits) to `Code`, such as `Adapter.codes_`; None: no codes.

    Returns:
        What was written.

    Raises:
        ExportError: If onnxruntime gives rows that differ from the layer's by more than 1e-5, or a code that
            differs in any bit.
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
    sizes = sizes_of(fc, dims)
    outputs = {size: "embeddings" if size == fc.dim else f"embeddings_{size}" for size in sizes}
    rows = probe_rows(fc.width)
    with new_folder(out) as tmp_path:
        (tmp_path / MODEL).write_bytes(_Graph(onnx).model(fc, origin, outputs).SerializeToString())
        difference = _check_rows(runtime, tmp_path / MODEL, fc, rows, outputs)
        if codes:
            graph = _CodeGraph(onnx).model(fc, origin, codes)
            (tmp_path / CODES).write_bytes(graph.SerializeToString())
            _check_codes(runtime, tmp_path / CODES, _loaded(fc, origin, sizes, codes), rows)
        use = _USE + _use_of_sizes(outputs) + _use_of_codes(codes or {})
        write_readme(tmp_path, "An adapter in ONNX", use, fc, origin, library="onnx")
        files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    return Exported(Path(out), files, difference, origin.re_index)


def _check_rows(runtime: Any, path: Path, fc: FCLayer, rows: FrozenRows, outputs: Mapping[int, str]) -> float:
    """The largest difference of any size, if it is small enough."""
    want, differences = adapted(fc, rows), []
    # a graph whose number of rows is fixed would pass with one number alone
    for some in (rows, rows[:1]):
        got = _run(runtime, path, some, list(outputs.values()))
        for size, found in zip(outputs, got, strict=True):
            whole = want[: len(some)]
            ours = whole if size == fc.dim else torch.nn.functional.normalize(whole[:, :size], dim=1)
            differences.append(require_parity(torch.from_numpy(found), ours, what=path.name))
    return max(differences)


def _check_codes(runtime: Any, path: Path, adapter: LoadedAdapter, rows: FrozenRows) -> None:
    names = {key: code_name(*key) for key in adapter.codes}
    for some in (rows, rows[:1]):
        got = _run(runtime, path, some, list(names.values()))
        for (size, bits), found in zip(names, got, strict=True):
            if not np.array_equal(found, adapter.quantize(some.numpy(), dim=size, bits=bits)):
                raise ExportError(
                    f"{path.name} gives other codes of {size} numbers at {bits} bits than the adapter; "
                    "nothing was written. Use another version of onnxruntime"
                )


def _loaded(
    fc: FCLayer, origin: Origin, sizes: Sequence[int], codes: Mapping[tuple[int, int], Code]
) -> LoadedAdapter:
    tensors = {name: tensor.numpy() for name, tensor in fc.state_dict().items()}
    return LoadedAdapter(tensors, kind=fc.kind, side=origin.side, dims=sizes, codes=codes)


def code_name(size: int, bits: int) -> str:
    """The output of codes.onnx that holds the codes of a size.

    Example:
        >>> code_name(64, 8), code_name(64, 1)
        ('int8_64', 'bits_64')
    """
    return f"{'int8' if bits == 8 else 'bits'}_{size}"


def _use_of_sizes(outputs: Mapping[int, str]) -> str:
    smaller = [f"`{name}`" for name in outputs.values() if name != "embeddings"]
    return f"\n\nSmaller sizes are outputs too: {', '.join(smaller)}." if smaller else ""


def _use_of_codes(codes: Mapping[tuple[int, int], Code]) -> str:
    if not codes:
        return ""
    names = [code_name(*key) for key in codes]
    listed = ", ".join(f"`{name}`" for name in names)
    return f"""

`{CODES}` gives codes of documents, the bits of `Adapter.quantize`: {listed}.
int8 codes have one number each; packed bits have eight numbers a byte, the first in the highest bit.

```python
codes = onnxruntime.InferenceSession("{CODES}").run(["{names[-1]}"], {{"features": features}})[0]
```"""


class _Nodes:
    """Nodes and weights of a graph, in the order of the forward."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def _model(self, width: int, outputs: Sequence[Any], properties: Mapping[str, str]) -> Any:
        """The checked model of the nodes."""
        helper = self._onnx.helper
        given = helper.make_tensor_value_info("features", self._onnx.TensorProto.FLOAT, ["rows", width])
        graph = helper.make_graph(self._nodes, "adapter", [given], outputs, self._weights)
        model = helper.make_model(
            graph,
            producer_name="querykey",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(properties))
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _node(self, kind: str, given: list[str], out: str, **settings: Any) -> str:
        self._nodes.append(self._onnx.helper.make_node(kind, given, [out], **settings))
        return out

    def _weight(self, name: str, values: Any) -> str:
        self._weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _prefix(self, name: str, size: int, out: str) -> str:
        ends = [
            self._weight(f"{out}_{word}", np.asarray([value], dtype=np.int64))
            for word, value in (("from", 0), ("to", size), ("axis", 1))
        ]
        return self._node("Slice", [name, *ends], out)


def _properties(fc: FCLayer, origin: Origin) -> dict[str, str]:
    return {
        "model_key": origin.model_key, "model": origin.model, "side": origin.side, "kind": fc.kind,
        "re_index": origin.re_index,
    }  # fmt: skip


class _Graph(_Nodes):
    """Float rows, one output a size."""

    def model(self, fc: FCLayer, origin: Origin, outputs: Mapping[int, str]) -> Any:
        """The checked model of a layer."""
        self._project(fc, self._unit("features", "unit"))
        values = []
        for size, name in outputs.items():
            rows = "projected" if size == fc.dim else self._prefix("projected", size, f"projected_{size}")
            self._unit(rows, name)
            kind = self._onnx.TensorProto.FLOAT
            values.append(self._onnx.helper.make_tensor_value_info(name, kind, ["rows", size]))
        return self._model(fc.width, values, _properties(fc, origin))

    def _project(self, fc: FCLayer, unit: str) -> None:
        weight, bias = self._tensor("weight", fc.weight), self._tensor("bias", fc.bias)
        linear = "projected" if fc.kind == "linear" else "linear"
        self._node("Gemm", [unit, weight, bias], linear, transB=1)
        if fc.kind == "residual":
            self._node("Add", [linear, unit], "projected")
        elif fc.kind == "two_layer":
            inner = [
                self._tensor("hidden_weight", fc.hidden.weight),
                self._tensor("hidden_bias", fc.hidden.bias),
            ]
            self._node("Gemm", [unit, *inner], "hidden", transB=1)
            active = self._gelu("hidden")
            self._node(
                "Gemm", [active, self._tensor("out_weight", fc.out.weight), linear], "projected", transB=1
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

    def _tensor(self, name: str, values: torch.Tensor) -> str:
        return self._weight(name, values.detach().numpy())

    def _constant(self, name: str, value: float) -> str:
        return self._weight(name, np.float32(value).reshape(()))


class _CodeGraph(_Nodes):
    """Codes of documents, in the arithmetic of `querykey.runtime.grid`: float64 whose sums are exact."""

    def model(self, fc: FCLayer, origin: Origin, codes: Mapping[tuple[int, int], Code]) -> Any:
        """The checked model of an adapter's codes."""
        types, values = self._onnx.TensorProto, []
        self._tables()
        rows = self._documents(fc, origin, self._double("features"))
        of_sizes = {
            size: self._grid(self._first(rows, size, fc.dim), f"z{size}")
            for size in dict.fromkeys(size for size, _ in codes)
        }
        for (size, bits), code in codes.items():
            name, (whole, lengths, _) = code_name(size, bits), of_sizes[size]
            if bits == 8:
                self._rounded(whole, lengths, float(code.tensors["scale"][0]), name)
            else:
                self._packed(self._product(whole, lengths, code.tensors["rotation"], name), code, name)
            kind, width = (types.INT8, size) if bits == 8 else (types.UINT8, size // 8)
            values.append(self._onnx.helper.make_tensor_value_info(name, kind, ["rows", width]))
        return self._model(fc.width, values, _properties(fc, origin))

    def _documents(self, fc: FCLayer, origin: Origin, features: str) -> str:
        """Rows before they are scaled to length 1, as `LoadedAdapter.quantize` has them."""
        whole, lengths, _ = self._grid(features, "x")
        if origin.side == "query":
            return self._node("Div", [whole, lengths], "z")
        out = self._product(whole, lengths, linear_part(fc).numpy(), "linear")
        out = self._node("Add", [out, self._numbers("bias", fc.bias.detach().numpy())], "biased")
        if fc.kind != "two_layer":
            return out
        hidden = self._product(whole, lengths, fc.hidden.weight.detach().numpy(), "hidden")
        bias = self._numbers("hidden_bias", fc.hidden.bias.detach().numpy())
        active = self._gelu(self._node("Add", [hidden, bias], "hidden_biased"))
        whole, lengths, step = self._grid(active, "h")
        more = self._product(whole, lengths, fc.out.weight.detach().numpy(), "out")
        scale = self._node("Mul", [lengths, step], "h_scale")
        return self._node("Add", [out, self._node("Mul", [more, scale], "out_scaled")], "z")

    def _first(self, rows: str, size: int, dim: int) -> str:
        return rows if size == dim else self._prefix(rows, size, f"first_{size}")

    def _tables(self) -> None:
        """The powers of two: ONNX has no frexp, and a logarithm would be rounded."""
        self._numbers("powers", np.ldexp(1.0, EXPONENTS))
        # the exponent of frexp is the number of powers that are not larger, above the smallest exponent
        exponents = np.arange(EXPONENTS[0], EXPONENTS[-1] + 2) - ROW_BITS
        self._numbers("steps", np.ldexp(1.0, exponents))
        self._numbers("inverse_steps", np.ldexp(1.0, -exponents))
        self._weight("axis", np.asarray([1], dtype=np.int64))

    def _grid(self, rows: str, name: str) -> tuple[str, str, str]:
        """`grid_rows`: whole numbers, lengths and steps."""
        peak = self._node(
            "ReduceMax", [self._node("Abs", [rows], f"{name}_size")], f"{name}_peak", axes=[1], keepdims=1
        )
        reached = self._node("GreaterOrEqual", [peak, "powers"], f"{name}_reached")
        counted = self._node("Cast", [reached], f"{name}_counted", to=self._onnx.TensorProto.INT64)
        place = self._node("ReduceSum", [counted, "axis"], f"{name}_place", keepdims=1)
        step, inverse = (
            self._node("Gather", [table, place], f"{name}_{table}") for table in ("steps", "inverse_steps")
        )
        whole = self._node("Round", [self._node("Mul", [rows, inverse], f"{name}_scaled")], f"{name}_whole")
        square = self._node("Mul", [whole, whole], f"{name}_square")
        length = self._node("Sqrt", [self._sum(square, f"{name}_squares")], f"{name}_length")
        return whole, self._node("Max", [length, self._number(f"{name}_one", 1.0)], f"{name}_lengths"), step

    def _product(self, whole: str, lengths: str, matrix: Any, name: str) -> str:
        """`grid_product`."""
        numbers, scale = grid_matrix(matrix)
        product = self._node("MatMul", [whole, self._numbers(f"{name}_matrix", numbers.T)], f"{name}_exact")
        divisor = self._node("Mul", [lengths, self._number(f"{name}_scale", scale)], f"{name}_divisor")
        return self._node("Div", [product, divisor], f"{name}_product")

    def _rounded(self, whole: str, lengths: str, scale: float, name: str) -> None:
        divisor = self._node("Mul", [lengths, self._number(f"{name}_scale", scale)], f"{name}_divisor")
        value = self._node("Round", [self._node("Div", [whole, divisor], f"{name}_value")], f"{name}_round")
        ends = [self._number(f"{name}_{word}", end) for word, end in (("least", -127.0), ("most", 127.0))]
        clipped = self._node("Clip", [value, *ends], f"{name}_clipped")
        self._node("Cast", [clipped], name, to=self._onnx.TensorProto.INT8)

    def _packed(self, turned: str, code: Code, name: str) -> None:
        threshold = self._numbers(f"{name}_threshold", code.tensors["threshold"])
        above = self._node("Greater", [turned, threshold], f"{name}_above")
        shape = self._weight(f"{name}_shape", np.asarray([-1, code.dim // 8, 8], dtype=np.int64))
        eights = self._node("Reshape", [self._double(above), shape], f"{name}_eights")
        places = self._numbers(f"{name}_places", np.ldexp(1.0, np.arange(7, -1, -1)))
        valued = self._node("Mul", [eights, places], f"{name}_valued")
        last = self._weight(f"{name}_last", np.asarray([2], dtype=np.int64))
        byte = self._node("ReduceSum", [valued, last], f"{name}_byte", keepdims=0)
        self._node("Cast", [byte], name, to=self._onnx.TensorProto.UINT8)

    def _gelu(self, x: str) -> str:
        """As the NumPy runtime has it, in its order, for the same bits."""
        one, two, root = (
            self._number(f"gelu_{word}", value)
            for word, value in (("one", 1.0), ("two", 2.0), ("root", float(np.float32(math.sqrt(0.5)))))
        )
        first, *series = (float(np.float32(value)) for value in ERF)
        size = self._node("Mul", [self._node("Abs", [x], "gelu_abs"), root], "gelu_size")
        slope = self._node("Mul", [self._number("gelu_first", first), size], "gelu_slope")
        t = self._node("Div", [one, self._node("Add", [one, slope], "gelu_raised")], "gelu_t")
        total = self._number("gelu_0", 0.0)
        for place, value in enumerate(series):
            term = self._node("Add", [total, self._number(f"gelu_c{place}", value)], f"gelu_a{place}")
            total = self._node("Mul", [term, t], f"gelu_m{place}")
        square = self._node("Mul", [self._node("Neg", [size], "gelu_minus"), size], "gelu_square")
        tail = self._node("Mul", [total, self._node("Exp", [square], "gelu_exp")], "gelu_tail")
        area = self._node("Abs", [self._node("Sub", [one, tail], "gelu_rest")], "gelu_area")
        erf = self._node("Mul", [area, self._node("Sign", [x], "gelu_sign")], "gelu_erf")
        twice = self._node("Mul", [x, self._node("Add", [one, erf], "gelu_share")], "gelu_twice")
        half = self._node("Div", [twice, two], "gelu_value")
        return self._double(self._node("Cast", [half], "gelu", to=self._onnx.TensorProto.FLOAT))

    def _sum(self, name: str, out: str) -> str:
        return self._node("ReduceSum", [name, "axis"], out, keepdims=1)

    def _double(self, name: str) -> str:
        return self._node("Cast", [name], f"{name}_double", to=self._onnx.TensorProto.DOUBLE)

    def _numbers(self, name: str, values: Any) -> str:
        return self._weight(name, np.asarray(values, dtype=np.float64))

    def _number(self, name: str, value: float) -> str:
        return self._numbers(name, np.float64(value).reshape(()))


def _run(runtime: Any, path: Path, rows: FrozenRows, outputs: list[str]) -> list[NDArray[Any]]:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        out: list[NDArray[Any]] = session.run(outputs, {"features": rows.numpy()})
    except Exception as error:  # the library's errors have no common root
        raise ExportError(
            f"onnxruntime {runtime.__version__} cannot run {path.name} ({error}); nothing was written. "
            "Use a newer onnxruntime"
        ) from error
    return out


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, extra="export", purpose="an export to ONNX") from error
