"""safetensors and JSON: plain tensors, and the lines of code that use them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.heads import FCLayer
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
from querykey.io.atomic import new_folder

__all__ = ["export_safetensors", "linear_part"]

WEIGHTS, DESCRIPTION = "fc.safetensors", "fc.json"

_FIRST = "x = x / np.abs(x).max(axis=1, keepdims=True)\nx = x / np.linalg.norm(x, axis=1, keepdims=True)"
_LINEAR = "z = x @ weight.T + bias"
_HIDDEN = "h = x @ hidden_weight.T + hidden_bias"
_TWO = "z = x @ weight.T + bias + (h * (1 + erf(h / np.sqrt(2))) / 2) @ out_weight.T"
_LAST = "z = z / np.linalg.norm(z, axis=1, keepdims=True)"


@in_default_torch_state
def export_safetensors(
    fc: FCLayer,
    out: str | Path,
    *,
    origin: Origin | None = None,
    dims: Sequence[int] | ArrayLike | None = None,
) -> Exported:
    r"""Write a layer as plain tensors that any program can apply.

    .. math:: z = \text{norm}(W\,\text{norm}(x) + b)

    for linear and for residual layers, whose identity is added to :math:`W`; a layer of two keeps
    its second part in tensors of its own. `fc.json` holds the lines of NumPy that apply them.

    Args:
        fc: The layer.
        out: A new folder.
        origin: Where it comes from.
        dims: Sizes, each the first numbers of `z` scaled to length 1; None: the width of the layer alone.

    Returns:
        What was written.

    Raises:
        ExportError: If the tensors, read back, give rows that differ from the layer's by more than 1e-5.
        OutputExistsError: If something is at `out`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_safetensors(FCLayer(4, 4, kind="residual"), f"{folder}/fc").files
        ('README.md', 'fc.json', 'fc.safetensors')
    """
    fc, origin = on_cpu(fc), origin or Origin()
    how = [_FIRST, _HIDDEN, _TWO, _LAST] if fc.kind == "two_layer" else [_FIRST, _LINEAR, _LAST]
    described = {
        "format": "querykey fc", "version": 1, "width": fc.width, "dim": fc.dim, "kind": fc.kind,
        "dims": sizes_of(fc, dims),
        "side": origin.side, "re_index": origin.re_index, "model": origin.model,
        "model_key": origin.model_key, "how": how,
    }  # fmt: skip
    tensors = _tensors(fc)
    with new_folder(out) as tmp_path:
        save_file(tensors, tmp_path / WEIGHTS)
        (tmp_path / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        write_readme(
            tmp_path, "An adapter as plain tensors", _use(how, list(tensors)), fc, origin, library="querykey"
        )
        rows = probe_rows(fc.width)
        got = torch.from_numpy(_applied(load_file(tmp_path / WEIGHTS), rows.numpy()))
        difference = require_parity(got, adapted(fc, rows), what=WEIGHTS)
        files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    return Exported(Path(out), files, difference, origin.re_index)


def linear_part(fc: FCLayer) -> Tensor:
    """The weight of a layer's linear part, with the identity of a residual layer added to it.

    Args:
        fc: The layer.

    Returns:
        [dim, width].

    Example:
        >>> linear_part(FCLayer(2, 2, kind="residual"))
        tensor([[1., 0.],
                [0., 1.]])
    """
    weight = fc.weight.detach()
    return weight + torch.eye(fc.width) if fc.kind == "residual" else weight


def _tensors(fc: FCLayer) -> dict[str, Tensor]:
    named = {"weight": linear_part(fc), "bias": fc.bias.detach()}
    if fc.kind == "two_layer":
        named |= {
            "hidden_weight": fc.hidden.weight.detach(),
            "hidden_bias": fc.hidden.bias.detach(),
            "out_weight": fc.out.weight.detach(),
        }
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _applied(tensors: dict[str, NDArray[Any]], rows: NDArray[Any]) -> NDArray[Any]:
    """The equation of the README."""
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)  # float32 ends at squares of 1e19
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out = unit @ tensors["weight"].T + tensors["bias"]
    if "out_weight" in tensors:
        hidden = unit @ tensors["hidden_weight"].T + tensors["hidden_bias"]
        # NumPy has no erf; scipy, which scikit-learn brings, has
        from scipy.special import erf

        out = out + (hidden * (1 + erf(hidden / np.sqrt(np.float32(2)))) / 2) @ tensors["out_weight"].T
    unit_out: NDArray[Any] = out / np.linalg.norm(out, axis=1, keepdims=True)
    return unit_out


def _use(how: list[str], names: list[str]) -> str:
    imports = ["import numpy as np", "from safetensors.numpy import load_file"]
    if any("erf" in line for line in how):
        imports.append("from scipy.special import erf")
    read = [f'tensors = load_file("{WEIGHTS}")', *(f'{name} = tensors["{name}"]' for name in names)]
    code = "\n".join([*imports, "", *read, *how])
    return f"`{WEIGHTS}` holds the tensors. With `x` the features, one row an item:\n\n```python\n{code}\n```"
