"""The folder of a saved adapter, read without PyTorch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save_file

from querykey.errors import MissingPathError, QuerykeyError, StoreError
from querykey.runtime.codes import Code
from querykey.runtime.forward import LoadedAdapter

__all__ = ["load", "put_codes", "read_codes", "read_description", "read_weights"]

FORMAT, VERSION = "querykey adapter", 1
WEIGHTS, DESCRIPTION = "adapter.safetensors", "adapter.json"
CODES = "codes.safetensors"
"""Written only for an adapter with codes, so that earlier versions can read the folder."""
WIDEST = 1_000_000
KINDS = ("linear", "residual", "two_layer")
SIDES = ("both", "query")


def load(folder: str | Path) -> LoadedAdapter:
    """Read an adapter that `Adapter.save`, or `querykey adapt --out`, wrote. Nothing in it is executed.

    Folders of version 0.1 are read too.

    Args:
        folder: With adapter.json and adapter.safetensors.

    Returns:
        The adapter, ready to transform.

    Raises:
        MissingPathError: If there is no adapter.
        StoreError: If it is damaged, was changed, or comes from a newer version.
    """
    folder = Path(folder)
    try:
        return _read(folder, read_description(folder))
    except QuerykeyError:
        raise
    except Exception as error:
        raise StoreError(
            f"{folder}: the adapter is damaged ({type(error).__name__}: {error}); fit it again"
        ) from error


def read_description(folder: Path) -> dict[str, Any]:
    """Read the adapter.json of a saved adapter.

    Args:
        folder: The folder of the adapter.

    Returns:
        JSON values.

    Raises:
        MissingPathError: If there is no adapter.
        StoreError: If it describes something else, or comes from a newer version.
    """
    if not (folder / DESCRIPTION).is_file():
        raise MissingPathError(f"{folder}: no adapter here; {DESCRIPTION} is missing")
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise StoreError(f"{folder}: {DESCRIPTION} does not describe an adapter")
    if described["version"] != VERSION:
        raise StoreError(
            f"{folder}: written as version {described['version']}; this querykey reads {VERSION}; "
            "install a newer querykey, or fit the adapter again"
        )
    return described


def read_weights(folder: Path, described: Mapping[str, Any]) -> bytes:
    """Read the weights of a saved adapter, and check them and what adapter.json says of the layer.

    Args:
        folder: The folder of the adapter.
        described: Its adapter.json.

    Returns:
        The content of adapter.safetensors.

    Raises:
        StoreError: If the weights are missing, damaged or were changed, or the layer is not valid.
    """
    if not (folder / WEIGHTS).is_file():
        raise StoreError(f"{folder}: {WEIGHTS} is missing")
    content = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(content).hexdigest() != described["sha256"]:
        raise StoreError(
            f"{folder}: {WEIGHTS} is damaged or was changed: its checksum differs from {DESCRIPTION}"
        )
    width, dim, kind = described["width"], described["dim"], described["kind"]
    if type(width) is not int or type(dim) is not int or not 1 <= dim <= width <= WIDEST:
        raise StoreError(f"{folder}: width {width!r} and dim {dim!r} are not valid for an adapter")
    if kind not in KINDS:
        raise StoreError(f"{folder}: unknown kind of FC layer: {kind!r}")
    return content


def _read(folder: Path, described: dict[str, Any]) -> LoadedAdapter:
    content = read_weights(folder, described)
    width, dim, kind = described["width"], described["dim"], described["kind"]
    side = described.get("side", "both")
    if side not in SIDES:
        raise StoreError(f"{folder}: side is {' or '.join(SIDES)}, got {side!r}")
    return LoadedAdapter(
        _checked(load_tensors(content), width, dim, kind, folder),
        kind=kind,
        side=side,
        model_key=str(described["model_key"]),
        report=dict(described.get("report", {})),
        dims=_dims(described, dim, folder),
        codes=read_codes(folder, described),
    )


def put_codes(codes: Mapping[tuple[int, int], Code], folder: Path) -> dict[str, Any] | None:
    """Write the codes of an adapter into its folder, and return their entry of adapter.json.

    Args:
        codes: (size, bits) to `Code`.
        folder: An existing folder.

    Returns:
        Sizes, bits and the checksum of the file; None, without a file, if there are no codes.
    """
    if not codes:
        return None
    tensors = {
        f"{dim}.{bits}.{name}": np.ascontiguousarray(tensor)
        for (dim, bits), code in codes.items()
        for name, tensor in code.tensors.items()
    }
    save_file(tensors, folder / CODES)
    digest = hashlib.sha256((folder / CODES).read_bytes()).hexdigest()
    return {"of": [list(key) for key in codes], "sha256": digest}


def read_codes(folder: Path, described: Mapping[str, Any]) -> dict[tuple[int, int], Code]:
    """Read the codes of a saved adapter.

    Args:
        folder: Of the adapter.
        described: Its adapter.json.

    Returns:
        (size, bits) to `Code`; empty for an adapter without codes.

    Raises:
        StoreError: If they are damaged or were changed.
    """
    about = described.get("codes")
    if about is None:
        return {}
    if not (folder / CODES).is_file():
        raise StoreError(f"{folder}: {CODES} is missing")
    content = (folder / CODES).read_bytes()
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise StoreError(
            f"{folder}: {CODES} is damaged or was changed: its checksum differs from {DESCRIPTION}"
        )
    tensors, codes = load_tensors(content), dict[tuple[int, int], Code]()
    for dim, bits in about["of"]:
        start = f"{dim}.{bits}."
        own = {name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)}
        codes[dim, bits] = Code(dim, bits, own)
    return codes


def _dims(described: Mapping[str, Any], dim: int, folder: Path) -> tuple[int, ...]:
    dims = described.get("dims", [dim])
    if not (isinstance(dims, list) and dims and all(type(one) is int and 1 <= one <= dim for one in dims)):
        raise StoreError(f"{folder}: dims {dims!r} are not sizes of an adapter of {dim} numbers")
    return tuple(dims)


def _checked(
    tensors: dict[str, NDArray[Any]], width: int, dim: int, kind: str, folder: Path
) -> dict[str, NDArray[np.float32]]:
    """The tensors of an FC layer, after a check of their names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (dim, width), "bias": (dim,)}
    if kind == "residual" and dim != width:
        raise StoreError(f"{folder}: a residual FC layer keeps the width {width}; dim is {dim}")
    if kind == "two_layer":
        hidden = len(tensors["hidden.bias"])
        shapes |= {"hidden.weight": (hidden, width), "hidden.bias": (hidden,), "out.weight": (dim, hidden)}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise StoreError(f"{folder}: {WEIGHTS} holds {found}; an FC layer of kind {kind} has {shapes}")
    return {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
